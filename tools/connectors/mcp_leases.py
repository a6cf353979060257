"""Sessions with an upstream that a call has for itself.

What a legacy server asks outside the stream of a call says nothing of the call that it belongs to, and capabilities are
declared once for a whole session. So whoever declares some gets a session of its own: of its user, with exactly these
capabilities, for one call at a time. What a call that did not end properly may still say has nobody left to hear it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Hashable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Generic, Protocol, TypeVar

from tools.connectors.base import ConnectorError

# What can be asked for in a session. Roots that change have nobody to tell it to.
_CARRIED: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "elicitation": dict,
    "roots": lambda declared: {},
    "sampling": dict,
}
# Refusals of the upstream itself: it is done with the call.
_PROPER_ENDS = frozenset({"upstream_refused", "capability_missing"})
# After which time one that nobody needs is closed.
_IDLE_SECONDS = 60.0


class Closable(Protocol):
    """What is leased."""

    async def close(self) -> None:
        """Let go of it."""


T = TypeVar("T", bound=Closable)


def declared_to_legacy(capabilities: Mapping[str, Any]) -> dict[str, Any]:
    """What of the client's capabilities a legacy upstream is told."""
    return {
        name: carry(declared)
        for name, carry in _CARRIED.items()
        if isinstance(declared := capabilities.get(name), dict)
    }


class Leases(Generic[T]):
    """At most `most` at a time. The longest idle one makes place for one with another key."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._idle: dict[Hashable, list[tuple[float, T]]] = {}
        self._used: set[T] = set()
        self._places = asyncio.Semaphore(most)
        self._closing: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    @asynccontextmanager
    async def lease(self, key: Hashable, make: Callable[[], T], within: float) -> AsyncIterator[T]:
        """One for this key, as soon as there is place. It is closed unless the work with it came to a proper end.

        Raises ConnectorError when there is no place within so many seconds.
        """
        try:
            async with asyncio.timeout(within):
                await self._places.acquire()
        except TimeoutError as error:
            said = f"All {self._most} sessions that clients with capabilities may have with it at once are in use."
            raise ConnectorError("upstream_busy", said, sent=False) from error
        leased = self._take(key) or make()
        self._used.add(leased)
        ended = False
        try:
            yield leased
            ended = True
        except ConnectorError as error:
            ended = error.code in _PROPER_ENDS
            raise
        finally:
            self._used.discard(leased)
            self._places.release()
            if ended and not self._closed:
                self._keep(key, leased)
            else:
                self._close_soon(leased)

    def _take(self, key: Hashable) -> T | None:
        if kept := self._idle.get(key):
            _, leased = kept.pop()
            if not kept:
                del self._idle[key]
            return leased
        if len(self._used) + sum(map(len, self._idle.values())) >= self._most:
            oldest = min(self._idle, key=lambda each: self._idle[each][0][0])
            self._drop_first(oldest)
        return None

    def _keep(self, key: Hashable, leased: T) -> None:
        loop = asyncio.get_running_loop()
        self._idle.setdefault(key, []).append((loop.time(), leased))
        if self._sweeper is None:
            self._sweeper = loop.call_later(_IDLE_SECONDS, self._sweep)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        for key in tuple(self._idle):
            while key in self._idle and loop.time() - self._idle[key][0][0] >= _IDLE_SECONDS:
                self._drop_first(key)
        self._sweeper = loop.call_later(_IDLE_SECONDS, self._sweep) if self._idle else None

    def _drop_first(self, key: Hashable) -> None:
        _, leased = self._idle[key].pop(0)
        if not self._idle[key]:
            del self._idle[key]
        self._close_soon(leased)

    def _close_soon(self, leased: T) -> None:
        task = asyncio.create_task(leased.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all of them, also those in use."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for kept in self._idle.values():
            for _, leased in kept:
                self._close_soon(leased)
        self._idle.clear()
        for leased in self._used:
            self._close_soon(leased)
        await asyncio.gather(*self._closing, return_exceptions=True)
