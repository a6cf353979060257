"""The answer to one request at /mcp: whole and in one write, or a stream of events from the first event on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

from gateway.http import ASGIScope, Send
from tools import exact

logger = logging.getLogger("gateway.replies")

# Under which name the server hands the connection down; see `mcpsite.http`.
_CONNECTION = "mcpsite.connection"
# Proxies close what says nothing for a minute, some what does for half of that.
_KEEP_ALIVE_SECONDS = 15.0
# What a client may leave unread of a stream.
_MOST_UNSENT = 1024 * 1024
# When a client is to come back to a stream that it lost.
_RETRY_MS = 1_000
_JSON = (b"content-type", b"application/json")
_HEADERS = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)
# In the place of a message and its id: keeps the stream alive.
_COMMENT = (b"", "")
# What is counted where a client left before its answer.
CLIENT_LEFT = 499


class Connection(Protocol):
    """What carries the request."""

    # Called when the client is gone, unless it was by then.
    when_lost: Callable[[], None] | None
    is_lost: bool

    def unsent(self) -> int:
        """The bytes that wait for the client to read."""

    def abort(self) -> None:
        """End it at once."""


class EventLog(Protocol):
    """Keeps the events of one stream, for a client that lost it."""

    # Called when the client reads on elsewhere.
    taken_over: Callable[[], None] | None

    async def add(self, data: bytes) -> str | None:
        """The id of the event, once it is kept; None when it could not be."""

    async def end(self) -> None:
        """No more events follow."""


class Streams:
    """The open streams of this process. One timer keeps all of them alive."""

    # That of the process; to find it out anew costs a system call.
    loop: asyncio.AbstractEventLoop | None = None

    def __init__(self) -> None:
        self._open: set[Reply] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._open)

    def add(self, reply: Reply) -> None:
        """Write to it now and then."""
        self._open.add(reply)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_KEEP_ALIVE_SECONDS, self._beat)

    def discard(self, reply: Reply) -> None:
        """It is over."""
        self._open.discard(reply)
        if not self._open and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_KEEP_ALIVE_SECONDS, self._beat)
        for reply in tuple(self._open):
            reply.keep_alive()


class Reply:
    """What goes back for one request. Nothing is sent before the first event or the result."""

    # On the class, since a plain call sets none of them: a stream has begun; the client is gone; it wants no answer.
    is_open = is_lost = is_withdrawn = _has_begun = _is_over = False
    # Keeps what the client may ask for again; without one, what is lost with the connection is lost.
    log: EventLog | None = None
    # Whether the client understands an event without data, which is all it needs to come back (MCP 2025-11-25).
    primes = False
    _task: asyncio.Task[Any] | None = None
    _writer: asyncio.Task[None] | None = None
    _opening: asyncio.TimerHandle | None = None
    # Messages, and ids for those that have one already.
    _queue: list[tuple[bytes, str]]
    _unwritten = 0
    # More headers of the answer.
    headers: list[tuple[bytes, bytes]] = []

    def __init__(self, streams: Streams, scope: ASGIScope, send: Send, request_id: str) -> None:
        self._streams, self._send, self._request_id = streams, send, request_id
        self._connection: Connection | None = scope["state"].get(_CONNECTION) if "state" in scope else None

    # --- The client goes ----------------------------------------------------------------------------------------------

    def ends_with_client(self) -> None:
        """Cancel the present task when the client closes the connection (MCP 2026-07-28, "Cancellation")."""
        self._task = asyncio.current_task(self._streams.loop)
        if self._connection is not None:
            self._connection.when_lost = self._lose
            if self._connection.is_lost:  # while we were asking whose session it is
                self._lose()

    def can_be_withdrawn(self) -> None:
        """Cancel the present task when the client says that it wants no answer, and not when it is only gone."""
        self._task = asyncio.current_task(self._streams.loop)
        if self._connection is not None:
            self._connection.when_lost = self._miss
            if self._connection.is_lost:
                self._miss()

    def withdraw(self) -> None:
        """The client wants no answer any more."""
        if self._task is not None and not self._is_over:
            self.is_withdrawn = True
            self._task.cancel()

    def check(self) -> None:
        """Raise CancelledError when there is nobody to answer: what a task waited for may have swallowed it.

        `asyncio.wait_for` of Python 3.11 does, which redis-py uses. So this stands before whatever has no end.
        """
        if self.is_lost or self.is_withdrawn:
            raise asyncio.CancelledError

    def _miss(self) -> None:
        self.is_lost = True

    def _lose(self) -> None:
        self.is_lost = True
        if self._task is not None:
            self._task.cancel()

    # --- What is sent -------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin the stream: whatever follows is an event."""
        if not self.is_open:
            self.is_open, self._queue = True, []
            self._streams.add(self)
            if self.log is not None:
                self.log.taken_over = self._leave
            self._write_soon()

    def open_after(self, seconds: float) -> None:
        """Begin the stream when there is no answer by then, so that the client can come back for it."""
        self._opening = asyncio.get_running_loop().call_later(seconds, self.open)

    def _leave(self) -> None:
        """The client reads on elsewhere: what comes is kept, and not sent here."""
        self.is_lost = True
        if self._connection is not None:
            self._connection.abort()

    def prime(self, identifier: str) -> None:
        """Tell the client from which id on it can ask for what it missed (MCP 2025-11-25)."""
        self._put(b"", identifier)

    async def drain(self) -> None:
        """Wait until all that was to be sent is on its way."""
        if self._writer is not None:
            await self._writer

    def event(self, message: dict[str, Any] | bytes, identifier: str = "") -> None:
        """Send a message as an event, under the id that it has already, if it has one. Never blocks: a client that
        leaves too much unread is left.
        """
        if self._is_over:  # Who still speaks speaks to nobody.
            return
        data = message if isinstance(message, bytes) else exact.written(message)
        self.open()
        if self.is_lost and (self.log is None or self._unwritten > _MOST_UNSENT):
            return
        self._put(data, identifier)
        if self._connection is not None and self._unwritten + self._connection.unsent() > _MOST_UNSENT:
            logger.info("the client of request %s does not read: its stream is closed", self._request_id)
            self._connection.abort()

    def keep_alive(self) -> None:
        """Write something that means nothing, unless the client has not even read what means something."""
        if self._writer is None and not self.is_lost:
            self._put(*_COMMENT)

    async def finish(self, status: int, body: bytes, extra: list[tuple[bytes, bytes]]) -> int:
        """Send the result: the whole answer, or the last event. Returns the status that was sent."""
        self._is_over = True
        if self._connection is not None:
            self._connection.when_lost = None
        if self._opening is not None:
            self._opening.cancel()
        if not self.is_open:
            headers = [(b"content-length", b"%d" % len(body)), (b"x-request-id", self._request_id.encode()), *extra]
            headers += self.headers
            if body:
                headers.append(_JSON)
            await self._send({"type": "http.response.start", "status": status, "headers": headers})
            await self._send({"type": "http.response.body", "body": body})
            return status
        self._streams.discard(self)
        if body:
            self._put(body)
        if self._writer is not None:
            await self._writer
        if self.log is not None:
            await self.log.end()
        await self._send({"type": "http.response.body", "body": b""})
        return 200

    def close(self) -> None:
        """The client is gone: nothing more is sent."""
        self._streams.discard(self)
        if self._writer is not None:
            self._writer.cancel()

    # --- Writing ------------------------------------------------------------------------------------------------------

    def _put(self, data: bytes, identifier: str = "") -> None:
        self._queue.append((data, identifier))
        self._unwritten += len(data)
        self._write_soon()

    def _write_soon(self) -> None:
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        """Write what is queued, and what comes meanwhile."""
        try:
            if not self._has_begun:
                await self._begin()
            while self._queue:
                batch, self._queue = self._queue, []
                await self._send_on(b"".join([await self._framed(*each) for each in batch]))
                self._unwritten -= sum(len(data) for data, _ in batch)
        finally:
            self._writer = None

    async def _begin(self) -> None:
        self._has_begun = True
        headers = [*_HEADERS, (b"x-request-id", self._request_id.encode())]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        if self.log is not None and self.primes and (identifier := await self.log.add(b"")):
            await self._send_on(await self._framed(b"", identifier))

    async def _framed(self, data: bytes, identifier: str) -> bytes:
        if (data, identifier) == _COMMENT:
            return b":\n\n"
        if not data:
            return b"id: %b\nretry: %d\ndata:\n\n" % (identifier.encode(), _RETRY_MS)
        if not identifier and self.log is not None:
            identifier = await self.log.add(data) or ""
        named = b"id: %b\n" % identifier.encode() if identifier else b""
        return b"%bevent: message\ndata: %b\n\n" % (named, data)

    async def _send_on(self, text: bytes) -> None:
        if self.is_lost:
            return
        await self._send({"type": "http.response.body", "body": text, "more_body": True})
