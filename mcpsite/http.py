"""uvicorn's HTTP protocol, with head and body of an answer in one write, and a word when a client is gone.

uvicorn writes the head when it is told of it and the body when that comes: two system calls and two packets for each
of our short answers, and a tenth of the CPU time of a call. That a client is gone it tells only those who wait for it,
which would take a task for each call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class JoiningTransport:
    """A transport that keeps the head of an answer of known length until its body comes."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._write = transport.write
        self._head = b""
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
        self._write(data)

    def release(self) -> None:
        """Write what was kept: no body follows (HEAD)."""
        if self._head:
            self._write(self._head)
            self._head = b""

    def close(self) -> None:
        """Write what was kept, then close."""
        self.release()
        self._transport.close()


class Connection:
    """What a request may know of its connection, as `scope["state"]["mcpsite.connection"]`."""

    __slots__ = ("_transport", "when_lost")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        # Set by the request that is under way.
        self.when_lost: Callable[[], None] | None = None

    def unsent(self) -> int:
        """The bytes that wait for the client to read."""
        return self._transport.get_write_buffer_size()

    def abort(self) -> None:
        """End it at once."""
        self._transport.abort()


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol over a `JoiningTransport`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Put the joining transport in between."""
        super().connection_made(JoiningTransport(transport))  # type: ignore[arg-type]
        self._connection = Connection(transport)
        # uvicorn copies it into the scope of each request anyway.
        self.app_state = {**self.app_state, "mcpsite.connection": self._connection}

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever wants to know."""
        super().connection_lost(exc)
        if (tell := self._connection.when_lost) is not None:
            self._connection.when_lost = None
            tell()

    def on_response_complete(self) -> None:
        """The answer is complete, even if it had no body."""
        if isinstance(self.transport, JoiningTransport):
            self.transport.release()
        super().on_response_complete()
