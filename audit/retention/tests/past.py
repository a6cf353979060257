"""Months of the past with sealed records, for tests: each test takes one that nobody else has."""

from __future__ import annotations

import calendar
import itertools
import uuid
from collections.abc import Iterable
from datetime import date
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from django.db import connections
from django.utils import timezone

from audit.datakeys import DataKeys
from audit.entry import ALL_COLUMNS, INSERT, Entry, encode, python_values
from keyring.keys import ring


def make_month(months_ago: int) -> date:
    """The first day of the month that was so many months ago, with a partition."""
    today = timezone.now().date()
    index = today.year * 12 + today.month - 1 - months_ago
    month = date(index // 12, index % 12 + 1, 1)
    following = date((index + 1) // 12, (index + 1) % 12 + 1, 1)
    with connections["owner"].cursor() as cursor:
        cursor.execute(
            f"CREATE TABLE IF NOT EXISTS audit_record_{month:%Y%m} PARTITION OF audit_record"
            f" FOR VALUES FROM ('{month} 00:00+00') TO ('{following} 00:00+00')"
        )
    return month


def fresh_month(at_least_ago: int) -> date:
    """A month that no record is in yet, at least so many months ago."""
    for ago in itertools.count(at_least_ago):
        month = make_month(ago)
        with connections["owner"].cursor() as cursor:
            cursor.execute("SELECT records FROM audit_month_count(%s)", [month])
            here = cursor.fetchone()[0]
            cursor.execute("SELECT count(*) FROM audit_gap WHERE month = %s", [month])
            if not here and not cursor.fetchone()[0]:
                return month
    raise AssertionError


def write(month: date, entries: Iterable[dict[str, Any]]) -> list[uuid.UUID]:
    """Records of that month, a minute apart, written by the owner as the ledger would have written them."""
    rids = []
    seconds = itertools.count(calendar.timegm((month.year, month.month, 1, 0, 1, 0)), 60)
    with patch("audit.entry.time", SimpleNamespace(time_ns=lambda: next(seconds) * 10**9)):
        keys = DataKeys(ring())
        rows = [encode(Entry(**{"kind": "call", "code": "ok", **each}), keys, uuid.uuid4(), None) for each in entries]
    places = ", ".join(["%s"] * len(ALL_COLUMNS))
    with connections["owner"].cursor() as cursor:
        for row in rows:
            cursor.execute(f"{INSERT}({places})", python_values(row))
            rids.append(row.rid)
    return rids


def wait(hours: float) -> None:
    """How long certificates wait from now on."""
    with connections["owner"].cursor() as cursor:
        cursor.execute("UPDATE audit_gap_rule SET waiting = make_interval(secs => %s)", [hours * 3600])
