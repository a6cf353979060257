"""How far sealing has come, read by whoever watches it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

MOST_COUNTED = 10_000

# Each part goes by an index and touches a handful of rows, however long the ledger is.
PROGRESS = f"""
WITH sealed AS (SELECT coalesce(max(record_id), 0) AS id FROM audit_leaf),
     head AS (SELECT number, size, sealed_at FROM audit_head ORDER BY number DESC LIMIT 1)
SELECT (SELECT number FROM head), (SELECT size FROM head), (SELECT sealed_at FROM head),
       coalesce(extract(epoch FROM now() - (SELECT sealed_at FROM head))::float, 0),
       coalesce(extract(epoch FROM now() - (
           SELECT at FROM audit_record WHERE id > (SELECT id FROM sealed) AND NOT EXISTS (
               SELECT FROM audit_refused WHERE record_id = audit_record.id) ORDER BY id LIMIT 1))::float, 0),
       (SELECT count(*) FROM (
           SELECT FROM audit_record WHERE id > (SELECT id FROM sealed) AND NOT EXISTS (
               SELECT FROM audit_refused WHERE record_id = audit_record.id) LIMIT {MOST_COUNTED}) AS waiting),
       (SELECT count(*) FROM audit_refused r WHERE NOT EXISTS (
           SELECT FROM audit_leaf WHERE record_id = r.record_id))
"""  # noqa: S608 - a constant


class Progress(NamedTuple):
    """The newest head, the records that wait for the next one (at most MOST_COUNTED are counted), and those refused."""

    number: int | None
    size: int | None
    sealed_at: datetime | None
    head_age_seconds: float
    lag_seconds: float
    waiting: int
    refused: int

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> Progress:
        """From the row of PROGRESS. A clock of a writer that is ahead is no negative lag."""
        number, size, sealed_at, age, lag, *counts = row
        return cls(number, size, sealed_at, max(0.0, age), max(0.0, lag), *counts)
