"""Serves the upstream over streamable HTTP or over stdin and stdout, in both eras or pinned to one."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Literal

import orjson
import uvicorn
from mcp.server.context import CallNext
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.shared.exceptions import MCPError
from mcp_types import JSONRPCMessage
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS

from bench.conformance.upstream.asking import Context, is_modern
from bench.conformance.upstream.server import Upstream

Era = Literal["dual", "legacy", "modern"]
ERAS: tuple[Era, ...] = ("dual", "legacy", "modern")

_INVALID_REQUEST, _METHOD_NOT_FOUND, _UNSUPPORTED_VERSION = -32600, -32601, -32022
_RETRY_MS = 500

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Events(EventStore):
    """The events of all streams, in memory: the suite runs for a minute."""

    def __init__(self) -> None:
        self._all: list[tuple[str, JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        """Keep it; its id is its place."""
        self._all.append((stream_id, message))
        return str(len(self._all) - 1)

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        """Send what came after it on the same stream."""
        if not last_event_id.isdecimal() or int(last_event_id) >= len(self._all):
            return None
        stream = self._all[int(last_event_id)][0]
        for place, (of, message) in enumerate(self._all[int(last_event_id) + 1 :], int(last_event_id) + 1):
            if of == stream and message is not None:
                await send_callback(EventMessage(message, str(place)))
        return stream


class Pinned:
    """An endpoint that knows one era only, as a server would that was never taught the other one."""

    def __init__(self, app: Any, era: Era) -> None:
        self._app, self._era = app, era

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http":
            header = dict(scope["headers"]).get(b"mcp-protocol-version", b"").decode("latin-1").strip()
            modern = bool(header) and header not in HANDSHAKE_PROTOCOL_VERSIONS
            if self._era == "legacy" and modern:
                await _refuse(send, _INVALID_REQUEST, f"Bad Request: Unsupported protocol version: {header}")
                return
            if self._era == "modern" and not modern:
                data = {"supported": list(MODERN_PROTOCOL_VERSIONS), "requested": header}
                await _refuse(send, _UNSUPPORTED_VERSION, "Unsupported protocol version", data)
                return
        await self._app(scope, receive, send)


async def _refuse(send: Send, code: int, message: str, data: Any = None) -> None:
    error = {"code": code, "message": message} | ({} if data is None else {"data": data})
    body = orjson.dumps({"jsonrpc": "2.0", "id": None, "error": error})
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def serve_http(port: int, era: Era) -> None:
    """At http://localhost:PORT/mcp, until SIGTERM."""
    app = Upstream().server().streamable_http_app(event_store=Events(), retry_interval=_RETRY_MS)
    # Of the two parsers, h11 takes the white space off header values; the SDK leaves it to them.
    config = uvicorn.Config(
        Pinned(app, era), "127.0.0.1", port, http="h11", log_level="warning", timeout_graceful_shutdown=1
    )
    await uvicorn.Server(config).serve()


async def serve_stdio(era: Era) -> None:
    """On stdin and stdout, until the end of stdin."""
    server = Upstream().server()

    async def refuse_the_other(ctx: Context, call_next: CallNext) -> Any:
        if era == "legacy" and is_modern(ctx):
            raise MCPError(_METHOD_NOT_FOUND, "Method not found")
        if era == "modern" and ctx.method == "initialize":
            data = {"supported": list(MODERN_PROTOCOL_VERSIONS), "requested": None}
            raise MCPError(_UNSUPPORTED_VERSION, "Unsupported protocol version", data)
        return await call_next(ctx)

    server.middleware.append(refuse_the_other)
    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())


def main() -> None:
    """Serve what the options name."""
    parser = argparse.ArgumentParser(prog="python -m bench.conformance.upstream", description=__doc__)
    parser.add_argument("--port", type=int, help="over streamable HTTP on that port; else over stdin and stdout")
    parser.add_argument("--era", choices=ERAS, default="dual")
    options = parser.parse_args()
    asyncio.run(serve_stdio(options.era) if options.port is None else serve_http(options.port, options.era))


if __name__ == "__main__":
    main()
