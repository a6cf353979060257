"""Upstream MCP servers over streamable HTTP, of either era."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from pydantic import Field, HttpUrl, SecretStr, ValidationInfo, field_validator

from tools.connectors.base import Offer, Options, Source, refuse_closed
from tools.connectors.mcp_ears import McpHearing, hears_changes
from tools.connectors.mcp_headers import MirroringTool
from tools.connectors.mcp_http import Upstream
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
    hears_changes: bool = hears_changes()

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
    description = "An upstream MCP server over streamable HTTP, of any revision."
    Options = McpOptions
    ToolSpec = MirroringTool

    def __init__(self, source: Source, egress: Egress) -> None:
        super().__init__(source, egress)
        options: McpOptions = source.options
        token = options.bearer_token
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        self._upstream = Upstream(str(options.url), headers, egress, options.max_connections, self._take)

    def _offer(self, definition: dict[str, Any]) -> Offer:
        return replace(super()._offer(definition), fault=fault(definition.get("inputSchema")))

    def _spec(self, definition: dict[str, Any]) -> dict[str, Any]:
        headers = {dotted(path): name for path, name in mirrored(definition.get("inputSchema")).items()}
        return super()._spec(definition) | ({"headers": headers} if headers else {})
