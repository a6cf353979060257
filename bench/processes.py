"""Starts the programs of a measurement, stops every one, and reads from /proc what each tree of processes used."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType

from mcpsite.supervisor import Program, spawn

_TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 1024 / 1024
_STOP_SECONDS = 20.0
_SEALING = re.compile(rb"worker\0sealer|mcpsite_sealer|witness")
_UPSTREAM = b"echo.py\0--stdio"
_ENGINES = {"postgres": "PostgreSQL", "valkey": "Valkey", "redis": "Valkey"}


class BenchError(Exception):
    """The benchmark cannot go on; the text is a sentence for people."""


class Group(StrEnum):
    """Whose CPU time it is: the target's own, that of an engine beside it, that of making evidence of the records
    afterwards (the sealer with its part of PostgreSQL, the witness), for which no call waits, or that of an upstream
    which the target runs.
    """

    OWN = "own"
    POSTGRES = "PostgreSQL"
    VALKEY = "Valkey"
    SEALING = "sealing"
    UPSTREAM = "upstream"


@dataclass(frozen=True, slots=True)
class Process:
    """What one process used so far: `cpu_ms` is user and system time, with that of children that have ended."""

    pid: int
    parent: int
    name: str
    cpu_ms: float
    rss_mb: float


def read_process(pid: int) -> Process | None:
    """The process of that id, None when there is none."""
    try:
        head, _, rest = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = rest.split()
    ticks = sum(map(int, fields[11:15]))
    return Process(pid, int(fields[1]), head.partition("(")[2], ticks * _TICK_MS, int(fields[21]) * _PAGE_MB)


def machine_ms() -> float:
    """CPU time that the whole machine spent working so far, on all cores together (proc(5), /proc/stat)."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]
    user, nice, system, _idle, _iowait, *interrupts_and_steal = map(int, fields)
    return (user + nice + system + sum(interrupts_and_steal)) * _TICK_MS


def tree(root: int) -> dict[Group, list[Process]]:
    """The process `root` and all that descend from it, engines apart."""
    children: defaultdict[int, list[Process]] = defaultdict(list)
    for name in os.listdir("/proc"):
        if name.isdigit() and (process := read_process(int(name))):
            children[process.parent].append(process)
    groups: dict[Group, list[Process]] = {group: [] for group in Group}
    top = read_process(root)
    waiting = [(top, Group.OWN)] if top else []
    while waiting:
        process, above = waiting.pop()
        group = _group(process, above)
        groups[group].append(process)
        waiting += [(child, group) for child in children[process.pid]]
    return groups


def _group(process: Process, above: Group) -> Group:
    command = command_of(process.pid)
    if above is Group.SEALING or _SEALING.search(command):
        return Group.SEALING
    if _UPSTREAM in command:
        return Group.UPSTREAM
    for start, group in _ENGINES.items():
        if process.name.startswith(start):
            return Group(group)
    return above


def command_of(pid: int) -> bytes:
    """Its program and arguments, each with a NUL after it; empty when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Stage(AbstractContextManager["Stage"]):
    """Runs programs, each in a session of its own with a log in `folder`, and stops them, the last one first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._running:
            stop(self._running.pop()[1])

    def start(self, name: str, *command: str, environment: Mapping[str, str] | None = None) -> int:
        """The process id of the started program."""
        log = self.folder / f"{name}.log"
        with log.open("ab") as output:
            program = Program(name=name, command=command, order=0, environment=environment, log=log)
            popen = spawn(program, stdout=output)
        self._running.append((name, popen))
        return popen.pid

    def talk_to(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """A started program that reads and writes lines."""
        program = Program(name=name, command=command, order=0)
        popen = spawn(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._running.append((name, popen))
        return popen

    def wait(self, what: str, ready: Path | int, seconds: float) -> None:
        """Return when the file exists or the port answers; raises BenchError after `seconds` or if a program ended."""
        deadline = time.monotonic() + seconds
        while not (ready.exists() if isinstance(ready, Path) else _answers(ready)):
            self._check()
            if time.monotonic() > deadline:
                raise BenchError(f"{what} did not become ready within {seconds:g} s.{self.last_lines(what)}")
            time.sleep(0.05)

    def _check(self) -> None:
        for name, popen in self._running:
            if popen.poll() is not None:
                raise BenchError(f"{name} ended with code {popen.returncode}.{self.last_lines(name)}")

    def last_lines(self, name: str) -> str:
        """The end of the program's log, for an error."""
        log = self.folder / f"{name}.log"
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:] if log.exists() else []
        return "".join(f"\n  {line}" for line in lines)


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def stop(popen: subprocess.Popen[bytes]) -> None:
    """End one program, at last by force and with all of its session."""
    if popen.stdin:
        popen.stdin.close()
    popen.terminate()
    try:
        popen.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()
    if popen.stdout:
        popen.stdout.close()


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs one of our modules."""
    return (sys.executable, "-m", module, *arguments)
