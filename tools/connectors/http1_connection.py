"""One connection of HTTP/1.1 (RFC 9112), one exchange at a time: bytes out, and what comes back as an answer.

llhttp (through httptools) parses that, in its strict mode.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from typing import Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from tools.connectors import limits
from tools.connectors.base import ConnectorError

_PART_BYTES = 4096
_HEAD_LIMIT = 64 * 1024
# Of a stream, so much is dealt with at once.
_PORTION = 64 * 1024
# Where the system lets us choose: the first probe of a silent connection, the time between them, and how many.
_PROBES = {
    getattr(socket, name): value
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
}


class ConnectionBroken(ConnectorError):
    """The connection ended, or what came over it is not HTTP, before the answer was complete."""

    def __init__(self, *, sent: bool = True) -> None:
        said = "The connection to the upstream broke before it answered."
        super().__init__("upstream_unavailable", said, retryable=True, sent=sent)


class Response:
    """One answer: `headers` by names in lower case, and the whole `body`, or the `stream` of events in its place."""

    __slots__ = ("_connection", "body", "headers", "status", "stream")

    def __init__(self, status: int, headers: dict[str, str], body: bytes, connection: Connection) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.stream: Stream | None = None
        self._connection = connection

    @property
    def content_type(self) -> str:
        """The media type, without parameters."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def distrust(self) -> None:
        """Say that it is not the answer to the request: then what comes next over its connection is not one either."""
        self._connection.retire()


class Stream(Protocol):
    """An event stream, which holds its connection until it is closed."""

    def chunks(self) -> AsyncIterator[bytes]:
        """Its bytes as they come. Raises ConnectionBroken, and ConnectorError `result_too_large`."""

    def recount(self) -> None:
        """Say that what came so far is dealt with: the limit is for what comes at once, not for all of a long life."""

    def close(self) -> None:
        """Keep the connection if the stream is at its end, and else close it."""

    def abort(self) -> None:
        """Close the connection."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing more will come."""


