"""Whoever called, as an upstream may turn to them while it works on the call: one class for each way to do so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.wire import METHOD_NOT_FOUND, Message
from tools.connectors.base import Client, ClientError


class Told(Client):
    """A client of MCP 2026-07-28: what it is asked is the result of its call, and it answers with the next one."""

    answers_later = True

    def __init__(self, capabilities: Mapping[str, Any]) -> None:
        self.capabilities = capabilities

    def tell(self, method: str, params: dict[str, Any]) -> None:
        """Nothing is passed on."""

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Raises ClientError: no request ever goes to such a client."""
        raise ClientError({"code": METHOD_NOT_FOUND, "message": "This client is asked with the result of its call."})


def peer_of(message: Message) -> Client | None:
    """Who can be turned to about this request; None where the client wants nothing of it."""
    return Told(message.capabilities) if message.modern and message.capabilities else None
