"""A proxy on loopback that adds a token to each request, since the suite cannot be given one, and takes turns.

Everything else goes through as it came, host and origin too: the suite tests what the site makes of them.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import aiohttp
import uvicorn

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})
_LARGEST_HEADER = 64 * 1024


class Proxy:
    """An ASGI application that sends each request on to the next of several ports."""

    def __init__(self, ports: list[int], token: str) -> None:
        self._ports: Iterator[int] = itertools.cycle(ports)
        self._authorization = f"Bearer {token}"
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; it ends with whoever leaves first."""
        if scope["type"] != "http":
            await self._live(receive, send)
            return
        body = await _body_of(receive)
        forwarding = asyncio.create_task(self._forward(scope, body, send))
        leaving = asyncio.create_task(_left(receive))
        await asyncio.wait({forwarding, leaving}, return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        forwarding.cancel()
        await asyncio.gather(forwarding, leaving, return_exceptions=True)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        timeout = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(
            auto_decompress=False, timeout=timeout, connector=connector, max_field_size=_LARGEST_HEADER
        ) as self._session:
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def _forward(self, scope: Scope, body: bytes, send: Send) -> None:
        assert self._session is not None
        raw = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
        headers = [(name, value) for name, value in raw if name not in _HOP_BY_HOP]
        headers.append(("Authorization", self._authorization))
        url = f"http://127.0.0.1:{next(self._ports)}{scope['path']}"
        async with self._session.request(
            scope["method"], url, data=body or None, headers=headers, allow_redirects=False
        ) as response:
            kept = [
                (name.lower().encode(), value.encode("latin-1"))
                for name, value in response.headers.items()
                if name.lower() not in _HOP_BY_HOP
            ]
            await send({"type": "http.response.start", "status": response.status, "headers": kept})
            async for chunk in response.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


async def _body_of(receive: Receive) -> bytes:
    chunks = []
    while (event := await receive())["type"] == "http.request":
        chunks.append(event.get("body", b""))
        if not event.get("more_body"):
            break
    return b"".join(chunks)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def main() -> None:
    """Forward what comes in on loopback."""
    parser = argparse.ArgumentParser(prog="python -m bench.conformance.authorizing", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--to", type=int, nargs="+", required=True, help="ports on loopback that take turns")
    parser.add_argument("--token", required=True)
    options = parser.parse_args()
    uvicorn.run(Proxy(options.to, options.token), port=options.port, log_level="warning", timeout_graceful_shutdown=1)


if __name__ == "__main__":
    main()