class Connection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self, released: Callable[[Connection, bool], None]) -> None:
        # Told when an exchange is over, and whether another one can follow.
        self._released = released
        self._loop = asyncio.get_running_loop()
        self._lost = self._retired = False
        # Of the exchange under way, until its connection is given back.
        self._answer: asyncio.Future[Response] | None = None
        self._idle_since = 0.0

    # --- The exchange -------------------------------------------------------------------------------------------------

    async def exchange(self, data: bytes) -> Response:
        """Write a request and wait for its answer, which is the end of it unless that is a stream."""
        if self._lost:
            self.abort()
            raise ConnectionBroken(sent=False)
        self._parser = HttpResponseParser(self)
        self._status = self._head_size = self._untold = self._size = self._waiting = 0
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._complete = self._in_body = False
        self._error: ConnectorError | None = None
        self._more: asyncio.Future[None] | None = None
        answer: asyncio.Future[Response] = self._loop.create_future()
        self._answer = answer
        self._transport.write(data)
        try:
            return await answer
        except BaseException:
            # Cancelled just when the answer came, it may be another one's already.
            if self._answer is answer:
                self.close()
            raise

    async def chunks(self) -> AsyncIterator[bytes]:
        """See `Stream.chunks`."""
        while True:
            if self._body:
                yield self._portion()
                if self._body:  # A flood of events is not to keep others from their turn.
                    await asyncio.sleep(0)
            elif self._complete:
                return
            elif self._error is not None:
                raise self._error
            else:
                self._more = self._loop.create_future()
                await self._more

    def _portion(self) -> bytes:
        size = count = 0
        for part in self._body:
            size, count = size + len(part), count + 1
            if size >= _PORTION:
                break
        portion = b"".join(self._body[:count])
        self._body[:count] = [portion[_PORTION:]] if size > _PORTION else []
        portion = portion[:_PORTION]
        self._waiting -= len(portion)
        return portion

    def recount(self) -> None:
        """See `Stream.recount`."""
        self._size = self._waiting

    @property
    def is_complete(self) -> bool:
        """See `Stream.is_complete`."""
        return self._complete

    def close(self) -> None:
        """The exchange is over: give the connection back, or end it where more could come."""
        self._answer = None
        self._idle_since = self._loop.time()
        self._released(self, self._complete and not self._lost and self._keep)

    def retire(self) -> None:
        """Begin no other exchange on it."""
        self._retired = True
        if self._answer is None:
            self.abort()

    def is_usable(self, most_idle_seconds: float) -> bool:
        """Whether another exchange can begin on it."""
        return not self._lost and self._loop.time() - self._idle_since < most_idle_seconds

    def abort(self) -> None:
        """End it at once."""
        self._lost = True
        self._transport.abort()
        self._released(self, False)

    # --- asyncio.Protocol ---------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember the transport, and find out within a minute when the other end is gone without a word."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's inherits from nothing
        if (line := transport.get_extra_info("socket")) is not None:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _PROBES.items():
                line.setsockopt(socket.IPPROTO_TCP, option, value)

    def data_received(self, data: bytes) -> None:
        """Parse; what nobody asked for ends the connection."""
        if self._answer is None:
            self.abort()
            return
        self._told = False
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self._fail(ConnectionBroken())
        # The parser keeps a line, and tells nothing of it, until it ends.
        self._untold = 0 if self._told else self._untold + len(data)
        if self._untold > _HEAD_LIMIT:
            self._fail(ConnectionBroken())

    def eof_received(self) -> None:
        """The transport closes itself now: what is written from here on is lost."""
        self._lost = True

    def connection_lost(self, error: Exception | None) -> None:
        """The end: of the body, where nothing else tells it (RFC 9112, section 6.3), or a failure."""
        self._lost = True
        # It holds us as we hold it: the body would stay until the collector comes.
        vars(self).pop("_parser", None)
        if self._answer is None or self._complete:
            return
        told = "content-length" in self._headers or "transfer-encoding" in self._headers
        if self._in_body and not told and error is None:
            self._keep = False
            self.on_message_complete()
        else:
            self._fail(ConnectionBroken())

    # --- HttpResponseParser -------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A second answer to one request ends the connection."""
        if self._complete:
            self.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep it; the first of a name counts, and trailers do not."""
        self._head_size += len(name) + len(value)
        if self._head_size > _HEAD_LIMIT:
            self._fail(ConnectionBroken())
        elif not self._in_body:
            self._headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1").strip())

    def on_headers_complete(self) -> None:
        """Hand an event stream over now; everything else is waited for."""
        self._status = self._parser.get_status_code()
        if self._status < 200:  # Interim (RFC 9110, section 15.2): the answer follows.
            self._headers = {}
            return
        self._in_body = True
        if self._status < 300 and self._headers.get("content-type", "").lower().startswith("text/event-stream"):
            response = Response(self._status, self._headers, b"", self)
            response.stream = self
            self._resolve(response)
        elif (length := self._headers.get("content-length", "")).isdecimal() and len(length) < 19:
            self._measure(int(length))

    def on_body(self, data: bytes) -> None:
        """Keep it, up to the limit."""
        if self._error is None:
            self._size += len(data)
            self._told = True
            self._measure(self._size)
            self._waiting += len(data)
            # Long answers in the parts that came, joined once at the end; what drips in, in parts of some size.
            if self._body and len(self._body[-1]) < _PART_BYTES:
                self._body[-1] += data
            else:
                self._body.append(data)
            self._wake()

    def on_message_complete(self) -> None:
        """Hand the answer over and be free for the next request."""
        if not self._in_body or self._error is not None:
            return
        self._keep = not self._lost and not self._retired and self._parser.should_keep_alive()
        self._complete = True
        self._wake()
        if self._answer is not None and not self._answer.done():
            self._resolve(Response(self._status, self._headers, b"".join(self._body), self))
            self._body.clear()
            self.close()

    # --- Outcomes -----------------------------------------------------------------------------------------------------

    def _resolve(self, response: Response) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(response)

    def _measure(self, size: int) -> None:
        if size > limits.MAX_RESULT_BYTES:
            self._fail(limits.too_large())

    def _fail(self, error: ConnectorError) -> None:
        if self._complete or self._error is not None:
            return
        self._error = error
        self._body.clear()
        self._wake()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self._transport.abort()

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)
