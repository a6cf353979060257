"""Upstream MCP servers over streamable HTTP, of either era.

Speaks JSON-RPC itself instead of using the SDK's client, which costs three times the whole call: what comes back is
passed on, not rebuilt from typed models. The era is found once and remembered: `server/discover` (2026-07-28), and
where that is not known the `initialize` handshake of the older revisions with its session id.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any, ClassVar

from pydantic import Field, HttpUrl, SecretStr, field_validator

from tools.connectors.base import Connector, ConnectorError, Context, Offer, Options, Result, Source, Spec
from tools.connectors.mcp_http import Greeting, HttpError, RpcError, SessionEnded, Upstream
from tools.egress import Egress
from tools.mirrored import dotted, mirrored, undotted, value_at

MODERN, LEGACY = "2026-07-28", ("2025-11-25", "2025-06-18", "2025-03-26")
_META = "io.modelcontextprotocol/"
_CLIENT = {"name": "mcpsite", "version": "1"}
_MODERN_META = {
    f"{_META}protocolVersion": MODERN,
    f"{_META}clientInfo": _CLIENT,
    f"{_META}clientCapabilities": {},
}
_UNSUPPORTED_VERSION = -32022
# RFC 9110, section 5.6.2; and what a session id may hold (MCP 2025-11-25, transports, "Session Management").
_TOKEN, _SESSION_ID = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}"), re.compile(r"[\x21-\x7e]{1,1024}")
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

    @field_validator("bearer_token")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(r"[\x21-\x7e]+", value.get_secret_value()):
            raise ValueError("a bearer token has visible ASCII characters only, and no spaces")
        return value

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

    @field_validator("headers")
    @classmethod
    def _are_header_names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value.values():
            if not _TOKEN.fullmatch(name):
                raise ValueError(f"{name[:80]!r} cannot be the name of a header")
        if len({name.lower() for name in value.values()}) != len(value):
            raise ValueError("two arguments are mirrored as one header")
        return value


_MODERN_GREETING = Greeting(True, {"MCP-Protocol-Version": MODERN}, MODERN)


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
        token = options.bearer_token
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        self._upstream = Upstream(str(options.url), headers, lambda: egress.http_connector(options.max_connections))
        self._greeting: Greeting | None = None
        self._opening = asyncio.Lock()

    # --- The verbs ----------------------------------------------------------------------------------------------------

    async def check(self) -> str:
        """Greet the server anew."""
        async with self._failures(self.source.timeout_seconds):
            greeting = await self._greet(self._greeting)
        return f"{greeting.server} answers with revision {greeting.revision}."

    async def discover(self) -> list[Offer]:
        """All pages of tools/list, each definition as it came."""
        offers: list[Offer] = []
        seen: set[str] = set()
        params: dict[str, Any] = {}
        async with self._failures(self.source.timeout_seconds):
            for _ in range(_MOST_PAGES):
                result = await self._ask("tools/list", params)
                offers += [_offer(tool) for tool in _tools_of(result)]
                cursor = result.get("nextCursor")
                if len(offers) > _MOST_TOOLS:
                    break
                if not cursor:
                    return offers
                if not isinstance(cursor, str) or cursor in seen:
                    raise ConnectorError("bad_upstream_answer", "The upstream's list of tools leads back into itself.")
                seen.add(cursor)
                params = {"cursor": cursor}
        raise ConnectorError(
            "too_many_tools", f"The server lists more than {_MOST_TOOLS} tools or {_MOST_PAGES} pages."
        )

    async def call(self, spec: Spec, arguments: dict[str, Any], context: Context) -> Result:
        """tools/call."""
        assert isinstance(spec, McpTool)
        params: dict[str, Any] = {"name": spec.name, "arguments": arguments}
        if context.traceparent:
            params["_meta"] = {"traceparent": context.traceparent}
        async with self._failures(context.deadline_seconds):
            result = await self._ask("tools/call", params, spec)
        if result.get("resultType", "complete") != "complete":
            raise ConnectorError("unsupported_result", "The upstream asks for input, which is not passed on yet.")
        if not isinstance(result.get("content"), list):
            raise ConnectorError("bad_upstream_answer", "The upstream's answer has no content.")
        return Result(result, result.get("isError") is True)

    async def close(self) -> None:
        """Close the pool; a legacy session is ended as a courtesy."""
        greeting, self._greeting = self._greeting, None
        await self._upstream.close(greeting)

    @contextlib.asynccontextmanager
    async def _failures(self, seconds: float) -> AsyncIterator[None]:
        """One deadline over everything that belongs to one verb."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise ConnectorError("upstream_timeout", f"The upstream gave no answer within {seconds:g} s.") from error
        except RpcError as error:
            raise ConnectorError("upstream_refused", f"The upstream refused the request: {error}") from error

    # --- Greeting -----------------------------------------------------------------------------------------------------

    async def _greet(self, stale: Greeting | None = None) -> Greeting:
        """The greeting in force, which is not `stale`."""
        async with self._opening:
            if self._greeting is None or self._greeting is stale:
                self._greeting = None
                self._greeting = await self._discover_era()
            return self._greeting

    async def _discover_era(self) -> Greeting:
        try:
            found = await self._request(_MODERN_GREETING, "server/discover", {})
        except (RpcError, ConnectorError) as error:
            # Older servers answer with whatever they have for an unknown method or version.
            if isinstance(error, ConnectorError) and error.code not in ("upstream_http_error", "bad_upstream_answer"):
                raise
            return await self._initialize()
        versions = found.get("supportedVersions")
        if isinstance(versions, list) and MODERN not in versions:
            return await self._initialize()
        meta = found.get("_meta")
        info = meta.get(f"{_META}serverInfo") if isinstance(meta, dict) else None
        return Greeting(True, _MODERN_GREETING.headers, MODERN, _name_of(info or found.get("serverInfo")))

    async def _initialize(self) -> Greeting:
        params = {"protocolVersion": LEGACY[0], "capabilities": {}, "clientInfo": _CLIENT}
        answer, session = await self._upstream.exchange(Greeting(False, {}, ""), "initialize", params, {})
        version = answer.get("protocolVersion")
        if version not in LEGACY:
            raise ConnectorError(
                "unsupported_version", f"The server speaks revision {str(version)[:40]!r}, which is not known here."
            )
        headers = {"MCP-Protocol-Version": version}
        if session is not None:
            if not _SESSION_ID.fullmatch(session):
                raise ConnectorError("bad_upstream_answer", "The upstream's session id is not one.")
            headers["Mcp-Session-Id"] = session
        greeting = Greeting(False, headers, version, _name_of(answer.get("serverInfo")))
        await self._upstream.notify("notifications/initialized", greeting)
        return greeting

    def _forget(self, greeting: Greeting) -> None:
        if self._greeting is greeting:
            self._greeting = None

    # --- JSON-RPC over HTTP -------------------------------------------------------------------------------------------

    async def _ask(self, method: str, params: dict[str, Any], tool: McpTool | None = None) -> dict[str, Any]:
        """The result, under the greeting in force, or under a new one where the server has ended its session."""
        greeting = self._greeting or await self._greet()
        try:
            return await self._request(greeting, method, params, tool)
        except SessionEnded:
            return await self._request(await self._greet(greeting), method, params, tool)

    async def _request(
        self, greeting: Greeting, method: str, params: dict[str, Any], tool: McpTool | None = None
    ) -> dict[str, Any]:
        extra: dict[str, str] = {}
        if greeting.modern:
            extra = {"Mcp-Method": method, **(_tool_headers(tool, params["arguments"]) if tool else {})}
            params = {**params, "_meta": {**_MODERN_META, **params.get("_meta", {})}}
        try:
            return (await self._upstream.exchange(greeting, method, params, extra))[0]
        except HttpError as error:
            if error.status in (400, 404, 405):  # Perhaps another server by now: greet it at the next call.
                self._forget(greeting)
            raise
        except RpcError as error:
            if error.code == _UNSUPPORTED_VERSION:
                self._forget(greeting)
            raise


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
    if headers := {dotted(path): name for path, name in mirrored(definition.get("inputSchema")).items()}:
        spec["headers"] = headers
    return Offer(definition["name"], definition, spec, effect)


def _tool_headers(spec: McpTool, arguments: dict[str, Any]) -> dict[str, str]:
    try:
        return {"Mcp-Name": header_value(spec.name), **_mirrored(spec, arguments)}
    except UnicodeEncodeError as error:
        raise ConnectorError("invalid_arguments", "The arguments hold text that is not Unicode.", sent=False) from error


def _mirrored(spec: McpTool, arguments: dict[str, Any]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for path, header in spec.headers.items():
        value = value_at(arguments, undotted(path))
        if isinstance(value, bool):
            headers[f"Mcp-Param-{header}"] = "true" if value else "false"
        elif isinstance(value, (str, int, float)):
            headers[f"Mcp-Param-{header}"] = header_value(str(value))
    return headers
