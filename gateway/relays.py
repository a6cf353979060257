"""What the process of a local server says to one worker, for who listens at another one.

Such a server runs once in each worker, and may know only of changes that went through that process. So each worker
tells the others what is watched there, has its own process tell of it too while that runs, and passes on what it says.
A worker that ends without a word is forgotten soon after.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import defaultdict
from collections.abc import Callable, Coroutine
from itertools import islice
from typing import Any

from gateway.listening import Listening, and_above
from gateway.mail import Mail
from gateway.updates import Watched

_WATCHED, _UPDATED = "relays.watched", "relays.updated"
# What is watched at one worker, as far as the others are told of it.
_MOST_WATCHED = 1_000
# What comes at once is told at once. All is told again now and then, and forgotten where it is not.
_SETTLE_SECONDS, _AGAIN_SECONDS, _FORGET_SECONDS = 0.02, 20.0, 50.0

Start = Callable[[Coroutine[Any, Any, None]], None]


class Relays:
    """Those of one worker. `goes` tells whether a source is such a server, `along` what of it is watched elsewhere."""

    def __init__(
        self,
        mail: Mail,
        listening: Listening,
        start: Start,
        goes: Callable[[uuid.UUID], bool],
        along: Callable[[uuid.UUID, frozenset[str]], None],
    ) -> None:
        self._mail, self._listening, self._start, self._goes, self._along = mail, listening, start, goes, along
        # Worker → until when it is believed, and what is watched there.
        self._elsewhere: dict[str, tuple[float, frozenset[Watched]]] = {}
        self._sources: frozenset[uuid.UUID] = frozenset()
        self._due: dict[Watched, None] = {}
        self._has_told = self._is_soon = self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        listening.watches = self._watched_here
        mail.on(_WATCHED, self._hear_of_watched)
        mail.on(_UPDATED, self._hear_of_update)

    def close(self) -> None:
        """Tell nothing more."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()

    # --- What is watched ----------------------------------------------------------------------------------------------

    def _watched_here(self, source: uuid.UUID) -> None:
        if self._goes(source) and not self._is_soon:
            self._is_soon = True
            self._tell_in(_SETTLE_SECONDS)

    def _tell_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._is_closed:
            return
        self._timer = asyncio.get_running_loop().call_later(seconds, self._tell)

    def _tell(self) -> None:
        self._timer, self._is_soon = None, False
        mine = (list(map(str, each)) for each in self._listening.all_watched() if self._goes(each[0]))
        watched = list(islice(mine, _MOST_WATCHED))
        if watched or self._has_told:
            self._broadcast(_WATCHED, watched)
        self._has_told = bool(watched)
        now = asyncio.get_running_loop().time()
        self._elsewhere = {worker: known for worker, known in self._elsewhere.items() if known[0] > now}
        self.go_along()
        if watched or self._elsewhere:
            self._tell_in(_AGAIN_SECONDS)

    def _hear_of_watched(self, letter: dict[str, Any]) -> None:
        worker = letter["worker"]
        if worker == self._mail.worker:
            return
        watched = _read(letter)
        is_new = worker not in self._elsewhere
        if watched:
            until = asyncio.get_running_loop().time() + _FORGET_SECONDS
            self._elsewhere[worker] = until, frozenset(watched)
        else:
            self._elsewhere.pop(worker, None)
        self.go_along()
        if watched and is_new:  # it may not know what is watched here
            self._tell_in(_SETTLE_SECONDS)

    def go_along(self) -> None:
        """Have the servers here tell of what is watched elsewhere."""
        found: dict[uuid.UUID, set[str]] = defaultdict(set)
        for _, watched in self._elsewhere.values():
            for source, uri in watched:
                found[source].add(uri)
        before, self._sources = self._sources, frozenset(found)
        for source in before | self._sources:
            self._along(source, frozenset(found[source]))

    # --- What they say ------------------------------------------------------------------------------------------------

    def updated(self, source: uuid.UUID, uri: str) -> None:
        """The server here says so: pass it on to where somebody wants to know."""
        if not any((source, each) in watched for _, watched in self._elsewhere.values() for each in and_above(uri)):
            return
        if not self._due:
            asyncio.get_running_loop().call_later(_SETTLE_SECONDS, self._pass_on)
        if len(self._due) < _MOST_WATCHED:
            self._due[source, uri] = None

    def _pass_on(self) -> None:
        due, self._due = self._due, {}
        self._broadcast(_UPDATED, [list(map(str, each)) for each in due])

    def _hear_of_update(self, letter: dict[str, Any]) -> None:
        if letter["worker"] != self._mail.worker:
            for source, uri in _read(letter):
                self._listening.updated(source, uri)

    def _broadcast(self, kind: str, resources: list[list[str]]) -> None:
        if not self._is_closed:
            self._start(self._mail.broadcast(kind, {"worker": self._mail.worker, "resources": resources}))


def _read(letter: dict[str, Any]) -> list[Watched]:
    return [(uuid.UUID(source), uri) for source, uri in letter["resources"]]
