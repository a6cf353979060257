"""The terms on which doors and the pipeline meet: a call, its answer, a refusal."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol

from access.offered import OfferedEntry
from access.snapshot import Principal, ToolEntry
from tools import exact
from tools.connectors.base import Client, Kind

# Our words in a result's `_meta`; an upstream's imitations of them are dropped.
OURS = "mcpsite/"
# Under which name a record's arguments hold what the client answered.
ANSWERS_ON_RECORD = f"{OURS}inputResponses"
# And what it said besides.
EXTRA_ON_RECORD = f"{OURS}_meta"

# What can be called.
Callee = ToolEntry | OfferedEntry

# The fields of an `Entry` that all records of one call share, by name: cheaper than copying entries.
Facts = dict[str, Any]


class Held(Protocol):
    """A call that may be parked while its client thinks. Whoever parks it puts that on record, with its facts."""

    # Whether an intent says that it is parked, or was.
    is_announced: bool

    def begin(self, facts: Facts) -> None:
        """What all its records say."""


class Call(NamedTuple):
    """What a door knows of a call. `raw` are the bytes of the arguments that the ledger commits to.

    `tool` is the name of what is called, or its URI. Of what is no tool, `method` says what is wanted, and `arguments`
    are the parameters of the request.
    """

    principal: Principal
    tool: str
    arguments: dict[str, Any]
    raw: bytes
    door: str
    toolset: str | None = None
    client: str | None = None
    address: str | None = None
    request_id: str | None = None
    traceparent: str | None = None
    # What the door has to say about the call, for the detail of each of its records.
    notes: Mapping[str, Any] | None = None
    # Under which id it is to be on record; a new one, where the door has not promised one.
    call_id: uuid.UUID | None = None
    kind: Kind = "tool"
    method: str = "tools/call"
    # Who can be told and asked while it goes on, and what goes on with it.
    peer: Client | None = None
    continuation: Mapping[str, Any] | None = None
    # What its client adds in `_meta` for whoever answers; `raw` has it too.
    extra: Mapping[str, Any] | None = None
    held: Held | None = None
    # Of a task: how long it may take, and what has to happen before anything is called. It may raise NotAdmitted.
    seconds: float | None = None
    admit: Callable[[], Awaitable[None]] | None = None


def accompanied(call: Call, extra: Mapping[str, Any]) -> Call:
    """The call with what its client says besides: whoever answers gets that too, and it is on record."""
    if not extra or EXTRA_ON_RECORD in call.arguments:
        return call
    return call._replace(extra=extra, raw=exact.written({**call.arguments, EXTRA_ON_RECORD: extra}))


class NotAdmitted(Exception):
    """The call cannot be taken as a task. `code` is the stable word for why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


# What a call has to pass, in this order; `Refused.gate` names the one that it did not.
GATES = ("ready", "grant", "budget", "arguments", "intent", "record")


class Answer(NamedTuple):
    """What a call brought, and the ids under which it is on record.

    `body` is the CallToolResult as JSON without its `_meta` and `resultType`: the bytes that the record commits to.
    `meta` is what the source put into `_meta`. Of what is no tool, `body` is the result of the method without caching
    hints, of which `ttl_ms` is left; and unless `code` is `ok`, it is a JSON-RPC error. Where `code` is
    `input_required`, `body` is what the upstream asks for, and `state` what it wants back; if the call itself
    goes on, `parked` says where. `lacking` are capabilities that a client must declare for this.
    """

    body: bytes
    meta: dict[str, Any]
    code: str
    record_id: uuid.UUID
    call_id: uuid.UUID
    ttl_ms: int = 0
    state: str | None = None
    lacking: dict[str, Any] | None = None
    # The worker, and the number that the call has there.
    parked: tuple[str, str] | None = None
    # The upstream's JSON-RPC error, where that is how it refused.
    refusal: Mapping[str, Any] | None = None


class Refused(Exception):
    """The call was not carried out, or its answer must not leave. `code` is the stable word for why, `gate` the place.

    `reason` is the code that stands in the record: the caller of a tool that is not granted is not told so.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        gate: str = "ready",
        reason: str | None = None,
        retry_after: float | None = None,
        call_id: uuid.UUID | None = None,
        record_id: uuid.UUID | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.gate = gate
        self.reason = reason or code
        self.retry_after = retry_after
        self.call_id = call_id
        self.record_id = record_id


def unavailable(gate: str, call_id: uuid.UUID | None = None) -> Refused:
    """What is said when the ledger does not take a record."""
    message = "The audit ledger cannot be written at this moment, so nothing is called. Try again in a few seconds."
    return Refused("ledger_unavailable", message, gate=gate, retry_after=2, call_id=call_id)
