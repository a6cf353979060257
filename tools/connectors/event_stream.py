"""Streams of events as servers send them (HTML standard, "Server-sent events"), also across lost connections."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable

from tools.connectors.base import ConnectorError
from tools.connectors.http1_connection import Stream

# What an id may hold to be sent back in a header.
_ID = re.compile(rb"[\x21-\x7e]{1,1024}")
# Before a stream is taken up again, unless the server says how long.
_PAUSE_SECONDS, _LEAST_PAUSE_SECONDS = 1.0, 0.05
# Connections in a row that bring nothing new.
_MOST_IN_VAIN = 3


class Cursor:
    """How far a stream has been read: the `kind` and `id` of the last event, and when it may be taken up again."""

    __slots__ = ("id", "kind", "pause_seconds")

    def __init__(self) -> None:
        self.kind = "message"
        self.id: str | None = None
        self.pause_seconds = _PAUSE_SECONDS


async def events(chunks: AsyncIterator[bytes], cursor: Cursor | None = None) -> AsyncIterator[bytes]:
    """The data of each event, with `cursor` at it."""
    rest, after_return = bytearray(), False
    data: list[bytes] = []
    kind, identifier = b"message", (cursor.id or "").encode() if cursor is not None else b""
    async for chunk in chunks:
        # A line ends with \n, \r or \r\n, which may come in two chunks.
        text = chunk[1:] if after_return and chunk[:1] == b"\n" else chunk
        after_return = chunk[-1:] == b"\r"
        rest += text
        if b"\n" not in text and b"\r" not in text:
            continue
        lines = bytes(rest).splitlines()
        rest = bytearray() if rest.endswith((b"\n", b"\r")) else bytearray(lines.pop())
        for line in lines:
            name, _, value = line.removeprefix(b"\xef\xbb\xbf").partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data":
                data.append(value)
            elif name == b"event":
                kind = value
            elif name == b"id":
                identifier = value
            elif name == b"retry" and cursor is not None and value.isdigit():
                cursor.pause_seconds = max(int(value[:9]) / 1000, _LEAST_PAUSE_SECONDS)
            elif not line:
                if cursor is not None:
                    cursor.kind = kind.decode("utf-8", "replace")
                    cursor.id = identifier.decode() if _ID.fullmatch(identifier) else None
                kind = b"message"
                if data:
                    yield b"\n".join(data)
                    data = []


class Resumable:
    """An event stream that is taken up again where its connection ends too early.

    `reopen` asks for the rest after the event with an id; None when the server does not have it. Without `reopen`, the
    end of the connection is the end (MCP 2025-11-25, transports, "Resumability and Redelivery").
    """

    def __init__(self, stream: Stream, reopen: Callable[[str], Awaitable[Stream | None]] | None) -> None:
        self._stream: Stream | None = stream
        self._reopen = reopen

    async def events(self) -> AsyncIterator[bytes]:
        """The data of each event. Raises ConnectorError when it breaks off for good."""
        cursor, in_vain = Cursor(), 0
        while self._stream is not None:
            before, problem = cursor.id, None
            try:
                async for data in events(self._stream.chunks(), cursor):
                    yield data
            except ConnectorError as error:
                problem = error
            in_vain = 0 if cursor.id != before else in_vain + 1
            if self._reopen is None or cursor.id is None or in_vain >= _MOST_IN_VAIN or not _is_passing(problem):
                if problem is not None:
                    raise problem
                return
            self.close()
            self._stream = await self._taken_up(self._reopen, cursor.id, cursor.pause_seconds)

    @staticmethod
    async def _taken_up(
        reopen: Callable[[str], Awaitable[Stream | None]], place: str, pause_seconds: float
    ) -> Stream | None:
        for left in reversed(range(_MOST_IN_VAIN)):
            await asyncio.sleep(pause_seconds)
            try:
                return await reopen(place)
            except ConnectorError as error:
                if not (left and error.retryable):
                    # The request that the stream answers has been sent, whatever became of this one.
                    raise ConnectorError(error.code, str(error), retryable=error.retryable) from error
        return None

    async def rest(self) -> None:
        """Read to the end of the connection."""
        if self._stream is not None:
            async for _ in self._stream.chunks():
                pass

    @property
    def is_complete(self) -> bool:
        """Whether nothing more will come over the connection."""
        return self._stream is None or self._stream.is_complete

    def close(self) -> None:
        """Keep the connection if the stream is at its end, and else close it."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def abort(self) -> None:
        """Close the connection."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.abort()


def _is_passing(problem: ConnectorError | None) -> bool:
    return problem is None or problem.retryable
