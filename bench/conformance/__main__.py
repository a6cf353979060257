"""`make conformance`: the official suite of MCP against an installation with an upstream of our own behind it."""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from bench.conformance import baseline, suite
from bench.conformance.gateways import start_behind, start_upstream
from bench.conformance.report import open_checks, table
from bench.conformance.suite import LEGS, Check
from bench.conformance.upstream.__main__ import ERAS
from bench.processes import BenchError, Stage, free_port, python

# How the site stands before its upstream unless something else is said, and what the legs of clients are filed under.
_USUAL, _CLIENT = "http dual", "client"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.conformance", description=__doc__)
    parser.add_argument("--direct", action="store_true", help="test the upstream itself, without the site")
    parser.add_argument("--transport", choices=("http", "stdio"), default="http", help="between site and upstream")
    parser.add_argument("--era", choices=ERAS, default="dual", help="what the upstream speaks (default %(default)s)")
    parser.add_argument("--legs", type=_legs, help=f"some of {','.join(LEGS)}")
    parser.add_argument("--scenario", help="only this one, on the first of the legs; nothing is compared")
    parser.add_argument("--details", action="store_true", help="print what the suite says of each open check")
    parser.add_argument("--output", type=Path, help="keep the suite's files, and the logs, in this folder")
    options = parser.parse_args()
    options.behind = "direct" if options.direct else f"{options.transport} {options.era}"
    # What the upstream client does is the same whatever stands behind the site.
    options.legs = options.legs or [
        name for name, leg in LEGS.items() if not leg.is_of_client or options.behind == _USUAL
    ]
    return options


def _legs(value: str) -> list[str]:
    names = value.split(",")
    if unknown := set(names) - set(LEGS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: choose from {', '.join(LEGS)}")
    return names


# --- What is tested --------------------------------------------------------------------------------------------------


def _start(stage: Stage, options: argparse.Namespace) -> str:
    """The URL to test: of the upstream, or of a proxy with a token, whose gateways take turns. Raises BenchError."""
    if options.direct:
        return start_upstream(stage, options.era)
    proxy = free_port()
    origin = f"http://localhost:{proxy}"
    gateways = start_behind(stage, options.transport, options.era, origin)
    ports = map(str, gateways.ports)
    stage.start(
        "proxy",
        *python("bench.conformance.authorizing", "--port", str(proxy), "--token", gateways.token, "--to", *ports),
    )
    stage.wait("proxy", proxy, 30)
    return f"{origin}/mcp"


def _run_all(stage: Stage, options: argparse.Namespace) -> dict[str, list[Check]]:
    legs = [LEGS[name] for name in (options.legs[:1] if options.scenario else options.legs)]
    url = "" if all(leg.is_of_client for leg in legs) else _start(stage, options)
    driver = shlex.join(python("bench.conformance.driver"))
    results = {}
    for leg in legs:
        name, started = leg.name, time.monotonic()
        folder = stage.folder / "suite" / name
        if leg.is_of_client:
            results[name] = suite.run_client(leg, driver, folder, options.scenario)
        else:
            results[name] = suite.run(leg, url, folder, options.scenario)
        print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return results


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run, print, compare: 0, or 1 when something is open that is not in the baseline, or the other way round."""
    options = _options()
    signal.signal(signal.SIGTERM, _stop)
    folder = options.output or Path(tempfile.mkdtemp(prefix="mcpsite-conformance-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with Stage(folder) as stage:
            results = _run_all(stage, options)
    except BenchError as error:
        print(f"The suite could not be run. {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    finally:
        if options.output is None:
            shutil.rmtree(folder, ignore_errors=True)
    return _tell(results, options)


def _tell(results: dict[str, list[Check]], options: argparse.Namespace) -> int:
    print(table(results))
    if options.details or options.scenario:
        print(f"\n{open_checks(results)}")
    if options.scenario:
        return 0
    known = baseline.load()
    wrong = [
        line
        for leg, checks in results.items()
        for line in baseline.differences(known, _CLIENT if LEGS[leg].is_of_client else options.behind, leg, checks)
    ]
    print("\n" + ("\n".join(wrong) if wrong else f"All else passes: {baseline.FILE.name} names what is open, and why."))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
