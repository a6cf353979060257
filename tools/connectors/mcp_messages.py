"""What passes between a connector and its upstream server: JSON-RPC messages, what carries them, how that fails."""

from __future__ import annotations

from typing import Any, Protocol

import orjson
from pydantic import Field

from tools import exact
from tools.connectors.base import ConnectorError, Spec
from tools.connectors.mcp_greeting import Greeting
from tools.connectors.mcp_input import shown
from tools.connectors.mcp_turn import Turn

METHOD_NOT_FOUND, INVALID_PARAMS = -32601, -32602
MISSING_CAPABILITY, UNSUPPORTED_VERSION = -32021, -32022


class McpTool(Spec):
    """Which of the server's tools it is."""

    name: str = Field(min_length=1, max_length=128, description="The tool's name at the server.")


class RpcError(Exception):
    """The server answered with a JSON-RPC error."""

    def __init__(self, error: dict[str, Any]) -> None:
        self.error = error
        self.code = error.get("code")
        self.message = shown(error.get("message", ""), 500)
        super().__init__(f"{self.message} ({shown(self.code, 20)})")


class SessionEnded(ConnectorError):
    """The server does not know the session, so it has not looked at the request."""

    def __init__(self) -> None:
        super().__init__("upstream_unavailable", "The upstream ended its session.", sent=False)


class Estranged(ConnectorError):
    """Perhaps it is another server by now: it is greeted at the next call."""


class Transport(Protocol):
    """What carries the messages to one server and back. It keeps no deadlines."""

    async def exchange(
        self,
        greeting: Greeting,
        method: str,
        params: dict[str, Any],
        tool: McpTool | None = None,
        turn: Turn | None = None,
    ) -> tuple[dict[str, Any], str | None]:
        """The result, and the session id that came with it. Raises RpcError and ConnectorError."""

    async def attend(self, greeting: Greeting, turn: Turn) -> None:
        """Take what the server says of its own accord for what it says in this turn; only in sessions of one call."""

    async def notify(self, method: str, greeting: Greeting) -> None:
        """Send a notification."""

    def agreed(self, revision: str, session: str | None, server: str) -> Greeting:
        """The greeting after the handshake of the older revisions. Raises ConnectorError."""

    async def close(self, greeting: Greeting | None) -> None:
        """Let go of what is open."""


def written(message: dict[str, Any]) -> bytes:
    """The message as JSON. Raises ConnectorError."""
    try:
        return exact.written(message)
    except orjson.JSONEncodeError as error:
        raise ConnectorError("invalid_arguments", "The arguments cannot be written as JSON.", sent=False) from error


def parsed(body: bytes) -> dict[str, Any] | None:
    """The message in `body`, whose method is a text, if it has one; None when it is something else."""
    try:
        message = exact.taken(body)
    except ValueError:
        return None
    return message if isinstance(message, dict) and isinstance(message.get("method", ""), str) else None


def result_of(answer: dict[str, Any]) -> dict[str, Any]:
    """The result in a JSON-RPC response. Raises RpcError and ConnectorError."""
    if isinstance(error := answer.get("error"), dict):
        raise RpcError(error)
    if not isinstance(result := answer.get("result"), dict):
        raise ConnectorError("bad_upstream_answer", "The upstream's answer has neither result nor error.")
    return result
