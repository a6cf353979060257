"""Budgets: a token bucket per principal and tool, shared by all processes through Redis.

A process takes tokens out of the shared bucket in small leases and spends them without asking again, so that the shared
bucket is exact in what it hands out and a call rarely waits for it. A bucket holds one minute's calls and refills
evenly. When Redis is away, each process falls back to a bucket of its own with its share of the budget: never
unlimited.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from redis.exceptions import RedisError

from gateway.redis_client import connected

logger = logging.getLogger("gateway.limits")

_LEASE_SECONDS = 10.0
_AWAY_SECONDS = 2.0
_TIMEOUT_SECONDS = 0.25
_MOST_BUCKETS = 50_000

# KEYS[1] bucket; ARGV: calls per minute, tokens wanted. Answers {tokens granted, ms until one is there, tokens left}.
_TAKE = """
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
local size, wanted = tonumber(ARGV[1]), tonumber(ARGV[2])
local kept = redis.call('HMGET', KEYS[1], 'tokens', 'at', 'size')
local tokens = size
if kept[1] and tonumber(kept[3]) == size then
  tokens = math.min(size, tonumber(kept[1]) + math.max(0, ms - tonumber(kept[2])) * size / 60000)
end
local granted = math.min(wanted, math.floor(tokens))
tokens = tokens - granted
redis.call('HSET', KEYS[1], 'tokens', tostring(tokens), 'at', ms, 'size', size)
redis.call('PEXPIRE', KEYS[1], 120000)
local wait = 0
if granted < 1 then wait = math.ceil((1 - tokens) * 60000 / size) end
return {granted, wait, math.floor(tokens)}
"""


@dataclass(slots=True)
class _Bucket:
    """What this process holds of one shared bucket, and its own bucket for when Redis is away."""

    lease: int = 0
    expires: float = 0.0
    own: float = -1.0
    own_at: float = 0.0
    filling: asyncio.Task[float] | None = None
    waiting: int = 0
    shared: int = 0
    shared_at: float = 0.0


class Budgets:
    """Spends calls of principals. One for each process."""

    def __init__(self, url: str, processes: int) -> None:
        self._processes = max(1, processes)
        self._buckets: dict[tuple[int, Any], _Bucket] = {}
        self._away_until = 0.0
        self._redis = connected(url, _TIMEOUT_SECONDS)
        self._take = self._redis.register_script(_TAKE)
        # Answers of the shared buckets and of this process's own: calls that were there, and calls that were not.
        self.granted = self.refused = self.granted_alone = self.refused_alone = 0

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    @property
    def alone(self) -> bool:
        """Whether this process counts by itself, since Redis did not answer a moment ago."""
        return time.monotonic() < self._away_until

    async def spend(self, user_id: int, tool_id: Any, per_minute: int) -> float:
        """Take one call out of the budget. 0 when it was there, else the seconds until there is one again."""
        bucket = self._bucket((user_id, tool_id))
        while True:
            now = time.monotonic()
            if bucket.lease > 0 and bucket.expires > now:
                bucket.lease -= 1
                if bucket.lease * 4 < _lease_of(per_minute) and bucket.filling is None and now >= self._away_until:
                    self._fill(bucket, user_id, tool_id, per_minute)
                self.granted += 1
                return 0.0
            if now < self._away_until:
                return self._spend_own(bucket, per_minute, now)
            wait = await self._filled(bucket, user_id, tool_id, per_minute)
            if wait > 0 and bucket.lease == 0:
                self.refused += 1
                return wait

    def left(self, user_id: int, tool_id: Any, per_minute: int) -> tuple[int, int]:
        """(calls that are left, seconds until the budget is whole again), as far as this process knows."""
        bucket, now = self._buckets.get((user_id, tool_id)), time.monotonic()
        if bucket is None:
            return per_minute, 0
        if now < self._away_until:
            held, since = bucket.own, now - bucket.own_at
        else:
            held, since = bucket.shared + (bucket.lease if bucket.expires > now else 0), now - bucket.shared_at
        left = min(per_minute, int(held + since * per_minute / 60))
        return max(0, left), math.ceil((per_minute - left) * 60 / per_minute)

    async def _filled(self, bucket: _Bucket, user_id: int, tool_id: Any, per_minute: int) -> float:
        bucket.waiting += 1
        try:
            return await asyncio.shield(bucket.filling or self._fill(bucket, user_id, tool_id, per_minute))
        finally:
            bucket.waiting -= 1

    def _bucket(self, key: tuple[int, Any]) -> _Bucket:
        found = self._buckets.get(key)
        if found is None:
            if len(self._buckets) >= _MOST_BUCKETS:
                now = time.monotonic()
                self._buckets = {k: b for k, b in self._buckets.items() if b.expires > now or b.filling}
            found = self._buckets[key] = _Bucket()
        return found

    def _fill(self, bucket: _Bucket, user_id: int, tool_id: Any, per_minute: int) -> asyncio.Task[float]:
        bucket.filling = asyncio.create_task(self._lease(bucket, f"mcpsite:budget:{user_id}:{tool_id}", per_minute))
        return bucket.filling

    async def _lease(self, bucket: _Bucket, key: str, per_minute: int) -> float:
        """Add a lease to the bucket. Seconds until the shared one has a token; 0 if it had, or if Redis is away."""
        try:
            wanted = max(_lease_of(per_minute), bucket.waiting)
            granted, wait, shared = await self._take(keys=[key], args=[per_minute, wanted])
        except (RedisError, OSError, TimeoutError) as error:
            if time.monotonic() >= self._away_until:
                logger.warning("Redis is away, budgets are counted by each process: %s", error)
            self._away_until = time.monotonic() + _AWAY_SECONDS
            return 0.0
        finally:
            bucket.filling = None
        now = time.monotonic()
        bucket.lease = (bucket.lease if bucket.expires > now else 0) + int(granted)
        bucket.expires = now + _LEASE_SECONDS
        bucket.shared, bucket.shared_at = int(shared), now
        if int(granted) == 0:
            # It is spent: Redis going away now must not fill it.
            bucket.own, bucket.own_at = 0.0, now
        return int(wait) / 1000

    def _spend_own(self, bucket: _Bucket, per_minute: int, now: float) -> float:
        size = max(1.0, per_minute / self._processes)
        if bucket.own < 0:
            bucket.own, bucket.own_at = size, now
        bucket.own = min(size, bucket.own + (now - bucket.own_at) * size / 60)
        bucket.own_at = now
        if bucket.own >= 1:
            bucket.own -= 1
            self.granted_alone += 1
            return 0.0
        self.refused_alone += 1
        return (1 - bucket.own) * 60 / size


def _lease_of(per_minute: int) -> int:
    """One second's worth, so that what lies unused in a process is little."""
    return max(1, per_minute // 60)


class Refusals:
    """What is refused to a principal is recorded within a budget, so that nobody can flood the ledger with refusals."""

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets
        self._unrecorded: dict[int, int] = {}

    async def admit(self, user_id: int) -> tuple[float, int]:
        """(0, how many were not recorded since the last one) when this one is to be recorded, else (seconds, 0)."""
        wait = await self._budgets.spend(user_id, "refused", settings.CALLS_PER_MINUTE)
        if wait:
            self._unrecorded[user_id] = self._unrecorded.get(user_id, 0) + 1
            return wait, 0
        return 0.0, self._unrecorded.pop(user_id, 0)
