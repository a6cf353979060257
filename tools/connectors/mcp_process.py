"""One run of a server that speaks MCP over stdin and stdout (MCP, transports, "stdio"): lines in, lines out, an end."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.connectors import limits, mcp_guard
from tools.connectors.base import ConnectorError
from tools.launchers import Launcher

_PATH = os.pathsep.join((os.path.dirname(sys.executable), "/usr/local/bin", "/usr/bin", "/bin"))
# What waits because the server does not read.
_MOST_UNSENT = 8 * 1024 * 1024
# Of stderr: lines that are kept and their length; how much is read at once before the server has to wait.
_KEPT_LINES, _LONGEST_LINE, _HEARD_BYTES, _PAUSE_SECONDS = 50, 300, 64 * 1024, 1.0
# For a polite end, after SIGTERM to the guard (which kills after 1.5 s), and after SIGKILL.
_POLITE_SECONDS, _FIRM_SECONDS, _LAST_SECONDS = 1.0, 3.5, 1.0
# How long the pipes of a process that has ended, or the end of one that has closed them, are waited for.
_LAG_SECONDS = 1.0


class Process(asyncio.SubprocessProtocol):
    """A running server. `on_line` gets what it writes; `on_end` is called once, when it is as good as over.

    `ended` says then why, `code` is the word for it, and `is_wanted` says whether we ended it ourselves.
    """

    def __init__(self, home: Path, on_line: Callable[[bytes], None], on_end: Callable[[Process], None]) -> None:
        self.ended: str | None = None
        self.is_wanted = False
        self.code = "upstream_unavailable"
        self._home = home
        self._on_line, self._on_end = on_line, on_end
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._partial: list[bytes] = []
        self._partial_size = 0
        self._said: deque[str] = deque(maxlen=_KEPT_LINES)
        self._saying, self._heard = b"", 0
        self._stopping: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Of the guard; the server is its child."""
        return self._transport.get_pid()

    @property
    def seconds(self) -> float:
        """How long ago it was started."""
        return self._loop.time() - self._started

    @property
    def last_words(self) -> list[str]:
        """The last lines of its stderr, fit to be shown."""
        rest = [_shown(self._saying)] if self._saying.strip() else []
        return [*self._said, *rest]

    # --- What the event loop tells ------------------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """It runs."""
        self._transport: asyncio.SubprocessTransport = transport
        self._stdin: Any = transport.get_pipe_transport(0)

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Something came from stdout or stderr."""
        if fd == 2:
            self._hear(data)
        elif self.ended is None:
            self._read(data)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """It closed one of its pipes: without stdin and stdout it is of no use."""
        if fd != 2:
            self._loop.call_later(_LAG_SECONDS, self.fail, "closed its input or output")

    def process_exited(self) -> None:
        """It is over, though its last words may still be in the pipes."""
        if not self._gone.done():
            self._gone.set_result(None)
        self._loop.call_later(_LAG_SECONDS, self._let_go)

    def _let_go(self) -> None:
        self._end(self._how())
        self._transport.close()
        shutil.rmtree(self._home, ignore_errors=True)  # The guard has done it, unless it was killed.

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over, and all has been read."""
        self._let_go()

    def _how(self) -> str:
        code = self._transport.get_returncode() or 0
        if code >= 0:
            return f"ended with exit code {code}"
        known = [each.name for each in signal.Signals if each == -code]
        return f"was killed by {known[0] if known else f'signal {-code}'}"

    def _end(self, why: str) -> None:
        if self.ended is None:
            self.ended = why
            self._on_end(self)

    # --- Lines --------------------------------------------------------------------------------------------------------

    def _read(self, data: bytes) -> None:
        head, *lines = data.split(b"\n")
        self._partial.append(head)
        self._partial_size += len(head)
        for line in lines:
            whole, self._partial = b"".join(self._partial), [line]
            if self._too_large() or self.ended is not None:
                return
            self._partial_size = len(line)
            self._on_line(whole)
        self._too_large()

    def _too_large(self) -> bool:
        if self._partial_size <= limits.MAX_RESULT_BYTES:
            return False
        self._partial.clear()
        self.code = "result_too_large"
        self.fail(f"sent a message of more than {limits.MAX_RESULT_BYTES} bytes")
        return True

    def _hear(self, data: bytes) -> None:
        *lines, rest = (self._saying + data).split(b"\n")
        self._said.extend(_shown(line) for line in lines[-_KEPT_LINES:] if line.strip())
        self._saying = rest[-_LONGEST_LINE:]
        self._heard += len(data)
        if self._heard > _HEARD_BYTES and (pipe := self._transport.get_pipe_transport(2)) is not None:
            # A flood holds up its source instead of us.
            pipe.pause_reading()  # type: ignore[attr-defined]
            self._loop.call_later(_PAUSE_SECONDS, self._hear_on, pipe)

    def _hear_on(self, pipe: Any) -> None:
        self._heard = 0
        if not pipe.is_closing():
            pipe.resume_reading()

    def write(self, line: bytes) -> None:
        """Send one line. Raises ConnectorError when it cannot be taken, which means that it was not sent."""
        if self.ended is not None or self._stdin.is_closing():
            raise ConnectorError("upstream_unavailable", "The server is ending.", retryable=True, sent=False)
        if self._stdin.get_write_buffer_size() > _MOST_UNSENT:
            raise ConnectorError("upstream_busy", "The server does not read what it is sent.", sent=False)
        self._stdin.write(line + b"\n")

    # --- The end ------------------------------------------------------------------------------------------------------

    def fail(self, why: str) -> None:
        """Be done with it because of what it did."""
        if self.ended is None:
            self._end(f"was stopped, since it {why}")
            self._begin_to_stop(polite=False)

    async def stop(self) -> None:
        """End it: close its input, then SIGTERM, then SIGKILL. Takes 5.5 seconds at the most."""
        self.is_wanted = self.ended is None
        self._end("was stopped")
        await asyncio.shield(self._begin_to_stop(polite=True))

    def _begin_to_stop(self, *, polite: bool) -> asyncio.Task[None]:
        if self._stopping is None:
            self._stopping = self._loop.create_task(self._stop(polite))
        return self._stopping

    async def _stop(self, polite: bool) -> None:
        self._stdin.close()
        if not (polite and await self._is_gone_within(_POLITE_SECONDS)):
            if (stdout := self._transport.get_pipe_transport(1)) is not None:
                stdout.close()
            for number, seconds in ((signal.SIGTERM, _FIRM_SECONDS), (signal.SIGKILL, _LAST_SECONDS)):
                if self._transport.get_returncode() is None:
                    self._transport.send_signal(number)
                if await self._is_gone_within(seconds):
                    break
        self._let_go()

    async def _is_gone_within(self, seconds: float) -> bool:
        await asyncio.wait({self._gone}, timeout=seconds)
        return self._gone.done()


