"""Who listens at this worker, and what each is told: `subscriptions/listen`, and the streams of older clients.

What became of a list is read off the policy: whenever a new snapshot comes into force, the definitions that a listener
could see before and after are compared, once for all who see the same. So a grant, a switch in the admin and a change
at an upstream are one case; nobody hears of what he cannot see; and no message between workers can be lost.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from django.conf import settings

from access import policy
from access.snapshot import Principal, Snapshot
from access.tokens import InvalidToken
from gateway import answers
from gateway.updates import Updates, Watched
from tools.connectors.base import Kind
from tools.templates import is_uri


class Change(NamedTuple):
    """A list that may change: what a filter calls it, how it is told, and what is in it."""

    wanted: str
    method: str
    kinds: tuple[Kind, ...]


CHANGES = (
    Change("toolsListChanged", "notifications/tools/list_changed", ("tool",)),
    Change("promptsListChanged", "notifications/prompts/list_changed", ("prompt",)),
    Change("resourcesListChanged", "notifications/resources/list_changed", ("resource", "template")),
)
UPDATED = "notifications/resources/updated"
# So many are told before calls have their turn again.
_AT_ONCE = 50
# How soon a stream ends whose token's time is over.
_LOOK_SECONDS = 1.0

Tell = Callable[[str, dict[str, Any]], None]


class TooManyStreams(Exception):
    """The user, or this worker, has as many as may be; the text says which."""


@dataclass(eq=False, slots=True)
class Listener:
    """One stream: which lists it is to hear of, how it is told, and how it is ended."""

    bearer: str = field(repr=False)
    toolset: str | None
    lists: frozenset[str]
    tell: Tell
    end: Callable[[], None]
    # Source and URI of each resource that it is to hear of.
    watched: set[Watched] = field(default_factory=set)


@dataclass(eq=False, slots=True)
class _Seat:
    """Who listens with one token at one endpoint: all of them see the same."""

    principal: Principal
    listeners: set[Listener] = field(default_factory=set)


class Listening:
    """The listeners of one worker. `let_go` is told of a resource that nobody here wants to hear of any more."""

    def __init__(self, let_go: Callable[[uuid.UUID, str], None]) -> None:
        self._let_go = let_go
        # Told of a source of which another resource is watched here, or one less.
        self.watches: Callable[[uuid.UUID], None] = lambda source: None
        self._snapshot: Snapshot | None = None
        self._seats: dict[tuple[str, str | None], _Seat] = {}
        self._by_user: dict[int, int] = {}
        self._watchers: dict[Watched, set[Listener]] = {}
        self._updates = Updates(self._tell_watchers)
        self._due: dict[Listener, dict[str, None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        # For metrics: listeners now, and messages to them so far.
        self.count = self.told = 0

    # --- Who listens --------------------------------------------------------------------------------------------------

    def admit(self, user_id: int) -> None:
        """Raises TooManyStreams when the user can have no other stream here."""
        if self._by_user.get(user_id, 0) >= settings.MCP_STREAMS_PER_USER:
            raise TooManyStreams(f"You have {settings.MCP_STREAMS_PER_USER} streams open here, which is the most.")
        if self.count >= settings.MCP_STREAMS_PER_WORKER:
            raise TooManyStreams("As many streams are open here as the server keeps.")

    def join(self, listener: Listener, principal: Principal) -> None:
        """Tell it from now on. Raises TooManyStreams."""
        self.admit(principal.user_id)
        seat = self._seats.setdefault((listener.bearer, listener.toolset), _Seat(principal))
        seat.listeners.add(listener)
        self._by_user[principal.user_id] = self._by_user.get(principal.user_id, 0) + 1
        self.count += 1
        if self._is_closed:
            listener.end()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    def watch(self, listener: Listener, source: uuid.UUID, uri: str) -> None:
        """Tell it also of the resource, if it has joined or as soon as it does."""
        listener.watched.add((source, uri))
        if (source, uri) not in self._watchers:
            self._watchers[source, uri] = set()
            self.watches(source)
        self._watchers[source, uri].add(listener)

    def unwatch(self, listener: Listener, source: uuid.UUID, uri: str) -> None:
        """Tell it no more of the resource."""
        listener.watched.discard((source, uri))
        watchers = self._watchers.get((source, uri), set())
        watchers.discard(listener)
        if not watchers and self._watchers.pop((source, uri), None) is not None:
            self._let_go(source, uri)
            self.watches(source)

    def leave(self, listener: Listener) -> None:
        """It is gone, whether or not it had joined."""
        for source, uri in tuple(listener.watched):
            self.unwatch(listener, source, uri)
        self._due.pop(listener, None)
        seat = self._seats.get((listener.bearer, listener.toolset))
        if seat is None or listener not in seat.listeners:
            return
        seat.listeners.discard(listener)
        self.count -= 1
        user = seat.principal.user_id
        self._by_user[user] -= 1
        if not self._by_user[user]:
            del self._by_user[user]
        if not seat.listeners:
            del self._seats[listener.bearer, listener.toolset]

    @contextmanager
    def staying(
        self, bearer: str, toolset: str | None, principal: Principal, end: Callable[[], None]
    ) -> Iterator[None]:
        """While the block runs, `end` is called when the token is not good any more, and when the worker stops. Raises
        TooManyStreams.
        """
        listener = Listener(bearer, toolset, frozenset(), _tell_nobody, end)
        self.join(listener, principal)
        try:
            yield
        finally:
            self.leave(listener)

    def watched(self, source: uuid.UUID) -> Iterator[str]:
        """The URIs of the source that somebody wants to hear of."""
        return (uri for of, uri in tuple(self._watchers) if of == source)

    def all_watched(self) -> Iterator[Watched]:
        """Source and URI of whatever somebody wants to hear of."""
        return iter(tuple(self._watchers))

    def close(self) -> None:
        """End all streams, also those to come: the worker stops."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        for seat in tuple(self._seats.values()):
            self._end(seat)

    @staticmethod
    def _end(seat: _Seat) -> None:
        for listener in tuple(seat.listeners):
            listener.end()

    def _look(self) -> None:
        """End the streams of those whose time is over."""
        self._timer = None
        for seat in tuple(self._seats.values()):
            if seat.principal.is_expired():
                self._end(seat)
        if self._seats:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)

    # --- What they are told -------------------------------------------------------------------------------------------

    def swap(self, snapshot: Snapshot) -> None:
        """A new policy is in force: tell whose lists differ, and end the streams of those who are nobody any more."""
        before, self._snapshot = self._snapshot, snapshot
        if before is None:
            return
        known: dict[object, frozenset[str]] = {}
        for (bearer, toolset), seat in tuple(self._seats.items()):
            try:
                principal = policy.principal_of(snapshot, bearer)
            except InvalidToken:
                self._end(seat)
                continue
            old, seat.principal = seat.principal, principal
            key = answers.list_key(old, toolset), answers.list_key(principal, toolset)
            if key not in known:
                known[key] = _differing(before, old, snapshot, principal, toolset)
            if differing := known[key]:
                for listener in seat.listeners:
                    self._tell_soon(listener, differing & listener.lists)

    def marks(self, principal: Principal, toolset: str | None) -> tuple[str, ...]:
        """What tells the lists that the principal sees now from others, in the order of `CHANGES`."""
        if self._snapshot is None:
            return ()
        key = "marks", *answers.list_key(principal, toolset)
        found: tuple[str, ...] | None = self._snapshot.lists.get(key)
        if found is None:
            found = tuple(_mark(self._snapshot, principal, toolset, change) for change in CHANGES)
            self._snapshot.lists[key] = found
        return found

    def updated(self, source: uuid.UUID, uri: str) -> None:
        """A source says that a resource of it has changed: tell those who want to know, and may read it."""
        for subscribed in and_above(uri):
            if (source, subscribed) in self._watchers:
                self._updates.add((source, subscribed), uri)

    def _tell_watchers(self, watched: Watched, uri: str) -> Iterator[None]:
        for listener in tuple(self._watchers.get(watched, ())):
            if self.source_of(listener, uri) == watched[0]:
                self.told += 1
                listener.tell(UPDATED, {"uri": uri})
            yield

    def source_of(self, listener: Listener, uri: str) -> uuid.UUID | None:
        """Where the resource is read that the listener wants to hear of; None when it may not, or has not joined."""
        seat = self._seats.get((listener.bearer, listener.toolset))
        if self._snapshot is None or seat is None or listener not in seat.listeners or seat.principal.is_expired():
            return None
        found = policy.find_offered(self._snapshot, seat.principal, "resource", uri, listener.toolset)
        return found[0].source.source.id if found else None

    def _tell_soon(self, listener: Listener, methods: frozenset[str]) -> None:
        if not methods:
            return
        if not self._due:
            asyncio.get_running_loop().call_soon(self._tell_some)
        self._due.setdefault(listener, {}).update(dict.fromkeys(sorted(methods)))

    def _tell_some(self) -> None:
        """Tell a few, and the others after whatever else is ready."""
        for listener in list(islice(self._due, _AT_ONCE)):
            for method in self._due.pop(listener):
                self.told += 1
                listener.tell(method, {})
        if self._due:
            asyncio.get_running_loop().call_soon(self._tell_some)


