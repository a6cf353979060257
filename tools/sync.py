"""Ask a data source what it is and what it offers, from outside the call path (admin, REST, commands, jobs)."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import pydantic
from django.db import transaction
from django.utils import timezone

from audit.ledger import record
from audit.masking import known
from audit.system import system_event
from keyring.keys import DecryptionError
from tools.connectors.base import Connector, ConnectorError, Offer
from tools.connectors.registry import connector_class, source_of
from tools.definitions import MISSING, DefinitionRefused, publish
from tools.egress import Egress, Rule
from tools.models import DataSource, EgressRule, Tool
from tools.names import free_name, hold_names
from tools.offered import take_prompts, take_resources
from tools.outcome import SyncOutcome as SyncOutcome
from tools.outcome import printable

T = TypeVar("T")

_LONGEST_MESSAGE = 1_000


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """Whether the source can be used, and what was found, in one sentence."""

    ok: bool
    message: str


def egress_now() -> Egress:
    """The gate under the rules as they are in the database."""
    return Egress(Rule.parse(rule.network, rule.port) for rule in EgressRule.objects.all())


def _with_connector(row: DataSource, use: Callable[[Connector], Awaitable[T]]) -> T:
    """Open a connector for this one use. Runs in a thread of its own, since callers may be inside an event loop."""
    connector = connector_class(row.kind)(source_of(row), egress_now())

    async def once() -> T:
        try:
            return await use(connector)
        finally:
            await connector.close()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(lambda: asyncio.run(once())).result()


def check_source(row: DataSource) -> CheckOutcome:
    """Connect once, and remember the outcome at the source."""
    try:
        found = _with_connector(row, lambda connector: connector.check())
        outcome = CheckOutcome(True, printable(found, _LONGEST_MESSAGE))
    except (ConnectorError, DecryptionError, ValueError) as error:
        said = known().refresh().text(_sentence(error))
        outcome = CheckOutcome(False, printable(said, _LONGEST_MESSAGE))
    with transaction.atomic():
        before = DataSource.objects.select_for_update().values_list("check_ok", flat=True).get(pk=row.pk)
        DataSource.objects.filter(pk=row.pk).update(
            checked_at=timezone.now(), check_ok=outcome.ok, check_message=outcome.message
        )
        if outcome.ok is not (before is not False):
            _record_turn(row, outcome)
    row.refresh_from_db(fields=["checked_at", "check_ok", "check_message"])
    return outcome


def _record_turn(row: DataSource, outcome: CheckOutcome) -> None:
    """It was well and is not any more, or the other way round: each is recorded once, however often it is checked."""
    code = "check_recovered" if outcome.ok else "check_failed"
    said = {"label": str(row), "message": outcome.message}
    about = {"connector": row.name, "object_type": row._meta.label, "object_id": str(row.pk)}
    record(system_event(code, said, **about))


def _sentence(error: Exception) -> str:
    if isinstance(error, pydantic.ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"The option {'.'.join(str(part) for part in first['loc'])} is wrong: {first['msg']}."
    return str(error) or type(error).__name__


def sync_source(row: DataSource, take: Callable[[], list[Offer]] | None = None) -> SyncOutcome:
    """Bring the source's tools, prompts and resources up to date with its offers. Raises ConnectorError and ValueError.

    `take` gives the offers of who has a connection already; else one is made.

    New tools are enabled, with their effect prefilled from the upstream's hints; no role may call them before a grant
    names them. Whatever an administrator has set since (name, effect, tags) stays. What is refused stays as it was.

    A tool that is no longer offered stays in the catalogue, switched off. When it comes back as it was, it is switched
    on again, and counts as changed; when its definition is another one by then, or when an administrator had switched
    it off, it stays off until an administrator has looked at it.
    """
    if not connector_class(row.kind).discovers:
        return _republish(row)
    offers = take() if take else _with_connector(row, lambda connector: connector.discover())
    outcome = SyncOutcome()
    with transaction.atomic():
        DataSource.objects.select_for_update().get(pk=row.pk)
        hold_names()
        known = {tool.spec.get("name"): tool for tool in row.tools.select_related("source", "current")}
        of_tools = [offer for offer in offers if offer.kind == "tool"]
        names = Counter(offer.name for offer in of_tools)
        for offer in of_tools:
            _take(row, offer, known.get(offer.name), names[offer.name], outcome)
        _switch_off_missing(known, set(names), outcome)
        take_prompts(row, (offer for offer in offers if offer.kind == "prompt"), outcome)
        take_resources(row, (offer for offer in offers if offer.kind in ("resource", "template")), outcome)
        DataSource.objects.filter(pk=row.pk).update(synced_at=timezone.now())
    row.refresh_from_db(fields=["synced_at"])
    return outcome


def _republish(row: DataSource) -> SyncOutcome:
    outcome = SyncOutcome()
    for tool in row.tools.select_related("source", "current"):
        before = tool.current_id
        try:
            publish(tool)
        except DefinitionRefused as error:
            outcome.refused[tool.name] = str(error)
            continue
        (outcome.unchanged if tool.current_id == before else outcome.changed).append(tool.name)
    return outcome


def _take(row: DataSource, offer: Offer, existing: Tool | None, times: int, outcome: SyncOutcome) -> None:
    name = existing.name if existing else row.prefix + offer.name
    try:
        if times > 1:
            raise DefinitionRefused(f"The source offers {times} tools of this name.")
        if offer.fault:
            raise DefinitionRefused(offer.fault)
        _check_spec(row, offer)
        with transaction.atomic():
            if existing is None:
                outcome.created.append(_create(row, offer))
            else:
                (outcome.changed if _update(existing, offer) else outcome.unchanged).append(name)
    except ValueError as error:
        outcome.refused[printable(name)] = printable(str(error), _LONGEST_MESSAGE)


def _check_spec(row: DataSource, offer: Offer) -> None:
    if "\\u0000" in json.dumps(offer.spec):
        raise DefinitionRefused("The definition names an argument with a NUL character.")
    try:
        connector_class(row.kind).ToolSpec.model_validate(offer.spec)
    except pydantic.ValidationError as error:
        raise DefinitionRefused(_sentence(error)) from error


def _create(row: DataSource, offer: Offer) -> str:
    name = free_name(row, offer.name, Tool)
    tool = Tool.objects.create(source=row, name=name, spec=offer.spec, effect=offer.effect or Tool.Effect.WRITE)
    publish(tool, offer.definition)
    return name


def _update(tool: Tool, offer: Offer) -> bool:
    """Whether the tool is not as it was before."""
    before, was_missing = tool.current_id, tool.spec.get(MISSING) is True
    if tool.spec != offer.spec:
        tool.spec = offer.spec
        tool.save(update_fields=["spec", "updated_at"])
    publish(tool, offer.definition)
    if was_missing and tool.current_id == before:
        tool.enabled = True
        tool.save(update_fields=["enabled", "updated_at"])
    return was_missing or tool.current_id != before


def _switch_off_missing(known: dict[Any, Tool], offered: set[str], outcome: SyncOutcome) -> None:
    for name, tool in known.items():
        if tool.enabled and name not in offered:
            tool.enabled = False
            tool.spec = {**tool.spec, MISSING: True}
            tool.save(update_fields=["enabled", "spec", "updated_at"])
            outcome.missing.append(tool.name)
