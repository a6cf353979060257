"""Letters between workers, on whatever machine: what one heard, and another one waits for.

They go through Redis, where nothing of them is kept. A letter to a worker that has ended is not delivered, and the
sender is told so.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Callable
from typing import Any

from redis.asyncio.client import PubSub
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from gateway.redis_client import connected
from tools import exact

logger = logging.getLogger("gateway.mail")

AWAY = (RedisError, OSError, TimeoutError)
Payload = dict[str, Any]
Handler = Callable[[Payload], None]

_EVERYBODY = "mcpsite:workers"
_WORKER = re.compile("[0-9a-f]{16}")
_TIMEOUT_SECONDS = 1.0
_RETRY_SECONDS = 0.5
# A worker that lost its connection hears again within this time.
_BACK_SECONDS = 1.5
# A connection that answers nothing for twice as long is given up.
_QUIET_SECONDS = 10.0


class MailAway(Exception):
    """Redis does not answer, so that nobody knows whether a letter was heard."""


class Mail:
    """The letter box of this worker. `start` it in an event loop; until then, and without Redis, nobody hears."""

    def __init__(self, url: str) -> None:
        # Names this worker to the others; drawn anew with each start, so that nobody takes it for the one before.
        self.worker = secrets.token_hex(8)
        self.is_listening = False
        self._handlers: dict[str, Handler] = {}
        self._task: asyncio.Task[None] | None = None
        # A letter that is sent twice could be answered twice.
        self._redis = connected(url, _TIMEOUT_SECONDS, retry=Retry(NoBackoff(), 0))

    def on(self, kind: str, handler: Handler) -> None:
        """Have letters of this kind handed to `handler`, in the order in which they come. It must not block."""
        self._handlers[kind] = handler

    def start(self) -> None:
        """Begin to listen; returns at once."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop listening: who sends to this worker is told that nobody heard."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._redis.aclose()

    async def send(self, worker: str, kind: str, payload: Payload) -> bool:
        """Send a letter of JSON to one worker. False when nobody heard it: the worker has ended, or Redis is away."""
        try:
            return await self._sent(worker, kind, payload)
        except MailAway as error:
            logger.warning("Redis is away, a letter (%s) is not delivered: %s", kind, error)
            return False

    async def deliver(self, worker: str, kind: str, payload: Payload) -> bool:
        """As `send`, where more depends on the answer: False only when the worker has ended, and not when it has just
        lost its connection. Raises MailAway.
        """
        if await self._sent(worker, kind, payload):
            return True
        await asyncio.sleep(_BACK_SECONDS)
        return await self._sent(worker, kind, payload)

    async def broadcast(self, kind: str, payload: Payload) -> None:
        """Send a letter of JSON to all workers, this one too, as far as they can be reached."""
        self._handle(kind, payload)
        try:
            await self._publish(_EVERYBODY, kind, payload)
        except MailAway as error:
            logger.warning("Redis is away, a letter (%s) is not delivered: %s", kind, error)

    async def has_ended(self, worker: str) -> bool:
        """Whether a letter to that worker is heard by nobody, now and a moment later. Raises what Redis does when it is
        away.
        """
        if worker == self.worker or await self._hears(worker):
            return False
        await asyncio.sleep(_BACK_SECONDS)
        return not await self._hears(worker)

    async def _hears(self, worker: str) -> bool:
        ((_, listeners),) = await self._redis.pubsub_numsub(_channel(worker))
        return bool(listeners)

    async def _sent(self, worker: str, kind: str, payload: Payload) -> bool:
        if worker == self.worker:
            self._handle(kind, payload)
            return True
        if _WORKER.fullmatch(worker) is None:  # made up: a client may have named it
            return False
        return await self._publish(_channel(worker), kind, payload) > 0

    async def _publish(self, channel: str, kind: str, payload: Payload) -> int:
        try:
            return int(await self._redis.publish(channel, exact.written([self.worker, kind, payload])))
        except AWAY as error:
            raise MailAway(str(error)) from error

    async def _run(self) -> None:
        told = False
        while True:
            pubsub = self._redis.pubsub()
            try:
                await pubsub.subscribe(_channel(self.worker), _EVERYBODY)
                await self._listen(pubsub)
            except AWAY as error:
                if self.is_listening or not told:
                    logger.warning("Redis is away, this worker hears nothing of the others: %s", error)
                told = True
            finally:
                self.is_listening = False
                await pubsub.aclose()  # type: ignore[no-untyped-call]
            await asyncio.sleep(_RETRY_SECONDS)

    async def _listen(self, pubsub: PubSub) -> None:
        """Hand on what comes, until the connection is lost, or dead."""
        asked = False
        while True:
            heard = await pubsub.get_message(timeout=_QUIET_SECONDS)
            if heard is not None:
                asked = False
                if heard["type"] == "message":
                    self._open(heard["data"])
                else:
                    self.is_listening = True
            elif asked:
                raise TimeoutError("no answer")
            else:
                await pubsub.ping()
                asked = True

    def _open(self, letter: bytes) -> None:
        try:
            sender, kind, payload = exact.taken(letter)
        except ValueError as error:
            logger.error("a letter that cannot be read is dropped: %s", error)
            return
        if sender != self.worker:  # what goes to everybody is delivered here before it is sent
            self._handle(kind, payload)

    def _handle(self, kind: str, payload: Payload) -> None:
        handler = self._handlers.get(kind)
        if handler is None:
            logger.info("a letter of the unknown kind %r is dropped", kind)
            return
        try:
            handler(payload)
        except Exception:
            logger.exception("a letter (%s) could not be handled", kind)


def _channel(worker: str) -> str:
    return f"mcpsite:worker:{worker}"
