"""Tickets and messages of the demo company: each fits the order, the parcel and the product that it is about."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from mcpsite.demo.dice import Dice
from mcpsite.demo.trade import DAYS, Article, Customer, Order
from mcpsite.demo.words import AGENTS, DEFECTS, GREETINGS, QUESTIONS, TOPICS

TICKETS = 4_300
_ABOUT_ORDERS = 0.84
_MEDIAN_HOURS = {"urgent": 5.0, "high": 16.0, "normal": 40.0, "low": 90.0}
_CHANNELS = ("email", "chat", "phone", "web")
_THANKS = ("That was quick, thank you!", "Perfect, thanks for your help.", "Thank you, it works now.", "Great, thanks.")
_STUCK_DAYS, _STUCK = 21, 0.3
_CLOSED_AFTER = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a ticket's thread."""

    author: str
    author_name: str
    body: str
    sent_at: datetime


@dataclass(slots=True)
class Ticket:
    """What a customer asks, and how far it has come."""

    customer: Customer
    order: Order | None
    article: Article | None
    subject: str
    words: tuple[str, str, str, str]
    priority: str
    created_at: datetime
    channel: str = "email"
    status: str = "open"
    assignee: str | None = None
    resolved_at: datetime | None = None
    messages: list[Message] = field(default_factory=list)


def make_tickets(
    dice: Dice, now: datetime, customers: list[Customer], articles: list[Article], orders: list[Order]
) -> list[Ticket]:
    """Tickets with their threads, oldest first."""
    count = int(TICKETS * _ABOUT_ORDERS)
    asked = [_about_order(dice, now, dice.pick(orders)) for _ in range(count)]
    asked += [_question(dice, now, dice.pick(customers), dice.pick(articles)) for _ in range(TICKETS - count)]
    asked.sort(key=lambda ticket: ticket.created_at)
    for ticket in asked:
        _handle(ticket, dice, now)
    return asked


def _about_order(dice: Dice, now: datetime, order: Order) -> Ticket:
    article = dice.pick(order.lines).article
    kind, earliest, latest = _occasion(order, dice)
    created_at = _moment(dice, earliest, min(latest, now))
    topic, facts = TOPICS[kind], _facts(order, article, dice)
    words = (topic.opening, topic.question, topic.answer, topic.solution)
    return Ticket(
        customer=order.customer,
        order=order,
        article=article,
        subject=_filled(topic.subject, facts),
        words=_four(tuple(_filled(text, facts) for text in words)),
        priority=dice.pick(topic.priorities),
        created_at=created_at,
        channel=dice.weighted(_CHANNELS, (55, 22, 8, 15)),
    )


def _occasion(order: Order, dice: Dice) -> tuple[str, datetime, datetime]:
    """What the ticket is about, and between when it must have been written."""
    start, parcel = order.ordered_at, order.shipment
    if order.status == "cancelled":
        return "cancel", start, start + timedelta(hours=6)
    if order.handed_over_at is not None:
        return _after_arrival(order, order.handed_over_at, dice)
    if parcel is None:
        kind = dice.pick(("pickup", "when") if order.delivery == "pickup" else ("when", "address", "when"))
        return kind, start, start + timedelta(days=2)
    if parcel.status in ("delayed", "lost"):
        return "late", parcel.expected_at, parcel.expected_at + timedelta(days=9)
    return "where", parcel.shipped_at, parcel.expected_at


def _after_arrival(order: Order, arrived: datetime, dice: Dice) -> tuple[str, datetime, datetime]:
    parcel = order.shipment
    if order.status == "returned":
        return "return", arrived, arrived + timedelta(days=12)
    if parcel is not None and dice.chance(0.3):
        return "where", parcel.shipped_at + (arrived - parcel.shipped_at) / 2, arrived
    kind = dice.weighted(("defect", "invoice", "return", "damaged"), (50, 22, 12, 16 if parcel else 0))
    return kind, arrived, arrived + timedelta(days=3 if kind == "damaged" else 45)


def _moment(dice: Dice, earliest: datetime, latest: datetime) -> datetime:
    moment = earliest + (max(latest, earliest) - earliest) * float(dice.roll() ** 1.5)
    return moment.replace(microsecond=0)


