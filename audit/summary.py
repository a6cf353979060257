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

from audit.codes import CARRIED_OUT
from audit.models import Record
from audit.patience import TooSlow, at_most

_SHORTEST, _LONGEST, _TIMES_AS_LONG = 10, 300, 30
_NONE = (None, None)
_PATIENCE_MS = 5_000
_LATELY = timedelta(days=30)

# An intent is not counted: its outcome is. `invalid` are refusals too, so that each call is in one of three parts.
_CALLS = "at >= %(since)s AND at < %(until)s AND kind IN ('call', 'outcome', 'denied', 'invalid')"
_PARTS = f"""
    count(*) FILTER (WHERE decision IS DISTINCT FROM 'deny' AND code IN {CARRIED_OUT}),
    count(*) FILTER (WHERE decision IS DISTINCT FROM 'deny' AND code NOT IN {CARRIED_OUT}),
    count(*) FILTER (WHERE decision = 'deny')
"""
_BY_TIME = f"""
    SELECT extract(epoch FROM date_bin(%(step)s, at, 'epoch'))::bigint, {_PARTS}
    FROM audit_record WHERE {_CALLS} GROUP BY 1
"""  # noqa: S608 - constants
# The first row is of all tools together. One pass over the table: what most of the time goes into is reading it.
_BY_TOOL = f"""
    SELECT connector, tool, {_PARTS},
        percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY total_us) FILTER (WHERE kind IN ('call', 'outcome'))
    FROM audit_record WHERE {_CALLS} AND connector IS NOT NULL AND tool IS NOT NULL
    GROUP BY GROUPING SETS ((connector, tool), ()) ORDER BY GROUPING(tool) DESC, count(*) DESC, tool LIMIT 1001
"""  # noqa: S608 - constants


@dataclass(frozen=True, slots=True)
class Parts:
    """A number of calls, by what became of them."""

    ok: int = 0
    failed: int = 0
    refused: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.ok + self.failed + self.refused

    def __add__(self, other: Parts) -> Parts:
        return Parts(self.ok + other.ok, self.failed + other.failed, self.refused + other.refused)


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
    p95_us: int | None


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
    """The calls of the present step and of the span before it. `step` divides a day; both are whole hours.

    Raises TooSlow when there are more than can be counted while somebody waits.
    """
    key = f"audit.summary:{int(span.total_seconds())}:{int(step.total_seconds())}"
    found = cache.get(key)
    if found is None:
        found, seconds = _timed(span, step)
        cache.set(key, found, seconds)
    if not found:
        raise TooSlow
    return _summary(found, step)


def _timed(span: timedelta, step: timedelta) -> tuple[dict[str, Any], int]:
    """The answers of the database, empty where they took too long, and for how many seconds they are kept."""
    started = time.monotonic()
    try:
        with at_most(_PATIENCE_MS):
            found = _measured(span, step)
    except TooSlow:
        return {}, _LONGEST
    took = time.monotonic() - started
    return found, round(min(max(took * _TIMES_AS_LONG, _SHORTEST), _LONGEST))


def _measured(span: timedelta, step: timedelta) -> dict[str, Any]:
    """The answers of the database, as JSON can hold them."""
    now, seconds = timezone.now(), int(step.total_seconds())
    first = int(now.timestamp()) // seconds * seconds - int(span.total_seconds())
    values: dict[str, Any] = {"since": datetime.fromtimestamp(first, UTC), "until": now, "step": step}
    with connection.cursor() as cursor:
        cursor.execute(_BY_TIME, values)
        bars = cursor.fetchall()
        cursor.execute(_BY_TOOL, values)
        every, *tools = cursor.fetchall()
    return {"first": first, "until": now.timestamp(), "bars": bars, "every": every, "tools": tools}


def _summary(found: dict[str, Any], step: timedelta) -> Summary:
    known = {start: Parts(*counts) for start, *counts in found["bars"]}
    seconds = int(step.total_seconds())
    starts = range(found["first"], int(found["until"]) + 1, seconds)
    bars = [Bar(_at(start), _at(start + seconds), known.get(start, Parts())) for start in starts]
    tools = [_usage(*row) for row in found["tools"]]
    return Summary(_at(found["first"]), bars, tools, *(found["every"][-1] or _NONE))


def _usage(source: str, tool: str, ok: int, failed: int, refused: int, times: list[int] | None) -> Usage:
    return Usage(source, tool, Parts(ok, failed, refused), (times or _NONE)[1])


def _at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _latest() -> QuerySet[Record]:
    return Record.objects.filter(at__gte=timezone.now() - _LATELY).defer("ct").order_by("-at", "-id")


def latest_refusals(how_many: int) -> list[Record]:
    """What was refused of late, calls and logins, newest first."""
    return list(_latest().filter(decision=Record.Decision.DENY)[:how_many])


def latest_changes(how_many: int) -> list[Record]:
    """What was changed of late, newest first."""
    return list(_latest().filter(kind=Record.Kind.CONFIG)[:how_many])


def unknown_since(moment: datetime) -> int:
    """How many calls got no outcome since then."""
    return Record.objects.filter(at__gte=moment, code="unknown").count()


def refused_since(moment: datetime) -> int:
    """How many calls and logins were refused since then."""
    return Record.objects.filter(at__gte=moment, decision=Record.Decision.DENY).count()


def anything_called() -> bool:
    """Whether any tool was ever called."""
    return Record.objects.filter(kind__in=(Record.Kind.CALL, Record.Kind.OUTCOME)).exists()
