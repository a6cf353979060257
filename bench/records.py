"""`python -m bench.records`: a ledger of a million records. How fast they are sealed, listed, exported and verified,
and whether the sealer keeps up with a writer at full rate.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles
from types import FrameType
from typing import Any

import orjson
import psycopg

from audit.sealing.sealer import BATCH
from bench.measure import Watch
from bench.pages import Browser, Timing, measure_all, table
from bench.processes import BenchError, Group, Stage, command_of, free_port, python, read_process, tree
from bench.report import Goal, goals_table
from bench.targets import own_engines
from mcpsite.datadir import DATABASE_NAME, SUPERUSER, DataDir

_ROOT = Path(__file__).resolve().parent.parent
_MANAGE = (sys.executable, str(_ROOT / "manage.py"))
_SEALED_SECONDS = 300.0
_LOOK_SECONDS = 0.1
# What allocators keep, not what grows with the records.
_FLAT_MB = 16.0
_FULL_HEADS = """
SELECT h.size, h.sealed_at FROM audit_head h JOIN audit_head p ON p.number = h.number - 1
WHERE h.size - p.size >= %s ORDER BY h.number
"""
# How long the first record of each head had to wait for it, after the head of that size.
_WAITS = """
SELECT extract(epoch FROM h.sealed_at - (SELECT min(at) FROM audit_leaf WHERE seq >= p.size AND seq < h.size))::float8
FROM audit_head h JOIN audit_head p ON p.number = h.number - 1 WHERE p.size >= %s AND h.size > p.size
"""


@dataclass
class Site:
    """One installation with a ledger to look at, and what was found so far."""

    data: Path
    pid: int
    connection: psycopg.Connection
    goals: list[Goal] = field(default_factory=list)

    def found(self, work: str, value: float, limit: float | None = None, *, at_least: bool = False) -> float:
        """Keep and show one figure."""
        self.goals.append(goal := Goal(work, value, limit, at_least))
        _say(f"  {work}: {goal.shown} {goal.verdict}")
        return value

    def run(self, *command: str, meanwhile: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """What the command says, as JSON; `meanwhile` is called again and again. Raises BenchError."""
        running = subprocess.Popen(
            command, env=own_engines(self.data), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        with running:
            while running.poll() is None:
                meanwhile()
                time.sleep(_LOOK_SECONDS)
            output, errors = running.communicate()
        if running.returncode:
            raise BenchError(f"{' '.join(command[1:4])} failed:\n{(errors or output).strip()[-3000:]}")
        said: dict[str, Any] = orjson.loads(output or "{}")
        return said

    def one(self, query: str, *values: object) -> Any:
        """The one value that the query gives."""
        row = self.connection.execute(query.encode(), values).fetchone()
        return row and row[0]

    def wait_until_sealed(self) -> None:
        """Return when every record has its leaf. Raises BenchError.

        Counted, because records of a transaction that took long are sealed behind younger ones.
        """
        deadline = time.monotonic() + _SEALED_SECONDS
        records = self.one("SELECT count(*) FROM audit_record")
        while (sealed := self.one("SELECT max(size) FROM audit_head") or 0) < records:
            _show(f"  sealed {sealed:,} of {records:,} records")
            if time.monotonic() > deadline:
                raise BenchError("The sealer does not get on.")
            time.sleep(_LOOK_SECONDS)
        if refused := self.one("SELECT count(*) FROM audit_refused"):
            raise BenchError(f"The sealer refused {refused:,} records.")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _show(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{line}\r", end="", file=sys.stderr, flush=True)


@contextmanager
def _step(name: str) -> Iterator[None]:
    started = time.monotonic()
    _say(f"{name} …")
    yield
    _say(f"  after {time.monotonic() - started:.0f} s")


def _load(site: Site, rows: int) -> float:
    started = time.monotonic()
    site.run(*python("bench.ledger_rows", "--rows", str(rows)))
    site.found("records loaded a second", rows / (time.monotonic() - started))
    site.wait_until_sealed()
    rate = site.found("records sealed a second, of a backlog", _sealing_rate(site))
    # As PostgreSQL does by itself after a while.
    site.connection.execute("VACUUM ANALYZE audit_record, audit_leaf")
    return rate


def _sealing_rate(site: Site) -> float:
    """Records a second, by the times of the heads that were made without a pause."""
    heads = site.connection.execute(_FULL_HEADS, [BATCH]).fetchall()
    if len(heads) < 2:
        raise BenchError(f"A backlog is at least {3 * BATCH:,} records: measure with more of them.")
    return float((heads[-1][0] - heads[0][0]) / (heads[-1][1] - heads[0][1]).total_seconds())


def _list(site: Site, browser: Browser, rounds: int) -> list[Timing]:
    timings = []
    for each in measure_all(browser, site.pid, rounds):
        _say(f"  {each.name:30} p95 {each.p95:7.1f} ms")
        timings.append(each)
    site.found("ms of the slowest page, p95", max(each.p95 for each in timings), 500)
    return timings


def _export(site: Site, rows: int) -> None:
    """One that is a tenth of it goes before, so that what grows is what grows with the records."""
    worker = next(each.pid for each in tree(site.pid)[Group.OWN] if b"worker\0jobs" in command_of(each.pid))

    def made(records: int) -> tuple[float, float]:
        sizes: list[float] = []
        said = site.run(
            *python("bench.ledger_work", "export", str(records)), meanwhile=lambda: sizes.append(_rss_mb(worker))
        )
        return said["records"] / said["seconds"], max(sizes)

    _, first = made(rows // 10)
    rate, peak = made(rows)
    site.found("records exported a second", rate)
    site.found(f"MB that an export of {rows:,} needs more than one of {rows // 10:,}", peak - first, _FLAT_MB)


def _rss_mb(pid: int) -> float:
    process = read_process(pid)
    return process.rss_mb if process else 0.0


def _keep_up(site: Site, seconds: float, sealed_a_second: float) -> None:
    size = site.one("SELECT max(size) FROM audit_head")
    said = site.run(*python("bench.ledger_work", "write", str(seconds)))
    site.wait_until_sealed()
    rate = site.found("records written a second by one writer at full rate", said["records"] / said["seconds"])
    site.found("times that rate at which a backlog is sealed", sealed_a_second / rate, 1, at_least=True)
    waits = [row[0] for row in site.connection.execute(_WAITS, [size])]
    site.found("s until a record is sealed at full rate, p95", quantiles(waits, n=20, method="inclusive")[-1], 0.5)
    site.found("s until a record is sealed at full rate, longest", max(waits))


def _verify(site: Site) -> None:
    started = time.monotonic()
    report = site.run(*_MANAGE, "verify_ledger", "--json", "--jobs", str(os.cpu_count() or 1))
    records = report["records"]
    site.found(f"s of the verification of {records:,} records, MACs included", time.monotonic() - started, 60)


@contextmanager
def _site(stage: Stage) -> Iterator[tuple[Site, Browser]]:
    port, data, ready = free_port(), stage.folder / "data", stage.folder / "ready.json"
    pid = stage.start(
        "mcpsite", *_MANAGE, "up", "--data", str(data), "--no-demo", "--workers", "1",
        "--port", str(port), "--ready-file", str(ready), environment=own_engines(data),
    )  # fmt: skip
    stage.wait("mcpsite", ready, 180)
    access = orjson.loads(ready.read_bytes())
    url = DataDir(data).database_url(SUPERUSER)
    with psycopg.connect(url, dbname=DATABASE_NAME, autocommit=True) as connection:
        browser = Browser(f"http://localhost:{port}", access["admin_user"], access["admin_password"])
        yield Site(data, pid, connection), browser


def _measure(stage: Stage, options: argparse.Namespace) -> tuple[list[Goal], list[Timing]]:
    with _site(stage) as (site, browser):
        with _step(f"Loading and sealing {options.rows:,} records"):
            sealed_a_second = _load(site, options.rows)
        with _step(f"Pages, {options.rounds} questions of each sort"):
            timings = _list(site, browser, options.rounds)
        with _step(f"Exporting {options.export:,} records"):
            _export(site, options.export)
        with _step(f"Writing at full rate for {options.seconds:g} s"):
            _keep_up(site, options.seconds, sealed_a_second)
        with _step("Verifying all"):
            _verify(site)
        return site.goals, timings


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.records", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="records in the ledger (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="questions of each sort (default %(default)s)")
    parser.add_argument("--export", type=int, default=100_000, help="records to export (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=10, help="how long is written at full rate (default 10)")
    return parser.parse_args()


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Measure and print: 0, or 1 when a goal is missed or something failed."""
    options, started = _options(), time.monotonic()
    signal.signal(signal.SIGTERM, _stop)
    folder = Path(tempfile.mkdtemp(prefix="mcpsite-bench-"))
    watch = Watch()
    try:
        with Stage(folder) as stage:
            try:
                goals, timings = _measure(stage, options)
            except BenchError as error:
                raise BenchError(f"{error}{stage.last_lines('mcpsite')}") from error
            others = watch.others()
    except BenchError as error:
        print(f"The benchmark failed. {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores, took {time.monotonic() - started:.0f} s.")
    print(f"Other programs used {others:.0%} of the machine meanwhile.\n\n{goals_table(goals)}\n")
    print("Pages, in ms. CPU: user and system time of the installation with its PostgreSQL.\n")
    print(table(timings))
    return 1 if any(goal.verdict == "MISSED" for goal in goals) else 0


if __name__ == "__main__":
    sys.exit(main())
