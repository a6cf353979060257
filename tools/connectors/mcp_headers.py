"""What of a request goes into HTTP headers as well (MCP 2026-07-28, transports, "Standard MCP Request Headers")."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator

from tools.connectors.base import ConnectorError
from tools.connectors.mcp_messages import McpTool
from tools.mirrored import TOKEN, undotted, value_at

_NAMED = {"prompts/get": "name", "resources/read": "uri"}
# What JSON readers of all languages agree on (MCP 2026-07-28, transports, "Schema Extension").
_MOST_INTEGER = 2**53 - 1
_SAFE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")


class MirroringTool(McpTool):
    """Which of the server's tools it is, and what of its arguments goes into headers."""

    headers: dict[str, str] = Field(
        default_factory=dict, description="Arguments to mirror as `Mcp-Param-*` headers: dotted path → header name."
    )

    @field_validator("headers")
    @classmethod
    def _are_header_names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value.values():
            if not TOKEN.fullmatch(name):
                raise ValueError(f"{name[:80]!r} cannot be the name of a header")
        if len({name.lower() for name in value.values()}) != len(value):
            raise ValueError("two arguments are mirrored as one header")
        return value


def header_value(value: str) -> str:
    """The value as a header may carry it: plain, or as `=?base64?…?=` (MCP 2026-07-28, transports)."""
    if _SAFE.fullmatch(value) and not value.startswith("=?base64?"):
        return value
    return f"=?base64?{base64.b64encode(value.encode()).decode()}?="


def headers_of(method: str, params: dict[str, Any], tool: McpTool | None) -> dict[str, str]:
    """The headers that a request must have. Raises ConnectorError."""
    if tool is None:
        named = params.get(_NAMED.get(method, ""))
        return {"Mcp-Method": method} | ({"Mcp-Name": header_value(named)} if isinstance(named, str) else {})
    try:
        mirrored = _mirrored(tool.headers, params["arguments"]) if isinstance(tool, MirroringTool) else {}
        return {"Mcp-Method": method, "Mcp-Name": header_value(tool.name), **mirrored}
    except UnicodeEncodeError as error:
        raise ConnectorError("invalid_arguments", "The arguments hold text that is not Unicode.", sent=False) from error


def _mirrored(paths: Mapping[str, str], arguments: dict[str, Any]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for path, header in paths.items():
        value = value_at(arguments, undotted(path))
        if isinstance(value, bool):
            headers[f"Mcp-Param-{header}"] = "true" if value else "false"
        elif isinstance(value, (str, int, float)):
            if isinstance(value, int) and abs(value) > _MOST_INTEGER:
                said = (
                    f"The argument {path!r} goes into a header, which holds whole numbers up to {_MOST_INTEGER} only."
                )
                raise ConnectorError("invalid_arguments", said, sent=False)
            headers[f"Mcp-Param-{header}"] = header_value(str(value))
    return headers