async def start(launcher: Launcher, on_line: Callable[[bytes], None], on_end: Callable[[Process], None]) -> Process:
    """Start the launcher's program under a guard, in a folder of its own that is also its home. Raises ConnectorError.

    It sees neither our environment nor our files that are open. The kernel tells the guard when the calling thread
    ends: call it in a thread that lives as long as the process is needed.
    """
    home = Path(tempfile.mkdtemp(prefix="mcpsite-server-"))
    environment = {"PATH": _PATH, "LANG": "C.UTF-8", "HOME": str(home), "TMPDIR": str(home), **launcher.environment}
    limits_of = (str(launcher.memory_mb or 0), str(launcher.open_files))
    guard = (sys.executable, "-I", "-S", str(mcp_guard.__file__), str(os.getpid()), str(home), *limits_of)
    try:
        _, process = await asyncio.get_running_loop().subprocess_exec(
            lambda: Process(home, on_line, on_end),
            *guard,
            *launcher.command,
            cwd="/",
            env=environment,
            start_new_session=True,
        )
    except BaseException as error:
        shutil.rmtree(home, ignore_errors=True)
        if not isinstance(error, OSError):
            raise
        raise ConnectorError("upstream_unavailable", "The server cannot be started.", sent=False) from error
    return process


def _shown(line: bytes) -> str:
    text = line[:_LONGEST_LINE].decode("utf-8", "replace").strip()
    return "".join(
        letter if letter.isprintable() else " " if letter == "\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
