"""What is kept of the call of a task, so that another worker can begin it anew, or end it on record."""

from __future__ import annotations

from typing import Any

import orjson

from access.snapshot import Principal
from audit.ledger import Entry
from gateway.task_job import Work
from gateway.task_rows import Lost
from gateway.terms import Call
from tools import exact

# What of a call is kept as it is, to begin it anew.
_KEPT = ("arguments", "toolset", "client", "address", "request_id", "traceparent", "continuation")


def kept_of(work: Work) -> bytes:
    """JSON of what it takes to begin its call anew."""
    call = work.call
    more = {
        "raw": orjson.Fragment(call.raw),
        "generation": work.generation,
        "actor": call.principal.username,
        "from_the_beginning": call.seconds is not None,
        "capabilities": work.client.capabilities,
        "extra": call.extra,
    }
    own = {name: getattr(call, name) for name in _KEPT} | more
    return orjson.dumps({name: _as_written(value) for name, value in own.items()})


def call_again(lost: Lost, principal: Principal, seconds: float) -> Call:
    """The call as it was, with so much of its time left."""
    kept = lost.request
    return Call(
        principal=principal,
        tool=lost.tool,
        raw=exact.written(kept["raw"]),
        door="mcp",
        call_id=lost.call_id,
        seconds=seconds if kept["from_the_beginning"] else None,
        notes={"attempt": lost.attempts},
        extra=kept.get("extra"),
        **{name: kept[name] for name in _KEPT},
    )


def unfinished(lost: Lost, code: str) -> Entry:
    """The record of a call that only reads, which its own worker could not write."""
    kept = lost.request
    return Entry(
        kind="call",
        code=code,
        decision="allow",
        call_id=lost.call_id,
        actor_id=str(lost.user_id),
        actor=kept["actor"],
        token=lost.token,
        door="mcp",
        client=kept["client"],
        address=kept["address"],
        tool=lost.tool,
        effect=lost.effect,
        request_id=kept["request_id"],
        arguments=exact.written(kept["raw"]),
        detail=orjson.dumps({"task": lost.id, "attempts": lost.attempts}).decode(),
    )


def _as_written(value: Any) -> Any:
    """Whatever numbers there are in it."""
    return value if isinstance(value, orjson.Fragment) else orjson.Fragment(exact.written(value))
