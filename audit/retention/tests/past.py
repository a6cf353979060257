"""Months of the past with sealed records, for tests: each test begins with an empty one."""

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


def fresh_month(ago: int) -> date:
    """The first day of the month that was so many months ago, with an empty partition."""
    today = timezone.now().date()
    index = today.year * 12 + today.month - 1 - ago
    month, following = (date(each // 12, each % 12 + 1, 1) for each in (index, index + 1))
    with connections["owner"].cursor() as cursor:
        # What an earlier test has left. Its leaves stay, as they do when records expire.
        cursor.execute(f"DROP TABLE IF EXISTS audit_record_{month:%Y%m}")
        cursor.execute(
            f"CREATE TABLE audit_record_{month:%Y%m} PARTITION OF audit_record"
            f" FOR VALUES FROM ('{month} 00:00+00') TO ('{following} 00:00+00')"
        )
    return month


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
