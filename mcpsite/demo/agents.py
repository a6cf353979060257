"""The demo's agent: it looks into a customer's question with real tools. Its model is a script, and says so."""

from __future__ import annotations

from access.models import Role
from agents.accounts import keep_account
from agents.models import Agent, ModelProvider
from mcpsite.bootstrap import DOOR, record_created
from tools.models import Toolset

_PROVIDER, _AGENT = "scripted-demo", "support-triage"

_SCRIPT = """\
# Each step calls a tool or says something; {{ … }} stands for a value of the task or of an earlier result.
- call: get_order
  with: {number: "{{ word:SO- }}"}
  otherwise: "Please name the order, such as SO-100042: I found none in the task."
- call: get_customer
  with: {customer_id: "{{ get_order.rows.0.customer_id }}"}
  otherwise: "There is no order {{ word:SO- }}. Please check its number with the customer."
- call: list_customer_orders
  with: {customer_id: "{{ get_order.rows.0.customer_id }}", max_results: 5}
- say: |-
    Order {{ get_order.rows.0.number }} of {{ get_order.rows.0.customer }} ({{ get_order.rows.0.country }}) is \
{{ get_order.rows.0.status }}: {{ get_order.rows.0.total }} EUR, delivery by {{ get_order.rows.0.delivery }}.

    The customer has {{ get_customer.rows.0.orders }} orders with us, has spent \
{{ get_customer.rows.0.spent_eur }} EUR, and has {{ get_customer.rows.0.open_tickets }} open tickets. \
Their latest order is {{ list_customer_orders.rows.0.number }} ({{ list_customer_orders.rows.0.status }}).

    Next: tell the customer the state of the order.
"""

_INSTRUCTIONS = """\
You triage questions of customers for the support desk.
Find the order that the question is about, then the customer, then their other orders.
Say in a few sentences what the state of the order is, what kind of customer asks, and what should be done next.
Never promise anything, and change nothing: people answer the customer.
"""


def ensure_agents() -> None:
    """Make the provider and the agent, unless somebody has made ones of these names."""
    if Agent.objects.filter(name=_AGENT).exists() or ModelProvider.objects.filter(name=_PROVIDER).exists():
        return
    provider = ModelProvider.objects.create(
        name=_PROVIDER,
        kind=ModelProvider.Kind.SCRIPTED,
        description="Follows a fixed script, so that agents can be tried without a language model.",
        script=_SCRIPT,
    )
    record_created(provider)
    agent = Agent(
        name=_AGENT,
        description="Looks into a customer's question: name an order, such as SO-100042.",
        instructions=_INSTRUCTIONS,
        provider=provider,
        role=Role.objects.get(name="support_agent"),
        toolset=Toolset.objects.filter(name="support").first(),
    )
    keep_account(agent, door=DOOR)
    agent.save()
    record_created(agent)
