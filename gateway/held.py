"""Calls whose client is asked something while they go on: what it is asked, and what it answers, is on record.

An upstream of the older revisions asks in the middle of a call and waits. A client of the older revisions is asked on
the stream of the call. One of 2026-07-28 is asked with the result of its request and answers with the next one
(patterns/mrtr): in between its call is parked.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from audit.entry import uuid7
from audit.ledger import INTENT_SECONDS, Entry, Ledger, LedgerUnavailable
from gateway.facts import without_arguments
from gateway.terms import ANSWERS_ON_RECORD, Answer, Call, Facts, Refused, unavailable
from gateway.wire import UNAVAILABLE as _UNAVAILABLE
from tools import exact
from tools.connectors.base import Client, ClientError

Answers = Mapping[str, dict[str, Any]]
# The key of a question that is asked by itself.
_ONLY = "question"


class AskedCall(Client):
    """The call, and its client as the upstream sees it."""

    def __init__(self, call: Call, ledger: Ledger) -> None:
        assert call.peer is not None
        self.call_id = uuid7()
        # For the pipeline.
        self.call = call._replace(peer=self, held=self, call_id=self.call_id)
        self.capabilities = call.peer.capabilities
        self.log_level, self.chose_level = call.peer.log_level, call.peer.chose_level
        self.wants_progress = call.peer.wants_progress
        self.is_announced = False
        # None while there is nobody to turn to.
        self._peer: Client | None = call.peer
        self._ledger = ledger
        self._facts: Facts = {}

    def begin(self, facts: Facts) -> None:
        """What all records of the call say."""
        self._facts = facts

    def tell(self, method: str, params: dict[str, Any]) -> None:
        """See `Client`. Between two requests of a client there is nobody to tell."""
        if (peer := self._peer) is not None:
            before = peer.told
            peer.tell(method, params)
            self.told += peer.told - before

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """The answer of a client that can be asked meanwhile, once it is on record. Raises ClientError."""
        assert self._peer is not None
        try:
            await self._announce({_ONLY: {"method": method, "params": params}})
            answer = await self._peer.ask(method, params)
            await self._note({_ONLY: answer})
        except LedgerUnavailable as error:
            said = "The audit ledger cannot be written at this moment, so nothing is asked."
            raise ClientError({"code": _UNAVAILABLE, "message": said}) from error
        return answer

    async def _announce(self, questions: Mapping[str, Any]) -> tuple[uuid.UUID, bytes]:
        """Put on record that the call waits for its client. Raises LedgerUnavailable: then nothing is to be asked."""
        body = exact.written({"inputRequests": questions})
        facts = self._facts if not self.is_announced else without_arguments(self._facts)
        entry = Entry(kind="intent", code="input_required", result=body, **facts)
        record_id = await self._ledger.write(entry, INTENT_SECONDS)
        self.is_announced = True
        return record_id, body

    async def _note(self, answers: Answers, **where: str | None) -> None:
        """Put the answers on record. Raises LedgerUnavailable: then the upstream is not to get them."""
        kept = "some_arguments" not in self._facts
        raw = exact.written({ANSWERS_ON_RECORD: answers})
        facts = without_arguments(self._facts) | {"arguments": raw, **where}
        await self._ledger.write(Entry(kind="intent", code="answered", keeps_arguments=kept, **facts), INTENT_SECONDS)


class ParkedCall(AskedCall):
    """One whose client answers with its next request. `task` is what carries the call out."""

    answers_later = True
    task: asyncio.Task[Answer]

    def __init__(self, call: Call, ledger: Ledger, bearer: str) -> None:
        super().__init__(call, ledger)
        self.user_id, self.bearer = call.principal.user_id, bearer
        self._numbers = itertools.count(1)
        self._open: dict[str, tuple[dict[str, Any], asyncio.Future[dict[str, Any]]]] = {}
        self._listener: asyncio.Future[None] | None = None

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """The client's answer, which comes with one of its next requests."""
        key = f"question-{next(self._numbers)}"
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[dict[str, Any]] = loop.create_future()
        self._open[key] = ({"method": method, "params": params}, answer)
        loop.call_soon(self._wake)  # Whatever else it asks at the same moment goes out together with this.
        try:
            return await answer
        finally:
            self._open.pop(key, None)

    # --- Rounds -------------------------------------------------------------------------------------------------------

    async def run(self, task: asyncio.Task[Answer], admit: Callable[[], None]) -> Answer:
        """Begin the first round; see `next`."""
        self.task = task
        task.add_done_callback(self._end)
        return await self.next(admit)

    async def next(self, admit: Callable[[], None]) -> Answer:
        """What comes next: how the call ended, or what is asked of the client, for which `admit` has to find room.

        The call does not outlive whoever waits for it here. Raises Refused.
        """
        try:
            await self._news()
            if not self.task.done():
                admit()
                record_id, body = await self._announce({key: question for key, (question, _) in self._open.items()})
                self._peer = None
                if not self.task.done():
                    return Answer(body, {}, "input_required", record_id, self.call_id)
        except LedgerUnavailable as error:
            self.task.cancel()
            raise unavailable("record", self.call_id) from error
        except BaseException:
            self.task.cancel()
            raise
        if self.task.cancelled():
            raise Refused(
                "cancelled", "The call was cancelled: its token or grant was taken away, or the process stops."
            )
        return self.task.result()

    async def resume(self, answers: Answers, peer: Client | None, request_id: str | None, address: str | None) -> None:
        """Put the answers on record, then hand them to the upstream. Raises Refused; then the call is cancelled."""
        if self.task.done():
            return
        self._peer = peer
        try:
            await self._note(answers, request_id=request_id, address=address)
        except LedgerUnavailable as error:
            self.task.cancel()
            raise unavailable("record", self.call_id) from error
        for key, answer in answers.items():
            if (asked := self._open.pop(key, None)) is not None and not asked[1].done():
                asked[1].set_result(answer)

    def cancel(self) -> None:
        """Break the call off."""
        self.task.cancel()

    async def _news(self) -> None:
        """Wait until there is a question, or the call is over."""
        if self._open or self.task.done():
            return
        self._listener = asyncio.get_running_loop().create_future()
        try:
            await self._listener
        finally:
            self._listener = None

    def _wake(self) -> None:
        if self._listener is not None and not self._listener.done():
            self._listener.set_result(None)

    def _end(self, task: asyncio.Task[Answer]) -> None:
        self._wake()
        if not task.cancelled():
            task.exception()  # Whoever waits has it; there may be nobody.
