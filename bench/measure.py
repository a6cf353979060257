"""One measurement: what a target used while the load generator called it, divided by the calls."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

import orjson

from bench.load import Job, Result
from bench.processes import BenchError, Group, Process, Stage, machine_ms, python, tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Something that answers calls of `tool` at `path` of `port`, or `tools/list` where that is empty; `pid` is the
    top of its processes.
    """

    name: str
    what: str
    pid: int
    port: int
    path: str = "/mcp"
    headers: tuple[tuple[str, str], ...] = ()
    era: Literal["modern", "legacy"] = "modern"
    tool: str = "echo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Times in milliseconds, CPU per call; `worker_rss_mb` is of the own process that worked most.

    `others` is the part of the machine's CPU, 0 to 1, that programs beside the benchmark used at the same time.
    """

    target: str
    connections: int
    calls: int
    cpu_ms: float
    postgres_ms: float
    valkey_ms: float
    sealing_ms: float
    calls_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    rss_mb: float
    worker_rss_mb: float
    client_cpu_ms: float
    others: float


class Generator:
    """The load generator's process, driven line by line."""

    def __init__(self, stage: Stage) -> None:
        self._process = stage.talk_to("load", *python("bench.load"))

    def warm_up(self, job: Job) -> None:
        """Connect and make the calls that do not count; raises BenchError."""
        self._say(orjson.dumps(asdict(job)))
        self._hear("warm")

    def measure(self) -> Result:
        """Make the calls that count; raises BenchError when one of them failed."""
        self._say(b"go")
        return self._hear("result")

    def _say(self, line: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")
        self._process.stdin.flush()

    def _hear(self, word: str) -> Result:
        line = _read_line(self._process)
        if word not in line:
            raise BenchError(str(line.get("error", line)))
        result = Result(**line[word])
        if result.failures:
            raise BenchError(f"{result.failures} of {result.calls} calls failed: {'; '.join(result.examples)}")
        return result


def _read_line(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    assert process.stdout is not None
    line: dict[str, Any] = orjson.loads(process.stdout.readline() or b'{"error": "The load generator died."}')
    return line


def measure(
    generator: Generator, target: Target, connections: int, seconds: float, warmup_seconds: float
) -> Measurement:
    """Call `target` for `seconds`; raises BenchError when a call failed."""
    job = Job(
        port=target.port,
        path=target.path,
        headers=dict(target.headers),
        era=target.era,
        tool=target.tool,
        connections=connections,
        seconds=seconds,
        warmup_seconds=warmup_seconds,
    )
    try:
        generator.warm_up(job)
        before, watch = tree(target.pid), Watch()
        result = generator.measure()
        return _divide(target, connections, before, tree(target.pid), result, watch.others())
    except BenchError as error:
        raise BenchError(f"{target.name}, {connections} connections: {error}") from error


def idle(target: Target, seconds: float) -> float:
    """CPU time, in milliseconds a second, of all its processes and engines while nobody calls it."""
    before = _all_cpu(target.pid)
    time.sleep(seconds)
    return (_all_cpu(target.pid) - before) / seconds


def _all_cpu(pid: int) -> float:
    return sum(map(_cpu, tree(pid).values()))


class Watch:
    """How much of the machine others use, from now on."""

    def __init__(self) -> None:
        self._before = self._others_ms()
        self._started = time.monotonic()

    @staticmethod
    def _others_ms() -> float:
        return machine_ms() - _all_cpu(os.getpid())

    def others(self) -> float:
        """Their part of all cores."""
        elapsed_ms = 1000 * (time.monotonic() - self._started) * (os.cpu_count() or 1)
        return max(0.0, self._others_ms() - self._before) / elapsed_ms


Trees = dict[Group, list[Process]]


def _divide(
    target: Target, connections: int, before: Trees, after: Trees, result: Result, others: float
) -> Measurement:
    used = {group: (_cpu(after[group]) - _cpu(before[group])) / result.calls for group in Group}
    earlier = {process.pid: process.cpu_ms for process in before[Group.OWN]}
    worker = max(after[Group.OWN], key=lambda process: process.cpu_ms - earlier.get(process.pid, 0.0))
    return Measurement(
        target=target.name,
        connections=connections,
        calls=result.calls,
        cpu_ms=used[Group.OWN],
        postgres_ms=used[Group.POSTGRES],
        valkey_ms=used[Group.VALKEY],
        sealing_ms=used[Group.SEALING],
        calls_per_second=result.calls / result.seconds,
        p50_ms=result.p50_ms,
        p95_ms=result.p95_ms,
        p99_ms=result.p99_ms,
        rss_mb=sum(process.rss_mb for process in after[Group.OWN]),
        worker_rss_mb=worker.rss_mb,
        client_cpu_ms=1000 * result.cpu_seconds / result.calls,
        others=others,
    )


def _cpu(processes: list[Process]) -> float:
    return sum(process.cpu_ms for process in processes)
