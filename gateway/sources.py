"""The connectors of this process: opened at first use, kept, and exchanged when their data source changes."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

from django.conf import settings

from access.offered import OfferedEntry
from access.snapshot import Snapshot, SourceEntry, ToolEntry
from audit.entry import Entry
from audit.floods import Flood
from audit.system import system_event
from tools.connectors.base import Connector
from tools.connectors.registry import connector_class
from tools.egress import Egress

logger = logging.getLogger("gateway.sources")

# A call that still uses a connector that was replaced may finish: no call takes longer, but tasks.
_GRACE_SECONDS = settings.CALL_TIMEOUT_SECONDS + 5.0
_LOOK_SECONDS = 1.0


class Connectors:
    """Data source → open connector."""

    def __init__(self, tell: Callable[[Entry], None]) -> None:
        self._tell = tell
        self._told = Flood()
        self._egress = Egress()
        self._open: dict[uuid.UUID, tuple[SourceEntry, Connector]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._rules: object = ()

    def of(self, tool: ToolEntry | OfferedEntry) -> Connector:
        """The connector of the tool's source, or of what else is called."""
        return self.of_source(tool.source)

    def of_source(self, entry: SourceEntry) -> Connector:
        """The connector of the source."""
        known = self._open.get(entry.source.id)
        if known is not None and known[0] is entry:
            return known[1]
        connector = connector_class(entry.kind)(entry.source, self._egress)
        connector.tell = partial(self._hear, entry.source.name)
        if known is not None:
            self._retire(known[1])
        self._open[entry.source.id] = (entry, connector)
        return connector

    def _hear(self, source: str, code: str, detail: dict[str, Any]) -> None:
        """Put on record what happened to a source, but each thing once a minute: it may come and go all the time."""
        before = self._told.take(f"{code} {source}")
        if before is not None:
            counted = {"unrecorded_before": before} if before else {}
            self._tell(system_event(code, {**detail, **counted}, connector=source))

    def names(self) -> list[str]:
        """The data sources whose connectors are open."""
        return [entry.source.name for entry, _ in list(self._open.values())]

    def replace(self, snapshot: Snapshot) -> None:
        """Let go of connectors whose source is gone or changed; all of them when the egress rules changed."""
        rules_changed = snapshot.rules != self._rules
        self._rules = snapshot.rules
        self._egress.replace(snapshot.rules)
        for identifier, (entry, connector) in list(self._open.items()):
            if rules_changed or snapshot.sources.get(identifier) is not entry:
                del self._open[identifier]
                self._retire(connector)

    def _retire(self, connector: Connector) -> None:
        connector.listen(None)
        task = asyncio.create_task(_close(connector, _GRACE_SECONDS))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all of them."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*(_close(connector) for _, connector in self._open.values()), return_exceptions=True)
        self._open.clear()


async def _close(connector: Connector, after: float = 0) -> None:
    await asyncio.sleep(after)
    while after and connector.long_calls:  # noqa: ASYNC110 - hours may pass, and nobody is in a hurry
        await asyncio.sleep(_LOOK_SECONDS)
    try:
        await connector.close()
    except Exception:
        logger.exception("the connector of %s could not be closed", connector.source.name)
