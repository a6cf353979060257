"""uvicorn's HTTP protocol, with head and body of an answer in one write, a word when a client is gone, and an end of
patience with clients that make us wait.

uvicorn writes the head when it is told of it and the body when that comes: two system calls and two packets for each
of our short answers, and a tenth of the CPU time of a call. That a client is gone it tells only those who wait for it,
which would take a task for each call. And it waits for ever: for the rest of a head, of a body, and for whoever does
not read; how long a head is, and how many requests are sent ahead, is up to the client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

# How long a connection may stand still in the middle of a head, a body or an answer.
PATIENCE_SECONDS = 60.0
# Of a head, of what frames a body, and of trailers: so much is taken before it ends.
_MOST_UNTOLD = 64 * 1024
# Requests that a client may send before it has the answer to the first.
_MOST_AHEAD = 256
# What clients may leave unread of all answers of a process together.
_MOST_UNREAD = 256 * 1024 * 1024
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def _forget(data: bytes) -> None:
    """Nobody gets it."""


class JoiningTransport:
    """A transport that keeps the head of an answer of known length until its body comes."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._write: Callable[[bytes], None] = transport.write
        self._head = b""
        # Bytes so far.
        self.written = 0
        # Called for every request: without the detour through __getattr__.
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Write what was kept and `data`, unless `data` is such a head: then keep it."""
        if self._head:
            data, self._head = self._head + data, b""
        elif data.endswith(b"\r\n\r\n") and data.startswith(b"HTTP/1.1 ") and b"\r\ncontent-length: " in data:
            self._head = data
            return
        self.written += len(data)
        self._write(data)

    def release(self) -> None:
        """Write what was kept: no body follows (HEAD)."""
        if self._head:
            self.written += len(self._head)
            self._write(self._head)
            self._head = b""

    def abort(self) -> None:
        """End it; what is written until everybody knows goes nowhere."""
        self._write = _forget
        self._transport.abort()

    def close(self) -> None:
        """Write what was kept, then close."""
        self.release()
        self._transport.close()


class Connection:
    """What a request may know of its connection, as `scope["state"]["mcpsite.connection"]`."""

    __slots__ = ("_protocol", "_transport", "is_lost", "when_lost")

    def __init__(self, protocol: Protocol, transport: asyncio.Transport) -> None:
        self._protocol, self._transport = protocol, transport
        self.is_lost = False
        # Set by the request that is under way.
        self.when_lost: Callable[[], None] | None = None

    def unsent(self) -> int:
        """The bytes that wait for the client to read."""
        return self._transport.get_write_buffer_size()

    def abort(self) -> None:
        """End it at once."""
        self._protocol.transport.abort()


class _Nowhere(list[tuple[bytes, bytes]]):
    """Where trailers go: nobody wants them, and they must not pass for headers."""

    def append(self, header: tuple[bytes, bytes]) -> None:
        """Drop it."""


_TRAILERS = _Nowhere()


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol over a `JoiningTransport`."""

    # Whether what came last was a whole head, or some of a body; what came since then; and all that came.
    _told = False
    _untold = _received = 0
    # What the client lets us wait for, and since when.
    _stands_at: tuple[str, object] | None = None
    _since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Put the joining transport in between."""
        super().connection_made(JoiningTransport(transport))  # type: ignore[arg-type]
        self._connection = Connection(self, transport)
        # uvicorn copies it into the scope of each request anyway.
        self.app_state = {**self.app_state, "mcpsite.connection": self._connection}

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever wants to know."""
        super().connection_lost(exc)
        self._connection.is_lost = True
        if (tell := self._connection.when_lost) is not None:
            self._connection.when_lost = None
            tell()

    # --- What comes in ------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse it; whoever sends without end what is neither head nor body, or requests ahead, is left."""
        self._told = False
        self._received += len(data)
        super().data_received(data)
        self._untold = 0 if self._told else self._untold + len(data)
        if self._untold > _MOST_UNTOLD:
            if self._is_idle():
                self.transport.write(_TOO_LARGE)
                self.transport.close()
            else:
                self.transport.abort()
        elif len(self.pipeline) > _MOST_AHEAD:
            self.transport.abort()

    def on_headers_complete(self) -> None:
        """What follows is a body; the headers behind it are none."""
        self._told = True
        super().on_headers_complete()
        self.headers = _TRAILERS

    def on_body(self, body: bytes) -> None:
        """Some of it."""
        self._told = True
        super().on_body(body)

    def on_response_complete(self) -> None:
        """The answer is complete, even if it had no body."""
        if isinstance(self.transport, JoiningTransport):
            self.transport.release()
        super().on_response_complete()

    def _is_idle(self) -> bool:
        """Whether no request is under way."""
        cycle = cast("RequestResponseCycle | None", self.cycle)  # uvicorn has its own way with types
        return cycle is None or cycle.response_complete

    # --- Patience -----------------------------------------------------------------------------------------------------

    def review(self, now: float) -> None:
        """End the connection where nothing has moved for too long that the client has to move."""
        stands_at = self._waits_for()
        if stands_at is None or stands_at != self._stands_at:
            self._stands_at, self._since = stands_at, now
        elif now - self._since >= PATIENCE_SECONDS:
            self.leave()

    def unsent(self) -> int:
        """The bytes that wait for the client to read."""
        return self._connection.unsent()

    def leave(self) -> None:
        """End the connection at once."""
        self._connection.abort()

    def _waits_for(self) -> tuple[str, object] | None:
        """What the client has to do next, and how far it got with it; None while it is our turn, or a pause."""
        if unsent := self._connection.unsent():
            return "read", self.transport.written - unsent  # type: ignore[attr-defined]
        if self._is_idle():
            # The time of a connection that says nothing is uvicorn's to measure.
            return None if self.timeout_keep_alive_task is not None else ("ask", self.cycle)
        return ("send", self._received) if self.cycle.more_body and not self.flow.read_paused else None


def review(connections: Iterable[object], now: float) -> None:
    """Look after the connections of a server, every few seconds.

    When clients together leave too much unread, those that leave most go first.
    """
    known = [each for each in connections if isinstance(each, Protocol)]
    for each in known:
        each.review(now)
    unsent = {each: size for each in known if (size := each.unsent())}
    total = sum(unsent.values())
    for each in sorted(unsent, key=unsent.__getitem__, reverse=True) if total > _MOST_UNREAD else ():
        if total > _MOST_UNREAD:
            each.leave()
            total -= unsent[each]
