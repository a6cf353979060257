"""Writes the newest head to every sink, and asks each whether it holds what the ledger does not have any more.

A sink that is down keeps nobody waiting: it is tried again later and later, and shown until it is back.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction

from audit.changes import record_event
from audit.masking import known
from audit.models import Record
from audit.outside.contradictions import NotContradicted, settled, take_down
from audit.outside.models import Anchor, Contradiction, SinkState
from audit.outside.sinks.base import Anchored, Sink, SinkFailed
from audit.verify import NoteError, check_note, parse_head, parse_note

logger = logging.getLogger("audit.outside")

# Less than a minute, so that the job of the next minute tries again.
_FIRST_WAIT, _LONGEST_WAIT = timedelta(seconds=50), timedelta(hours=1)
# While nothing is written, heads say the same again and again.
_IDLE = timedelta(hours=1)

_NEWEST = "SELECT note FROM audit_head ORDER BY number DESC LIMIT 1"
_LAST = """
SELECT h.note, a.at FROM audit_anchor a JOIN audit_head h ON h.number = a.head
WHERE a.sink = %s ORDER BY a.id DESC LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class Last:
    """What a sink took last, and when."""

    anchored: Anchored
    at: datetime


def anchor_all(now: datetime | None = None) -> int:
    """Anchor the newest head in every sink of LEDGER_ANCHORS whose time it is; how many took it."""
    now = now or datetime.now(UTC)
    row = _one(_NEWEST)
    if row is None:
        return 0
    newest = _anchored(row[0])
    waiting = set(SinkState.objects.filter(next_at__gt=now).values_list("sink", flat=True))
    return sum(_anchor(sink, newest, now) for sink in settings.LEDGER_ANCHORS if sink.name not in waiting)


def _anchor(sink: Sink, newest: Anchored, now: datetime) -> bool:
    last = _last(sink)
    try:
        _compare(sink, last, newest)
        if last and last.anchored.head.size == newest.head.size and now - last.at < _IDLE:
            _note_success(sink, now)
            return False
        receipt = sink.put(newest, Anchor.objects.filter(sink=sink.name).count() + 1)
    except SinkFailed as error:
        _note_failure(sink, now, str(error))
        return False
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO audit_anchor (head, sink, receipt) VALUES (%s, %s, %s)",
            [newest.head.number, sink.name, json.dumps(receipt)],
        )
        _note_success(sink, now)
    return True


def _compare(sink: Sink, last: Last | None, newest: Anchored) -> None:
    """Raise SinkFailed when the sink holds a head that is not, and was, in the database; no break explains it."""
    text = sink.newer(newest.head.origin, last.anchored if last else None)
    if text is None:
        return
    try:
        held = _anchored(text)
        signed = check_note(parse_note(text), _keys())
    except NoteError as error:
        raise SinkFailed(f"{sink.name} holds something that is no head: {error}.") from error
    if not signed:
        raise SinkFailed(f"{sink.name} holds head {held.head.number}, which no known key of the ledger signed.")
    row = _one("SELECT note FROM audit_head WHERE number = %s", held.head.number)
    if (row is not None and _anchored(row[0]).head.text == held.head.text) or settled(held.head.sealed_at):
        return
    code = Contradiction.Code.BEHIND if held.head.number > newest.head.number else Contradiction.Code.FORKED
    try:
        take_down(f"anchor {sink.name}", code, parse_note(text), held.head, door="job")
    except NotContradicted:  # it was sealed at this very moment
        return
    raise SinkFailed(
        f"{sink.name} holds head {held.head.number}, which the ledger does not have any more. If an older state was"
        " restored on purpose, sign a break: manage.py ledger accept-restore."
    )


def _anchored(note: str) -> Anchored:
    return Anchored(parse_head(parse_note(note).text), note)


def _last(sink: Sink) -> Last | None:
    row = _one(_LAST, sink.name)
    return None if row is None else Last(_anchored(row[0]), row[1])


def _keys() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT vkey FROM audit_key")
        return [vkey for (vkey,) in cursor.fetchall()]


def _one(statement: str, *values: Any) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        return cursor.fetchone()


# --- How the sinks fare ----------------------------------------------------------------------------------------------


def _note_success(sink: Sink, now: datetime) -> None:
    before = SinkState.objects.filter(sink=sink.name, failures__gt=0).first()
    with transaction.atomic():
        well = {"tried_at": now, "next_at": now, "failures": 0, "failing_since": None, "error": ""}
        SinkState.objects.update_or_create(sink=sink.name, defaults=well)
        if before is not None:
            detail = {"sink": sink.name, "failures": before.failures}
            record_event(Record.Kind.SYSTEM, "anchor_recovered", door="job", detail=detail)
            logger.info("%s takes heads again", sink.name)


def _note_failure(sink: Sink, now: datetime, error: str) -> None:
    before = SinkState.objects.filter(sink=sink.name).first()
    failures = 1 + (before.failures if before else 0)
    wait = min(_FIRST_WAIT * (1 << min(failures - 1, 10)), _LONGEST_WAIT)
    since = before.failing_since if before and before.failing_since else now
    told = known().refresh().text(error)[:1000]
    state = {"tried_at": now, "next_at": now + wait, "failures": failures, "failing_since": since, "error": told}
    with transaction.atomic():
        SinkState.objects.update_or_create(sink=sink.name, defaults=state)
        if failures == 1:
            detail = {"sink": sink.name, "message": told}
            record_event(Record.Kind.SYSTEM, SinkFailed.code, door="job", detail=detail)
    logger.error("the head was not anchored, and is tried again in %d s: %s", wait.total_seconds(), error)
