"""What is written to the event streams of a session, kept for a while: a client that lost one can go on reading.

A stream is kept encrypted in Redis and can be read on at any worker (MCP 2025-11-25, "Resumability and Redelivery").
Its name begins with that of the worker that writes it: whoever reads on asks now and then whether it still lives.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gateway import answers, wire
from gateway.mail import AWAY, Mail
from gateway.redis_client import connected
from gateway.sessions import Session
from keyring.keys import DecryptionError, ring
from tools import exact

logger = logging.getLogger("gateway.events")

_PURPOSE = "events"
_MOST_EVENTS = 1_000
_MOST_BYTES = 1024 * 1024
# What streams of one user may hold together, as far as one worker knows.
_MOST_OF_USER = 64 * 1024 * 1024
# A stream that never ends, since its worker died, is longer than any call.
_OPEN_SECONDS = 3_600
_ENDED_SECONDS = 300
_TIMEOUT_SECONDS = 0.5
_LOOK_UP_SECONDS = 5
_ID = re.compile(r"([0-9a-f]{16})-([0-9a-f]{1,15})\.([0-9]{1,9})")
_DATA, _REQUEST, _END = b"d", b"r", b"e"

_Fields = dict[bytes, bytes]


class EventsAway(Exception):
    """Redis does not answer, so that no stream can be read on."""


class Place(NamedTuple):
    """Where in a stream an event stands."""

    worker: str
    stream: str
    number: int

    @classmethod
    def of(cls, event_id: str) -> Place | None:
        """The place that an event's id names, if it is one of ours."""
        match = _ID.fullmatch(event_id)
        return match and cls(match[1], f"{match[1]}-{match[2]}", int(match[3]))


class EventLog:
    """Keeps the events of one stream. Nothing is kept before the first one is added."""

    # Called when the client reads on elsewhere.
    taken_over: Callable[[], None] | None = None

    def __init__(self, events: Events, session: Session, request: wire.Id, stream: str) -> None:
        self.stream = stream
        self._events, self._session, self._request = events, session, request
        self._key = _key(session.id, stream)
        self._number = self._held = self._size = 0
        self._first = 1
        self._sizes: deque[int] = deque()

    async def add(self, data: bytes) -> str | None:
        """The id of the event, once it is kept; None when it could not be. Empty data is for the client to begin at."""
        kept = data if len(data) <= _MOST_BYTES else self._too_large()
        if not self._events.hold(self._session.user_id, len(kept)):
            return None
        self._held += len(kept)
        self._events.writing[self.stream] = self
        fields = {_DATA: _sealed(kept, self._key), _REQUEST: exact.written(self._request)}
        if not await self._write(fields, len(kept), _OPEN_SECONDS):
            return None
        return f"{self.stream}.{self._number}"

    async def end(self) -> None:
        """No more events follow."""
        if self._number:
            self._events.writing.pop(self.stream, None)
            await self._write({_END: b"1"}, 0, _ENDED_SECONDS)
        self._events.release(self._session.user_id, self._held)

    async def _write(self, fields: _Fields, size: int, lives_seconds: int) -> bool:
        self._number += 1
        self._size += size
        self._sizes.append(size)
        while len(self._sizes) > _MOST_EVENTS or self._size > _MOST_BYTES:
            self._size -= self._sizes.popleft()
            self._first += 1
        return await self._events.write(self._key, self._number, fields, self._first, lives_seconds)

    def _too_large(self) -> bytes:
        said = f"The answer is larger than what is kept of a lost stream ({_MOST_BYTES} bytes). The call is on record."
        return wire.error_body(wire.WireError(wire.UNAVAILABLE, said, identifier=self._request))


class Event(NamedTuple):
    """One event as it was sent, or is to be."""

    id: str
    data: bytes


