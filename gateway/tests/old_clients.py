"""Clients of the older revisions, for tests: they begin sessions, and read event streams with GET."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson

from gateway.app import Gateway
from gateway.tests.conftest import Reply, post, until
from gateway.tests.test_replies import Wire

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


async def initialize(gateway: Gateway, token: str, version: str = "2025-11-25", **params: Any) -> Reply:
    said = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}, **params}
    return await post(gateway, {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": said}, token)


async def begin(gateway: Gateway, token: str, version: str = "2025-11-25", **params: Any) -> str:
    """The id of a new session."""
    return (await initialize(gateway, token, version, **params)).headers["mcp-session-id"]


class Stream:
    """An event stream that is being read: with GET, or as the answer to a message."""

    def __init__(self, gateway: Gateway, token: str, session: str, message: Any = None, **headers: str) -> None:
        self.wire, self._body = Wire(), orjson.dumps(message) if message else b""
        sent = {"host": "localhost:8000", "authorization": f"Bearer {token}", "content-type": "application/json"}
        sent["accept"] = "application/json, text/event-stream" if message else "text/event-stream"
        sent |= {"mcp-session-id": session} | {name.replace("_", "-"): value for name, value in headers.items()}
        scope = {
            "type": "http",
            "method": "POST" if message else "GET",
            "path": "/mcp",
            "client": ("192.0.2.7", 1),
            "headers": [(name.encode(), value.encode()) for name, value in sent.items()],
            **self.wire.scope,
        }
        self.task = asyncio.create_task(gateway(scope, self._receive, self.wire.send))

    async def _receive(self) -> Any:
        return {"type": "http.request", "body": self._body, "more_body": False}

    @property
    def events(self) -> list[tuple[str, Any]]:
        """The ids and messages so far; None is the message of an event without data."""
        found = []
        for block in self.wire.text.split("\n\n"):
            fields = dict(line.split(":", 1) for line in block.splitlines() if ":" in line)
            if "data" in fields:
                data = fields["data"].strip()
                found.append((fields.get("id", "").strip(), orjson.loads(data) if data else None))
        return found

    async def opened(self) -> Stream:
        await until(lambda: self.wire.sent or self.task.done())
        return self

    async def ended(self) -> Stream:
        async with asyncio.timeout(5):
            await self.task
        return self

    @property
    def status(self) -> int:
        status: int = self.wire.sent[0]["status"]
        return status

    async def leave(self) -> None:
        self.wire.abort()
        await self.ended()
