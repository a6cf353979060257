"""Evidence of a test's own: temporary tables that stand before those of the site, and go with the transaction."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from django.db import connection

from audit.entry import Entry
from audit.ledger import record
from audit.models import Record
from bench.small_sealer import COLUMNS, SmallSealer, store

Seal = Callable[[int], SmallSealer]


@pytest.fixture
def evidence(db: None) -> SmallSealer:
    """A sealer that has sealed nothing yet."""
    with connection.cursor() as cursor:
        for table in COLUMNS:
            cursor.execute(f"CREATE TEMPORARY TABLE {table} (LIKE public.{table} INCLUDING ALL)")
    return SmallSealer()


def make_record(**values: object) -> Record:
    rid: UUID = record(Entry(**{"kind": "call", "code": "ok", **values}))  # type: ignore[arg-type]
    return Record.objects.get(rid=rid)


def seal(sealer: SmallSealer, before: int, *records: Record, after: int = 0) -> None:
    """Seal the records among so many others, in three heads, and store that."""
    start = datetime(2026, 11, 23, tzinfo=UTC)
    other = iter(range(10**9, 10**9 + before + after))
    sealer.leaves((each, start, each.to_bytes(32)) for each, _ in zip(other, range(before), strict=False))
    sealer.head(start)
    sealer.leaves((each.pk, each.at, bytes(each.leaf)) for each in records)
    sealer.head(start + timedelta(seconds=1))
    sealer.leaves((each, start, each.to_bytes(32)) for each in other)
    sealer.head(start + timedelta(seconds=2))
    with connection.cursor() as cursor:
        store(cursor, sealer.rows)
