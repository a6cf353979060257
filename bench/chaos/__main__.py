"""`make chaos`: kill, freeze, fill and lock everything under load, and see that nothing is lost and all comes back."""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psycopg

from bench.chaos.checks import Checks
from bench.chaos.faults import FAULTS, give_back, small_disk
from bench.chaos.load import Load, Outside, outside
from bench.chaos.site import CALL_SECONDS, Site
from bench.processes import BenchError, Stage

BACK_SECONDS = 10.0
# Where no web worker is left, they have to start, and the supervisor waits longer each time.
_LONGER = {"all": 30.0, "need": 30.0}
_GIVE_UP_SECONDS = 60.0
_SERVED = 10
# The job that closes intents: their time, half a minute more, two turns of a minute each.
_CLOSED_SECONDS = CALL_SECONDS + 30 + 150.0


@dataclass
class Result:
    """The cycles of one fault."""

    cycles: int = 0
    acknowledged: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    back: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.chaos", description=__doc__)
    parser.add_argument("--cycles", type=int, default=20, help="of each fault (default %(default)s)")
    parser.add_argument("--clients", type=int, default=16, help="that call all the time (default %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="web workers (default %(default)s)")
    parser.add_argument("--faults", type=_names, default=list(FAULTS), help=f"some of {','.join(FAULTS)}")
    parser.add_argument("--seed", type=int, default=None, help="repeats the choices of an earlier campaign")
    parser.add_argument("--keep", action="store_true", help="leave the directory with data and logs")
    return parser.parse_args()


def _names(value: str) -> list[str]:
    names = value.split(",")
    if unknown := set(names) - set(FAULTS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(FAULTS)}")
    return names


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


async def cycle(name: str, site: Site, load: Load, checks: Checks, dice: random.Random, result: Result) -> None:
    """One fault under load: it happens, is over, the site serves again, and nothing is missing."""
    before, codes = len(load.acknowledged), Counter(load.codes)
    await asyncio.sleep(dice.uniform(0.1, 0.5))
    try:
        await asyncio.to_thread(FAULTS[name][1], site, dice)
    except (psycopg.Error, OSError) as error:
        result.problems.append(f"the fault could not be done: {error}")
    took = await load.until_served(_SERVED, _GIVE_UP_SECONDS)
    if took is None or took > _LONGER.get(name, BACK_SECONDS):
        result.problems.append(f"after {took or _GIVE_UP_SECONDS:.1f} s not all was served again: {load.served}")
    result.problems += await asyncio.to_thread(checks.now)
    result.back.append(took if took is not None else _GIVE_UP_SECONDS)
    result.cycles += 1
    result.acknowledged += len(load.acknowledged) - before
    result.codes += load.codes - codes


async def campaign(
    site: Site, faults: list[str], cycles: int, clients: int, dice: random.Random, *, closing: float = _CLOSED_SECONDS
) -> dict[str, Result]:
    """All cycles of all faults in a random order, then what must be true at the end.

    Intents that lost their process are waited for, until they are closed; with `closing` 0 they are not.
    """
    results = {name: Result() for name in [*faults, "end"]}
    order = [name for name in faults for _ in range(cycles)]
    dice.shuffle(order)
    async with outside(dice) as upstream:
        token = await asyncio.to_thread(site.configure, upstream.url)
        load = Load(site.base, token)
        checks = Checks(site, load, upstream)
        async with load.running(clients):
            if await load.until_served(50, _GIVE_UP_SECONDS) is None:
                raise BenchError(f"The site does not serve, before anything has befallen it: {dict(load.codes)}")
            for number, name in enumerate(order, 1):
                result = results[name]
                known = len(result.problems)
                await cycle(name, site, load, checks, dice, result)
                _say(f"{number}/{len(order)}  {FAULTS[name][0]:36} back after {result.back[-1]:5.2f} s,"
                     f" {len(load.acknowledged):,} calls acknowledged{_told(result.problems[known:])}")  # fmt: skip
        results["end"].problems += await asyncio.to_thread(_at_the_end, checks, upstream, closing)
    return results


def _told(problems: list[str]) -> str:
    return "".join(f"\n    WRONG: {problem}" for problem in problems[:5])


def _at_the_end(checks: Checks, upstream: Outside, closing: float) -> list[str]:
    problems = [*checks.now(), *checks.gaps()]
    if closing:
        _say("waiting until every intent is closed …")
        problems += checks.until_all_is_closed(closing)
    _say("verifying the ledger …")
    problems += checks.verdict()
    outcomes = ", ".join(f"{number:,} {code}" for code, number in sorted(checks.outcomes().items()))
    _say(f"{sum(upstream.effects.values()):,} effects; outcomes on record: {outcomes}{_told(problems)}")
    return problems


def table(results: dict[str, Result]) -> str:
    """One line for each fault."""
    lines = [f"{'fault':36} {'cycles':>6} {'calls':>9} {'median':>8} {'longest':>8}  refused or failed"]
    for name, result in results.items():
        if not result.cycles:
            continue
        back = sorted(result.back)
        failed = ", ".join(f"{number:,} {code}" for code, number in result.codes.most_common() if code != "ok")
        lines.append(f"{FAULTS[name][0]:36} {result.cycles:6} {result.acknowledged:9,} {back[len(back) // 2]:6.2f} s "
                     f"{back[-1]:6.2f} s  {failed or '-'}")  # fmt: skip
    return "\n".join(lines)


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run the campaign and leave nothing running: 0 when nothing was wrong."""
    options, started = _options(), time.monotonic()
    signal.signal(signal.SIGTERM, _stop)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**9)
    folder = Path(tempfile.mkdtemp(prefix="mcpsite-chaos-"))
    data = folder / "data"
    data.mkdir()
    if "disk" in options.faults and not small_disk(data):
        _say("No disk can be filled: that needs root and the right to mount. The fault is left out.")
        options.faults.remove("disk")
    _say(
        f"seed {seed}, {options.clients} clients, {options.cycles} cycles of {len(options.faults)} faults, in {folder}"
    )
    try:
        with Stage(folder) as stage:
            site = Site(stage, data, options.workers)
            site.start()
            run = campaign(site, options.faults, options.cycles, options.clients, random.Random(seed))
            results = asyncio.run(run)
    except BenchError as error:
        print(f"The campaign failed. {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    finally:
        if not options.keep:
            give_back(data)
            shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{table(results)}\n")
    problems = [problem for result in results.values() for problem in result.problems]
    for problem in problems[:50]:
        print(f"WRONG: {problem}")
    print(f"{len(problems)} problems. Seed {seed}, {time.monotonic() - started:.0f} s.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
