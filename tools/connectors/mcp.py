"""Upstream MCP servers over streamable HTTP, of either era.

Speaks JSON-RPC itself instead of using the SDK's client, which costs three times the whole call: what comes back is
passed on, not rebuilt from typed models. The era is found once and remembered: `server/discover` (2026-07-28), and
where that is not known the `initialize` handshake of the older revisions with its session id.
"""

from __future__ import annotations

import asyncio
import base64
import re
from typing import Any, ClassVar

import aiohttp
import orjson
from pydantic import Field, HttpUrl, SecretStr, field_validator
from yarl import URL

from tools.connectors.base import Connector, ConnectorError, Context, Offer, Options, Result, Source, Spec
from tools.connectors.limits import events, read_capped
from tools.egress import Egress, EgressDenied
from tools.mirrored import mirrored, value_at

MODERN, LEGACY = "2026-07-28", ("2025-11-25", "2025-06-18", "2025-03-26")
_META = "io.modelcontextprotocol/"
_CLIENT = {"name": "mcpsite", "version": "1"}
_MODERN_META = {
    f"{_META}protocolVersion": MODERN,
    f"{_META}clientInfo": _CLIENT,
    f"{_META}clientCapabilities": {},
}
_METHOD_NOT_FOUND, _INVALID_PARAMS, _UNSUPPORTED_VERSION = -32601, -32602, -32022
_HEADER_SAFE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
_MOST_PAGES, _MOST_TOOLS = 100, 5_000


class McpOptions(Options):
    """How to reach the server."""

    url: HttpUrl = Field(description="The server's endpoint, e.g. https://mcp.example.com/mcp.")
    bearer_token: SecretStr | None = Field(
        default=None, description="Sent as `Authorization: Bearer`, if it needs one."
    )
    max_connections: int = Field(
        default=32, ge=1, le=512, description="Connections that each process keeps at the most."
    )

    @field_validator("url")
    @classmethod
    def _no_userinfo(cls, value: HttpUrl) -> HttpUrl:
        if value.username or value.password:
            raise ValueError("put no user name or password into the URL: it is shown to people. Use the bearer token")
        return value


class McpTool(Spec):
    """Which of the server's tools it is."""

    name: str = Field(min_length=1, max_length=128, description="The tool's name at the server.")
    headers: dict[str, str] = Field(
        default_factory=dict, description="Arguments to mirror as `Mcp-Param-*` headers: dotted path → header name."
    )


class _RpcError(Exception):
    def __init__(self, error: dict[str, Any]) -> None:
        self.code = error.get("code")
        self.message = str(error.get("message", ""))[:500]
        super().__init__(f"{self.message} ({self.code})")


def header_value(value: str) -> str:
    """The value as a header may carry it: plain, or as `=?base64?…?=` (MCP 2026-07-28, transports)."""
    if _HEADER_SAFE.fullmatch(value) and not value.startswith("=?base64?"):
        return value
    return f"=?base64?{base64.b64encode(value.encode()).decode()}?="


