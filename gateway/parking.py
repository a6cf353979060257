"""Where calls wait for their client, and how its next request finds them, at whatever worker it comes in.

The state that a client is given names the worker that holds its call, and the number that the call has there; the
number is drawn anew for each round. Answers go to that worker by mail, and what comes next comes back the same way.
"""

from __future__ import annotations

import asyncio
import secrets
import uuid
from functools import partial
from typing import Any

from django.db import DatabaseError

from access import policy
from access.snapshot import Snapshot
from access.tokens import InvalidToken
from audit.ledger import PARKED_SECONDS, Ledger
from audit.reconcile import close_aside
from gateway import wire
from gateway.calls import Pipeline, is_granted
from gateway.held import Answers, AskedCall, ParkedCall
from gateway.mail import Mail, MailAway, Payload
from gateway.states import State
from gateway.terms import Answer, Call, Refused, unavailable
from gateway.wire import WireError
from tools import exact
from tools.connectors.base import Client

_MOST, _MOST_OF_USER = 100, 5
# What of an answer is JSON of the upstream.
_TEXTS = ("meta", "lacking", "refusal")
_RETRY, _WORD, _CANCEL, _PING = "parking.retry", "parking.word", "parking.cancel", "parking.ping"
# How often a worker that was given answers is asked whether it is still there.
_PING_SECONDS = 5.0
_CLOSE_SECONDS = 5.0


class Parking:
    """The calls of this worker whose clients are asked by the results of their requests."""

    def __init__(self, mail: Mail, pipeline: Pipeline, ledger: Ledger) -> None:
        self._mail, self._pipeline, self._ledger = mail, pipeline, ledger
        self._calls: set[ParkedCall] = set()
        self._parked: dict[str, tuple[ParkedCall, asyncio.TimerHandle]] = {}
        # What goes on here for other workers, and what other workers do for requests here, by ticket.
        self._served: dict[str, asyncio.Task[None]] = {}
        self._awaited: dict[str, asyncio.Future[Payload]] = {}
        self._aside: set[asyncio.Task[bool]] = set()
        mail.on(_RETRY, self._serve)
        mail.on(_WORD, self._hear)
        mail.on(_CANCEL, self._break_off)
        mail.on(_PING, self._hear_ping)

    def __len__(self) -> int:
        return len(self._parked)

    async def carry_out(self, call: Call, state: State | None, snapshot: Snapshot, bearer: str) -> Answer:
        """The next round of a call, or its only one. Raises Refused and WireError."""
        source = self._pipeline.connector_for(call, snapshot)
        if state is not None and state.worker:
            if source is None:
                raise _ended(state.call_id)
            return await self._go_on(call, state, (call.continuation or {}).get("inputResponses", {}))
        if source is None or call.peer is None or not call.peer.capabilities:
            return await self._pipeline.call(call)
        if not call.peer.answers_later:
            return await self._pipeline.call(AskedCall(call, self._ledger).call)
        if source.asks_meanwhile:
            return await self._begin(call, bearer)
        return await self._pipeline.call(call)

    async def _begin(self, call: Call, bearer: str) -> Answer:
        held = ParkedCall(call, self._ledger, bearer)
        task = asyncio.create_task(self._pipeline.call(held.call))
        self._calls.add(held)
        task.add_done_callback(lambda _: self._calls.discard(held))
        return self._numbered(held, await held.run(task, partial(self._admit, held)))

    async def _go_on(self, call: Call, state: State, answers: Answers) -> Answer:
        if state.worker == self._mail.worker:
            try:
                return await self._next(state.number, answers, call.peer, call.request_id, call.address)
            except LookupError as error:
                raise _ended(state.call_id) from error
        if not self._mail.is_listening:
            raise _unreachable(state.call_id)
        return await self._next_elsewhere(state, answers, call)

    def review(self, snapshot: Snapshot) -> None:
        """Cancel the calls whose token is not valid any more, or does not allow them any more."""
        for held in tuple(self._calls):
            try:
                principal = policy.principal_of(snapshot, held.bearer)
            except InvalidToken:
                held.cancel()
                continue
            if not is_granted(snapshot, held.call._replace(principal=principal)):
                held.cancel()

    async def stop(self) -> None:
        """Cancel all of them: their records say so."""
        for number in tuple(self._parked):
            self._take(number)
        for held in self._calls:
            held.cancel()
        for each in self._served.values():
            each.cancel()
        tasks = [*(held.task for held in self._calls), *self._served.values(), *self._aside]
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- Here ---------------------------------------------------------------------------------------------------------

    async def _next(
        self, number: str, answers: Answers, peer: Client | None, request_id: str | None, address: str | None
    ) -> Answer:
        """Raises LookupError when no call is parked under that number (any more), and Refused."""
        held = self._take(number)
        if held is None:
            raise LookupError(number)
        await held.resume(answers, peer, request_id, address)
        return self._numbered(held, await held.next(partial(self._admit, held)))

    def _numbered(self, held: ParkedCall, answer: Answer) -> Answer:
        """The answer, with the place where its call waits, if it is not over."""
        if held.task.done():
            return answer
        number = secrets.token_urlsafe(16)
        expiry = asyncio.get_running_loop().call_later(PARKED_SECONDS, self._expire, number)
        self._parked[number] = held, expiry
        return answer._replace(parked=(self._mail.worker, number))

    def _take(self, number: str) -> ParkedCall | None:
        held, expiry = self._parked.pop(number, (None, None))
        if expiry is not None:
            expiry.cancel()
        return held

    def _expire(self, number: str) -> None:
        if (held := self._take(number)) is not None:
            held.cancel()

    def _admit(self, held: ParkedCall) -> None:
        """Raises Refused when there is no room."""
        mine = sum(other.user_id == held.user_id for other, _ in self._parked.values())
        if len(self._parked) < _MOST and mine < _MOST_OF_USER:
            return
        message = f"Too many calls wait for input: {_MOST_OF_USER} of one user, {_MOST} of all. Answer those first."
        raise Refused("too_many_parked", message, call_id=held.call_id)

    # --- Elsewhere ----------------------------------------------------------------------------------------------------

    async def _next_elsewhere(self, state: State, answers: Answers, call: Call) -> Answer:
        ticket = secrets.token_hex(16)
        self._awaited[ticket] = word = asyncio.get_running_loop().create_future()
        asked = {
            "ticket": ticket,
            "to": self._mail.worker,
            "number": state.number,
            "answers": exact.written(answers).decode(),
            "request_id": call.request_id,
            "address": call.address,
        }
        ping = {"ticket": ticket, "to": self._mail.worker}
        try:
            heard = await self._mail.deliver(state.worker, _RETRY, asked)
            while heard and not word.done():
                await asyncio.wait({word}, timeout=_PING_SECONDS)
                heard = word.done() or await self._mail.deliver(state.worker, _PING, ping)
        except MailAway as error:
            raise _unreachable(state.call_id) from error
        except asyncio.CancelledError:
            self._send_aside(state.worker, _CANCEL, {"ticket": ticket})
            raise
        finally:
            del self._awaited[ticket]
        if not word.done() and not self._mail.is_listening:
            raise _unreachable(state.call_id)
        if not word.done():
            raise await self._lose(state.call_id, call)
        if word.result().get("is_gone"):
            raise _unreachable(state.call_id)
        return _read(word.result(), state.call_id)

    async def _lose(self, call_id: uuid.UUID, call: Call) -> Refused | WireError:
        """The worker that held the call has ended, and took along what is not on record of it."""
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                record_id = await asyncio.to_thread(close_aside, call_id)
        except (DatabaseError, TimeoutError):
            return unavailable("record", call_id)
        return self._pipeline.lost(call, call_id, record_id) if record_id else _ended(call_id)

    def _hear(self, word: Payload) -> None:
        future = self._awaited.get(word["ticket"])
        if future is not None and not future.done():
            future.set_result(word)

    def _hear_ping(self, asked: Payload) -> None:
        """Where nothing goes on here for that request, a letter was lost: this way or that."""
        if asked["ticket"] not in self._served:
            self._send_aside(asked["to"], _WORD, {"ticket": asked["ticket"], "is_gone": True})

    def _serve(self, asked: Payload) -> None:
        ticket = asked["ticket"]
        if ticket in self._served:
            return
        self._served[ticket] = task = asyncio.create_task(self._answer(asked))
        task.add_done_callback(lambda _: self._served.pop(ticket, None))

    def _break_off(self, payload: Payload) -> None:
        if (task := self._served.get(payload["ticket"])) is not None:
            task.cancel()

    async def _answer(self, asked: Payload) -> None:
        """Go on with the call for another worker, and tell it what came next."""
        word: Payload = {"ticket": asked["ticket"]}
        parked = None
        try:
            answers = exact.taken(asked["answers"])
            answer = await self._next(asked["number"], answers, None, asked["request_id"], asked["address"])
            word["answer"], parked = _written(answer), answer.parked
        except Refused as refusal:
            word["refusal"] = _written_refusal(refusal)
        except LookupError:
            pass
        if not await self._mail.send(asked["to"], _WORD, word) and parked is not None:
            self._expire(parked[1])  # Nobody was told how to go on with it.

    def _send_aside(self, worker: str, kind: str, payload: Payload) -> None:
        task = asyncio.create_task(self._mail.send(worker, kind, payload))
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)


