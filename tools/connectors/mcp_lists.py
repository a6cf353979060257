"""The lists of what an upstream server offers, page by page, and how much of them is taken."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import orjson

from tools import exact
from tools.connectors.base import ConnectorError, Kind
from tools.connectors.mcp_messages import METHOD_NOT_FOUND, RpcError

# Of one list.
_MOST_PAGES, _MOST_TOOLS, _MOST_LISTED_BYTES = 100, 5_000, 32 * 1024 * 1024

Ask = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]

# What it is about → the capability that a server declares, the method, where the list is in the result, and the name.
LISTS: tuple[tuple[Kind, str, str, str, str], ...] = (
    ("tool", "tools", "tools/list", "tools", "name"),
    ("prompt", "prompts", "prompts/list", "prompts", "name"),
    ("resource", "resources", "resources/list", "resources", "uri"),
    ("template", "resources", "resources/templates/list", "resourceTemplates", "uriTemplate"),
)


async def listed(ask: Ask, kind: Kind, method: str, key: str, name: str) -> list[dict[str, Any]]:
    """All pages of the list, each definition as it came. Raises RpcError and ConnectorError."""
    found: list[dict[str, Any]] = []
    size = 0
    seen: set[str] = set()
    params: dict[str, Any] = {}
    for _ in range(_MOST_PAGES):
        try:
            result = await ask(method, params)
        except RpcError as error:
            if kind != "tool" and error.code == METHOD_NOT_FOUND:
                return []
            raise
        found += (page := definitions(result, kind, key, name))
        size += sum(map(_size, page))
        if size > _MOST_LISTED_BYTES:
            said = f"The server's list of {kind}s is larger than {_MOST_LISTED_BYTES // 2**20} MB."
            raise ConnectorError("too_many_tools", said)
        cursor = result.get("nextCursor")
        if len(found) > _MOST_TOOLS:
            break
        if not cursor:
            return found
        if not isinstance(cursor, str) or cursor in seen:
            raise ConnectorError("bad_upstream_answer", f"The upstream's list of {kind}s leads back into itself.")
        seen.add(cursor)
        params = {"cursor": cursor}
    raise ConnectorError("too_many_tools", f"The server lists more than {_MOST_TOOLS} {kind}s or {_MOST_PAGES} pages.")


def effect(hints: object) -> str | None:
    """What a tool does, by the hints in its annotations: `read`, `destructive`, or None where they do not say."""
    if not isinstance(hints, dict):
        return None
    return (
        "read" if hints.get("readOnlyHint") is True else "destructive" if hints.get("destructiveHint") is True else None
    )


def definitions(result: dict[str, Any], kind: Kind, key: str, name: str) -> list[dict[str, Any]]:
    """The definitions on one page. Raises ConnectorError."""
    found = result.get(key)
    if not isinstance(found, list) or not all(isinstance(t, dict) and isinstance(t.get(name), str) for t in found):
        raise ConnectorError("bad_upstream_answer", f"The upstream's list of {kind}s is not one.")
    return found


def _size(definition: dict[str, Any]) -> int:
    """In bytes; what cannot be written is taken for large."""
    try:
        return len(exact.written(definition))
    except orjson.JSONEncodeError:
        return _MOST_LISTED_BYTES // 8
