"""The bare path: what forwarding over HTTP costs in Python when nothing is asked, checked or written down."""

from __future__ import annotations

import argparse
from typing import Any

import aiohttp
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

from bench.echo import read_body, serve

# A client's hop-by-hop headers and its credentials stay here.
_FORWARDED = frozenset({b"content-type", b"accept", b"mcp-protocol-version", b"mcp-method", b"mcp-name"})


class Forwarder:
    """An ASGI application that sends each body on to `upstream` over pooled connections and returns the answer."""

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve one request, or the life of the server."""
        if scope["type"] == "lifespan":
            return await self._live(receive, send)
        assert scope["type"] == "http"
        return await self._forward(scope["headers"], await read_body(receive), send)

    async def _live(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await receive()
        async with aiohttp.ClientSession(auto_decompress=False) as self._session:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _forward(self, headers: Any, body: bytes, send: ASGISendCallable) -> None:
        assert self._session is not None
        kept = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name in _FORWARDED}
        async with self._session.post(self._upstream, data=body, headers=kept) as response:
            answer = await response.read()
        reply = [(b"content-type", response.content_type.encode()), (b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": response.status, "headers": reply, "trailers": False})
        await send({"type": "http.response.body", "body": answer, "more_body": False})


def main() -> None:
    """Forward every request on loopback to one upstream."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    options = parser.parse_args()
    serve(Forwarder(options.upstream), options.port)


if __name__ == "__main__":
    main()
