"""What is shown while it happens: words and steps go from the worker to open pages through Redis, and are kept nowhere.

Without Redis nothing is lost: steps are read from PostgreSQL, and words come with their step.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import redis.asyncio
from django.conf import settings
from redis.exceptions import RedisError

logger = logging.getLogger("agents.live")

_TIMEOUT_SECONDS = 0.5
_AWAY_SECONDS = 5.0

Message = dict[str, Any]


def _channel(run_id: uuid.UUID) -> str:
    return f"mcpsite:run:{run_id}"


class Announcer:
    """Tells whoever watches; never fails and hardly ever waits."""

    def __init__(self) -> None:
        self._redis = redis.asyncio.from_url(
            settings.REDIS_URL, socket_timeout=_TIMEOUT_SECONDS, socket_connect_timeout=_TIMEOUT_SECONDS
        )
        self._away_until = 0.0

    async def tell(self, run_id: uuid.UUID, message: Message) -> None:
        """Send it, unless Redis is away."""
        if time.monotonic() < self._away_until:
            return
        try:
            await self._redis.publish(_channel(run_id), orjson.dumps(message))
        except (RedisError, OSError, TimeoutError) as error:
            self._away_until = time.monotonic() + _AWAY_SECONDS
            logger.warning("Redis is away, runs are not shown live: %s", error)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()


class Listener:
    """Hears what is told of one run."""

    def __init__(self, pubsub: Any) -> None:
        self._pubsub = pubsub

    async def hear(self, seconds: float) -> Message | None:
        """The next message, or None when there was none for so long, also because Redis is away."""
        until = time.monotonic() + seconds
        try:
            while self._pubsub is not None and (left := until - time.monotonic()) > 0:
                heard = await self._pubsub.get_message(ignore_subscribe_messages=True, timeout=left)
                if heard is not None:
                    message: Message = orjson.loads(heard["data"])
                    return message
        except (RedisError, OSError, TimeoutError) as error:
            logger.warning("Redis is away, a run is not shown live: %s", error)
            self._pubsub = None
        if (left := until - time.monotonic()) > 0:
            await asyncio.sleep(left)
        return None


@asynccontextmanager
async def listening(run_id: uuid.UUID) -> AsyncIterator[Listener]:
    """Listen to one run over a connection of its own, which ends with the block."""
    client = redis.asyncio.from_url(settings.REDIS_URL, socket_connect_timeout=_TIMEOUT_SECONDS)
    pubsub = client.pubsub()
    try:
        try:
            await pubsub.subscribe(_channel(run_id))
            listener = Listener(pubsub)
        except (RedisError, OSError, TimeoutError) as error:
            logger.warning("Redis is away, a run is not shown live: %s", error)
            listener = Listener(None)
        yield listener
    finally:
        await pubsub.aclose()  # type: ignore[no-untyped-call]
        await client.aclose()
