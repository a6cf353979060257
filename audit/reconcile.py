"""Closes what a process that died left open: an intent that never got an outcome gets one that says `unknown`.

A call that was parked, while its client thinks about a question, has an intent for each time that it was, and for each
answer: the last one counts.

Records are looked at once, in the order of their numbers: a mark says up to where every intent has its outcome. An
intent that is still under way holds the mark until it is closed, so that nothing is passed over and no more is read
again than what was written meanwhile. An outcome that comes later after all is recorded beside the unknown one.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import connection, models, transaction
from django.utils import timezone

from audit.ledger import PARKED_SECONDS, Entry, record
from audit.models import Mark, Record

logger = logging.getLogger("audit.reconcile")

# Beyond the longest time that a call may take: for its outcome to be written, from the spool of a process that was
# started again as well.
GRACE = timedelta(seconds=30)
# A record may become visible after one with a higher number; no transaction that writes intents lasts that long.
_SETTLED = timedelta(seconds=15)
_MARK = "intents"
_WINDOW, _AT_ONCE = 50_000, 1_000
_SECONDS = 20.0
# How the detail of an intent begins whose call is a task: it may be under way for hours, and whoever keeps tasks closes
# it with `close_call`.
_OF_TASK = '{"task":'
_SAME = (
    "call_id", "actor", "actor_id", "on_behalf_of", "token", "roles", "door", "client", "address", "connector", "tool",
    "effect", "definition", "policy_version", "decision", "trace_id", "request_id",
)  # fmt: skip


def reconcile(seconds: float = _SECONDS) -> int:
    """Close the intents that are open past their time. Returns how many. Goes on where it stopped last time."""
    until, closed = time.monotonic() + seconds, 0
    start: int | None = None
    while time.monotonic() < until:
        start, found = _one_window(start)
        closed += found
        if start is None:
            break
    if closed:
        logger.error("%d calls have no outcome: a process died, or the database was away, while they ran. "
                     "What became of them is unknown; their records have the code `unknown`.", closed)  # fmt: skip
    return closed


def _one_window(start: int | None) -> tuple[int | None, int]:
    """Where to go on, if there is more to look at, and how many intents were closed.

    One transaction, by one process at a time. Begins at the mark, or where the window before ended: calls that are
    under way hold the mark, some for minutes, but not what comes behind them.
    """
    with transaction.atomic():
        mark = _mark()
        if mark.high and timezone.now() - mark.at < _SETTLED:
            return None, 0
        # Up to the newest record of the last look: whoever wrote one with a smaller number has committed it by now.
        newest = Record.objects.aggregate(newest=models.Max("id"))["newest"] or 0
        low = mark.low if start is None else start
        top = min(low + _WINDOW, mark.high)
        still_open = _open_intents(low, top)
        now = timezone.now()
        overdue = [key for key, due in still_open if due < now]
        under_way = min((key for key, due in still_open if due >= now), default=None)
        _close(overdue)
        if mark.low == low:
            mark.low = top if under_way is None else under_way - 1
        mark.found += len(overdue)
        mark.save(update_fields=["low", "found"])
        is_last = top >= mark.high
        if is_last:
            mark.high = newest
            mark.save(update_fields=["high", "at"])
    return None if is_last else top, len(overdue)


def _open_intents(low: int, top: int) -> list[tuple[int, datetime]]:
    """Number of the intents in between that have no outcome, and when each is due."""
    intents = Record.objects.filter(id__gt=low, id__lte=top, kind=Record.Kind.INTENT).order_by("id")
    intents = intents.exclude(detail__startswith=_OF_TASK)
    found = list(intents.values_list("id", "at", "call_id", "code"))
    last: dict[Any, int] = {}
    for start in range(0, len(found), _AT_ONCE):
        last.update(_last([call_id for _, _, call_id, _ in found[start : start + _AT_ONCE]]))
    return [(key, at + _longest(code)) for key, at, call_id, code in found if last.get(call_id) == key]


def _last(call_ids: list[Any]) -> Iterable[tuple[Any, int]]:
    """The last intent of each of the calls that have no outcome: one that was parked has several.

    By the index of calls, whatever the planner thinks of so many.
    """
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute(
            "SELECT call_id, max(id) FROM audit_record WHERE call_id = ANY(%s) AND kind IN ('intent', 'outcome')"
            " GROUP BY call_id HAVING NOT bool_or(kind = 'outcome')",
            [call_ids],
        )
        return list(cursor.fetchall())


def _longest(code: str) -> timedelta:
    """After which time an intent has its outcome, or another intent after it."""
    waits = PARKED_SECONDS if code == "input_required" else settings.CALL_TIMEOUT_SECONDS
    return timedelta(seconds=waits) + GRACE


def _close(keys: list[int]) -> None:
    for start in range(0, len(keys), _AT_ONCE):
        for intent in Record.objects.filter(id__in=keys[start : start + _AT_ONCE]).defer("ct", "detail"):
            record(_outcome_of(intent))


def close_call(call_id: uuid.UUID) -> uuid.UUID | None:
    """Give the call's intent an outcome that says `unknown`, and return its id; None where there is an outcome."""
    with transaction.atomic():
        _mark()  # Several may want to close it at this moment.
        found = dict(_last([call_id]))
        if call_id not in found:
            return None
        return record(_outcome_of(Record.objects.defer("ct", "detail").get(id=found[call_id])))


def close_aside(call_id: uuid.UUID) -> uuid.UUID | None:
    """As `close_call`, in a thread: its connection goes back afterwards."""
    try:
        return close_call(call_id)
    finally:
        connection.close()


def _mark() -> Mark:
    """Where the last look ended. Holds off everybody else until the transaction ends."""
    Mark.objects.get_or_create(name=_MARK)
    return Mark.objects.select_for_update().get(name=_MARK)


def _outcome_of(intent: Record) -> Entry:
    waited = round((timezone.now() - intent.at).total_seconds())
    detail = {"intent": str(intent.rid), "writer_id": str(intent.writer_id), "waited_seconds": waited}
    same = {name: getattr(intent, name) for name in _SAME}
    same["definition"] = None if intent.definition is None else bytes(intent.definition)
    return Entry(kind=Record.Kind.OUTCOME.value, code="unknown", detail=json.dumps(detail), **same)
