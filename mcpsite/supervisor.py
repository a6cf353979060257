"""Keeps a tree of processes alive in a known order, so that one command can run an installation without other tools.

One thread waits for signals and for the next thing that is due. The kernel tells every child when this process dies,
whatever killed it, so none is left behind.
"""

from __future__ import annotations

import ctypes
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

logger = logging.getLogger(__name__)

RESTART_DELAYS_SECONDS = (0.0, 0.5, 1.0, 2.0, 4.0, 5.0)
HEALTHY_SECONDS = 30.0
ATTEMPTS_AT_START = 3
_PROBE_SECONDS = 0.05
_HURRY_SECONDS = 3.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class StopRequested(BaseException):
    """Someone asked this process to stop (SIGINT, SIGTERM or SIGHUP)."""


class StartFailed(Exception):
    """A process did not become ready; the text is a sentence for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What to run and how to stop it. Programs of a higher `order` are stopped first; equal ones together."""

    name: str
    command: tuple[str, ...]
    order: int
    ready: Callable[[], bool] | None = None
    environment: Mapping[str, str] | None = None
    directory: Path | None = None
    user: int | None = None
    group: int | None = None
    log: Path | None = None
    pass_fds: tuple[int, ...] = ()
    stop_signal: signal.Signals = signal.SIGTERM
    hurry_signal: signal.Signals = signal.SIGKILL
    stop_seconds: float = 10.0


def dying_with_us(number: signal.Signals = signal.SIGTERM) -> Callable[[], None] | None:
    """A `preexec_fn`: the child gets `number` when this thread ends, even by SIGKILL. None outside of Linux."""
    if sys.platform != "linux":
        return None
    parent = os.getpid()

    def in_child() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        if os.getppid() != parent:  # it died before the kernel knew what we want
            os._exit(1)

    return in_child