class Events:
    """The streams of this worker, and the way to those of the others."""

    def __init__(self, url: str, mail: Mail) -> None:
        self._url, self._mail = url, mail
        self._numbers = itertools.count(1)
        # What this worker writes at this moment.
        self.writing: dict[str, EventLog] = {}
        self._held: Counter[int] = Counter()
        # What is added twice has the same number, and is taken once.
        self._redis = connected(url, _TIMEOUT_SECONDS, retry=Retry(NoBackoff(), 1))

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    def log(self, session: Session, request: wire.Id) -> EventLog:
        """A log for the stream that answers that request."""
        return EventLog(self, session, request, f"{self._mail.worker}-{next(self._numbers):x}")

    # --- Writing ------------------------------------------------------------------------------------------------------

    def hold(self, user_id: int, size: int) -> bool:
        """Whether so much more may be kept for the user; then it is counted."""
        if self._held[user_id] + size > _MOST_OF_USER:
            logger.warning("the streams of user %d hold too much: an event is not kept", user_id)
            return False
        self._held[user_id] += size
        return True

    def release(self, user_id: int, size: int) -> None:
        """It will be gone when its time is over."""
        asyncio.get_running_loop().call_later(_ENDED_SECONDS, self._forget, user_id, size)

    def _forget(self, user_id: int, size: int) -> None:
        self._held[user_id] -= size
        if self._held[user_id] <= 0:
            del self._held[user_id]

    async def write(self, key: str, number: int, fields: _Fields, first: int, lives_seconds: int) -> bool:
        """Add an entry under its number, and drop those before `first`. False when Redis is away."""
        try:
            pipeline = self._redis.pipeline(transaction=False)
            flat = itertools.chain.from_iterable(fields.items())
            pipeline.execute_command("XADD", key, "MINID", f"{first}-0", f"{number}-0", *flat)
            pipeline.expire(key, lives_seconds)
            added, _ = await pipeline.execute(raise_on_error=False)
        except AWAY as error:
            logger.warning("Redis is away, an event is not kept: %s", error)
            return False
        # It has the number already when the first try got there, and only its answer was lost.
        if isinstance(added, Exception) and "equal or smaller" not in str(added):
            logger.warning("an event is not kept: %s", added)
            return False
        return True

    # --- Reading on ---------------------------------------------------------------------------------------------------

    def taken_over(self, stream: str) -> None:
        """A client reads this stream on: whatever this worker still writes of it is only kept, and not sent."""
        if (log := self.writing.get(stream)) is not None and log.taken_over is not None:
            log.taken_over()

    @asynccontextmanager
    async def reading(
        self, session_id: str, place: Place, lives: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """The events of the session after that place, also those that are still to come, until the stream ends, or its
        session, of which `lives` is asked now and then.

        Raises LookupError when nothing of the stream is kept (any more), and EventsAway.
        """
        key = _key(session_id, place.stream)
        client = redis.asyncio.from_url(
            self._url, socket_timeout=_LOOK_UP_SECONDS + 2, socket_connect_timeout=_TIMEOUT_SECONDS
        )
        try:
            async with client:
                if not await client.exists(key):
                    raise LookupError(key)
                yield self._read(client, key, place, lives)
        except AWAY as error:
            raise EventsAway(str(error)) from error

    async def _read(
        self, client: Any, key: str, place: Place, lives: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[Event]:
        after, request = place.number, await self._request_of(client, key)
        while True:
            found = await client.xread({key: f"{after}-0"}, count=100, block=int(_LOOK_UP_SECONDS * 1000))
            for after, fields in _rows(found):
                if _END in fields:
                    return
                if data := _opened(fields[_DATA], key):
                    yield Event(f"{place.stream}.{after}", data)
            if found:
                continue
            if not await lives():  # Redis may have forgotten the stream with its session.
                return
            if await self._mail.has_ended(place.worker):
                yield Event(f"{place.stream}.{after + 1}", _lost(request))
                return

    @staticmethod
    async def _request_of(client: Any, key: str) -> wire.Id:
        """The id of the request that the stream answers."""
        entries = await client.xrange(key, count=1)
        request: wire.Id = exact.taken(entries[0][1].get(_REQUEST, b"null")) if entries else None
        return request


def _rows(found: Any) -> list[tuple[int, _Fields]]:
    if not found:
        return []
    entries = found[0][1] if isinstance(found, list) else next(iter(found.values()))[0]
    return [(int(number.partition(b"-")[0]), fields) for number, fields in entries]


def _lost(request: wire.Id) -> bytes:
    said = "The process that carried out this call has ended. Whether the call took effect is unknown: ask the ledger."
    data = {answers.CODE: "call_lost"}
    return wire.error_body(wire.WireError(wire.UNAVAILABLE, said, identifier=request, data=data))


def _key(session_id: str, stream: str) -> str:
    return f"mcpsite:events:{session_id}:{stream}"


def _sealed(data: bytes, key: str) -> bytes:
    return ring().encrypt(data, purpose=_PURPOSE, context=key.encode())


def _opened(sealed: bytes, key: str) -> bytes:
    try:
        return ring().decrypt(sealed, purpose=_PURPOSE, context=key.encode())
    except DecryptionError as error:
        raise LookupError(key) from error
