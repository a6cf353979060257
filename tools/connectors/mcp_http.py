"""JSON-RPC over streamable HTTP, as a client: one message out, its answer back as JSON or out of an event stream."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import aiohttp
from yarl import URL

from tools.connectors.base import ConnectorError
from tools.connectors.limits import events, read_capped
from tools.connectors.mcp_core import Estranged, Greeting, McpTool, SessionEnded, declined, parsed, result_of, written
from tools.connectors.mcp_headers import headers_of
from tools.egress import EgressDenied

# Of one stream: what a server may ask of its client before we stop listening, and how long its end is waited for.
_MOST_REQUESTS, _DRAIN_SECONDS = 16, 1.0
# What a session id may hold (MCP 2025-11-25, transports, "Session Management").
_SESSION_ID = re.compile(r"[\x21-\x7e]{1,1024}")


class Upstream:
    """JSON-RPC with one server over a pool of kept connections, which is opened at first use."""

    def __init__(self, url: str, headers: Mapping[str, str], pool: Callable[[], aiohttp.BaseConnector]) -> None:
        self._url = URL(url)
        self._headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream", **headers}
        self._pool = pool
        self._client: aiohttp.ClientSession | None = None
        self._closed = False
        self._ids = 0
        self._aside: set[asyncio.Task[None]] = set()

    async def close(self, greeting: Greeting | None) -> None:
        """Close the pool; a legacy session is ended as a courtesy."""
        self._closed = True
        client, self._client = self._client, None
        aside = list(self._aside)
        for task in aside:
            task.cancel()
        await asyncio.gather(*aside, return_exceptions=True)
        if client is None:
            return
        if greeting is not None and "Mcp-Session-Id" in greeting.headers:
            headers = {**self._headers, **greeting.headers}
            with contextlib.suppress(aiohttp.ClientError, OSError):  # It expires by itself.
                async with asyncio.timeout(2), client.delete(self._url, headers=headers, allow_redirects=False):
                    pass
        await client.close()

    # --- Messages -----------------------------------------------------------------------------------------------------

    async def exchange(
        self, greeting: Greeting, method: str, params: dict[str, Any], tool: McpTool | None = None
    ) -> tuple[dict[str, Any], str | None]:
        """The result, and the session id that came with it. Raises RpcError and ConnectorError; keeps no deadline."""
        self._ids += 1
        message = {"jsonrpc": "2.0", "id": self._ids, "method": method, "params": params}
        extra = headers_of(method, params, tool) if greeting.modern else {}
        answer, session = await self._post(message, self._ids, greeting, extra)
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
        self, message: dict[str, Any], identifier: int | None, greeting: Greeting, extra: dict[str, str]
    ) -> tuple[dict[str, Any], str | None]:
        headers = {**self._headers, **greeting.headers, **extra}
        body = written(message)
        try:
            response = await self._http().post(self._url, data=body, headers=headers, allow_redirects=False)
            try:
                answer = await self._answer(response, identifier, greeting)
            except BaseException:
                response.close()
                raise
        except aiohttp.ClientConnectorError as error:
            raise _not_connected(error) from error
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise ConnectorError(
                "upstream_unavailable", "The connection to the upstream broke before it answered.", retryable=True
            ) from error
        self._let_go(response)
        return answer, response.headers.get("Mcp-Session-Id")

    def _http(self) -> aiohttp.ClientSession:
        if self._closed:
            raise ConnectorError("upstream_unavailable", "The connector is closed.", retryable=True, sent=False)
        if self._client is None:
            self._client = aiohttp.ClientSession(
                connector=self._pool(),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept-Encoding"),
                # Each request has its own deadline; aiohttp's would be a second timer for each.
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            )
        return self._client

    async def _answer(
        self, response: aiohttp.ClientResponse, identifier: int | None, greeting: Greeting
    ) -> dict[str, Any]:
        """The message with this id; an empty one where none is due."""
        if response.status == 404 and "Mcp-Session-Id" in greeting.headers:
            raise SessionEnded
        if identifier is None and response.status < 300:
            return {}
        if response.content_type == "text/event-stream" and response.status < 300:
            return await self._from_stream(response, identifier, greeting)
        body = await read_capped(response)
        answer = parsed(body) if response.content_type == "application/json" else None
        if response.status >= 300 and not (answer and "error" in answer):
            raise _http_error(response.status)
        if answer is None or not _answers(answer, identifier):
            raise ConnectorError("bad_upstream_answer", "The upstream's answer is not the JSON-RPC answer to the call.")
        return answer

    async def _from_stream(
        self, response: aiohttp.ClientResponse, identifier: int | None, greeting: Greeting
    ) -> dict[str, Any]:
        """The answer with this id out of an event stream (HTML standard, "Server-sent events")."""
        asked = 0
        async for data in events(response):
            message = parsed(data)
            if message is None:
                continue
            if "method" not in message and _answers(message, identifier):
                return message
            if "method" in message and "id" in message and not greeting.modern:
                asked += 1
                if asked > _MOST_REQUESTS:
                    raise ConnectorError("bad_upstream_answer", "The upstream asks instead of answering.")
                self._start_aside(self._reply(message, greeting))
        raise ConnectorError("bad_upstream_answer", "The upstream's stream ended without an answer.")

    # --- Aside --------------------------------------------------------------------------------------------------------

    async def _reply(self, request: dict[str, Any], greeting: Greeting) -> None:
        """Say no to what the server asks of a client, so that it does not wait."""
        with contextlib.suppress(ConnectorError, TimeoutError):  # The call goes on without it.
            async with asyncio.timeout(5):
                await self._post(declined(request), None, greeting, {})

    def _let_go(self, response: aiohttp.ClientResponse) -> None:
        """Give the connection back. A stream ends a little after its answer: without that end it would be lost."""
        if response.closed or response.content.at_eof():
            response.release()
        else:
            self._start_aside(_drain(response))

    def _start_aside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)


async def _drain(response: aiohttp.ClientResponse) -> None:
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for _ in response.content.iter_any():
                pass
    except (aiohttp.ClientError, OSError):
        response.close()
    finally:
        response.release()


def _not_connected(error: aiohttp.ClientConnectorError) -> ConnectorError:
    if isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError)):
        return ConnectorError("upstream_unavailable", "The upstream's TLS certificate cannot be trusted.", sent=False)
    if isinstance(error.os_error, EgressDenied):
        return ConnectorError(error.os_error.code, str(error.os_error), sent=False)
    return ConnectorError("upstream_unavailable", "The upstream cannot be reached.", retryable=True, sent=False)


def _http_error(status: int) -> ConnectorError:
    """The server answered with an HTTP status that carries no JSON-RPC."""
    error = Estranged if status in (400, 404, 405) else ConnectorError
    return error(code="upstream_http_error", message=_about_status(status))


def _about_status(status: int) -> str:
    if status in (401, 403):
        return f"The upstream does not accept the credentials (HTTP status {status})."
    if 300 <= status < 400:
        return f"The upstream answered with a redirect (HTTP status {status}), which is not followed."
    return f"The upstream answered with HTTP status {status}."


def _answers(message: dict[str, Any], identifier: int | None) -> bool:
    """Whether it is the answer with this id; an error may come without one (JSON-RPC 2.0, section 5)."""
    found = message.get("id")
    return (type(found) is int and found == identifier) or (found is None and "error" in message)
