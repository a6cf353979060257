"""What people do with streams, and how they stand: places, alarms, tests."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.db import connection, transaction
from django.utils import timezone

from audit.changes import record_event
from audit.models import Record
from audit.streams import sealed
from audit.streams.models import Stream, StreamState

FAILING_SECONDS = 60
_TEST_SECONDS = 8.0
_LOOK_SECONDS = 0.2

# One row for each stream; also read where there is no Django. The lag counts what does not fit the filter, too.
STANDING = """
WITH head AS (SELECT coalesce(max(seq) + 1, 0) AS size FROM audit_leaf)
SELECT s.id, s.name, s.enabled, t.number - 1 AS sent, greatest(head.size - t.cursor, 0) AS lag_records,
    CASE WHEN head.size > t.cursor THEN
        greatest(extract(epoch FROM now() - (SELECT at FROM audit_leaf WHERE seq = t.cursor)), 0)::float ELSE 0 END
        AS lag_seconds,
    CASE WHEN NOT s.enabled THEN ''
        WHEN t.missed > 0 THEN 'gap'
        WHEN head.size > t.cursor AND (SELECT at FROM audit_leaf WHERE seq = t.cursor)
            < now() - make_interval(mins => s.alarm_minutes) THEN 'lagging'
        WHEN t.failing_since < now() - interval '60 seconds' THEN 'failing'
        ELSE '' END AS alarm
FROM audit_stream s JOIN audit_streamstate t ON t.stream_id = s.id, head ORDER BY s.name
"""
ALARMS = {
    "gap": "Records were gone before they could be sent.",
    "lagging": "Records have waited for longer than they should.",
    "failing": "The receiver does not take what is sent.",
}


@dataclass(frozen=True, slots=True)
class Standing:
    """How far a stream is. `alarm` is a key of ALARMS, or empty."""

    id: uuid.UUID
    name: str
    enabled: bool
    sent: int
    lag_records: int
    lag_seconds: float
    alarm: str


def standings() -> dict[uuid.UUID, Standing]:
    """Of all streams, by their ids."""
    with connection.cursor() as cursor:
        cursor.execute(STANDING)
        found = [Standing(*row) for row in cursor.fetchall()]
    return {each.id: each for each in found}


def begin(stream: Stream) -> None:
    """Give a stream that was just made its place: it begins with what is sealed from now on."""
    with connection.cursor() as cursor:
        end = sealed.size(cursor)
    StreamState.objects.get_or_create(stream=stream, defaults={"cursor": end, "resend_cursor": end})


@dataclass(frozen=True, slots=True)
class Rewound:
    """From which place to which."""

    before: int
    after: int


def rewind(stream: Stream, moment: datetime, *, door: str, request: Any = None, actor: Any = None) -> Rewound:
    """Set the place to the first record that was written at that time or later. Recorded.

    Sealing follows time closely, not exactly: a minute earlier is looked for, so that nothing is left out.
    """
    with transaction.atomic():
        state = StreamState.objects.select_for_update().get(stream=stream)
        before, after = state.cursor, place_at(moment - timedelta(minutes=1))
        StreamState.objects.filter(stream=stream).update(
            cursor=after, resend_cursor=after, resend_number=state.number, pending=None
        )
        _record(
            stream, door, request, actor, code="stream_moved", detail={"to": moment.isoformat(), "seq": [before, after]}
        )
    return Rewound(before, after)


def place_at(moment: datetime) -> int:
    """The place of the first leaf whose record was written at that time or later, by halving."""
    with connection.cursor() as cursor:
        low, high = 0, sealed.size(cursor)
        while low < high:
            middle = (low + high) // 2
            cursor.execute("SELECT at FROM audit_leaf WHERE seq = %s", [middle])
            if cursor.fetchone()[0] < moment:
                low = middle + 1
            else:
                high = middle
    return low


def acknowledge_gap(stream: Stream, *, door: str, request: Any = None, actor: Any = None) -> int:
    """End the alarm of a gap. Recorded. Returns how many records were missed."""
    with transaction.atomic():
        state = StreamState.objects.select_for_update().get(stream=stream)
        if state.missed:
            StreamState.objects.filter(stream=stream).update(missed=0)
            _record(stream, door, request, actor, code="stream_gap_acknowledged", detail={"missed": state.missed})
    return state.missed


@dataclass(frozen=True, slots=True)
class Tested:
    """Whether the receiver took a test message, in one sentence."""

    ok: bool
    message: str


def ask_to_test(stream: Stream, by: str, within: float = _TEST_SECONDS) -> Tested:
    """Have the process that leads the stream send a test message. Outside of a transaction, so that it can see that."""
    before = timezone.now()
    StreamState.objects.filter(stream=stream).update(test_asked_at=before, test_message=by[:150])
    until = time.monotonic() + within
    while time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
        state = StreamState.objects.filter(stream=stream).first()
        if state is None:
            break
        if state.test_asked_at is None:
            return Tested(bool(state.test_ok), state.test_message or state.error)
    StreamState.objects.filter(stream=stream, test_asked_at=before).update(test_asked_at=None, test_message="")
    return Tested(False, f"The worker did not report back within {within:g} seconds. Does the job worker run?")


def record_test(stream: Stream, tested: Tested, *, door: str, request: Any) -> None:
    """That somebody tested it, and what came of it."""
    _record(stream, door, request, None, code="test", detail={"ok": tested.ok, "message": tested.message})


def _record(stream: Stream, door: str, request: Any, actor: Any, *, code: str, detail: dict[str, Any]) -> None:
    record_event(
        Record.Kind.CONFIG,
        code,
        door=door,
        request=request,
        actor=actor,
        about=stream,
        detail={"action": code, "label": str(stream), **detail},
    )


def watch() -> list[str]:
    """Put alarms that began or ended on record, once each. Returns what changed."""
    now = standings()
    changed: list[str] = []
    for state in StreamState.objects.select_related("stream"):
        found = now.get(state.stream_id)
        if found is not None and found.alarm != state.alarm:
            with transaction.atomic():
                _record_alarm(state, found)
            changed.append(f"{found.name}: {found.alarm or 'well again'}")
    return changed


def _record_alarm(state: StreamState, found: Standing) -> None:
    moved = StreamState.objects.filter(stream=state.stream_id, alarm=state.alarm).update(alarm=found.alarm)
    if not moved:
        return
    detail = {
        "action": "alarm",
        "label": found.name,
        "alarm": [state.alarm, found.alarm],
        "lag_records": found.lag_records,
        "lag_seconds": round(found.lag_seconds),
        "missed": state.missed,
        "error": state.error,
    }
    record_event(
        Record.Kind.SYSTEM,
        "stream_alarm" if found.alarm else "stream_recovered",
        door="command",
        about=state.stream,
        detail=detail,
    )


def alarmed() -> Iterable[Standing]:
    """The streams with an alarm, now."""
    return [each for each in standings().values() if each.alarm]
