"""JSON-RPC over stdin and stdout (MCP, transports, "stdio"), as a client: one server, whose process comes and goes."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable
from typing import Any

from django.conf import settings

from tools.connectors import limits
from tools.connectors.base import ConnectorError
from tools.connectors.limits import Noise
from tools.connectors.mcp_ears import Take
from tools.connectors.mcp_greeting import Greeting
from tools.connectors.mcp_lines import ProcessLine
from tools.connectors.mcp_messages import McpTool, SessionEnded, parsed, result_of, written
from tools.connectors.mcp_process import Process, start
from tools.connectors.mcp_turn import Turn, cancelled, declined, reporting

logger = logging.getLogger("tools.connectors.mcp_stdio")

_IDLE_SECONDS = 600.0
# Before the start after the first, second … failure in a row; a run of _HEALTHY_SECONDS begins the row anew.
_PAUSES_SECONDS, _HEALTHY_SECONDS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 60.0), 30.0
# A server that leaves so many calls unanswered and says nothing for so long hangs.
_UNANSWERED, _SILENT_SECONDS = 3, 30.0
_MOST_LATE = 1_000
_SHOWN_WORDS = 500


class Pauses:
    """After failures in a row, how long there is no other start; a run of `_HEALTHY_SECONDS` begins the row anew."""

    def __init__(self) -> None:
        self.failures = 0
        self.not_before, self._why = 0.0, ""

    def note(self, seconds: float, why: str) -> None:
        """A run of so many seconds ended in failure."""
        self.failures = 1 if seconds >= _HEALTHY_SECONDS else self.failures + 1
        pause = _PAUSES_SECONDS[min(self.failures, len(_PAUSES_SECONDS)) - 1]
        self.not_before, self._why = asyncio.get_running_loop().time() + pause, why

    def check(self) -> None:
        """Raise ConnectorError while there is one."""
        if (wait := self.not_before - asyncio.get_running_loop().time()) > 0:
            said = f"The server failed {self.failures} times in a row: it {self._why}. "
            said += f"It is started again in {wait:.0f} s at the earliest."
            raise ConnectorError("upstream_unavailable", said, sent=False)


class Server:
    """JSON-RPC with one server, whose process comes and goes."""

    def __init__(
        self,
        source: str,
        launcher: str,
        max_calls: int,
        on_lost: Callable[[], None],
        tell: Callable[[str, dict[str, Any]], None],
        overheard: Take,
    ) -> None:
        self._source, self._launcher, self._max_calls = source, launcher, max_calls
        self._on_lost, self._note_turn, self._overheard = on_lost, tell, overheard
        self._lines: dict[int, ProcessLine] = {}
        # Somebody waits for what it says by itself: it is not stopped for want of calls.
        self.is_listened_to = False
        self._process: Process | None = None
        self._last: Process | None = None
        self._closed = False
        self.pauses = Pauses()
        self._ids = itertools.count(1)
        self._calls: dict[int, asyncio.Future[dict[str, Any]]] = {}
        # Of calls under way: who can be told and asked.
        self._turns: dict[int, Turn] = {}
        # Whether calls come one by one, so that whatever the server says is about the one under way.
        self.is_leased = False
        # Calls that nobody waits for any more, whose answers may still come.
        self._late: dict[int, None] = {}
        self._unanswered = 0
        self._heard_at = self._used_at = 0.0
        self._noise, self._talk = Noise(), Noise(limits.MAX_RESULT_BYTES)
        self._idle: asyncio.TimerHandle | None = None
        self._ending: set[asyncio.Task[None]] = set()

    # --- The process --------------------------------------------------------------------------------------------------

    @property
    def last_words(self) -> str:
        """The end of what the last process said on stderr."""
        words = " | ".join(self._last.last_words) if self._last else ""
        return words if len(words) <= _SHOWN_WORDS else f"… {words[-_SHOWN_WORDS:]}"

    @property
    def pid(self) -> int | None:
        """Of the process that stands for the server; None while there is none."""
        return self._process.pid if self._process else None

    async def open(self) -> None:
        """Start the process. Raises ConnectorError, at once in the pause after a failure."""
        if self._closed:
            raise ConnectorError("upstream_unavailable", "The connector is closed.", retryable=True, sent=False)
        name = self._launcher
        launcher = settings.MCP_LAUNCHERS.get(name)
        if launcher is None:
            said = f"The launcher {name!r} is no longer allowed: an administrator must choose another one."
            raise ConnectorError("upstream_unavailable", said, sent=False)
        self.pauses.check()
        loop = asyncio.get_running_loop()
        self._process = self._last = await start(launcher, self._take, self._lose)
        self._noise, self._talk = Noise(), Noise(limits.MAX_RESULT_BYTES)
        self._unanswered, self._used_at = 0, loop.time()
        self._idle = loop.call_later(_IDLE_SECONDS, self._look_idle)
        logger.info("the server of %s runs as process %d (launcher %s)", self._source, self._process.pid, name)
        self._note_turn(
            "server_started", {"launcher": name, "pid": self._process.pid, "failures_before": self.pauses.failures}
        )

    def _lose(self, process: Process) -> None:
        """The process is over, or as good as over."""
        if process is not self._process:
            return
        self._process = None
        self._on_lost()
        if self._idle is not None:
            self._idle.cancel()
        how = {"pid": process.pid, "how": process.ended, "seconds": round(process.seconds, 1)}
        self._note_turn("server_stopped" if process.is_wanted else "server_ended", how)
        if not process.is_wanted:
            self.pauses.note(process.seconds, process.ended or "")
            words = self.last_words or "none"
            logger.warning("the server of %s %s. Its last words: %s", self._source, process.ended, words)
        said, again = f"The server {process.ended} before it answered.", process.code == "upstream_unavailable"
        for future in self._calls.values():
            if not future.done():
                future.set_exception(ConnectorError(code=process.code, message=said, retryable=again))
        self._late.clear()
        for line in tuple(self._lines.values()):
            line.end()
        self._lines.clear()

    def fail(self, why: str) -> None:
        """Be done with the present process because of what it did."""
        if self._process is not None:
            self._process.fail(why)

    def _look_idle(self) -> None:
        loop = asyncio.get_running_loop()
        left = self._used_at + _IDLE_SECONDS - loop.time()
        if self._calls or self.is_listened_to or left > 0:
            self._idle = loop.call_later(left if left > 0 and not self._calls else _IDLE_SECONDS, self._look_idle)
        elif self._process is not None:
            logger.info("the server of %s is stopped, since nobody needs it", self._source)
            task = loop.create_task(self._process.stop())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    async def close(self, greeting: Greeting | None) -> None:
        """Stop the process for good."""
        self._closed = True
        if self._last is not None:
            await self._last.stop()

    # --- Messages -----------------------------------------------------------------------------------------------------

    async def exchange(
        self,
        greeting: Greeting,
        method: str,
        params: dict[str, Any],
        tool: McpTool | None = None,
        turn: Turn | None = None,
    ) -> tuple[dict[str, Any], str | None]:
        """The result. Raises RpcError and ConnectorError. A call that is cancelled is cancelled at the server too."""
        process = self._process
        if process is None:
            raise SessionEnded
        if len(self._calls) >= self._max_calls:
            said = f"All {self._max_calls} calls that the server may have at once are under way."
            raise ConnectorError("upstream_busy", said, sent=False)
        loop = asyncio.get_running_loop()
        identifier = next(self._ids)
        if turn is not None:
            params = reporting(turn, params, identifier)
        process.write(written({"jsonrpc": "2.0", "id": identifier, "method": method, "params": params}))
        self._used_at = loop.time()
        if not self._calls and not self._unanswered:
            self._heard_at = self._used_at
        self._calls[identifier] = future = loop.create_future()
        if turn is not None:
            self._turns[identifier] = turn
        try:
            return result_of(await future), None
        except asyncio.CancelledError:
            self._give_up(process, identifier, method)
            raise
        finally:
            del self._calls[identifier]
            self._turns.pop(identifier, None)

    async def attend(self, greeting: Greeting, turn: Turn) -> None:
        """All is said over one pipe."""

    async def notify(self, method: str, greeting: Greeting) -> None:
        """Send a notification."""
        if self._process is None:
            raise SessionEnded
        self._process.write(written({"jsonrpc": "2.0", "method": method}))

    async def overhear(self, greeting: Greeting, params: dict[str, Any] | None, take: Take) -> ProcessLine:
        """See `HearingTransport.overhear`. What older servers say comes without being asked for."""
        if self._process is None:
            raise SessionEnded
        identifier = next(self._ids)
        line = self._lines[identifier] = ProcessLine(None if params is None else identifier, self._hang_up)
        if params is not None:
            message = {"jsonrpc": "2.0", "id": identifier, "method": "subscriptions/listen", "params": params}
            self._process.write(written(message))
        return line

    def _hang_up(self, line: ProcessLine) -> None:
        for identifier in [each for each, known in self._lines.items() if known is line]:
            del self._lines[identifier]
            if line.identifier is not None:
                self._late[identifier] = None
                params = {"requestId": identifier, "reason": "Nobody listens any more."}
                self._say({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})

    def agreed(self, revision: str, session: str | None, server: str) -> Greeting:
        """The greeting of an older revision; the session is the process."""
        return Greeting(False, {}, revision, server)

    def _give_up(self, process: Process, identifier: int, method: str) -> None:
        if process is not self._process:
            return
        self._late[identifier] = None
        if len(self._late) > _MOST_LATE:
            del self._late[next(iter(self._late))]
        if method not in ("initialize", "server/discover"):  # These must not be cancelled.
            self._say(cancelled(identifier))
        self._unanswered += 1
        silent = asyncio.get_running_loop().time() - self._heard_at
        if self._unanswered >= _UNANSWERED and silent >= _SILENT_SECONDS:
            process.fail(f"said nothing for {silent:.0f} s and left {self._unanswered} calls unanswered")

    def _say(self, message: dict[str, Any]) -> None:
        """Send what nobody waits for."""
        try:
            if self._process is not None:
                self._process.write(written(message))
        except ConnectorError as error:
            logger.debug("the server of %s was not told: %s", self._source, error)

    def _take(self, line: bytes) -> None:
        """One line of the server's output."""
        message, noise = parsed(line), self._noise
        if message is not None:
            self._heard_at, self._unanswered = asyncio.get_running_loop().time(), 0
            identifier = message.get("id")
            if "method" not in message:
                if type(identifier) is int and self._answer(identifier, message):
                    return
            elif identifier is not None:
                self._take_up(message)
            else:
                self._overheard(message)
                if self._hear(message):
                    noise = self._talk
        if noise.is_too_much(len(line)):
            self.fail("writes without end what it was not asked for")

    def _take_up(self, request: dict[str, Any]) -> None:
        """Have the client asked, or say no: a server must not wait in vain."""
        if self.is_leased and self._turns:
            next(iter(self._turns.values())).answer(request, self._respond)
        else:
            self._say(declined(request))

    async def _respond(self, response: dict[str, Any]) -> None:
        self._say(response)

    def _hear(self, message: dict[str, Any]) -> bool:
        """Hand on what is told about a call. False when it is about none that somebody is told of.

        Of all that is told over one pipe, progress alone says which call it is about.
        """
        params = message.get("params")
        token = params.get("progressToken") if isinstance(params, dict) else None
        if self.is_leased and self._turns:
            token = next(iter(self._turns))
        if type(token) is not int or (turn := self._turns.get(token)) is None:
            return False
        turn.hear(message, token)
        return True

    def _answer(self, identifier: int, message: dict[str, Any]) -> bool:
        future = self._calls.get(identifier)
        if future is not None and not future.done():
            future.set_result(message)
            return True
        if (line := self._lines.pop(identifier, None)) is not None:
            line.end()
            return True
        if identifier not in self._late:
            return False
        del self._late[identifier]
        return True