class McpConnector(Connector):
    """One upstream server: one pool of kept connections in each process."""

    kind: ClassVar[str] = "mcp"
    label: ClassVar[str] = "MCP server"
    description: ClassVar[str] = "An upstream MCP server over streamable HTTP, of any revision."
    Options: ClassVar[type[Options]] = McpOptions
    ToolSpec: ClassVar[type[Spec]] = McpTool
    discovers: ClassVar[bool] = True

    def __init__(self, source: Source, egress: Egress) -> None:
        super().__init__(source, egress)
        options: McpOptions = source.options
        self._url = URL(str(options.url))
        self._headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if options.bearer_token:
            self._headers["Authorization"] = f"Bearer {options.bearer_token.get_secret_value()}"
        self._client: aiohttp.ClientSession | None = None
        self._modern: bool | None = None
        self._session: dict[str, str] = {}
        self._server = "unnamed server"
        self._opening = asyncio.Lock()
        self._ids = 0

    # --- The verbs ----------------------------------------------------------------------------------------------------

    async def check(self) -> str:
        """Greet the server anew."""
        self._modern = None
        await self._open(self.source.timeout_seconds)
        return f"{self._server} answers with revision {self._revision()}."

    async def discover(self) -> list[Offer]:
        """All pages of tools/list, each definition as it came."""
        seconds = float(self.source.timeout_seconds)
        await self._open(seconds)
        offers: list[Offer] = []
        cursor: str | None = None
        for _ in range(_MOST_PAGES):
            result = await self._request("tools/list", {"cursor": cursor} if cursor else {}, seconds)
            offers += [_offer(tool) for tool in _tools_of(result)]
            cursor = result.get("nextCursor")
            if not cursor:
                return offers
            if len(offers) > _MOST_TOOLS:
                break
        raise ConnectorError(
            "too_many_tools", f"The server lists more than {_MOST_TOOLS} tools or {_MOST_PAGES} pages."
        )

    async def call(self, spec: Spec, arguments: dict[str, Any], context: Context) -> Result:
        """tools/call."""
        assert isinstance(spec, McpTool)
        params: dict[str, Any] = {"name": spec.name, "arguments": arguments}
        if context.traceparent:
            params["_meta"] = {"traceparent": context.traceparent}
        try:
            result = await self._call(spec, params, context.deadline_seconds)
        except _RpcError as error:
            raise ConnectorError("upstream_refused", f"The upstream refused the call: {error.message}") from error
        if result.get("resultType", "complete") != "complete":
            raise ConnectorError("unsupported_result", "The upstream asks for input, which is not passed on yet.")
        if not isinstance(result.get("content"), list):
            raise ConnectorError("bad_upstream_answer", "The upstream's answer has no content.")
        return Result(result, result.get("isError") is True)

    async def _call(self, spec: McpTool, params: dict[str, Any], seconds: float) -> dict[str, Any]:
        if self._modern is None:
            await self._open(seconds)
        extra = {"Mcp-Name": header_value(spec.name), **_mirrored(spec, params["arguments"])} if self._modern else {}
        return await self._request("tools/call", params, seconds, extra)

    async def close(self) -> None:
        """Close the pool; a legacy session is ended as a courtesy."""
        client, self._client = self._client, None
        if client is None:
            return
        if session := self._session.get("Mcp-Session-Id"):
            headers = {**self._headers, "Mcp-Session-Id": session}
            try:
                async with client.delete(self._url, headers=headers, timeout=aiohttp.ClientTimeout(total=2)):
                    pass
            except (aiohttp.ClientError, TimeoutError):
                pass  # It expires by itself.
        await client.close()

    def _revision(self) -> str:
        return MODERN if self._modern else self._session.get("MCP-Protocol-Version", "")

    # --- Greeting -----------------------------------------------------------------------------------------------------

    async def _open(self, seconds: float) -> None:
        async with self._opening:
            if self._modern is not None:
                return
            if self._client is None:
                options: McpOptions = self.source.options
                self._client = aiohttp.ClientSession(
                    connector=self.egress.http_connector(options.max_connections),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    auto_decompress=False,
                    skip_auto_headers=("User-Agent", "Accept-Encoding"),
                    # Each request has its own deadline; aiohttp's would be a second timer for each.
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                )
            try:
                await self._greet(seconds)
            except _RpcError as error:
                raise ConnectorError("upstream_refused", f"The server refuses to start: {error}", sent=False) from error

    async def _greet(self, seconds: float) -> None:
        self._modern, self._session = True, {}
        try:
            found = await self._request("server/discover", {}, seconds)
            if MODERN in found.get("supportedVersions", [MODERN]):
                self._server = _name_of(found.get("_meta", {}).get(f"{_META}serverInfo") or found.get("serverInfo"))
                return
        except (_RpcError, ConnectorError) as error:
            # Older servers answer with whatever they have for an unknown method or version.
            if isinstance(error, ConnectorError) and error.code not in ("upstream_http_error", "bad_upstream_answer"):
                self._modern = None
                raise
        self._modern = False
        try:
            await self._initialize(seconds)
        except BaseException:
            self._modern = None
            raise

    async def _initialize(self, seconds: float) -> None:
        params = {"protocolVersion": LEGACY[0], "capabilities": {}, "clientInfo": _CLIENT}
        result = await self._request("initialize", params, seconds)
        version = result.get("protocolVersion")
        if version not in LEGACY:
            raise ConnectorError(
                "unsupported_version", f"The server speaks revision {version!r}, which is not known here."
            )
        self._session["MCP-Protocol-Version"] = version
        self._server = _name_of(result.get("serverInfo"))
        await self._post({"jsonrpc": "2.0", "method": "notifications/initialized"}, None, seconds, {})

    # --- JSON-RPC over HTTP -------------------------------------------------------------------------------------------

    async def _request(
        self, method: str, params: dict[str, Any], seconds: float, extra: dict[str, str] | None = None
    ) -> dict[str, Any]:
        self._ids += 1
        identifier = self._ids
        headers = dict(extra or ())
        if self._modern:
            headers["MCP-Protocol-Version"] = MODERN
            headers["Mcp-Method"] = method
            params = {**params, "_meta": {**_MODERN_META, **params.get("_meta", {})}}
        message = {"jsonrpc": "2.0", "id": identifier, "method": method, "params": params}
        answer = await self._post(message, identifier, seconds, headers)
        if answer is None:
            raise ConnectorError("bad_upstream_answer", "The upstream gave no answer to the request.")
        if isinstance(error := answer.get("error"), dict):
            if error.get("code") == _UNSUPPORTED_VERSION:
                self._modern = None
            raise _RpcError(error)
        if not isinstance(result := answer.get("result"), dict):
            raise ConnectorError("bad_upstream_answer", "The upstream's answer has neither result nor error.")
        return result

    async def _post(
        self, message: dict[str, Any], identifier: int | None, seconds: float, extra: dict[str, str]
    ) -> dict[str, Any] | None:
        client = self._client
        if client is None:
            raise ConnectorError("upstream_unavailable", "The connector is closed.", retryable=True, sent=False)
        try:
            async with asyncio.timeout(seconds):
                async with client.post(
                    self._url,
                    data=orjson.dumps(message),
                    headers={**self._headers, **self._session, **extra},
                    allow_redirects=False,
                ) as response:
                    return await self._answer(response, identifier)
        except TimeoutError as error:
            raise ConnectorError("upstream_timeout", f"The upstream gave no answer within {seconds:g} s.") from error
        except aiohttp.ClientConnectorError as error:
            raise _not_connected(error.os_error) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectorError(
                "upstream_unavailable", "The connection to the upstream broke before it answered.", retryable=True
            ) from error

    async def _answer(self, response: aiohttp.ClientResponse, identifier: int | None) -> dict[str, Any] | None:
        if not self._modern and (session := response.headers.get("Mcp-Session-Id")):
            self._session["Mcp-Session-Id"] = session
        if response.status == 404 and self._session.get("Mcp-Session-Id"):
            self._modern = None  # The session has ended: greet anew at the next call.
            raise ConnectorError("upstream_unavailable", "The upstream ended its session.", retryable=True, sent=False)
        if identifier is None and response.status < 300:
            return None
        if response.content_type == "text/event-stream":
            return await self._from_stream(response, identifier)
        body = await read_capped(response)
        answer = _parsed(body) if response.content_type == "application/json" else None
        if response.status >= 300 and not (answer and "error" in answer):
            raise ConnectorError("upstream_http_error", f"The upstream answered with HTTP status {response.status}.")
        if answer is None:
            raise ConnectorError("bad_upstream_answer", "The upstream's answer is not JSON-RPC.")
        return answer

    async def _from_stream(self, response: aiohttp.ClientResponse, identifier: int | None) -> dict[str, Any]:
        """The answer with this id out of an event stream (HTML standard, "Server-sent events")."""
        async for data in events(response):
            message = _parsed(data)
            if message and message.get("id") == identifier and "method" not in message:
                return message
            if message and "method" in message and "id" in message:
                await self._decline(message)
        raise ConnectorError("bad_upstream_answer", "The upstream's stream ended without an answer.")

    async def _decline(self, request: dict[str, Any]) -> None:
        """Say no to what the server asks of a client, so that it does not wait."""
        error = {"code": _METHOD_NOT_FOUND, "message": "The client did not declare this capability."}
        message = {"jsonrpc": "2.0", "id": request["id"], "error": error}
        await self._post(message, None, 5, {})


