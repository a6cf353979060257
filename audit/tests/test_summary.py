"""Calls are counted once, by what became of them, in the range that was asked for."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest
from django.core.cache import cache
from django.db import connection
from django.utils import timezone

from audit import summary
from audit.summary import Parts, calls

pytestmark = pytest.mark.django_db
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
# In a month whose partition is made beforehand, and far from what other tests leave behind.
_NEXT = (datetime.now(UTC).replace(day=1) + timedelta(days=32)).replace(day=20)
NOW = _NEXT.replace(hour=12, minute=30, second=0, microsecond=0)
_INSERT = (
    "INSERT INTO audit_record (rid, at, kind, writer_id, code, decision, connector, tool, total_us, leaf, mac)"
    " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, '', '')"
)


@pytest.fixture(autouse=True)
def at_a_fixed_time(monkeypatch):
    cache.clear()
    monkeypatch.setattr(timezone, "now", lambda: NOW)


def make_record(kind="call", code="ok", *, ago=timedelta(), tool="find", source="desk", took=1000) -> None:
    decision = {"call": "allow", "intent": "allow", "outcome": "allow", "denied": "deny", "invalid": "deny"}.get(kind)
    values = (uuid.uuid4(), NOW - ago - timedelta(minutes=1), kind, uuid.uuid4(), code, decision, source, tool, took)
    with connection.cursor() as cursor:
        cursor.execute(_INSERT, values)


def test_each_call_is_in_one_part():
    make_record()
    make_record("outcome")
    make_record("call", "tool_error")
    make_record("outcome", "upstream_timeout")
    make_record("denied", "not_granted")
    make_record("invalid", "invalid_arguments")
    assert calls(DAY, HOUR).parts == Parts(ok=2, failed=2, refused=2)


def test_an_intent_and_what_is_no_call_are_not_counted():
    make_record("intent", "intended")
    make_record("config", "update")
    make_record("auth", "login")
    assert calls(DAY, HOUR).parts.total == 0


def test_calls_stand_in_their_hour_and_the_present_one_is_the_last():
    make_record()
    make_record(ago=HOUR)
    make_record("denied", "not_granted", ago=HOUR)
    found = calls(DAY, HOUR)
    assert len(found.bars) == 25
    assert found.bars[-1].start == NOW.replace(minute=0)
    assert [bar.parts for bar in found.bars[-3:]] == [Parts(), Parts(ok=1, refused=1), Parts(ok=1)]


def test_what_was_before_is_left_out():
    make_record(ago=DAY + HOUR)
    make_record(ago=timedelta(days=3))
    assert calls(DAY, HOUR).parts.total == 0
    week = calls(timedelta(days=7), timedelta(hours=6))
    assert week.parts.total == 2
    assert week.since == NOW.replace(minute=0) - timedelta(days=7)


def test_latency_is_of_what_was_called():
    for took in range(1, 101):
        make_record(took=took)
    make_record("denied", "not_granted", took=10**6)
    found = calls(DAY, HOUR)
    assert (found.p50_us, found.p95_us) == (50, 95)


def test_without_calls_there_is_no_latency():
    found = calls(DAY, HOUR)
    assert (found.p50_us, found.p95_us, found.tools) == (None, None, [])


def test_tools_are_listed_by_use_and_add_up_to_sources():
    for _ in range(3):
        make_record(tool="often")
    make_record("call", "tool_error", tool="seldom")
    make_record(tool="other", source="office")
    make_record("denied", "unknown_tool", tool="made_up", source=None)
    found = calls(DAY, HOUR)
    assert [(each.tool, each.parts.total) for each in found.tools] == [("often", 3), ("other", 1), ("seldom", 1)]
    assert found.tools[0].p95_us == 1000
    assert found.of_sources() == {"desk": Parts(ok=3, failed=1), "office": Parts(ok=1)}


def test_what_was_counted_is_kept_for_a_while(django_assert_num_queries):
    make_record()
    first = calls(DAY, HOUR)
    make_record()
    with django_assert_num_queries(0):
        assert calls(DAY, HOUR) == first
    cache.clear()
    assert calls(DAY, HOUR).parts.total == 2


def test_the_latest_come_first():
    make_record("denied", "not_granted", ago=HOUR, tool="before")
    make_record("denied", "unknown_tool", tool="after")
    make_record("config", "update")
    assert [record.tool for record in summary.latest_refusals(5)] == ["after", "before"]
    assert [record.code for record in summary.latest_changes(5)] == ["update"]
    assert summary.refused_since(NOW - HOUR) == 1
