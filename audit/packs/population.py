"""The population: how many records of which sort there were on which day, counted from the ledger."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from django.db.models import Count, Max, Min, QuerySet
from django.db.models.functions import TruncDate

from audit.codes import CARRIED_OUT
from audit.models import Record
from audit.packs.scope import PackScope

COLUMNS = ("day", "kind", "decision", "code", "tool", "connector", "records")


@dataclass(slots=True)
class Population:
    """Rows under `COLUMNS`, and what they add up to."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    total: int = 0
    by_kind: Counter[str] = field(default_factory=Counter)
    by_tool: dict[str, Counter[str]] = field(default_factory=dict)
    by_day: dict[date, Counter[str]] = field(default_factory=dict)
    actors: int = 0
    policies: list[dict[str, Any]] = field(default_factory=list)


FATES = ("done", "failed", "refused", "other")


def fate_of(kind: str, decision: str | None, code: str) -> str:
    """What became of it: `done`, `failed`, `refused`, or `other` for what is no call."""
    if decision == Record.Decision.DENY or kind in (Record.Kind.DENIED, Record.Kind.INVALID):
        return "refused" if kind not in (Record.Kind.AUTH, Record.Kind.CONFIG, Record.Kind.SYSTEM) else "other"
    if kind in (Record.Kind.CALL, Record.Kind.OUTCOME):
        return "done" if code in CARRIED_OUT else "failed"
    return "other"


def population_of(scope: PackScope) -> Population:
    """Count the calls in scope, and everything that is no call."""
    found = Population()
    rows = scope.chosen()
    for day, kind, decision, code, tool, connector, records in _counted(rows):
        found.rows.append((day.isoformat(), kind, decision, code, tool, connector, records))
        found.total += records
        found.by_kind[kind] += records
        fate = fate_of(kind, decision, code)
        found.by_day.setdefault(day, Counter())[fate] += records
        if tool and fate != "other":
            found.by_tool.setdefault(tool, Counter())[fate] += records
    found.actors = rows.exclude(actor=None).values("actor").distinct().count()
    versions = rows.exclude(policy_version=None).values("policy_version").order_by("policy_version")
    counted = versions.annotate(first=Min("at"), last=Max("at"), records=Count("id"))
    found.policies = [dict(each) for each in counted]
    return found


def _counted(rows: QuerySet[Record]) -> Any:
    columns = ("day", "kind", "decision", "code", "tool", "connector")
    grouped = rows.order_by().annotate(day=TruncDate("at")).values(*columns).annotate(records=Count("id"))
    return grouped.order_by(*columns).values_list(*columns, "records").iterator()