def _tell_nobody(method: str, params: dict[str, Any]) -> None:
    """Of a stream that is only ended."""


def _differing(
    before: Snapshot, old: Principal, after: Snapshot, new: Principal, toolset: str | None
) -> frozenset[str]:
    """How it is told of the lists that are not as they were."""
    return frozenset(
        change.method
        for change in CHANGES
        if any(
            answers.definitions(before, old, toolset, kind) != answers.definitions(after, new, toolset, kind)
            for kind in change.kinds
        )
    )


def _mark(snapshot: Snapshot, principal: Principal, toolset: str | None, change: Change) -> str:
    mark = hashlib.sha256()
    for kind in change.kinds:
        for definition in answers.definitions(snapshot, principal, toolset, kind):
            mark.update(hashlib.sha256(definition).digest())
    return mark.hexdigest()[:16]


def and_above(uri: str) -> Iterator[str]:
    """The URI, and those of which it may be a part: who hears of a folder hears of what is in it.

    Nothing, if it is none: sources may say anything, of any length.
    """
    if not is_uri(uri):
        return
    yield uri
    scheme, colon, rest = uri.partition("://")
    while "/" in rest:
        rest = rest.rpartition("/")[0]
        yield f"{scheme}{colon}{rest}/"
        yield f"{scheme}{colon}{rest}"