def _not_connected(error: OSError) -> ConnectorError:
    if isinstance(error, EgressDenied):
        return ConnectorError(error.code, str(error), sent=False)
    return ConnectorError("upstream_unavailable", "The upstream cannot be reached.", retryable=True, sent=False)


def _parsed(body: bytes) -> dict[str, Any] | None:
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return message if isinstance(message, dict) else None


def _tools_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    tools = result.get("tools")
    if not isinstance(tools, list) or not all(isinstance(t, dict) and isinstance(t.get("name"), str) for t in tools):
        raise ConnectorError("bad_upstream_answer", "The upstream's list of tools is not one.")
    return tools


def _name_of(info: object) -> str:
    name = info.get("name") if isinstance(info, dict) else None
    return str(name)[:120] if name else "unnamed server"


def _offer(definition: dict[str, Any]) -> Offer:
    hints = definition.get("annotations")
    hints = hints if isinstance(hints, dict) else {}
    effect = (
        "read" if hints.get("readOnlyHint") is True else "destructive" if hints.get("destructiveHint") is True else None
    )
    spec: dict[str, Any] = {"name": definition["name"]}
    if headers := {".".join(path): name for path, name in mirrored(definition.get("inputSchema")).items()}:
        spec["headers"] = headers
    return Offer(definition["name"], definition, spec, effect)


def _mirrored(spec: McpTool, arguments: dict[str, Any]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for path, header in spec.headers.items():
        value = value_at(arguments, tuple(path.split(".")))
        if isinstance(value, bool):
            headers[f"Mcp-Param-{header}"] = "true" if value else "false"
        elif isinstance(value, (str, int, float)):
            headers[f"Mcp-Param-{header}"] = header_value(str(value))
    return headers
