"""Reads the ledger in the order in which it was sealed, so that a place in it is exact.

Numbers of records become visible out of order, since transactions end out of order. The sealer's `seq` is dense and
only grows, so whoever has read all up to one `seq` has missed nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from typing import Any, Protocol

from audit.verify import time_text

# What leaves: neither arguments and results, nor what opens them. A new column stays here until it is named.
COLUMNS = (
    "rid",
    "at",
    "kind",
    "call_id",
    "writer_id",
    "writer_seq",
    "actor",
    "actor_id",
    "on_behalf_of",
    "token",
    "roles",
    "door",
    "client",
    "address",
    "connector",
    "tool",
    "effect",
    "definition",
    "policy_version",
    "decision",
    "code",
    "object_type",
    "object_id",
    "detail",
    "trace_id",
    "request_id",
    "args_commit",
    "result_commit",
    "result_bytes",
    "upstream_us",
    "total_us",
)
# However few records fit a filter, one look reads no more leaves than this.
WINDOW = 5_000
_SIZE = "SELECT coalesce(max(seq) + 1, 0) FROM audit_leaf"
# Each leaf looks its record up: joined otherwise, PostgreSQL reads the whole ledger where a filter leaves little.
_JOINED = """
    FROM audit_leaf l LEFT JOIN LATERAL (
        SELECT * FROM audit_record WHERE id = l.record_id AND at = l.at LIMIT 1) r ON true
    WHERE l.seq >= %(start)s AND l.seq < %(end)s
"""
_READ = f"""
    SELECT l.seq, r.id, r.leaf, {", ".join(f"r.{name}" for name in COLUMNS)} {_JOINED} AND (r.id IS NULL OR (
        (%(kinds)s::text[] = '{{}}' OR r.kind = ANY (%(kinds)s::text[]))
        AND (%(decisions)s::text[] = '{{}}' OR r.decision = ANY (%(decisions)s::text[]))
        AND (%(tools)s::text[] = '{{}}' OR r.tool = ANY (%(tools)s::text[]))))
    ORDER BY l.seq LIMIT %(limit)s
"""
_GONE = f"SELECT l.seq {_JOINED} AND r.id IS NULL ORDER BY l.seq"
Filters = Mapping[str, Sequence[str]]
EVERYTHING: Filters = {"kinds": (), "decisions": (), "tools": ()}


class Cursor(Protocol):
    """What reads: a cursor of Django or of psycopg."""

    def execute(self, sql: Any, params: Any = ...) -> Any:
        """Ask."""

    def fetchone(self) -> Any:
        """The next row."""

    def fetchall(self) -> list[Any]:
        """All rows."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """One record and its place."""

    seq: int
    number: int
    leaf: str
    values: dict[str, Any]

    @property
    def at(self) -> datetime:
        """When it was written."""
        at: datetime = self.values["at"]
        return at

    def body(self) -> dict[str, Any]:
        """As JSON: see docs/evidence.md, but without NULLs, and with the detail as an object."""
        shown = {name: _plain(name, value) for name, value in self.values.items() if value is not None}
        return {"seq": self.seq, "id": self.number, "leaf": self.leaf, "record": shown}


@dataclass(frozen=True, slots=True)
class Gone:
    """Places whose records are not there any more, next to each other."""

    first_seq: int
    last_seq: int

    @property
    def count(self) -> int:
        """How many."""
        return self.last_seq - self.first_seq + 1


@dataclass(frozen=True, slots=True)
class Stretch:
    """What was found from one place to before the next."""

    start: int
    end: int
    found: list[Sealed | Gone]


def size(cursor: Cursor) -> int:
    """How many records are sealed; the next gets this `seq`."""
    cursor.execute(_SIZE)
    return int(cursor.fetchone()[0])


def read(cursor: Cursor, start: int, filters: Filters, limit: int, until: int | None = None) -> Stretch:
    """At most `limit` records that fit, from the place `start`; `end` of the answer is where to go on.

    Records that are gone come alone, as one `Gone`.
    """
    end = min(size(cursor) if until is None else until, start + WINDOW)
    if end <= start:
        return Stretch(start, start, [])
    wanted = {name: list(filters.get(name, ())) for name in EVERYTHING}
    cursor.execute(_READ, {"start": start, "end": end, "limit": limit, **wanted})
    rows = cursor.fetchall()
    if rows and rows[0][1] is None:
        gone = _gone(cursor, rows[0][0], end)
        return Stretch(start, gone.last_seq + 1, [gone])
    there = list(takewhile(lambda row: row[1] is not None, rows))
    if len(there) < len(rows):
        end = int(rows[len(there)][0])
    elif len(rows) == limit:
        end = int(rows[-1][0]) + 1
    return Stretch(start, end, [_sealed(*row) for row in there])


def _gone(cursor: Cursor, first: int, end: int) -> Gone:
    cursor.execute(_GONE, {"start": first, "end": end})
    places = [int(seq) for (seq,) in cursor.fetchall()]
    run = [seq for place, seq in enumerate(places) if seq == first + place]
    return Gone(first, run[-1])


def _sealed(seq: int, number: int, leaf: Any, *values: Any) -> Sealed:
    return Sealed(seq, number, bytes(leaf).hex(), dict(zip(COLUMNS, values, strict=True)))


def _plain(name: str, value: Any) -> Any:
    if name == "detail":
        return _parsed(value)
    if isinstance(value, datetime):
        return time_text(value)
    if isinstance(value, (bytes, memoryview)):
        return bytes(value).hex()
    return value if isinstance(value, (int, str)) else str(value)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
