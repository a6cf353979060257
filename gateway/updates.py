"""Resources that changed, gathered until they are told: a source may say it without end, and thousands may listen.

What is said while it waits to be told is said once. Between a few listeners and the next few, calls have their turn;
between one round and the next there is a pause.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterator
from itertools import islice

Watched = tuple[uuid.UUID, str]

# So many are told before calls have their turn again, and so long it is from one round to the next.
_AT_ONCE, _PAUSE_SECONDS = 50, 0.2
# Of what is below one URI that is watched. When more of it changes in a round, that URI itself is said to have changed.
_MOST_URIS = 100


class Updates:
    """`tell` gets what is watched and the URI that changed, and yields after each listener."""

    def __init__(self, tell: Callable[[Watched, str], Iterator[None]]) -> None:
        self._tell = tell
        self._said: dict[Watched, dict[str, None]] = {}
        self._round: Iterator[None] = iter(())
        self._next: asyncio.Handle | None = None
        self._not_before = 0.0

    def add(self, watched: Watched, uri: str) -> None:
        """The URI changed, which is watched, or is below what is watched."""
        uris = self._said.setdefault(watched, {})
        uris[uri if len(uris) < _MOST_URIS else watched[1]] = None
        if self._next is None:
            self._next = asyncio.get_running_loop().call_at(self._not_before, self._begin)

    def _begin(self) -> None:
        said, self._said = self._said, {}
        self._round = (None for watched, uris in said.items() for uri in uris for _ in self._tell(watched, uri))
        self._go_on()

    def _go_on(self) -> None:
        loop, self._next = asyncio.get_running_loop(), None
        if sum(1 for _ in islice(self._round, _AT_ONCE)) == _AT_ONCE:
            self._next = loop.call_soon(self._go_on)
            return
        self._not_before = loop.time() + _PAUSE_SECONDS
        if self._said:
            self._next = loop.call_at(self._not_before, self._begin)
