"""What the ledger comes to: calls by time, outcome and tool, and how long they took.

The questions are bound to a range of time and answered from indexes; what needs many records is kept in the cache for
the longer the longer it took, so that looking at it never costs more than a small part of the database.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.core.cache import cache
from django.db import connection
from django.db.models import QuerySet
from django.utils import timezone

from audit.models import Record

_SHORTEST, _LONGEST, _TIMES_AS_LONG = 10, 300, 30
_LATELY = timedelta(days=30)

# An intent is not counted: its outcome is. `invalid` are refusals too, so that each call is in one of three parts.
_CALLS = "at >= %(since)s AND at < %(until)s AND kind IN ('call', 'outcome', 'denied', 'invalid')"
_PARTS = """
    count(*) FILTER (WHERE decision IS DISTINCT FROM 'deny' AND code = 'ok'),
    count(*) FILTER (WHERE decision = 'deny'),
    count(*) FILTER (WHERE decision IS DISTINCT FROM 'deny' AND code <> 'ok')
"""
_BY_TIME = f"""
    SELECT extract(epoch FROM date_bin(%(step)s, at, 'epoch'))::bigint, {_PARTS}
    FROM audit_record WHERE {_CALLS} GROUP BY 1
"""  # noqa: S608 - constants
_BY_TOOL = f"""
    SELECT connector, tool, {_PARTS}
    FROM audit_record WHERE {_CALLS} AND connector IS NOT NULL AND tool IS NOT NULL
    GROUP BY 1, 2 ORDER BY count(*) DESC, 2 LIMIT 1000
"""  # noqa: S608 - constants
_LATENCY = """
    SELECT percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY total_us)
    FROM audit_record WHERE at >= %(since)s AND at < %(until)s AND kind IN ('call', 'outcome')
"""


@dataclass(frozen=True, slots=True)
class Parts:
    """A number of calls, by what became of them."""

    ok: int = 0
    denied: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.ok + self.denied + self.failed

    def __add__(self, other: Parts) -> Parts:
        return Parts(self.ok + other.ok, self.denied + other.denied, self.failed + other.failed)


@dataclass(frozen=True, slots=True)
class Bar:
    """The calls from `start` until `end`, which may still be to come."""

    start: datetime
    end: datetime
    parts: Parts


@dataclass(frozen=True, slots=True)
class Usage:
    """The calls of one tool."""

    source: str
    tool: str
    parts: Parts


@dataclass(frozen=True, slots=True)
class Summary:
    """The calls since `since`. `p50_us` and `p95_us` are None when nothing was called."""

    since: datetime
    bars: list[Bar]
    tools: list[Usage]
    p50_us: int | None
    p95_us: int | None

    @property
    def parts(self) -> Parts:
        """All calls."""
        return sum((bar.parts for bar in self.bars), Parts())

    def of_sources(self) -> dict[str, Parts]:
        """Calls by the name of the data source."""
        found: dict[str, Parts] = {}
        for each in self.tools:
            found[each.source] = found.get(each.source, Parts()) + each.parts
        return found


def calls(span: timedelta, step: timedelta) -> Summary:
    """The calls of the present step and of the span before it. `step` divides a day; both are whole hours."""
    key = f"audit.summary:{int(span.total_seconds())}:{int(step.total_seconds())}"
    found = cache.get(key)
    if found is None:
        started = time.monotonic()
        found = _measured(span, step)
        took = time.monotonic() - started
        cache.set(key, found, round(min(max(took * _TIMES_AS_LONG, _SHORTEST), _LONGEST)))
    return _summary(found, step)


def _measured(span: timedelta, step: timedelta) -> dict[str, Any]:
    """The answers of the database, as JSON can hold them."""
    now, seconds = timezone.now(), int(step.total_seconds())
    first = int(now.timestamp()) // seconds * seconds - int(span.total_seconds())
    values: dict[str, Any] = {"since": datetime.fromtimestamp(first, UTC), "until": now, "step": step}
    with connection.cursor() as cursor:
        cursor.execute(_BY_TIME, values)
        bars = cursor.fetchall()
        cursor.execute(_BY_TOOL, values)
        tools = cursor.fetchall()
        cursor.execute(_LATENCY, values)
        latency = cursor.fetchone()[0] or [None, None]
    return {"first": first, "until": now.timestamp(), "bars": bars, "tools": tools, "latency": latency}


def _summary(found: dict[str, Any], step: timedelta) -> Summary:
    known = {start: Parts(*counts) for start, *counts in found["bars"]}
    seconds = int(step.total_seconds())
    starts = range(found["first"], int(found["until"]) + 1, seconds)
    bars = [Bar(_at(start), _at(start + seconds), known.get(start, Parts())) for start in starts]
    tools = [Usage(source, tool, Parts(*counts)) for source, tool, *counts in found["tools"]]
    return Summary(_at(found["first"]), bars, tools, *found["latency"])


def _at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _latest() -> QuerySet[Record]:
    return Record.objects.filter(at__gte=timezone.now() - _LATELY).defer("ct").order_by("-at", "-id")


def latest_denials(how_many: int) -> list[Record]:
    """What was refused of late, calls and logins, newest first."""
    return list(_latest().filter(decision=Record.Decision.DENY)[:how_many])


def latest_changes(how_many: int) -> list[Record]:
    """What was changed of late, newest first."""
    return list(_latest().filter(kind=Record.Kind.CONFIG)[:how_many])


def denied_since(moment: datetime) -> int:
    """How many calls and logins were refused since then."""
    return Record.objects.filter(at__gte=moment, decision=Record.Decision.DENY).count()


def anything_called() -> bool:
    """Whether any tool was ever called."""
    return Record.objects.filter(kind__in=(Record.Kind.CALL, Record.Kind.OUTCOME)).exists()
