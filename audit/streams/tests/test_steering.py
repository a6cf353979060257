from __future__ import annotations

from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, connections
from django.utils import timezone

from audit.entry import Entry
from audit.ledger import record
from audit.models import Record
from audit.streams import sealed, steering
from audit.streams.models import Stream, StreamState
from audit.streams.steering import acknowledge_gap, begin, place_at, rewind, standings, watch

pytestmark = pytest.mark.usefixtures("committed_db")


def seal_all() -> int:
    """Stands for the sealer, which alone may do this. Returns the size."""
    with connections["owner"].cursor() as cursor:
        cursor.execute(
            "INSERT INTO audit_leaf (seq, record_id, at, leaf)"
            " SELECT (SELECT count(*) FROM audit_leaf) - 1 + row_number() OVER (ORDER BY id), id, at, leaf"
            " FROM audit_record WHERE id NOT IN (SELECT record_id FROM audit_leaf)"
        )
        return sealed.size(cursor)


def make_stream(**values) -> Stream:
    seal_all()
    given = {"name": "siem", "kind": "syslog-tls", "address": "siem.example.com:6514", **values}
    stream = Stream.objects.create(**given)
    begin(stream)
    return stream


def grow(how_many: int = 1) -> int:
    for _ in range(how_many):
        record(Entry(kind="call", code="ok", tool="rooms"))
    return seal_all()


def change(stream: Stream, **values) -> None:
    StreamState.objects.filter(stream=stream).update(**values)


def test_a_new_stream_begins_with_what_is_sealed_from_then_on():
    end = grow(3)
    stream = make_stream()
    assert stream.state.cursor == end
    assert standings()[stream.pk].lag_records == 0
    grow(2)
    now = standings()[stream.pk]
    assert (now.lag_records, now.sent, now.alarm) == (2, 0, "")


def test_beginning_twice_keeps_the_place():
    stream = make_stream()
    change(stream, cursor=1)
    begin(stream)
    assert StreamState.objects.get(stream=stream).cursor == 1


def test_the_place_of_a_time_is_the_first_record_that_is_not_older():
    first = grow() - 1
    grow(4)
    with connection.cursor() as cursor:
        cursor.execute("SELECT seq, at FROM audit_leaf WHERE seq >= %s ORDER BY seq", [first])
        rows = cursor.fetchall()
    for seq, at in rows:
        assert place_at(at) <= seq
        assert place_at(at + timedelta(microseconds=1)) <= seq + 1
    assert place_at(timezone.now() + timedelta(days=1)) == rows[-1][0] + 1
    assert place_at(timezone.now() - timedelta(days=9999)) == 0


def test_setting_the_place_is_recorded_and_ends_what_was_pending():
    grow(3)
    stream = make_stream()
    change(stream, number=9, pending={"until": 5, "filters": {}})
    moved = rewind(stream, timezone.now() - timedelta(days=9999), door="command")
    state = StreamState.objects.get(stream=stream)
    assert moved.after == 0
    assert (state.cursor, state.resend_cursor, state.number, state.resend_number, state.pending) == (0, 0, 9, 9, None)
    told = Record.objects.filter(code="stream_moved").latest("id")
    assert (told.kind, told.object_id) == ("config", str(stream.pk))


@pytest.mark.parametrize(
    ("values", "alarm"),
    [
        ({"missed": 3}, "gap"),
        ({"failing_since": timedelta(minutes=2)}, "failing"),
        ({"failing_since": timedelta(seconds=1)}, ""),
    ],
)
def test_alarms_have_their_reasons(values, alarm):
    stream = make_stream()
    now = timezone.now()
    change(stream, **{name: now - each if isinstance(each, timedelta) else each for name, each in values.items()})
    assert standings()[stream.pk].alarm == alarm
    Stream.objects.update(enabled=False)
    assert standings()[stream.pk].alarm == ""


def test_a_stream_lags_when_its_first_record_waits_for_longer_than_its_limit(monkeypatch):
    stream = make_stream(alarm_minutes=5)
    grow(2)
    found = standings()[stream.pk]
    assert (found.lag_records, found.alarm) == (2, "")
    assert 0 <= found.lag_seconds < 60
    monkeypatch.setattr(steering, "STANDING", steering.STANDING.replace("mins => s.alarm_minutes", "secs => 0"))
    assert standings()[stream.pk].alarm == "lagging"
    with connection.cursor() as cursor:
        change(stream, cursor=sealed.size(cursor))
    assert standings()[stream.pk].alarm == ""


def test_an_alarm_is_recorded_when_it_begins_and_when_it_ends_and_not_in_between():
    stream = make_stream()

    def told() -> list[str]:
        rows = Record.objects.filter(object_id=str(stream.pk), kind="system").order_by("id")
        return list(rows.values_list("code", flat=True))

    assert watch() == []
    change(stream, missed=2)
    assert watch() == ["siem: gap"]
    assert watch() == []
    assert told() == ["stream_alarm"]
    assert acknowledge_gap(stream, door="command") == 2
    assert watch() == ["siem: well again"]
    assert told() == ["stream_alarm", "stream_recovered"]
    assert acknowledge_gap(stream, door="command") == 0
    assert Record.objects.filter(code="stream_gap_acknowledged", object_id=str(stream.pk)).count() == 1


def test_a_test_that_nobody_answers_says_so_and_is_taken_back():
    stream = make_stream()
    tested = steering.ask_to_test(stream, "mia", within=0.3)
    assert (tested.ok, "job worker" in tested.message) == (False, True)
    assert StreamState.objects.get(stream=stream).test_asked_at is None


def run(*arguments: str) -> str:
    out = StringIO()
    call_command("streams", *arguments, stdout=out)
    return out.getvalue()


def test_the_command_lists_and_ends_with_an_error_when_there_is_an_alarm():
    stream = make_stream()
    assert run() == "siem: well; 0 messages acknowledged; 0 records, 0 s behind\n"
    change(stream, missed=1)
    with pytest.raises(CommandError, match="siem: Records were gone"):
        run()


def test_the_command_sets_the_place():
    grow(2)
    stream = make_stream()
    assert "is 0;" in run("siem", "--from", "2001-01-01T00:00Z")
    assert StreamState.objects.get(stream=stream).cursor == 0
    with pytest.raises(CommandError, match="is not a time"):
        run("siem", "--from", "yesterday")
    with pytest.raises(CommandError, match="no stream nobody"):
        run("nobody")
    with pytest.raises(CommandError, match="Name the stream"):
        run("--test")
