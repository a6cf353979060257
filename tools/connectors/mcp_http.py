"""JSON-RPC over streamable HTTP, as a client: one message out, its answer back as JSON or out of an event stream."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import Any

from tools.connectors.base import ConnectorError
from tools.connectors.event_stream import Resumable
from tools.connectors.http1 import HttpClient
from tools.connectors.http1_connection import Response, Stream
from tools.connectors.limits import Noise
from tools.connectors.mcp_ears import Deaf, Take
from tools.connectors.mcp_greeting import Greeting
from tools.connectors.mcp_headers import headers_of
from tools.connectors.mcp_lines import HttpLine
from tools.connectors.mcp_messages import Estranged, McpTool, SessionEnded, parsed, result_of, written
from tools.connectors.mcp_turn import Turn, cancelled, declined, reporting
from tools.egress import Egress

# Of one stream: what a server may ask of its client before we stop listening, and how long its end is waited for.
_MOST_REQUESTS, _DRAIN_SECONDS = 64, 1.0
# Answers to a server that are under way at once; to what it asks beyond, it gets none.
_MOST_ASIDE = 64
# How long the stream on which a server speaks of its own accord is waited for.
_OPENING_SECONDS = 1.0
# What a session id may hold (MCP 2025-11-25, transports, "Session Management").
_SESSION_ID = re.compile(r"[\x21-\x7e]{1,1024}")


class Upstream:
    """JSON-RPC with one server over a pool of kept connections."""

    def __init__(
        self, url: str, headers: Mapping[str, str], egress: Egress, limit: int, overheard: Take = lambda message: None
    ) -> None:
        always = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream", **headers}
        self._client = HttpClient(url, always, egress, limit)
        # Apart from the calls, of which it must take no connection: a stream and the one that takes its place.
        self._ears = HttpClient(url, always, egress, 2)
        # Takes what comes on the stream of a call and may be about something else.
        self._overheard = overheard
        self._ids = 0
        self._aside: set[asyncio.Task[None]] = set()
        # What the server says of its own accord: in which session it is read, and about which call it must be.
        self._listening: tuple[Greeting, asyncio.Task[None]] | None = None
        self._attending: Turn | None = None
        self._is_silent = False

    async def close(self, greeting: Greeting | None) -> None:
        """Close the pool; a legacy session is ended as a courtesy."""
        aside = list(self._aside)
        for task in aside:
            task.cancel()
        await asyncio.gather(*aside, return_exceptions=True)
        if greeting is not None and "Mcp-Session-Id" in greeting.headers:
            with contextlib.suppress(ConnectorError, TimeoutError):  # It expires by itself.
                async with asyncio.timeout(2):
                    await self._client.request("DELETE", greeting.headers, b"")
        await self._client.close()
        await self._ears.close()

    # --- Messages -----------------------------------------------------------------------------------------------------

    async def exchange(
        self,
        greeting: Greeting,
        method: str,
        params: dict[str, Any],
        tool: McpTool | None = None,
        turn: Turn | None = None,
    ) -> tuple[dict[str, Any], str | None]:
        """The result, and the session id that came with it. Raises RpcError and ConnectorError; keeps no deadline."""
        self._ids += 1
        identifier = self._ids
        if turn is not None:
            params = reporting(turn, params, identifier)
        message = {"jsonrpc": "2.0", "id": identifier, "method": method, "params": params}
        extra = headers_of(method, params, tool) if greeting.modern else {}
        if trace := params.get("_meta", {}).get("traceparent"):
            extra["traceparent"] = trace  # For what stands between us and the server, and reads HTTP only.
        try:
            answer, session = await self._post(message, identifier, greeting, extra, turn)
        except asyncio.CancelledError:
            if not greeting.modern and method != "initialize":  # To a modern server the closed stream says it.
                self._start_aside(self._say(cancelled(identifier), greeting))
            raise
        return result_of(answer), session

    def agreed(self, revision: str, session: str | None, server: str) -> Greeting:
        """The greeting of an older revision: its headers name the revision and the session."""
        headers = {"MCP-Protocol-Version": revision}
        if session is not None:
            if not _SESSION_ID.fullmatch(session):
                raise ConnectorError("bad_upstream_answer", "The upstream's session id is not one.")
            headers["Mcp-Session-Id"] = session
        return Greeting(False, headers, revision, server)

    async def notify(self, method: str, greeting: Greeting) -> None:
        """Send a notification."""
        await self._post({"jsonrpc": "2.0", "method": method}, None, greeting, {})

    async def _post(
        self,
        message: dict[str, Any],
        identifier: int | None,
        greeting: Greeting,
        extra: dict[str, str],
        turn: Turn | None = None,
    ) -> tuple[dict[str, Any], str | None]:
        response = await self._client.request("POST", {**greeting.headers, **extra}, written(message))
        if response.stream is None:
            answer = self._answer(response, identifier, greeting)
        else:
            answer = await self._out_of(self._resumable(response.stream, greeting, turn), identifier, greeting, turn)
        return answer, response.headers.get("mcp-session-id")

    @staticmethod
    def _answer(response: Response, identifier: int | None, greeting: Greeting) -> dict[str, Any]:
        """The message with this id; an empty one where none is due."""
        if response.status == 404 and "Mcp-Session-Id" in greeting.headers:
            raise SessionEnded
        if identifier is None and response.status < 300:
            return {}
        answer = parsed(response.body) if response.content_type == "application/json" else None
        if response.status >= 300 and not (answer and isinstance(answer.get("error"), dict)):
            raise _http_error(response.status)
        if answer is None or not _answers(answer, identifier):
            response.distrust()
            raise ConnectorError("bad_upstream_answer", "The upstream's answer is not the JSON-RPC answer to the call.")
        return answer

    async def _out_of(
        self, stream: Resumable, identifier: int | None, greeting: Greeting, turn: Turn | None
    ) -> dict[str, Any]:
        try:
            answer = {} if identifier is None else await self._found(stream, identifier, greeting, turn)
        except BaseException:
            stream.abort()
            raise
        # A stream ends a little after its answer: without waiting for that the connection would be lost.
        if stream.is_complete:
            stream.close()
        else:
            self._start_aside(_drain(stream))
        return answer

    def _resumable(self, stream: Stream, greeting: Greeting, turn: Turn | None) -> Resumable:
        async def reopen(place: str) -> Stream | None:
            if turn is not None:
                turn.linger()
            response = await self._client.request("GET", {**greeting.headers, "Last-Event-ID": place}, b"")
            return response.stream

        return Resumable(stream, None if greeting.modern else reopen)

    async def _found(self, stream: Resumable, identifier: int, greeting: Greeting, turn: Turn | None) -> dict[str, Any]:
        """The answer with this id out of an event stream (HTML standard, "Server-sent events")."""
        asked = 0
        async for data in stream.events():
            message = parsed(data)
            if message is None:
                continue
            if "method" not in message:
                if _answers(message, identifier):
                    return message
            elif "id" not in message:
                self._overheard(message)
                if turn is not None:
                    turn.hear(message, identifier)
            elif not greeting.modern:
                asked += 1
                if asked > _MOST_REQUESTS:
                    raise ConnectorError("bad_upstream_answer", "The upstream asks instead of answering.")
                self._take_up(message, greeting, turn)
        raise ConnectorError("bad_upstream_answer", "The upstream's stream ended without an answer.")

    async def overhear(self, greeting: Greeting, params: dict[str, Any] | None, take: Take) -> HttpLine:
        """See `HearingTransport.overhear`."""
        identifier, answer = None, partial(self._answer_aside, greeting)
        if params is None:
            response = await self._ears.request("GET", {**greeting.headers, "Accept": "text/event-stream"}, b"")
            if response.status == 405:
                raise Deaf
        else:
            self._ids += 1
            identifier = self._ids
            message = {"jsonrpc": "2.0", "id": identifier, "method": "subscriptions/listen", "params": params}
            headers = {**greeting.headers, **headers_of("subscriptions/listen", params, None)}
            response = await self._ears.request("POST", headers, written(message))
        if response.stream is None:
            result_of(self._answer(response, identifier, greeting))
            raise ConnectorError("bad_upstream_answer", "The upstream's answer is no event stream.")
        return HttpLine(response.stream, identifier, take, answer)

    def _answer_aside(self, greeting: Greeting, request: dict[str, Any]) -> None:
        if not greeting.modern:
            self._take_up(request, greeting, None)

    # --- Of its own accord --------------------------------------------------------------------------------------------

    async def attend(self, greeting: Greeting, turn: Turn) -> None:
        """Take what the server says on no call's stream for what it says in this turn, until there is another one.

        Many servers ask and log there (MCP 2025-11-25, transports, "Listening for Messages from the Server").
        """
        self._attending = turn
        if greeting.modern or self._listens_to(greeting):
            return
        opened = asyncio.Event()
        self._listening = greeting, self._start_aside(self._listen(greeting, opened))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_OPENING_SECONDS):
                await opened.wait()

    def _listens_to(self, greeting: Greeting) -> bool:
        """Whether it is listened to, or has nothing to say of its own accord."""
        if self._listening is None or self._listening[0] is not greeting:
            return False
        return self._is_silent or not self._listening[1].done()

    async def _listen(self, greeting: Greeting, opened: asyncio.Event) -> None:
        stream: Stream | None = None
        try:
            with contextlib.suppress(ConnectorError):  # It is asked and told on the streams of calls, or not at all.
                headers = {**greeting.headers, "Accept": "text/event-stream"}
                stream = (await self._ears.request("GET", headers, b"")).stream
                self._is_silent = stream is None
                opened.set()
                if stream is not None:
                    await self._hear(stream, greeting)
        finally:
            opened.set()
            if stream is not None:
                stream.abort()

    async def _hear(self, stream: Stream, greeting: Greeting) -> None:
        noise = Noise()
        async for data in Resumable(stream, None).events():
            stream.recount()
            if noise.is_too_much(len(data)):
                return
            message = parsed(data)
            if message is None or "method" not in message:
                continue
            if "id" in message:
                self._take_up(message, greeting, self._attending)
                continue
            self._overheard(message)
            if self._attending is not None:
                self._attending.hear(message, None)

    # --- Aside --------------------------------------------------------------------------------------------------------

    def _take_up(self, request: dict[str, Any], greeting: Greeting, turn: Turn | None) -> None:
        """Have the client asked, or say no: a server must not wait in vain."""
        if turn is None:
            if len(self._aside) < _MOST_ASIDE:
                self._start_aside(self._say(declined(request), greeting))
        else:
            turn.answer(request, lambda response: self._say(response, greeting))

    async def _say(self, message: dict[str, Any], greeting: Greeting) -> None:
        """Send what is not answered. The call goes on without it."""
        with contextlib.suppress(ConnectorError, TimeoutError):
            async with asyncio.timeout(5):
                await self._post(message, None, greeting, {})

    def _start_aside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)
        return task


async def _drain(stream: Resumable) -> None:
    try:
        with contextlib.suppress(ConnectorError, TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                await stream.rest()
    finally:
        stream.close()


def _http_error(status: int) -> ConnectorError:
    """The server answered with an HTTP status that carries no JSON-RPC."""
    error = Estranged if status in (400, 404, 405) else ConnectorError
    return error(code="upstream_http_error", message=about_status(status))


def about_status(status: int) -> str:
    """A sentence on a status that is no success."""
    if status in (401, 403):
        return f"The upstream does not accept the credentials (HTTP status {status})."
    if 300 <= status < 400:
        return f"The upstream answered with a redirect (HTTP status {status}), which is not followed."
    return f"The upstream answered with HTTP status {status}."


def _answers(message: dict[str, Any], identifier: int | None) -> bool:
    """Whether it is the answer with this id; an error may come without one (JSON-RPC 2.0, section 5)."""
    found = message.get("id")
    return (type(found) is int and found == identifier) or (found is None and "error" in message)
