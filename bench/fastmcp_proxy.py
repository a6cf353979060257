"""The peer: FastMCP's own proxy before the echo server. Runs by path in another venv, so it imports none of ours."""

from __future__ import annotations

import argparse
import asyncio

from fastmcp import Client, FastMCP  # type: ignore[import-not-found]
from fastmcp.server import create_proxy  # type: ignore[import-not-found]


async def _serve(proxy: FastMCP, port: int) -> None:
    await proxy.run_http_async(
        host="127.0.0.1",
        port=port,
        path="/mcp",
        show_banner=False,
        log_level="WARNING",
        uvicorn_config={"access_log": False},
    )


async def _serve_default(upstream: str, port: int) -> None:
    """As its documentation shows first: `create_proxy(url)`, which makes a session with the upstream per request."""
    await _serve(create_proxy(upstream), port)


async def _serve_shared(upstream: str, port: int) -> None:
    """At its best: one connected client, whose session every request shares."""
    async with Client(upstream) as client:
        await _serve(create_proxy(client), port)


def main() -> None:
    """Proxy every request on loopback to one upstream."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--shared", action="store_true")
    options = parser.parse_args()
    asyncio.run((_serve_shared if options.shared else _serve_default)(options.upstream, options.port))


if __name__ == "__main__":
    main()
