"""`make bench`: what one tool call costs here and elsewhere, measured in turns so that noise hits all alike."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from types import FrameType

import orjson

from bench.measure import Generator, Measurement, Target, idle, measure
from bench.processes import BenchError, Stage
from bench.report import Goal, Medians, goals, goals_table, ledger_table, medians, table
from bench.targets import MORE, NAMES, start_all

_ALL = (*NAMES, *MORE)
_QUIET = 0.1
_SETTLE_SECONDS = 10.0
_DISTURBED = ": compare the columns with each other, and repeat it on a quiet machine for the figures"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.5, help="length of one measurement (default %(default)s)")
    parser.add_argument("--warmup", type=float, default=0.5, help="calls before it that do not count, in seconds")
    parser.add_argument("--rounds", type=int, default=5, help="medians are over so many (default %(default)s)")
    parser.add_argument("--targets", type=_names, default=list(NAMES), help=f"some of {','.join(_ALL)}")
    parser.add_argument("--tools", type=int, default=1, help="tools that the upstream has, all granted (default 1)")
    parser.add_argument("--connections", type=_numbers, default=[1, 8, 32], help="default 1,8,32")
    parser.add_argument("--idle", type=float, default=60, help="seconds without a call; 0: none (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every measurement there")
    return parser.parse_args()


def _names(value: str) -> list[str]:
    names = value.split(",")
    if unknown := set(names) - set(_ALL):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(_ALL)}")
    return names


def _numbers(value: str) -> list[int]:
    return [int(number) for number in value.split(",")]


def _measure_all(stage: Stage, options: argparse.Namespace) -> tuple[list[Target], list[Measurement], Goal]:
    generator = Generator(stage)
    targets = start_all(stage, generator, options.targets, options.tools)
    resting = Goal("CPU ms a second of an idle site, engines included", _rest(targets, options.idle), 15)
    found: list[Measurement] = []
    for number in range(options.rounds):
        # Each round begins with another target, so that none always follows the same one.
        turn = targets[number % len(targets) :] + targets[: number % len(targets)]
        for connections in options.connections:
            for target in turn:
                one = measure(generator, target, connections, options.seconds, options.warmup)
                found.append(one)
                _show_progress(number + 1, options.rounds, one)
    return targets, found, resting


def _rest(targets: list[Target], seconds: float) -> float | None:
    """What the site uses while nobody calls, once it has started."""
    site = next((target for target in targets if target.name == "mcpsite"), None)
    if site is None or not seconds:
        return None
    print(f"the idle site, {seconds:g} s …", file=sys.stderr, flush=True)
    time.sleep(_SETTLE_SECONDS)
    return idle(site, seconds)


def _show_progress(number: int, rounds: int, one: Measurement) -> None:
    line = f"round {number}/{rounds}  {one.target:18} c={one.connections:<3} {one.cpu_ms:8.3f} ms CPU"
    print(line, file=sys.stderr, flush=True)


def _machine() -> str:
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, load before {load:.1f}"


def _print(targets: list[Target], results: Medians, all_goals: list[Goal], options: argparse.Namespace) -> None:
    print("\nCPU ms, PostgreSQL, Valkey: user and system time per call. c: connections, each with one call in flight.")
    print(f"Medians of {options.rounds} rounds of {options.seconds:g} s, every answer verified.\n")
    for target in targets:
        print(f"  {target.name:18} {target.what} (revision {'2026-07-28' if target.era == 'modern' else '2025-11-25'})")
    print()
    print(*filter(None, (table(results), ledger_table(results), goals_table(all_goals))), sep="\n\n")
    print(f"\nThe load generator itself used up to {max(one.client_cpu_ms for one in results.values()):.3f} ms a call.")
    others = median(one.others for one in results.values())
    print(f"Other programs used {others:.0%} of the machine meanwhile{_DISTURBED if others > _QUIET else ''}.")


def _write(path: Path, machine: str, found: list[Measurement], results: Medians, all_goals: list[Goal]) -> None:
    content = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
        "measurements": [asdict(one) for one in found],
        "medians": [asdict(one) for one in results.values()],
        "goals": [{**asdict(goal), "verdict": goal.verdict} for goal in all_goals],
    }
    path.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Measure, print, and leave nothing running: 0, or 1 when a call failed or something did not start."""
    options, started, machine = _options(), time.monotonic(), _machine()
    signal.signal(signal.SIGINT, _stop)
    signal.signal(signal.SIGTERM, _stop)
    folder = Path(tempfile.mkdtemp(prefix="mcpsite-bench-"))
    try:
        with Stage(folder) as stage:
            targets, found, resting = _measure_all(stage, options)
    except BenchError as error:
        print(f"The benchmark failed. {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    results = medians(found)
    all_goals = [*goals(results), resting]
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine}, took {time.monotonic() - started:.0f} s")
    _print(targets, results, all_goals, options)
    if options.json:
        _write(options.json, machine, found, results, all_goals)
    return 0


if __name__ == "__main__":
    sys.exit(main())
