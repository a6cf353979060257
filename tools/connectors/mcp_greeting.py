"""What is agreed with an upstream server before it is asked for anything: the revision, and what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MODERN, LEGACY = "2026-07-28", ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
META = "io.modelcontextprotocol/"
CLIENT = {"name": "mcpsite", "version": "1"}
MODERN_META = {
    f"{META}protocolVersion": MODERN,
    f"{META}clientInfo": CLIENT,
    f"{META}clientCapabilities": {},
}


@dataclass(frozen=True, slots=True)
class Greeting:
    """What was agreed with the server. `headers` go with every request that has a place for them."""

    modern: bool
    headers: Mapping[str, str]
    revision: str
    server: str = "unnamed server"
    capabilities: frozenset[str] = frozenset()


MODERN_GREETING = Greeting(True, {"MCP-Protocol-Version": MODERN}, MODERN)
NO_GREETING = Greeting(False, {}, "")


def introduced(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a request to a modern server that is made for no client."""
    return {**params, "_meta": MODERN_META}


def capabilities_of(answer: dict[str, Any]) -> frozenset[str]:
    """What the server declares: `tools`, and `tools.listChanged` where that is true."""
    declared = answer.get("capabilities")
    if not isinstance(declared, dict):
        return frozenset()
    flags = ((name, flag) for name, more in declared.items() if isinstance(more, dict) for flag in more)
    return frozenset(declared) | {f"{name}.{flag}" for name, flag in flags if declared[name][flag] is True}


def name_of(info: object) -> str:
    """The name in what a server says of itself."""
    name = info.get("name") if isinstance(info, dict) else None
    return name[:120] if isinstance(name, str) and name else "unnamed server"