def _facts(order: Order, article: Article, dice: Dice) -> dict[str, str]:
    problem, symptom, remedy = dice.pick(DEFECTS[article.product.category])
    parcel = order.shipment
    return {
        "number": order.number,
        "product": article.product.name,
        "city": order.customer.city,
        "carrier": parcel.carrier if parcel else "the carrier",
        "tracking": parcel.tracking_number if parcel else "",
        "whereabouts": _whereabouts(order),
        "problem": problem,
        "symptom": symptom,
        "remedy": remedy,
    }


def _whereabouts(order: Order) -> str:
    parcel = order.shipment
    if parcel is None or parcel.status == "in_transit":
        return "it is on its way again"
    if parcel.status == "lost":
        return "it is lost, so we give you the money back"
    if parcel.delivered_at is None:
        return "it is in the depot near you and comes with the next tour"
    return f"it was handed over on {parcel.delivered_at:%d %B}"


def _filled(text: str, facts: dict[str, str]) -> str:
    filled = text.format_map(facts)
    return filled[:1].upper() + filled[1:]


def _four(words: tuple[str, ...]) -> tuple[str, str, str, str]:
    first, second, third, fourth = words
    return first, second, third, fourth


def _question(dice: Dice, now: datetime, customer: Customer, article: Article) -> Ticket:
    subject, opening, solution = dice.pick(QUESTIONS)
    facts = {"product": article.product.name}
    concerned = article if "{product}" in subject + opening else None
    earliest = max(customer.created_at, article.launched_at, now - timedelta(days=DAYS))
    words = (opening, "Thank you for writing. I am looking into it and come back to you.", "Thank you.", solution)
    return Ticket(
        customer=customer,
        order=None,
        article=concerned,
        subject=_filled(subject, facts),
        words=_four(tuple(_filled(text, facts) for text in words)),
        priority=dice.weighted(("low", "normal", "high"), (55, 40, 5)),
        created_at=_moment(dice, earliest, now),
        channel=dice.weighted(_CHANNELS, (50, 30, 10, 10)),
    )


def _handle(ticket: Ticket, dice: Dice, now: datetime) -> None:
    """Let the desk work on the ticket until `now`, and write its thread."""
    stuck = now - ticket.created_at < timedelta(days=_STUCK_DAYS) and dice.chance(_STUCK)
    done_at = ticket.created_at + dice.hours_around(_MEDIAN_HOURS[ticket.priority]) + timedelta(minutes=12)
    agent = dice.pick(AGENTS)
    if stuck or done_at > now:
        _leave_open(ticket, agent, dice, now)
        return
    ticket.assignee, ticket.resolved_at = agent, done_at
    ticket.status = "closed" if now - done_at > _CLOSED_AFTER else "resolved"
    opening, question, answer, solution = ticket.words
    spoken = [("customer", opening)]
    if dice.chance(0.25):
        spoken += [("agent", question), ("customer", answer)]
    spoken.append(("agent", solution))
    _write(ticket, spoken, agent, done_at)
    if dice.chance(0.5):
        thanks_at = min(done_at + dice.hours_around(4), now)
        ticket.messages.append(_message(ticket, ("customer", dice.pick(_THANKS)), agent, thanks_at))


def _leave_open(ticket: Ticket, agent: str, dice: Dice, now: datetime) -> None:
    opening, question, answer, _ = ticket.words
    spoken = [("customer", opening)]
    if dice.chance(0.6):
        spoken.append(("agent", question))
        ticket.assignee, ticket.status = agent, "waiting"
    if ticket.status == "waiting" and dice.chance(0.5):
        spoken.append(("customer", answer))
        ticket.status = "open"
    _write(ticket, spoken, agent, now)


def _write(ticket: Ticket, spoken: list[tuple[str, str]], agent: str, until: datetime) -> None:
    step = (until - ticket.created_at) / max(1, len(spoken) - 1 if ticket.resolved_at else len(spoken))
    for number, said in enumerate(spoken):
        ticket.messages.append(_message(ticket, said, agent, ticket.created_at + number * step))


def _message(ticket: Ticket, said: tuple[str, str], agent: str, at: datetime) -> Message:
    author, text = said
    customer = ticket.customer
    if author == "agent":
        body = f"Dear {customer.name},\n\n{text}\n\nKind regards\n{agent}"
        return Message(author, agent, body, at.replace(microsecond=0))
    greeting = GREETINGS[customer.country.language] if ticket.channel != "chat" else "Hi"
    return Message(author, customer.name, f"{greeting},\n\n{text}\n\n{customer.first_name}", at.replace(microsecond=0))
