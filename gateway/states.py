"""Sealed request states: what a client is given to send back when a call goes on (MCP 2026-07-28, patterns/mrtr).

Encrypted and authenticated with a key that all workers derive for this purpose, and bound to whoever called what: a
state of another user, another token, another request or another time opens nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from access.snapshot import Snapshot
from audit.ledger import PARKED_SECONDS
from gateway import wire
from gateway.calls import known_of
from gateway.terms import ANSWERS_ON_RECORD, EXTRA_ON_RECORD, Answer, Call
from gateway.wire import Message, WireError
from keyring.keys import DecryptionError, ring
from tools import exact
from tools.connectors.mcp_input import ASKING_METHODS

_PURPOSE = "request-state"
_ANSWERS, _STATE = "inputResponses", "requestState"
# What differs between the rounds of one call.
_OF_ROUND = frozenset({_ANSWERS, _STATE, "_meta"})


class State(NamedTuple):
    """What a state says: which call it continues, and where that goes on."""

    call_id: uuid.UUID
    # The upstream's own state.
    theirs: str | None = None
    # The worker that holds the call, and the number that it has there.
    worker: str = ""
    number: str = ""


def continued(message: Message, call: Call, snapshot: Snapshot) -> tuple[Call, State | None]:
    """The call as it goes on with what the client answers, and its state; as it is, in a first round.

    Raises WireError.
    """
    if not message.modern or message.method not in ASKING_METHODS:
        return call, None
    answers = _answers_of(message.params)
    if answers is None:
        return call, None
    if ANSWERS_ON_RECORD in call.arguments:
        raise _wrong(f"An argument cannot be named {ANSWERS_ON_RECORD} in a call that goes on.")
    continuation: dict[str, Any] = {_ANSWERS: answers} if answers else {}
    raw = call.raw
    if answers:
        besides = {EXTRA_ON_RECORD: call.extra} if call.extra else {}
        raw = exact.written({**call.arguments, **besides, ANSWERS_ON_RECORD: answers})
    if _STATE not in message.params:
        return call._replace(raw=raw, continuation=continuation), None
    state = opened(_binding(message, call, snapshot), message.params[_STATE])
    if state.theirs is not None:
        continuation[_STATE] = state.theirs
    return call._replace(raw=raw, continuation=continuation, notes={"continues": str(state.call_id)}), state


def given(message: Message, call: Call, snapshot: Snapshot, answer: Answer) -> str | None:
    """What the client is given to send back with its answers; None where neither we nor the upstream need anything."""
    if answer.state is None and answer.parked is None:
        return None
    return sealed(_binding(message, call, snapshot), State(answer.call_id, answer.state, *(answer.parked or ())))


def _binding(message: Message, call: Call, snapshot: Snapshot) -> bytes:
    """What a state is good for: this request of this user with this token, at this source."""
    known, principal = known_of(snapshot, call), call.principal
    source = known.source.source.id if known else None
    same = {name: value for name, value in message.params.items() if name not in _OF_ROUND}
    digest = hashlib.sha256(exact.ordered(same)).hexdigest()
    return orjson.dumps([message.method, principal.user_id, principal.token, digest, str(source)])


def sealed(bound: bytes, state: State, now: float | None = None) -> str:
    """The state as the client gets it."""
    expires = int(time.time() if now is None else now) + int(PARKED_SECONDS)
    plain = orjson.dumps([expires, str(state.call_id), *state[1:]])
    return base64.urlsafe_b64encode(ring().encrypt(plain, purpose=_PURPOSE, context=bound)).decode()


def opened(bound: bytes, text: str) -> State:
    """The state that was sealed for this. Raises WireError."""
    try:
        raw = base64.b64decode(text, altchars=b"-_", validate=True)
        expires, call_id, theirs, worker, number = orjson.loads(ring().decrypt(raw, purpose=_PURPOSE, context=bound))
    except (binascii.Error, ValueError, DecryptionError) as error:
        raise _wrong(
            "This requestState was changed, or belongs to another request, user or token. Call again without it."
        ) from error
    if expires < time.time():
        raise _wrong(f"This requestState is older than {PARKED_SECONDS / 60:g} minutes. Call again without it.")
    return State(uuid.UUID(call_id), theirs, worker, number)


def _answers_of(params: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What the client answers to what it was asked; None in a first round. Raises WireError."""
    if _ANSWERS not in params and _STATE not in params:
        return None
    answers = params.get(_ANSWERS, {})
    if not isinstance(answers, dict) or not all(isinstance(each, dict) for each in answers.values()):
        raise _wrong("inputResponses is an object with a result, which is an object, for each key of inputRequests.")
    if not isinstance(params.get(_STATE, ""), str):
        raise _wrong("A requestState is the text that came with the questions.")
    return answers


def _wrong(said: str) -> WireError:
    return WireError(wire.INVALID_PARAMS, said)
