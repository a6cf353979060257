"""The service account that an agent calls as, and who may decide over agents: nobody gains a role by making one."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ValidationError

from access.models import Role, User
from access.privileges import Actor, check_groups, may_manage
from agents.models import Agent, ModelProvider
from audit.changes import delete_recorded, record_change, stored

PREFIX = "agent-"


def may_edit_agent(actor: Actor, agent: Agent) -> bool:
    """Whether `actor` may change the agent: whoever writes its instructions uses its role."""
    return may_manage(actor, agent.account)


def may_edit_provider(actor: Actor, provider: ModelProvider) -> bool:
    """Whether `actor` may change the provider: what it answers decides what its agents call."""
    agents = provider.agents.select_related("account")
    return all(may_manage(actor, agent.account) for agent in agents)


def check_role(actor: Actor, agent: Agent | None, role: Role) -> None:
    """Refuse a role that `actor` may not give. Raises ValidationError."""
    check_groups(actor, agent.account if agent is not None else None, [role])


def keep_account(agent: Agent, *, door: str, request: Any = None) -> User:
    """Make the agent's account, or bring it into line with the agent; on record. Before the agent is saved.

    Raises ValidationError when somebody else has its name.
    """
    known: User | None = User.objects.filter(agent=agent).first()
    account = known or User(is_service=True)
    before = stored(account) if known else {}
    account.username = f"{PREFIX}{agent.name}"
    if User.objects.filter(username=account.username).exclude(pk=account.pk).exists():
        raise ValidationError(f"There is a user {account.username} already: choose another name.", code="name_taken")
    account.is_active = agent.enabled
    if not known:
        account.set_unusable_password()
    account.save()
    account.groups.set([agent.role])
    agent.account = account
    action: Any = "update" if before else "create"
    record_change(action=action, obj=account, before=before, after=stored(account), door=door, request=request)
    return account


def delete_agent(agent: Agent, *, door: str, request: Any = None) -> None:
    """Delete the agent with its account; on record. In a transaction of the caller."""
    account = agent.account
    delete_recorded(agent, door=door, request=request)
    delete_recorded(account, door=door, request=request)
