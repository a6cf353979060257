"""The timeline counts what it can, estimates the rest, says which is which, and leads into the time of each bar."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from access.models import User
from audit import timeline
from audit.entry import Entry
from audit.ledger import record
from audit.models import Record
from audit.timeline import MOST_BARS, Bar, Fate, Timeline, draw, grid, span, timeline_of

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
LIST = "/admin/audit/record/"


def make_records(number: int = 1, **values) -> None:
    for _ in range(number):
        record(Entry(**{"kind": "call", "code": "ok", "decision": "allow", "tool": "drawn", **values}))


def asleep(statement: str) -> str:
    """The statement, slower."""
    return statement.replace("GROUP BY 1, 2", "GROUP BY 1, 2, pg_sleep(5)::text")


def drawn() -> Timeline:
    return timeline_of(Record.objects.filter(tool="drawn"), None, None)


@pytest.mark.parametrize("long", [timedelta(0), *(timedelta(seconds=10**n) for n in range(9)), timedelta(days=9000)])
def test_bars_cover_the_whole_time_and_are_few(long):
    start, step, bars = grid(NOON - long, NOON)
    assert 1 <= bars <= MOST_BARS
    assert start <= NOON - long < start + timedelta(seconds=step)
    assert start + timedelta(seconds=step * bars) >= NOON


@pytest.mark.django_db
def test_what_became_of_records_is_told_apart():
    make_records(3)
    make_records(1, kind="outcome")
    make_records(2, code="tool_error")
    make_records(1, kind="denied", code="not_granted", decision="deny")
    make_records(1, kind="invalid", code="invalid_arguments", decision="deny")
    make_records(1, kind="intent", code="intended")
    make_records(1, kind="config", code="update", decision=None)
    found = drawn()
    counts = {fate: sum(bar.counts.get(fate, 0) for bar in found.bars) for fate in Fate}
    assert counts == {Fate.DONE: 4, Fate.FAILED: 2, Fate.REFUSED: 2, Fate.OTHER: 2}
    assert (found.total, found.estimated, found.begins) == (10, False, None)


@pytest.mark.django_db
def test_without_records_there_is_nothing_to_draw():
    assert timeline_of(Record.objects.filter(tool="no such tool"), None, None) == Timeline()


@pytest.mark.django_db
def test_more_than_can_be_counted_is_estimated_and_said_to_be(monkeypatch):
    make_records(60)
    monkeypatch.setattr(timeline, "MOST_COUNTED", 10)
    monkeypatch.setattr(timeline, "MOST_OF_A_BAR", 8)
    with CaptureQueriesContext(connection) as queries:
        found = drawn()
    assert found.estimated
    assert found.total > 0
    assert all("LIMIT" in each["sql"] for each in queries if "audit_record" in each["sql"])


def test_a_slice_is_estimated_from_the_time_that_its_newest_records_took():
    hour = timedelta(hours=1)
    most = 30
    parts = [(Fate.DONE, most - 3, NOON + hour * 0.75), (Fate.FAILED, 3, NOON + hour * 0.8)]
    guessed = timeline._slice(NOON, hour, parts, most, NOON - hour, NOON + hour * 2)
    assert (guessed.estimated, guessed.total) == (True, most * 4)
    ended = timeline._slice(NOON, hour, parts, most, NOON + hour / 2, NOON + hour)
    assert ended.total == most * 2
    known = timeline._slice(NOON, hour, [(Fate.DONE, most - 1, NOON)], most, NOON - hour, NOON + hour * 2)
    assert (known.estimated, known.total) == (False, most - 1)


@pytest.mark.parametrize(("step", "slices"), [(1, 4), (3_600, 4), (6 * 3_600, 6), (86_400, 24), (28 * 86_400, 24)])
def test_a_bar_is_cut_into_hours_but_not_into_too_many(step, slices):
    assert timeline.slices_of(step) == slices


@pytest.mark.django_db
def test_what_cannot_be_estimated_in_time_is_drawn_as_far_as_it_was_counted(monkeypatch):
    make_records(30)
    monkeypatch.setattr(timeline, "MOST_COUNTED", 10)
    monkeypatch.setattr(timeline, "_ESTIMATE", asleep(timeline._ESTIMATE))
    monkeypatch.setattr(timeline, "_ESTIMATE_MS", 50)
    found = drawn()
    assert (found.total, found.estimated) == (11, False)
    assert found.begins == Record.objects.filter(tool="drawn").order_by("-at")[10].at


@pytest.mark.django_db
def test_counting_that_takes_too_long_is_given_up(monkeypatch):
    make_records()
    monkeypatch.setattr(timeline, "_COUNT", asleep(timeline._COUNT))
    monkeypatch.setattr(timeline, "_PATIENCE_MS", 50)
    assert drawn() == Timeline(too_slow=True)
    assert Record.objects.filter(tool="drawn").exists()


@pytest.mark.django_db
def test_a_bar_leads_to_its_time_within_the_filters(client):
    client.force_login(User.objects.create_superuser("root"))
    make_records(3)
    page = client.get(LIST, {"tool": "drawn", "last": "1h"})
    bar = next(each for each in page.context["cl"].drawing.bars[::-1] if each.parts)
    assert "tool=drawn" in bar.url
    assert "last" not in bar.url
    assert bar.url.replace("&", "&amp;") in page.content.decode()
    found = client.get(LIST + bar.url).context["cl"]
    assert found.result_list
    assert found.timeline.total == len(found.result_list)
    assert found.wider_url


def test_blocks_are_stacked_to_the_height_of_their_number():
    bar = Bar(NOON, NOON + timedelta(hours=1), {Fate.DONE: 80, Fate.REFUSED: 20})
    drawing = draw(Timeline((bar,)), lambda each: "?x")
    done, refused = drawing.bars[0].parts
    assert drawing.highest == "100"
    assert (done.y, done.height, refused.y, refused.height) == (20, 80, 0, 20)
    assert drawing.bars[0].said == "23 Nov 12:00 to 13:00: 80 carried out, 20 refused"


def test_what_is_rare_is_still_seen():
    bar = Bar(NOON, NOON + timedelta(hours=1), {Fate.DONE: 99_999, Fate.REFUSED: 1})
    assert min(block.height for block in draw(Timeline((bar,)), lambda each: "").bars[0].parts) >= 1


@pytest.mark.parametrize(
    ("long", "said"),
    [
        (timedelta(seconds=5), "23 Nov 12:00:00 to 12:00:05"),
        (timedelta(hours=1), "23 Nov 12:00 to 13:00"),
        (timedelta(hours=13), "23 Nov 12:00 to 24 Nov 01:00"),
    ],
)
def test_a_time_is_said_as_briefly_as_it_can_be(long, said):
    assert span(NOON, NOON + long) == said


def test_whole_days_are_said_without_a_time():
    midnight = NOON.replace(hour=0)
    assert span(midnight, midnight + timedelta(days=1)) == "23 Nov"
    assert span(midnight, midnight + timedelta(days=7)) == "23 Nov to 29 Nov"