def spawn(
    program: Program, *, stdin: int = subprocess.DEVNULL, stdout: int | IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start `program` once, in a session of its own, so that a Ctrl-C at the terminal reaches only us."""
    return subprocess.Popen(
        program.command,
        env=program.environment,
        cwd=program.directory,
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.STDOUT if program.log else None,
        pass_fds=program.pass_fds,
        start_new_session=True,
        preexec_fn=dying_with_us(program.stop_signal),
        **account(program.user, program.group),
    )


def account(user: int | None, group: int | None) -> dict[str, Any]:
    """The arguments with which `subprocess` runs a child as that user, without further groups; None means ourselves."""
    return {} if user is None else {"user": user, "group": group, "extra_groups": []}


@dataclass(slots=True)
class _Child:
    program: Program
    popen: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    first_ready: bool = False
    ready: bool = False
    failures: int = 0
    restart_at: float | None = None
    deadline: float = field(default=0.0)

    def start(self) -> None:
        self.restart_at, self.ready, self.started = None, False, time.monotonic()
        if self.program.log is None:
            self.popen = spawn(self.program)
            return
        with self.program.log.open("ab") as log:
            self.popen = spawn(self.program, stdout=log)

    @property
    def running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def send(self, number: signal.Signals) -> None:
        if self.popen is not None:
            self.popen.send_signal(number)


class Supervisor:
    """Starts programs, replaces those that end, and stops all of them in order."""

    def __init__(self) -> None:
        self._children: dict[str, _Child] = {}
        self._stops = 0
        self._interruptible = False
        self._awake: socket.socket | None = None

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Take SIGINT, SIGTERM and SIGHUP as requests to stop while the block runs. Only in the main thread."""
        awake, wake = socket.socketpair()
        awake.setblocking(False)
        wake.setblocking(False)
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)
        before_fd = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        wanted = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
        before = {number: signal.signal(number, self._on_signal) for number in wanted}
        self._awake = awake
        try:
            yield
        finally:
            self._awake = None
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before_fd)
            awake.close()
            wake.close()

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a request to stop break off the block, which is work of our own and starts no process."""
        self._raise_if_stopped()
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGCHLD:
            return
        self._stops += 1
        if self._interruptible:
            self._interruptible = False
            raise StopRequested

    def _raise_if_stopped(self) -> None:
        if self._stops:
            raise StopRequested

    def start(self, program: Program) -> None:
        """Start `program` now and keep it running from now on."""
        self._raise_if_stopped()
        child = self._children[program.name] = _Child(program)
        child.start()

    def pid(self, name: str) -> int | None:
        """The process id of the program of that name, None while it is down."""
        child = self._children[name]
        return child.popen.pid if child.popen is not None and child.running else None

    def wait_ready(self, *names: str, seconds: float) -> None:
        """Return when all named programs are ready; raises StartFailed after `seconds` or repeated failures."""
        children = [self._children[name] for name in names]
        self.wait_until(lambda: all(child.ready for child in children), f"{' and '.join(names)} to be ready", seconds)

    def wait_until(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        """Keep the programs running until `condition` holds; raises StartFailed after `seconds` or three failures."""
        deadline = time.monotonic() + seconds
        while not condition():
            for child in self._children.values():
                if child.failures >= ATTEMPTS_AT_START and not child.ready:
                    raise StartFailed(f"{child.program.name} does not start.{_last_lines(child.program.log)}")
            if time.monotonic() > deadline:
                raise StartFailed(f"Waited {seconds:g} s in vain for {what}.")
            self._turn(_PROBE_SECONDS)

    def run(self) -> None:
        """Keep the programs running; ends only by raising StopRequested."""
        while True:
            self._turn(None)

    def _turn(self, timeout: float | None) -> None:
        self._pause(self._due(timeout))
        self._raise_if_stopped()
        for child in self._children.values():
            if child.popen is not None and (code := child.popen.poll()) is not None:
                self._ended(child, code)
            if child.restart_at is not None and time.monotonic() >= child.restart_at:
                child.start()
            if child.running and not child.ready:
                self._probe(child)

    def _due(self, timeout: float | None) -> float | None:
        now = time.monotonic()
        waits = [] if timeout is None else [timeout]
        for child in self._children.values():
            if child.restart_at is not None:
                waits.append(max(0.0, child.restart_at - now))
            elif not child.ready:
                waits.append(_PROBE_SECONDS)
        return min(waits, default=None)

    def _pause(self, timeout: float | None) -> None:
        if self._awake is None:
            time.sleep(_PROBE_SECONDS if timeout is None else min(timeout, _PROBE_SECONDS))
            return
        readable, _, _ = select.select([self._awake], [], [], timeout)
        if readable:
            self._awake.recv(4096)

    def _probe(self, child: _Child) -> None:
        child.ready = child.program.ready is None or child.program.ready()
        if not child.ready:
            return
        if child.first_ready and child.program.ready is not None:
            logger.info("%s is ready again after %.1f s", child.program.name, time.monotonic() - child.started)
        child.first_ready = True

    def _ended(self, child: _Child, code: int) -> None:
        child.popen, child.ready = None, False
        now = time.monotonic()
        child.failures = 1 if now - child.started >= HEALTHY_SECONDS else child.failures + 1
        delay = RESTART_DELAYS_SECONDS[min(child.failures, len(RESTART_DELAYS_SECONDS)) - 1]
        child.restart_at = now + delay
        logger.warning(
            "%s %s; starting it again %s",
            child.program.name,
            _how_it_ended(code),
            f"in {delay:g} s" if delay else "at once",
        )

    def stop(self) -> None:
        """Stop everything, highest order first. One more signal hurries it; nothing survives its deadline."""
        hurry_at = self._stops + 1
        for order in sorted({child.program.order for child in self._children.values()}, reverse=True):
            self._stop_level([child for child in self._children.values() if child.program.order == order], hurry_at)
        self._children.clear()

    def _stop_level(self, children: list[_Child], hurry_at: int) -> None:
        for child in children:
            child.restart_at = None
            child.deadline = time.monotonic() + child.program.stop_seconds
            child.send(child.program.stop_signal)
        hurried = False
        while left := [child for child in children if child.running]:
            now = time.monotonic()
            if self._stops >= hurry_at and not hurried:
                hurried = True
                for child in left:
                    child.deadline = now + _HURRY_SECONDS
                    child.send(child.program.hurry_signal)
            for child in left:
                if now >= child.deadline:
                    logger.warning("%s did not stop in time; killing it", child.program.name)
                    child.send(signal.SIGKILL)
                    child.deadline = now + _HURRY_SECONDS
            self._pause(max(0.0, min(child.deadline for child in left) - now))


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _last_lines(log: Path | None, count: int = 8) -> str:
    if log is None or not log.exists():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
    return "\n".join([f" The end of {log}:", *lines])
