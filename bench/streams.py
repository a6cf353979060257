"""What open streams (`subscriptions/listen`) cost a web worker: memory, time until all hear of a change, and calls."""

from __future__ import annotations

import argparse
import asyncio
import http.client
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import orjson
import uvloop

from bench.crowd import Crowd
from bench.measure import Generator, Measurement, Target, measure
from bench.processes import BenchError, Group, Stage, python, tree
from bench.targets import own_engines, start_all

_CONNECTIONS = 8
# The worker gives memory back every two seconds.
_SETTLE_SECONDS = 5.0
# Each user may have a thousand.
_STREAMS_PER_USER = 500


@dataclass(frozen=True, slots=True)
class Row:
    """With so many streams open. Times in milliseconds; `…_told` is of calls while all are told of a change."""

    streams: int
    rss_mb: float
    kb_a_stream: float
    open_ms: float
    first_ms: float
    all_ms: float
    calls: Measurement
    told: Measurement


async def _run(stage: Stage, counts: list[int], seconds: float) -> list[Row]:
    generator = Generator(stage)
    (site,) = start_all(stage, generator, ["mcpsite"])
    prepared = _prepare(stage.folder / "mcpsite", max(1, max(counts) // _STREAMS_PER_USER))
    crowd, rows = Crowd(site.port, prepared["tokens"]), list[Row]()
    catalogue = Catalogue(site.port, prepared["admin"], prepared["tool"])
    try:
        await asyncio.sleep(_SETTLE_SECONDS)  # until the worker knows the new users
        # What the first calls and changes load is no stream's.
        await _measured(generator, site, seconds)
        for _ in range(4):
            await asyncio.to_thread(catalogue.change)
        await asyncio.sleep(_SETTLE_SECONDS)
        base = _worker_mb(site)
        for count in counts:
            rows.append(await _row(crowd, catalogue, generator, site, count, seconds, base))
            print(f"{count} streams …", file=sys.stderr, flush=True)
    finally:
        crowd.close()
    return rows


async def _row(
    crowd: Crowd, catalogue: Catalogue, generator: Generator, site: Target, count: int, seconds: float, base: float
) -> Row:
    started = time.perf_counter()
    await crowd.grow_to(count)
    opened = time.perf_counter()
    await asyncio.sleep(_SETTLE_SECONDS)
    rss = _worker_mb(site)
    firsts, lasts = [], []
    for _ in range(5):
        crowd.expect()
        changed = await asyncio.to_thread(catalogue.change)
        first, last = await crowd.when_heard()
        firsts.append(first - changed)
        lasts.append(last - changed)
    calls = await _measured(generator, site, seconds)
    crowd.expect()
    meanwhile = asyncio.create_task(_measured(generator, site, seconds))
    await asyncio.sleep(seconds)  # half a second of it is the warm-up
    await asyncio.to_thread(catalogue.change)
    await crowd.when_heard()
    return Row(
        streams=count,
        rss_mb=rss,
        kb_a_stream=1024 * (rss - base) / count,
        open_ms=1000 * (opened - started),
        first_ms=1000 * max(firsts),
        all_ms=1000 * max(lasts),
        calls=calls,
        told=await meanwhile,
    )


async def _measured(generator: Generator, site: Target, seconds: float) -> Measurement:
    return await asyncio.to_thread(measure, generator, site, _CONNECTIONS, seconds, 0.5)


def _worker_mb(site: Target) -> float:
    """Resident memory of the web worker, which is the largest of the processes."""
    return max(process.rss_mb for process in tree(site.pid)[Group.OWN])


def _prepare(data: Path, users: int) -> dict[str, str]:
    command = python("bench.configure", "--listeners", str(users))
    done = subprocess.run(command, env=own_engines(data), capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"The site could not be prepared:\n{done.stderr.strip()[-3000:]}")
    prepared: dict[str, str] = orjson.loads(done.stdout.splitlines()[-1])
    return prepared


class Catalogue:
    """Switches a tool off and on by REST."""

    def __init__(self, port: int, token: str, tool: str) -> None:
        self._port, self._token, self._tool = port, token, tool
        self._is_on = True

    def change(self) -> float:
        """When the change was asked for. Raises BenchError."""
        self._is_on = not self._is_on
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        asked = time.perf_counter()
        connection.request("PATCH", f"/api/v1/tools/{self._tool}/", orjson.dumps({"enabled": self._is_on}), headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        if answer.status != 200:
            raise BenchError(f"The tool could not be switched: HTTP {answer.status}: {body[:300]!r}")
        return asked


def table(rows: list[Row]) -> str:
    """As Markdown."""
    head = (
        "| streams | worker RSS MB | KB a stream | opened in s | first hears ms | all hear ms "
        "| CPU ms a call | p50 ms | p99 ms | CPU ms, told | p50 ms, told | p99 ms, told |"
    )
    lines = [head, "|" + "---|" * 12]
    for row in rows:
        figures = (
            f"{row.streams:,}", f"{row.rss_mb:.0f}", f"{row.kb_a_stream:.1f}", f"{row.open_ms / 1000:.1f}",
            f"{row.first_ms:.0f}", f"{row.all_ms:.0f}", f"{row.calls.cpu_ms:.3f}", f"{row.calls.p50_ms:.2f}",
            f"{row.calls.p99_ms:.2f}", f"{row.told.cpu_ms:.3f}", f"{row.told.p50_ms:.2f}", f"{row.told.p99_ms:.2f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(figures) + " |")
    return "\n".join(lines)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.streams", description=__doc__)
    parser.add_argument("--counts", type=lambda text: sorted(map(int, text.split(","))), default=[1, 100, 1_000, 5_000])
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a measurement of calls")
    options = parser.parse_args()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="mcpsite-streams-") as folder,
            Stage(Path(folder)) as stage,
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            rows = runner.run(_run(stage, options.counts, options.seconds))
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
