"""Arguments that are mirrored as `Mcp-Param-*` headers (MCP 2026-07-28, transports, "Custom headers from tool
parameters").
"""

from __future__ import annotations

from typing import Any


def mirrored(schema: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """Path of the argument → header name, for every `x-mcp-header` that is reached through `properties` alone."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    found: dict[tuple[str, ...], str] = {}
    for name, sub in properties.items() if isinstance(properties, dict) else ():
        if isinstance(sub, dict) and isinstance(header := sub.get("x-mcp-header"), str):
            found[*path, name] = header
        found |= mirrored(sub, (*path, name))
    return found


def dotted(path: tuple[str, ...]) -> str:
    """The path as one text; a dot inside a name is `~1` there, as in a JSON Pointer (RFC 6901)."""
    return ".".join(part.replace("~", "~0").replace(".", "~1") for part in path)


def undotted(text: str) -> tuple[str, ...]:
    """The path that `dotted` wrote."""
    return tuple(part.replace("~1", ".").replace("~0", "~") for part in text.split("."))


def value_at(arguments: Any, path: tuple[str, ...]) -> Any:
    """The value at `path`, or None."""
    for part in path:
        arguments = arguments.get(part) if isinstance(arguments, dict) else None
    return arguments
