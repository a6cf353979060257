"""Ask a data source what it is and what it offers, from outside the call path (admin, REST, commands, jobs)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import pydantic
from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from keyring.keys import DecryptionError
from tools.connectors.base import Connector, ConnectorError, Offer
from tools.connectors.registry import connector_class, source_of
from tools.definitions import DefinitionRefused, publish
from tools.egress import Egress, Rule
from tools.models import DataSource, EgressRule, Tool, tool_name

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """Whether the source can be used, and what was found, in one sentence."""

    ok: bool
    message: str


@dataclass(frozen=True, slots=True)
class SyncOutcome:
    """The names of the tools by what became of them. `refused` says why for each."""

    created: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


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
        outcome = CheckOutcome(True, _with_connector(row, lambda connector: connector.check()))
    except (ConnectorError, DecryptionError, ValueError) as error:
        outcome = CheckOutcome(False, _sentence(error))
    DataSource.objects.filter(pk=row.pk).update(
        checked_at=timezone.now(), check_ok=outcome.ok, check_message=outcome.message
    )
    row.refresh_from_db(fields=["checked_at", "check_ok", "check_message"])
    return outcome


def _sentence(error: Exception) -> str:
    if isinstance(error, pydantic.ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"The option {'.'.join(str(part) for part in first['loc'])} is wrong: {first['msg']}."
    return str(error) or type(error).__name__


def sync_source(row: DataSource) -> SyncOutcome:
    """Bring the source's tools up to date with what it offers. Raises ConnectorError and ValueError.

    New tools are enabled, with their effect prefilled from the upstream's hints; no role may call them before a grant
    names them. A tool that is no longer offered stays in the catalogue, switched off.
    """
    if not connector_class(row.kind).discovers:
        return _republish(row)
    offers = _with_connector(row, lambda connector: connector.discover())
    outcome = SyncOutcome()
    with transaction.atomic():
        for offer in offers:
            _take(row, offer, outcome)
        _switch_off_missing(row, {offer.name for offer in offers}, outcome)
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


def _take(row: DataSource, offer: Offer, outcome: SyncOutcome) -> None:
    name = row.prefix + offer.name
    existing = Tool.objects.filter(source=row, spec__name=offer.name).select_related("source", "current").first()
    try:
        if existing is None:
            _create(row, name, offer)
            outcome.created.append(name)
            return
        before = existing.current_id
        existing.spec = offer.spec
        with transaction.atomic():
            existing.save(update_fields=["spec", "updated_at"])
            publish(existing, offer.definition)
        (outcome.unchanged if existing.current_id == before else outcome.changed).append(existing.name)
    except ValueError as error:
        outcome.refused[name] = str(error)


def _create(row: DataSource, name: str, offer: Offer) -> None:
    try:
        tool_name(name)
    except ValidationError as error:
        raise DefinitionRefused(f"The name {name!r} cannot be used: 1 to 64 letters, digits, _ and -.") from error
    if Tool.objects.filter(name=name).exists():
        raise DefinitionRefused(f"There is another tool named {name!r}: give this data source a prefix.")
    with transaction.atomic():
        tool = Tool.objects.create(source=row, name=name, spec=offer.spec, effect=offer.effect or Tool.Effect.WRITE)
        publish(tool, offer.definition)


def _switch_off_missing(row: DataSource, offered: set[str], outcome: SyncOutcome) -> None:
    for tool in row.tools.filter(enabled=True):
        if tool.spec.get("name") not in offered:
            tool.enabled = False
            tool.save(update_fields=["enabled", "updated_at"])
            outcome.missing.append(tool.name)
