"""A run as server-sent events: its steps from PostgreSQL, words as they come, and how it ended.

Events (HTML, "Server-sent events"): `step` with the step's number as its id, so that `Last-Event-ID` goes on where a
broken connection stopped; `delta` and `calling`, which are gone once their step is there; `status` when the run begins;
`end`, the last. A comment comes every fifteen seconds. A stream ends after ten minutes; browsers open the next.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
from asgiref.sync import sync_to_async
from django.db import connection

from agents.live import listening
from agents.models import Run, Step
from agents.runs import WITHHELD

_HEARTBEAT_SECONDS = 15.0
_POLL_SECONDS = 2.0
_LONGEST_SECONDS = 600.0
_RETRY_MS = 2_000
# Each stream holds a connection to Redis.
MOST_STREAMS = 20
_open: Counter[int] = Counter()
_LIVE = frozenset({"delta", "calling"})


def step_body(step: Step, whole: bool = True) -> dict[str, Any]:
    """A step as JSON; without `whole`, what was said, sent and answered is withheld."""
    return {
        "number": step.number,
        "kind": step.kind,
        "tool": step.tool or None,
        "tool_call": step.tool_call or None,
        "content": step.content if whole else _outline(step),
        "code": step.code,
        "call": str(step.call_id) if step.call_id else None,
        "record": str(step.record_id) if step.record_id else None,
        "input_tokens": step.input_tokens,
        "output_tokens": step.output_tokens,
        "started_at": step.started_at.isoformat(),
        "finished_at": step.finished_at.isoformat(),
    }


def _outline(step: Step) -> dict[str, Any]:
    if step.kind == Step.Kind.TOOL:
        return {"arguments": WITHHELD, "result": WITHHELD}
    return {"text": WITHHELD, "calls": [{"tool": call["tool"]} for call in step.content["calls"]]}


def state_body(run: Run, whole: bool = True) -> dict[str, Any]:
    """How far the run is, and how it ended."""
    return {
        "status": run.status,
        "code": run.code,
        "message": run.message,
        "output": run.output if whole or run.output is None else WITHHELD,
        "model_calls": run.model_calls,
        "tool_calls": run.tool_calls,
        "input_tokens": run.input_tokens,
        "output_tokens": run.output_tokens,
        "started_at": run.started_at.isoformat() if run.started_at else None,
        "finished_at": run.finished_at.isoformat() if run.finished_at else None,
    }


def _since(run_id: uuid.UUID, number: int) -> tuple[Run | None, list[Step]]:
    """The run, and its steps after that number. The connection goes back to the pool: a stream must not hold one.

    The run is read first: when it is finished, all of its steps are there.
    """
    try:
        run = Run.objects.filter(pk=run_id).first()
        return run, list(Step.objects.filter(run_id=run_id, number__gt=number).order_by("number"))
    finally:
        connection.close()


def event(name: str, body: dict[str, Any], identifier: int | None = None) -> bytes:
    """One event; JSON has no line breaks of its own."""
    head = b"" if identifier is None else b"id: %d\n" % identifier
    return head + b"event: " + name.encode() + b"\ndata: " + orjson.dumps(body) + b"\n\n"


def _allowed(may: Callable[[], bool]) -> bool:
    try:
        return may()
    finally:
        connection.close()


def has_too_many(user_id: int) -> bool:
    """Whether the user follows as many runs as one may in each web worker."""
    return _open[user_id] >= MOST_STREAMS


async def followed(user_id: int, told: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events, counted as one stream of that user for as long as they last."""
    _open[user_id] += 1
    try:
        async for part in told:
            yield part
    finally:
        _open[user_id] -= 1
        if not _open[user_id]:
            del _open[user_id]


async def events(
    run_id: uuid.UUID, after: int, may: Callable[[], bool] = lambda: True, *, whole: bool = True
) -> AsyncIterator[bytes]:
    """The run's events after step `after`, until it has ended, it is gone, or the time of a stream is over.

    Without `whole`, nothing of its contents is told.

    `may` says whether the reader may still follow it; a stream ends soon after that was taken away.
    """
    yield b"retry: %d\n\n" % _RETRY_MS
    until, quiet_since, status = time.monotonic() + _LONGEST_SECONDS, time.monotonic(), ""
    asked = time.monotonic()
    async with listening(run_id) as listener:
        heard: dict[str, Any] | None = None
        while time.monotonic() < until:
            if time.monotonic() - asked >= _POLL_SECONDS:
                if not await sync_to_async(_allowed)(may):
                    return
                asked = time.monotonic()
            if heard is not None and heard.get("event") in _LIVE:
                if whole or heard["event"] != "delta":
                    yield event(heard["event"], heard)
                quiet_since = time.monotonic()
            else:
                run, steps = await sync_to_async(_since)(run_id, after)
                for step in steps:
                    yield event("step", step_body(step, whole), step.number)
                    after, quiet_since = step.number, time.monotonic()
                if run is None or run.is_finished:
                    yield event("end", state_body(run, whole) if run else {"status": "deleted"})
                    return
                if run.status != status:
                    status, quiet_since = run.status, time.monotonic()
                    yield event("status", state_body(run, whole))
            if time.monotonic() - quiet_since >= _HEARTBEAT_SECONDS:
                yield b": still here\n\n"
                quiet_since = time.monotonic()
            heard = await listener.hear(_POLL_SECONDS)
