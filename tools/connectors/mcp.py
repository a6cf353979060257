"""Upstream MCP servers over HTTP, of either era: streamable HTTP, and HTTP with SSE where a server knows only that."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, HttpUrl, SecretStr, ValidationInfo, field_validator

from tools.connectors.base import Offer, Options, Source, refuse_closed
from tools.connectors.mcp_core import McpCore
from tools.connectors.mcp_ears import McpHearing, hears_changes
from tools.connectors.mcp_greeting import Greeting
from tools.connectors.mcp_headers import MirroringTool
from tools.connectors.mcp_http import Upstream
from tools.connectors.mcp_messages import Estranged
from tools.connectors.mcp_sse import NotSpoken, SseUpstream
from tools.egress import Egress
from tools.mirrored import dotted, fault, mirrored


class McpOptions(Options):
    """How to reach the server."""

    url: HttpUrl = Field(description="The server's endpoint, e.g. https://mcp.example.com/mcp.")
    bearer_token: SecretStr | None = Field(
        default=None, description="Sent as `Authorization: Bearer`, if it needs one."
    )
    max_connections: int = Field(
        default=32, ge=1, le=512, description="Connections that each process keeps at the most."
    )
    transport: Literal["auto", "sse"] = Field(
        default="auto",
        description="`auto`: streamable HTTP, or HTTP with SSE where the server speaks only that; `sse`: that alone.",
    )
    hears_changes: bool = hears_changes()
    max_sessions: int = Field(
        default=32,
        ge=1,
        le=512,
        description="Sessions that each process has at the most for clients that can be asked, if the server is of an "
        "older revision: one for each of their calls.",
    )

    @field_validator("bearer_token")
    @classmethod
    def _fits_a_header(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not re.fullmatch(r"[\x21-\x7e]+", value.get_secret_value()):
            raise ValueError("a bearer token has visible ASCII characters only, and no spaces")
        return value

    @field_validator("url")
    @classmethod
    def _is_an_address_for_us(cls, value: HttpUrl, info: ValidationInfo) -> HttpUrl:
        refuse_closed(value.host or "", info)
        if value.username or value.password:
            raise ValueError("put no user name or password into the URL: it is shown to people. Use the bearer token")
        return value


class McpConnector(McpHearing):
    """One upstream server: one pool of kept connections in each process."""

    kind = "mcp"
    label = "MCP server"
    description = "An upstream MCP server over HTTP, of any revision."
    Options = McpOptions
    ToolSpec = MirroringTool
    _upstream: Upstream | SseUpstream

    def __init__(self, source: Source, egress: Egress) -> None:
        super().__init__(source, egress)
        options: McpOptions = source.options
        token = options.bearer_token
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        where = (str(options.url), headers, egress, options.max_connections)
        self._http, self._sse = Upstream(*where, self._take), SseUpstream(*where, self._lose_stream)
        self._use(self._sse if options.transport == "sse" else self._http)

    async def check(self) -> str:
        """Greet the server anew."""
        said = await super().check()
        return said if self._upstream is self._http else f"{said} It speaks HTTP with SSE, which is deprecated."

    async def close(self) -> None:
        """Close what carries the messages, and what may have."""
        await super().close()
        for unused in (self._http, self._sse):
            await unused.close(None)

    def _leased(self, declares: dict[str, Any]) -> McpCore:
        connector = super()._leased(declares)
        assert isinstance(connector, McpConnector)
        connector._sse.is_leased = True
        connector._use(connector._http if self._upstream is self._http else connector._sse)
        return connector

    # --- The transport ------------------------------------------------------------------------------------------------

    def _use(self, transport: Upstream | SseUpstream) -> None:
        self._upstream = transport

    def _lose_stream(self) -> None:
        if self._upstream is self._sse:
            self._greeting = None

    async def _discover_era(self) -> Greeting:
        """Over the transport that the server is known to speak, or over whichever it does (MCP 2025-11-25, transports,
        "Backwards Compatibility").
        """
        if self._upstream is self._sse:
            try:
                return await self._greet_over_sse()
            except NotSpoken:
                if self.source.options.transport == "sse":
                    raise
            self._use(self._http)
        try:
            return await super()._discover_era()
        except Estranged as refusal:
            try:
                return await self._greet_over_sse()
            except NotSpoken:
                raise refusal from None

    async def _greet_over_sse(self) -> Greeting:
        await self._sse.open()
        self._use(self._sse)
        return await self._initialize()

    def _offer(self, definition: dict[str, Any]) -> Offer:
        return replace(super()._offer(definition), fault=fault(definition.get("inputSchema")))

    def _spec(self, definition: dict[str, Any]) -> dict[str, Any]:
        headers = {dotted(path): name for path, name in mirrored(definition.get("inputSchema")).items()}
        return super()._spec(definition) | ({"headers": headers} if headers else {})