def _unreachable(call_id: uuid.UUID) -> Refused:
    message = "Another worker holds the call, and cannot be reached at this moment. Try again in a few seconds."
    return Refused("holder_unreachable", message, retry_after=2, call_id=call_id)


def _ended(call_id: uuid.UUID) -> WireError:
    """What is said to a state whose call is not parked any more."""
    said = (
        f"This requestState was used before, or the call {call_id} has ended. "
        "Find out in the ledger what became of it, before you call again."
    )
    return WireError(wire.INVALID_PARAMS, said)


def _written(answer: Answer) -> dict[str, Any]:
    # As texts: in a letter, what an upstream nested as deeply as may be would be too deep.
    texts = {name: exact.written(getattr(answer, name)).decode() for name in _TEXTS}
    return {**answer._asdict(), "body": answer.body.decode(), **texts}


def _written_refusal(refusal: Refused) -> dict[str, Any]:
    names = ("code", "gate", "reason", "retry_after", "call_id", "record_id")
    return {"message": str(refusal), **{name: getattr(refusal, name) for name in names}}


def _read(word: Payload, call_id: uuid.UUID) -> Answer:
    """What the other worker says. Raises Refused and WireError."""
    if (answer := word.get("answer")) is not None:
        ids = {name: uuid.UUID(answer[name]) for name in ("record_id", "call_id")}
        parked = tuple(answer["parked"]) if answer["parked"] else None
        texts = {name: exact.taken(answer[name]) for name in _TEXTS}
        return Answer(**{**answer, **ids, **texts, "body": answer["body"].encode(), "parked": parked})
    if (refusal := word.get("refusal")) is not None:
        ids = {name: refusal[name] and uuid.UUID(refusal[name]) for name in ("record_id", "call_id")}
        raise Refused(**{**refusal, **ids})
    raise _ended(call_id)
