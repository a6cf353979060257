"""Whoever called, as an upstream may turn to them while it works on the call: one class for each way to do so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson

from gateway import wire
from gateway.replies import Reply
from gateway.wire import Headers, Id, Message, WireError
from tools.connectors.base import Client, ClientError

# RFC 5424, from the least severe to the most.
LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
_NOTHING: Mapping[str, Any] = {}


class Told(Client):
    """Hears on the stream of its call. What it is asked is the result of the call (MCP 2026-07-28)."""

    answers_later = True

    def __init__(
        self,
        capabilities: Mapping[str, Any],
        reply: Reply | None = None,
        progress_token: Id = None,
        log_level: str | None = None,
    ) -> None:
        self.capabilities = capabilities
        self._reply, self._token = reply, progress_token
        self.log_level, self.wants_progress = log_level, progress_token is not None
        self.chose_level = log_level is not None
        self._progress = -math.inf

    def tell(self, method: str, params: dict[str, Any]) -> None:
        """See `Client`."""
        if self._reply is None or not self._wants(method, params):
            return
        if method == "notifications/progress":
            params = {"progressToken": self._token, **params}
        try:
            event = orjson.dumps({"jsonrpc": "2.0", "method": method, "params": params})
        except orjson.JSONEncodeError:  # Nested too deeply.
            return
        self.told += 1
        self._reply.event(event)

    def _wants(self, method: str, params: dict[str, Any]) -> bool:
        if method == "notifications/progress":
            return self.wants_progress and self._grows(params.get("progress"))
        return method != "notifications/message" or is_at_least(params.get("level"), self.log_level)

    def _grows(self, progress: object) -> bool:
        """Whether it is more than before, as it must be (basic/utilities/progress), also when a call is tried again."""
        if type(progress) not in (int, float) or progress <= self._progress:  # type: ignore[operator]
            return False
        self._progress = progress  # type: ignore[assignment]
        return True

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Raises ClientError: no request ever goes to such a client."""
        said = "This client is asked with the result of its call."
        raise ClientError({"code": wire.METHOD_NOT_FOUND, "message": said})


def is_at_least(level: object, least: str | None) -> bool:
    """Whether a message of this level is wanted by who wants the least one, or nothing at all."""
    return least is not None and level in LEVELS and LEVELS.index(str(level)) >= LEVELS.index(least)


def peer_of(message: Message, headers: Headers, reply: Reply) -> Client | None:
    """Who can be told and asked about this request; None where the client wants nothing of it. Raises WireError."""
    if not message.capabilities and not message.wants_news:
        return None
    stream = reply if _takes_events(headers) else None
    capabilities = message.capabilities if message.modern else _NOTHING
    token = message.progress_token if stream else None
    level = _level_of(message) if stream and message.modern else None
    if not capabilities and token is None and level is None:
        return None
    return Told(capabilities, stream, token, level)


def _takes_events(headers: Headers) -> bool:
    accept = headers.get(b"accept", b"*/*")
    return b"text/event-stream" in accept or b"*/*" in accept or b"text/*" in accept


def _level_of(message: Message) -> str | None:
    level = message.log_level
    if level is not None and level not in LEVELS:
        raise WireError(wire.INVALID_PARAMS, f"A level of log messages is one of {', '.join(LEVELS)}.")
    return level
