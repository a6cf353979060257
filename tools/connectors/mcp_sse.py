"""JSON-RPC over HTTP with SSE (MCP 2024-11-05, transports), as a client: requests by POST, answers on one stream.

A GET opens the stream, whose first event says where to send. The stream is the session: when it ends, so do the calls
under way, and the next one opens another.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from tools.connectors import limits
from tools.connectors.base import ConnectorError
from tools.connectors.event_stream import Cursor, events
from tools.connectors.http1 import HttpClient
from tools.connectors.http1_connection import ConnectionBroken, Stream
from tools.connectors.limits import Noise
from tools.connectors.mcp_ears import Take
from tools.connectors.mcp_greeting import Greeting
from tools.connectors.mcp_http import about_status
from tools.connectors.mcp_lines import ProcessLine
from tools.connectors.mcp_messages import McpTool, SessionEnded, parsed, result_of, written
from tools.connectors.mcp_turn import Turn, cancelled, declined, reporting
from tools.egress import Egress

# Until the first event; answers to the server that are under way at once, and how long one may take.
_ENDPOINT_SECONDS, _MOST_ASIDE, _ASIDE_SECONDS = 5.0, 64, 5.0
_MOST_LATE = 1_000
_NOTHING: Mapping[str, str] = {}
_PORTS = {"http": 80, "https": 443}


class NotSpoken(ConnectorError):
    """The server does not speak this transport."""

    def __init__(self, said: str) -> None:
        super().__init__("bad_upstream_answer", f"The upstream does not speak HTTP with SSE: {said}", sent=False)


class Session:
    """One stream of the server, and who waits for something on it."""

    def __init__(self, stream: Stream, target: str) -> None:
        self.stream, self.target = stream, target
        self.calls: dict[int, asyncio.Future[dict[str, Any] | ConnectorError]] = {}
        self.turns: dict[int, Turn] = {}
        self.noise, self.talk = Noise(), Noise(limits.MAX_RESULT_BYTES)
        # Calls that nobody waits for any more, whose answers may still come.
        self.late: dict[int, None] = {}
        self.line: ProcessLine | None = None
        self.take: Take = _nobody

    def answer(self, identifier: int, message: dict[str, Any]) -> bool:
        """Whether that was asked."""
        future = self.calls.get(identifier)
        if future is not None and not future.done():
            future.set_result(message)
            return True
        if identifier not in self.late:
            return False
        del self.late[identifier]
        return True

    def give_up(self, identifier: int) -> None:
        """Nobody waits for this answer any more."""
        self.late[identifier] = None
        if len(self.late) > _MOST_LATE:
            del self.late[next(iter(self.late))]

    def hang_up(self, line: ProcessLine) -> None:
        """Nobody listens on it any more."""
        if self.line is line:
            self.line, self.take = None, _nobody

    def end(self, problem: ConnectorError) -> None:
        """Nobody gets an answer any more."""
        self.stream.abort()
        for future in self.calls.values():
            if not future.done():
                future.set_result(problem)
        if self.line is not None:
            self.line.end()


def _nobody(message: dict[str, Any]) -> None:
    """Nobody listens."""


class SseUpstream:
    """JSON-RPC with one server, whose stream comes and goes. `on_lost` hears of each end of it."""

    def __init__(
        self, url: str, headers: Mapping[str, str], egress: Egress, limit: int, on_lost: Callable[[], None]
    ) -> None:
        self._url, self._on_lost = url, on_lost
        # Apart from the calls, of which it must take no connection.
        self._listening = HttpClient(url, {"Accept": "text/event-stream", **headers}, egress, 1)
        self._client = HttpClient(url, {"Content-Type": "application/json", **headers}, egress, limit)
        # A message is taken long before it is answered: connections alone would limit nothing.
        self._places = asyncio.Semaphore(limit)
        self._ids = itertools.count(1)
        self._session: Session | None = None
        self._aside: set[asyncio.Task[None]] = set()
        # Whether all that is said belongs to the one call under way.
        self.is_leased = False

    # --- The stream ---------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the stream, in the place of one that is still there. Raises NotSpoken and ConnectorError."""
        if self._session is not None:
            self._lose(self._session, ConnectionBroken())
        response = await self._listening.request("GET", {}, b"")
        if response.stream is None:
            raise NotSpoken(about_status(response.status) if response.status >= 300 else "it gave no stream.")
        try:
            reading, target = await self._begun(response.stream)
        except BaseException:
            response.stream.abort()
            raise
        self._session = session = Session(response.stream, target)
        self._start_aside(self._read(session, reading))

    async def _begun(self, stream: Stream) -> tuple[AsyncIterator[bytes], str]:
        cursor = Cursor()
        reading = events(stream.chunks(), cursor)
        try:
            async with asyncio.timeout(_ENDPOINT_SECONDS):
                first = await anext(reading)
        except (TimeoutError, StopAsyncIteration) as error:
            raise NotSpoken("its stream does not say where to send.") from error
        if cursor.kind != "endpoint":
            raise NotSpoken("its stream does not begin by saying where to send.")
        return reading, self._target_in(first)

    def _target_in(self, data: bytes) -> str:
        """Path and query to send to. Elsewhere than at the origin of the URL nothing is sent, least of all a token."""
        try:
            place, home = urlsplit(urljoin(self._url, data.decode("ascii").strip())), urlsplit(self._url)
            is_ours = _origin(place) == _origin(home) and "@" not in place.netloc
        except ValueError as error:
            raise ConnectorError("bad_upstream_answer", "What the upstream names to send to is no URL.") from error
        if not is_ours:
            said = "The upstream wants messages sent to another origin than its own, which is not done."
            raise ConnectorError("bad_upstream_answer", said, sent=False)
        target = (place.path or "/") + (f"?{place.query}" if place.query else "")
        if any(letter <= " " or letter == "\x7f" for letter in target):
            raise ConnectorError("bad_upstream_answer", "What the upstream names to send to is no URL.", sent=False)
        return target

    async def _read(self, session: Session, reading: AsyncIterator[bytes]) -> None:
        problem: ConnectorError = ConnectionBroken()
        try:
            async for data in reading:
                session.stream.recount()
                if (message := parsed(data)) is not None:
                    self._take(session, message, len(data))
        except ConnectorError as error:
            problem = error
        finally:
            self._lose(session, problem)

    def _lose(self, session: Session, problem: ConnectorError) -> None:
        if self._session is session:
            self._session = None
            self._on_lost()
        session.end(problem)

    async def close(self, greeting: Greeting | None) -> None:
        """Close the stream, which ends the session."""
        aside = list(self._aside)
        for task in aside:
            task.cancel()
        await asyncio.gather(*aside, return_exceptions=True)
        await self._listening.close()
        await self._client.close()

    # --- Messages -----------------------------------------------------------------------------------------------------

    async def exchange(
        self,
        greeting: Greeting,
        method: str,
        params: dict[str, Any],
        tool: McpTool | None = None,
        turn: Turn | None = None,
    ) -> tuple[dict[str, Any], str | None]:
        """The result. Raises RpcError and ConnectorError; keeps no deadline."""
        async with self._places:
            if (session := self._session) is None:
                raise SessionEnded
            identifier = next(self._ids)
            if turn is not None:
                params = reporting(turn, params, identifier)
                session.turns[identifier] = turn
            session.calls[identifier] = future = asyncio.get_running_loop().create_future()
            trace = params.get("_meta", {}).get("traceparent")
            message = {"jsonrpc": "2.0", "id": identifier, "method": method, "params": params}
            try:
                await self._post(session, message, {"traceparent": trace} if trace else {})
                answer = await future
            except asyncio.CancelledError:
                session.give_up(identifier)
                if method != "initialize":  # This one must not be cancelled.
                    self._start_aside(self._say(session, cancelled(identifier)))
                raise
            finally:
                del session.calls[identifier]
                session.turns.pop(identifier, None)
        if isinstance(answer, ConnectorError):
            raise answer
        return result_of(answer), None

    async def notify(self, method: str, greeting: Greeting) -> None:
        """Send a notification."""
        if self._session is None:
            raise SessionEnded
        await self._post(self._session, {"jsonrpc": "2.0", "method": method})

    def agreed(self, revision: str, session: str | None, server: str) -> Greeting:
        """The greeting of an older revision; the session is the stream."""
        return Greeting(False, {}, revision, server)

    async def attend(self, greeting: Greeting, turn: Turn) -> None:
        """See `Transport.attend`. All that the server says comes on the one stream anyway."""

    async def overhear(self, greeting: Greeting, params: dict[str, Any] | None, take: Take) -> ProcessLine:
        """See `HearingTransport.overhear`. What the server says comes without being asked for."""
        if self._session is None:
            raise SessionEnded
        session = self._session
        session.take, session.line = take, ProcessLine(None, session.hang_up)
        return session.line

    async def _post(self, session: Session, message: dict[str, Any], extra: Mapping[str, str] = _NOTHING) -> None:
        response = await self._client.request("POST", extra, written(message), session.target)
        if response.stream is not None:
            response.stream.abort()
        if response.status in (404, 410):  # It does not know whose message it is, and has not looked at it.
            self._lose(session, SessionEnded())
            raise SessionEnded
        if response.status >= 300:
            raise ConnectorError("upstream_http_error", about_status(response.status))

    # --- What the server says -----------------------------------------------------------------------------------------

    def _take(self, session: Session, message: dict[str, Any], size: int) -> None:
        identifier = message.get("id")
        if "method" not in message:
            if type(identifier) is int and session.answer(identifier, message):
                return
        elif identifier is not None:
            self._take_up(session, message)
        noise = session.noise
        if "method" in message and identifier is None and self._hear(session, message):
            noise = session.talk
        if noise.is_too_much(size):
            said = "The upstream says without end what it was not asked for."
            self._lose(session, ConnectorError("bad_upstream_answer", said))

    def _take_up(self, session: Session, request: dict[str, Any]) -> None:
        """Have the client asked, or say no: a server must not wait in vain."""
        if self.is_leased and session.turns:
            next(iter(session.turns.values())).answer(request, lambda response: self._say(session, response))
        elif len(self._aside) < _MOST_ASIDE:
            self._start_aside(self._say(session, declined(request)))

    def _hear(self, session: Session, message: dict[str, Any]) -> bool:
        """Hand on what is told about a call. False when it is about none that somebody is told of."""
        session.take(message)
        params = message.get("params")
        token = params.get("progressToken") if isinstance(params, dict) else None
        if self.is_leased and session.turns:
            token = next(iter(session.turns))
        if type(token) is not int or (turn := session.turns.get(token)) is None:
            return False
        turn.hear(message, token)
        return True

    async def _say(self, session: Session, message: dict[str, Any]) -> None:
        """Send what nobody waits for."""
        try:
            async with asyncio.timeout(_ASIDE_SECONDS):
                await self._post(session, message)
        except (ConnectorError, TimeoutError):  # The call goes on without it.
            return

    def _start_aside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)


def _origin(parts: SplitResult) -> tuple[str, str | None, int | None]:
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)
