"""How the gateway is connected to Redis: over a few connections, for which requests wait in turn.

With the pool that redis-py makes by itself, a request for which there is none fails as if Redis were away; so one
client with some dozens of requests at once would have all the others served without their sessions.
"""

from __future__ import annotations

from typing import Any

import redis.asyncio

_MOST_CONNECTIONS, _WAIT_SECONDS = 8, 1.0


def connected(url: str, timeout_seconds: float, **options: Any) -> redis.asyncio.Redis:
    """A client that gives up a request after so long, and the wait for a connection after a second."""
    pool: redis.asyncio.ConnectionPool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        max_connections=_MOST_CONNECTIONS,
        timeout=_WAIT_SECONDS,
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        **options,
    )
    return redis.asyncio.Redis.from_pool(pool)
