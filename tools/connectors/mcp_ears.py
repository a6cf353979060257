"""What an upstream server says without a call: that its lists changed, or a resource that somebody watches.

Modern servers say it on the stream of a `subscriptions/listen` (MCP 2026-07-28), older ones on the stream of a GET, and
those that run on this machine on their stdout. The line that this comes over is kept open while it is of use, and
opened anew, after growing pauses, when it is lost. What was said meanwhile nobody knows: everything may have changed.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from pydantic import Field

from tools.connectors.base import ConnectorError, Context, Ear, Result, Source
from tools.connectors.mcp_core import McpCore
from tools.connectors.mcp_greeting import Greeting, introduced
from tools.connectors.mcp_messages import METHOD_NOT_FOUND, RpcError, SessionEnded, Transport
from tools.egress import Egress

logger = logging.getLogger("tools.connectors.mcp_ears")

_LISTEN, _SUBSCRIBE, _UNSUBSCRIBE = "subscriptions/listen", "resources/subscribe", "resources/unsubscribe"
_ACKNOWLEDGED = "notifications/subscriptions/acknowledged"
_UPDATED = "notifications/resources/updated"
_SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
_RESOURCES = "resourceSubscriptions"
# Notification → the capability of the server that promises it, and what the filter of a modern one calls it.
_CHANGES = {
    "notifications/tools/list_changed": ("tools.listChanged", "toolsListChanged"),
    "notifications/prompts/list_changed": ("prompts.listChanged", "promptsListChanged"),
    "notifications/resources/list_changed": ("resources.listChanged", "resourcesListChanged"),
}
_MAY_WATCH = "resources.subscribe"
# Before a lost line is opened again; one that held for so long begins the row anew.
_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS, _HEALTHY_SECONDS = 1.0, 60.0, 10.0

Take = Callable[[dict[str, Any]], None]


def hears_changes() -> Any:
    """The option of every kind that hears."""
    said = "Synchronise when the server says that its tools, prompts or resources changed. Each web worker listens."
    return Field(default=True, description=said)


class Deaf(ConnectorError):
    """The server has nothing to say without a call."""

    def __init__(self) -> None:
        said = "The upstream does not tell of changes of its resources."
        super().__init__("upstream_refused", said, sent=False, refusal={"code": METHOD_NOT_FOUND, "message": said})


class Line(Protocol):
    """What the server says comes over it. `over` is done when nothing more will come."""

    over: asyncio.Future[None]
    # Of the `subscriptions/listen` that opened it; None for older revisions.
    identifier: int | None
    # Whether it is over because of how much was said.
    is_noisy: bool

    def close(self) -> None:
        """Hear no more."""


class HearingTransport(Transport, Protocol):
    """A transport over which a server can speak first."""

    async def overhear(self, greeting: Greeting, params: dict[str, Any] | None, take: Take) -> Line:
        """Open a line, which gives each message to `take`; `params` are those of a `subscriptions/listen`.

        Raises Deaf, RpcError and ConnectorError; keeps no deadline. Nothing is taken before it has returned.
        """


class McpHearing(McpCore):
    """An upstream server that is also heard when nobody calls."""

    hears = True
    # Whether a line is opened as soon as somebody listens, or only once the server runs anyway.
    _speaks_up = True
    _upstream: HearingTransport

    def __init__(self, source: Source, egress: Egress) -> None:
        super().__init__(source, egress)
        self._ear: Ear | None = None
        # The resources that somebody here wants to hear of, or somebody elsewhere, and those that the server tells of
        # over the present line.
        self._wanted: set[str] = set()
        self._along: frozenset[str] = frozenset()
        self._heard: set[str] = set()
        self._line: Line | None = None
        self._line_is_for: object = None
        self._was_lost = self._was_heard = False
        self._opened_at = 0.0
        self._pause = _FIRST_PAUSE_SECONDS
        self._adjusting = asyncio.Lock()
        self._acknowledgements: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._again: asyncio.TimerHandle | None = None

    # --- The verbs ----------------------------------------------------------------------------------------------------

    def listen(self, ear: Ear | None) -> None:
        """See `Connector.listen`."""
        self._ear = ear
        if ear is None:
            self._hear_no_more()
        elif self._speaks_up:
            self._adjust_soon(0)

    async def watch(self, uri: str) -> None:
        """See `Connector.watch`. It stays wanted until `unwatch`, also when this fails. Raises ConnectorError."""
        self._wanted.add(uri)
        # What is under way may be just about to do without it.
        if uri not in self._heard or self._adjusting.locked():
            await self._within(self.source.timeout_seconds, self._adjust())
        if uri not in self._heard:
            raise Deaf

    def unwatch(self, uri: str) -> None:
        """See `Connector.unwatch`."""
        self._wanted.discard(uri)
        if self._ear is not None and (uri in self._heard or self._adjusting.locked()):
            self._adjust_soon(0)

    def watch_along(self, uris: frozenset[str]) -> None:
        """See `Connector.watch_along`."""
        if uris != self._along:
            self._along = uris
            if self._ear is not None and self._greeting is not None:
                self._adjust_soon(0)

    @property
    def _all_wanted(self) -> set[str]:
        return self._wanted | self._along

    async def request(self, method: str, params: dict[str, Any], context: Context) -> Result:
        """Also resources/subscribe, which stands for all who watch the resource here."""
        if method == _SUBSCRIBE:
            await self.watch(params["uri"])
            return Result({}, False)
        return await super().request(method, params, context)

    async def close(self) -> None:
        """Hang up first."""
        self.listen(None)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await super().close()

    def _leased(self, declares: dict[str, Any]) -> McpCore:
        connector = super()._leased(declares)
        assert isinstance(connector, McpHearing)
        connector._ear = self._ear  # it has no line of its own, but calls may bring something along
        return connector

    def _hear_no_more(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        for task in self._tasks:
            task.cancel()
        self._drop_line()

    # --- The line -----------------------------------------------------------------------------------------------------

    def _adjust_soon(self, seconds: float) -> None:
        if self._again is None:
            self._again = asyncio.get_running_loop().call_later(seconds, self._begin_adjusting)

    def _begin_adjusting(self) -> None:
        self._again = None
        self._start_aside(self._adjust_by_itself())

    def _start_aside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _adjust_by_itself(self) -> None:
        """Open or change the line, again and again until that works, or the server turns out to have none."""
        try:
            await self._within(self.source.timeout_seconds, self._adjust())
        except Deaf:
            logger.debug("%s says nothing without a call", self.source.name)
        except ConnectorError as error:
            logger.info("%s cannot be listened to, which is tried again: %s", self.source.name, error)
            self._was_lost = self._was_lost or self._line_is_for is not None
            self._adjust_later()
        except Exception:
            logger.exception("%s cannot be listened to", self.source.name)

    def _adjust_later(self) -> None:
        pause, self._pause = self._pause, min(2 * self._pause, _LAST_PAUSE_SECONDS)
        self._adjust_soon(pause * random.uniform(0.8, 1.2))  # noqa: S311 - so that workers do not come all at once

    async def _adjust(self) -> None:
        """Have the line fit what is wanted. Raises Deaf, RpcError and ConnectorError."""
        async with self._adjusting:
            if not self._all_wanted and not self.source.options.hears_changes:
                self._drop_line()
                raise Deaf
            greeting = self._greeting or await self._greet()
            try:
                await self._fit(greeting)
            except SessionEnded:
                await self._fit(await self._greet(greeting))

    async def _fit(self, greeting: Greeting) -> None:
        if not self._is_of_use(greeting):
            self._drop_line()
            raise Deaf
        if greeting.modern:
            await self._fit_modern(greeting)
        else:
            await self._fit_legacy(greeting)
        is_first, self._was_heard = not self._was_heard, True
        if self._was_lost:
            self._was_lost = False
            self._expect_anything(greeting)
        elif is_first and self._ear is not None and self._changes(greeting):
            self._ear.began()

    def _is_of_use(self, greeting: Greeting) -> bool:
        return bool(self._changes(greeting)) or (_MAY_WATCH in greeting.capabilities and bool(self._all_wanted))

    def _changes(self, greeting: Greeting) -> list[str]:
        """What the filter calls the lists that are listened for."""
        if not self.source.options.hears_changes:
            return []
        return [name for capability, name in _CHANGES.values() if capability in greeting.capabilities]

    async def _fit_modern(self, greeting: Greeting) -> None:
        """One stream for everything. Another filter is another stream, opened before the present one is closed."""
        wanted: dict[str, Any] = dict.fromkeys(self._changes(greeting), True)
        if self._all_wanted and _MAY_WATCH in greeting.capabilities:
            wanted[_RESOURCES] = sorted(self._all_wanted)
        if self._line is not None and self._line_is_for == (greeting, wanted):
            return
        try:
            line = await self._upstream.overhear(greeting, introduced({"notifications": wanted}), self._take)
        except RpcError as error:
            if error.code == METHOD_NOT_FOUND:
                raise Deaf from error
            raise
        try:
            granted = await self._acknowledged(line)
        except BaseException:
            line.close()
            raise
        self._put_through(line, (greeting, wanted))
        uris = granted.get(_RESOURCES)
        self._heard = {uri for uri in uris if isinstance(uri, str)} if isinstance(uris, list) else set()

    async def _acknowledged(self, line: Line) -> dict[str, Any]:
        assert line.identifier is not None
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._acknowledgements[line.identifier] = future
        try:
            either: set[asyncio.Future[Any]] = {future, line.over}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                raise ConnectorError("bad_upstream_answer", "The upstream ended a subscription before it began.")
            return future.result()
        finally:
            del self._acknowledgements[line.identifier]

    async def _fit_legacy(self, greeting: Greeting) -> None:
        if self._line is None or self._line_is_for is not greeting:
            self._put_through(await self._upstream.overhear(greeting, None, self._take), greeting)
        for uri in sorted(self._heard - self._all_wanted):
            self._heard.discard(uri)
            await self._said(greeting, _UNSUBSCRIBE, uri)
        for uri in sorted(self._all_wanted - self._heard):
            if await self._said(greeting, _SUBSCRIBE, uri):
                self._heard.add(uri)

    async def _said(self, greeting: Greeting, method: str, uri: str) -> bool:
        """Whether the server, in this session and no other, does as it is told."""
        try:
            await self._request(greeting, method, {"uri": uri})
        except RpcError as error:
            logger.info("%s refuses %s of %s: %s", self.source.name, method, uri, error)
            return False
        return True

    def _put_through(self, line: Line, is_for: object) -> None:
        self._drop_line()
        self._line, self._line_is_for = line, is_for
        self._opened_at = asyncio.get_running_loop().time()
        line.over.add_done_callback(lambda _: self._lose_line(line))

    def _drop_line(self) -> None:
        line, self._line = self._line, None
        self._heard.clear()
        if line is not None:
            line.close()

    def _lose_line(self, line: Line) -> None:
        if line is not self._line:
            return
        if line.is_noisy:
            logger.warning(
                "%s says without end that something changed, so it is not listened to for a while", self.source.name
            )
        self._line = None
        self._heard.clear()
        if self._ear is None:
            return
        self._was_lost = True
        if asyncio.get_running_loop().time() - self._opened_at > _HEALTHY_SECONDS:
            self._pause = _FIRST_PAUSE_SECONDS
        if self._speaks_up or self._wanted:
            self._adjust_later()

    # --- What comes over it -------------------------------------------------------------------------------------------

    def _take(self, message: dict[str, Any]) -> None:
        """One message of the server that is no answer."""
        method, params = message.get("method"), message.get("params")
        params = params if isinstance(params, dict) else {}
        if method == _ACKNOWLEDGED:
            self._acknowledge(params)
        elif self._ear is None:
            return
        elif method in _CHANGES and self.source.options.hears_changes:
            self._ear.lists_changed()
        elif method == _UPDATED and isinstance(uri := params.get("uri"), str):
            self._ear.resource_updated(uri)

    def _acknowledge(self, params: dict[str, Any]) -> None:
        meta, granted = params.get("_meta"), params.get("notifications")
        identifier = meta.get(_SUBSCRIPTION) if isinstance(meta, dict) else None
        future = self._acknowledgements.get(identifier) if type(identifier) is int else None
        if future is not None and not future.done():
            future.set_result(granted if isinstance(granted, dict) else {})

    def _expect_anything(self, greeting: Greeting) -> None:
        """Nobody heard what was said while the line was lost."""
        if self._ear is None:
            return
        if self._changes(greeting):
            self._ear.lists_changed()
        for uri in sorted(self._heard):
            self._ear.resource_updated(uri)
