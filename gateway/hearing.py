"""What upstreams say without being asked: lists that changed are synchronised, resources that changed are told on.

Each web worker listens for itself. Several hear the same: one of them synchronises, the others find nothing changed.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from django.db import DatabaseError, close_old_connections

from access.snapshot import Snapshot, SourceEntry
from audit.caller import Caller
from gateway.listening import Listening
from gateway.mail import Mail
from gateway.relays import Relays
from gateway.sources import Connectors
from tools.connectors.base import Connector, ConnectorError, Offer, Source
from tools.connectors.registry import connector_class, source_of
from tools.models import DataSource
from tools.synchronisation import SyncFailed, SyncRefused, ask_to_look, synchronise

logger = logging.getLogger("gateway.hearing")

# Between two synchronisations of a source: at first, and at most when it says so without end.
_LEAST_SECONDS, _MOST_SECONDS = 1.0, 60.0
# So many in a row are no flood.
_IN_A_ROW = 4
# What an upstream says in one go is one change.
_SETTLE_SECONDS = 0.02
# So often it is tried again when that fails; then the source has to say it again.
_MOST_FAILURES = 5
_Went = Literal["settled", "busy", "failed"]


class Pace:
    """When a source is synchronised again that says that it changed."""

    def __init__(self) -> None:
        self._last = float("-inf")
        self._pause = _LEAST_SECONDS
        self._row = 0

    def next_at(self, now: float) -> float:
        """The moment for what was said now; each is asked for once."""
        if now - self._last > 2 * self._pause:
            self._row, self._pause = 0, _LEAST_SECONDS
        self._row += 1
        if self._row > _IN_A_ROW:
            self._pause = min(2 * self._pause, _MOST_SECONDS)
        self._last = max(now + _SETTLE_SECONDS, self._last + self._pause)
        return self._last


@dataclass(slots=True)
class _Ear:
    """What one source says is heard here."""

    hearing: Hearing
    entry: SourceEntry
    connector: Connector
    pace: Pace = field(default_factory=Pace)
    is_due: bool = False
    failures: int = 0

    def began(self) -> None:
        """While the site was down, the source may have come to offer something else."""
        self.hearing.start(asyncio.to_thread(_look, self.entry.source))

    def lists_changed(self) -> None:
        """The source offers something else."""
        self._count()
        self.hearing.changed(self)

    def resource_updated(self, uri: str) -> None:
        """What is at the URI is not as it was."""
        self._count()
        self.hearing.listening.updated(self.entry.source.id, uri)
        self.hearing.relays.updated(self.entry.source.id, uri)

    def _count(self) -> None:
        heard, name = self.hearing.heard, self.entry.source.name
        heard[name] = heard.get(name, 0) + 1


class Hearing:
    """The ears of one worker, and those here who listen. Without `hears`, it subscribes to nothing by itself."""

    def __init__(self, connectors: Connectors, mail: Mail, *, hears: bool) -> None:
        self._connectors = connectors
        self._hears = hears
        self.listening = Listening(self._let_go)
        self._ears: dict[uuid.UUID, _Ear] = {}
        self._work: set[asyncio.Task[None]] = set()
        self.relays = Relays(mail, self.listening, self.start, self._is_own, self._watch_along)
        # For metrics: data source → what it said.
        self.heard: dict[str, int] = {}

    def swap(self, snapshot: Snapshot) -> None:
        """Listen to the sources that there are now."""
        if not self._hears:
            return
        for identifier in self._ears.keys() - snapshot.sources.keys():
            del self._ears[identifier]
        for identifier, entry in snapshot.sources.items():
            if connector_class(entry.kind).hears:
                self._listen_to(identifier, entry)

    def _listen_to(self, identifier: uuid.UUID, entry: SourceEntry) -> None:
        connector, known = self._connectors.of_source(entry), self._ears.get(identifier)
        if known is not None and known.connector is connector:
            return
        ear = self._ears[identifier] = _Ear(self, entry, connector)
        if known is not None:
            ear.pace = known.pace
        connector.listen(ear)
        for uri in self.listening.watched(identifier):
            self.start(self.watch_again(identifier, uri))
        self.relays.go_along()

    async def watch_again(self, source: uuid.UUID, uri: str) -> None:
        """Have the source tell of a resource, as it was asked to on behalf of who listens here before."""
        ear = self._ears.get(source)
        if ear is None:
            return
        try:
            await ear.connector.watch(uri)
        except ConnectorError as error:
            logger.info("%s does not tell of %s any more: %s", ear.entry.source.name, uri, error)

    def _let_go(self, source: uuid.UUID, uri: str) -> None:
        """Nobody here listens for the resource any more."""
        if (ear := self._ears.get(source)) is not None:
            ear.connector.unwatch(uri)

    def _is_own(self, source: uuid.UUID) -> bool:
        ear = self._ears.get(source)
        return ear is not None and ear.connector.is_own

    def _watch_along(self, source: uuid.UUID, uris: frozenset[str]) -> None:
        if (ear := self._ears.get(source)) is not None and ear.connector.is_own:
            ear.connector.watch_along(uris)

    async def stop(self) -> None:
        """Leave what is under way."""
        self.relays.close()
        for task in tuple(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)

    # --- Synchronising ------------------------------------------------------------------------------------------------

    def changed(self, ear: _Ear) -> None:
        """Synchronise the source soon, unless that is going to happen anyway."""
        if not ear.is_due:
            ear.is_due = True
            now = asyncio.get_running_loop().time()
            self.start(self._synchronise(ear, ear.pace.next_at(now) - now))

    async def _synchronise(self, ear: _Ear, wait: float) -> None:
        await asyncio.sleep(wait)
        # What is said from here on may not be in what the source lists now.
        ear.is_due = False
        offers: list[Offer] | ConnectorError
        try:
            offers = await ear.connector.discover()
        except ConnectorError as error:
            offers = error
        try:
            went = await asyncio.to_thread(_take, ear.entry.source, offers)
        except DatabaseError as error:
            logger.warning("what %s offers could not be stored: %s", ear.entry.source.name, error)
            went = "busy"
        ear.failures = ear.failures + 1 if went == "failed" else 0
        again = went == "busy" or 0 < ear.failures <= _MOST_FAILURES
        if again and self._ears.get(ear.entry.source.id) is ear:
            self.changed(ear)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it aside, until the worker stops."""
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.error("what an upstream said could not be followed", exc_info=error)


def _take(source: Source, offers: list[Offer] | ConnectorError) -> _Went:
    """Bring the catalogue up to date with what the source offers. Blocking: for a thread."""
    close_old_connections()
    try:
        row = DataSource.objects.filter(pk=source.id, enabled=True).first()
        if row is None or source_of(row) != source:  # what was heard is of another server
            return "settled"
        try:
            synchronise(row, Caller(), "job", take=partial(_given, offers), is_told=True)
        except SyncRefused:
            return "busy"
        except SyncFailed as error:
            logger.warning("%s says that it changed, and could not be synchronised: %s", row.name, error)
            return "failed"
        return "settled"
    finally:
        close_old_connections()


def _look(source: Source) -> None:
    """Have one worker look what the source offers now. Blocking: for a thread."""
    close_old_connections()
    try:
        ask_to_look(source.id)
    except DatabaseError as error:
        logger.warning("whether %s offers something else now could not be asked: %s", source.name, error)
    finally:
        close_old_connections()


def _given(offers: list[Offer] | ConnectorError) -> list[Offer]:
    if isinstance(offers, ConnectorError):
        raise offers
    return offers
