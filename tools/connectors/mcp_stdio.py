"""MCP servers that run on this machine and speak over stdin and stdout: one supervised process in each web worker.

Which programs may run is a matter of the operator (`MCP_LAUNCHERS`); a data source names one of them. The process is
started by the first call, serves calls side by side, is stopped when nobody needed it for ten minutes, and started
again by the next call after it died: at once the first time, then after growing pauses, in which calls fail at once.
"""

from __future__ import annotations

import asyncio
from typing import Any

from django.conf import settings
from pydantic import Field, ValidationInfo, field_validator

from tools.connectors.base import SAVING, ConnectorError, Offer, Options, Source
from tools.connectors.mcp_core import McpCore
from tools.connectors.mcp_ears import McpHearing, hears_changes
from tools.connectors.mcp_greeting import MODERN_GREETING, Greeting
from tools.connectors.mcp_messages import UNSUPPORTED_VERSION, McpTool, RpcError
from tools.connectors.mcp_pipes import Pauses, Server
from tools.egress import Egress

# For start and greeting together, and for the answer to the first question; older servers may leave it unanswered.
_START_SECONDS, _PROBE_SECONDS = 30.0, 10.0


def _choices(schema: dict[str, Any]) -> None:
    allowed = sorted(settings.MCP_LAUNCHERS.items())
    schema["enum"] = [name for name, _ in allowed]
    known = [f"`{name}`: {each.description}" for name, each in allowed if each.description]
    schema["description"] = " ".join((schema["description"], *known))


class McpStdioOptions(Options):
    """Which server."""

    launcher: str = Field(
        min_length=1,
        max_length=48,
        description="Which program runs, of those that the setting `MCP_LAUNCHERS` allows.",
        json_schema_extra=_choices,
    )
    max_calls: int = Field(
        default=100, ge=1, le=10_000, description="Calls that each process has under way at the most."
    )
    hears_changes: bool = hears_changes()
    max_sessions: int = Field(
        default=4,
        ge=1,
        le=100,
        description="Further processes that each web worker runs at the most for clients that can be asked, if the "
        "server is of an older revision, or that want its log messages: one for each of their calls.",
    )

    @field_validator("launcher")
    @classmethod
    def _is_known(cls, value: str, info: ValidationInfo) -> str:
        # Only when it is saved: what was taken out of the settings later is told by the calls.
        if info.context == SAVING and value not in settings.MCP_LAUNCHERS:
            known = ", ".join(sorted(settings.MCP_LAUNCHERS)) or "none"
            raise ValueError(f"MCP_LAUNCHERS does not allow {value!r}; it allows: {known}")
        return value


class McpStdioConnector(McpHearing):
    """One server on this machine: one process in each web worker."""

    kind = "mcp-stdio"
    label = "Local MCP server"
    description = "An MCP server that runs on this machine, over stdin and stdout; one of those in MCP_LAUNCHERS."
    Options = McpStdioOptions
    ToolSpec = McpTool
    _tells_apart = False
    is_own = True
    _speaks_up = False  # a process that nobody needs is not started to be listened to

    def __init__(self, source: Source, egress: Egress) -> None:
        super().__init__(source, egress)
        options: McpStdioOptions = source.options
        self._upstream = self._server = Server(
            source.name, options.launcher, options.max_calls, self._lose, self._note_turn, self._take
        )
        self._starting: asyncio.Task[Greeting] | None = None
        self._is_legacy = False
        # Of the processes that calls have for themselves: a new one would know nothing of those before it.
        self._pauses_of_leased = Pauses()

    # --- The verbs ----------------------------------------------------------------------------------------------------

    async def watch(self, uri: str) -> None:
        """See `Connector.watch`. The server runs as long as somebody watches."""
        await super().watch(uri)
        self._server.is_listened_to = True

    def unwatch(self, uri: str) -> None:
        """See `Connector.unwatch`."""
        super().unwatch(uri)
        self._server.is_listened_to = bool(self._wanted)

    async def check(self) -> str:
        """Start the server and greet it. Raises ConnectorError with what it said on stderr."""
        try:
            return await super().check()
        except ConnectorError as error:
            raise self._with_last_words(error) from error

    async def discover(self) -> list[Offer]:
        """All pages of tools/list. Raises ConnectorError with what the server said on stderr."""
        try:
            return await super().discover()
        except ConnectorError as error:
            raise self._with_last_words(error) from error

    def _with_last_words(self, error: ConnectorError) -> ConnectorError:
        words = self._server.last_words
        said = f"{error} Its last words: {words}" if words else str(error)
        return ConnectorError(error.code, said, retryable=error.retryable, sent=error.sent)

    async def close(self) -> None:
        """Stop the server."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait({self._starting})
        await super().close()

    def _lose(self) -> None:
        self._greeting = None

    def _note_turn(self, code: str, detail: dict[str, Any]) -> None:
        self.tell(code, detail)

    def _leased(self, declares: dict[str, Any]) -> McpCore:
        connector = super()._leased(declares)
        assert isinstance(connector, McpStdioConnector)
        connector._server.is_leased, connector._server.pauses = True, self._pauses_of_leased
        return connector

    # --- Greeting -----------------------------------------------------------------------------------------------------

    async def _greet(self, stale: Greeting | None = None) -> Greeting:
        """The greeting of the running process. A start goes on when the call that began it is given up."""
        if self._greeting is not None:
            return self._greeting
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
            self._starting.add_done_callback(self._started)
        return await asyncio.shield(self._starting)

    def _started(self, task: asyncio.Task[Greeting]) -> None:
        self._starting = None
        if not task.cancelled():
            task.exception()  # Whoever waits has it.

    async def _start(self) -> Greeting:
        """Start and greet. Whatever fails here, the call was not sent."""
        try:
            async with asyncio.timeout(_START_SECONDS):
                await self._server.open()
                self._greeting = await self._discover_era()
                if self._ear is not None and not self._server.is_leased:
                    self._adjust_soon(0)
                return self._greeting
        except TimeoutError as error:
            raise self._not_greeted("upstream_timeout", f"was not ready within {_START_SECONDS:g} s") from error
        except RpcError as error:
            raise self._not_greeted("upstream_refused", f"refused the greeting: {error}") from error
        except ConnectorError as error:
            self._not_greeted("", "could not be greeted")
            raise ConnectorError(error.code, str(error), sent=False) from error

    def _not_greeted(self, code: str, why: str) -> ConnectorError:
        self._is_legacy = False
        self._server.fail(why)
        return ConnectorError(code, f"The server {why}.", sent=False)

    async def _discover_modern(self) -> Greeting | None:
        if self._is_legacy:
            return None
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                return await super()._discover_modern()
        except TimeoutError:  # Older servers may leave unanswered what they do not know,
            return None
        except ConnectorError:
            if self._server.pid is not None:
                raise
            # or end at it.
            await self._server.open()
            return None

    async def _initialize(self) -> Greeting:
        try:
            greeting = await super()._initialize()
        except RpcError as error:
            if error.code != UNSUPPORTED_VERSION:
                raise
            return MODERN_GREETING  # It had only been slow to answer the first question.
        self._is_legacy = True
        return greeting
