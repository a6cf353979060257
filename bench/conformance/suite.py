"""Runs the suite as its authors publish it, and reads what it found out of its files: its own summary is too kind."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from bench.processes import BenchError

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parents[1]
_NODE = Path(sys.executable).with_name("node")
_LEG_SECONDS = 300.0
_FOLDER = re.compile(r"(?:server-)?(.+)-\d{4}-\d\d-\d\dT[\d-]+Z")
# What the suite says of a check, from good to bad; a note is no verdict. Whatever is not a success is open.
_SUCCESS, _NOTE = "SUCCESS", "INFO"
_WORSE = (_SUCCESS, "SKIPPED", "WARNING", "FAILURE")


@dataclass(frozen=True, slots=True)
class Leg:
    """One version of the suite at one revision of the protocol."""

    name: str
    package: str
    options: tuple[str, ...]
    # Of the upstream client; the suite plays the servers.
    scenarios: tuple[str, ...] = ()

    @property
    def is_of_client(self) -> bool:
        """Whether our upstream client is tested, in place of a server."""
        return bool(self.scenarios)


# All of the suite's scenarios for clients but those that are about authorization.
_OLD = ("initialize", "tools_call")
_MIDDLE = (*_OLD, "elicitation-sep1034-client-defaults", "sse-retry")
_PRESERVATION = "json-schema-2020-12-preservation"
_NEW = (
    "tools_call", "request-metadata", "sep-2322-client-request-state", "http-standard-headers", "http-custom-headers",
    "http-invalid-tool-headers", "json-schema-ref-no-deref", _PRESERVATION,
)  # fmt: skip
LEGS = {
    leg.name: leg
    for leg in (
        Leg("0.1.16", "conformance-0.1", ("--suite", "all")),
        Leg("2025-06-18", "conformance-0.2", ("--suite", "all", "--spec-version", "2025-06-18")),
        Leg("2025-11-25", "conformance-0.2", ("--requirements", "2025-11-25")),
        Leg("2026-07-28", "conformance-0.2", ("--requirements", "2026-07-28")),
        Leg("client-0.1.16", "conformance-0.1", (), _MIDDLE),
        Leg("client-2025-06-18", "conformance-0.2", ("--spec-version", "2025-06-18"), _OLD),
        Leg("client-2025-11-25", "conformance-0.2", ("--spec-version", "2025-11-25"), (*_MIDDLE, _PRESERVATION)),
        Leg("client-2026-07-28", "conformance-0.2", ("--spec-version", "2026-07-28"), _NEW),
    )
}


@dataclass(frozen=True, slots=True)
class Check:
    """What became of one check of a scenario; the worst, where it was made several times."""

    scenario: str
    name: str
    status: str
    said: str

    @property
    def passed(self) -> bool:
        """Neither failed, nor warned of, nor skipped."""
        return self.status == _SUCCESS


def _program(leg: Leg) -> str:
    program = _HERE / "node_modules" / leg.package / "dist/index.js"
    if not program.exists():
        raise BenchError(f"{program} is missing: `make conformance` installs it.")
    return str(program)


def run(leg: Leg, url: str, folder: Path, scenario: str | None = None) -> list[Check]:
    """All checks of the leg, or of one of its scenarios. The suite's files stay in `folder`. Raises BenchError."""
    which = ("--scenario", scenario) if scenario else leg.options
    said = _done(leg, folder, "server", "--url", url, *which)
    checks = read(folder)
    if not checks:
        raise BenchError(f"The suite made no checks on the leg {leg.name}:\n{said}")
    return checks


def run_client(leg: Leg, command: str, folder: Path, scenario: str | None = None) -> list[Check]:
    """The same, of a client: `command` connects it to the URL that is appended. Raises BenchError."""
    for each in (scenario,) if scenario else leg.scenarios:
        before = len(list(folder.rglob("checks.json")))
        said = _done(leg, folder, "client", "--command", command, "--scenario", each, *leg.options)
        if len(list(folder.rglob("checks.json"))) == before:
            raise BenchError(f"The suite made no checks of {each} on the leg {leg.name}:\n{said}")
    return read(folder)


def _done(leg: Leg, folder: Path, *options: str) -> str:
    """The end of what the suite says."""
    command = [str(_NODE), _program(leg), *options, "-o", str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}, timeout=_LEG_SECONDS, cwd=_ROOT
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"The suite did not end within {_LEG_SECONDS:g} s on the leg {leg.name}.") from error
    return (done.stderr or done.stdout)[-2000:]


def read(folder: Path) -> list[Check]:
    """The checks in the files that the suite left, by scenario and name."""
    found: dict[tuple[str, str], Check] = {}
    for path in sorted(folder.rglob("checks.json")):
        match = _FOLDER.fullmatch(path.parent.name)
        if match is None:
            raise BenchError(f"The suite left {path}, which cannot be told from its name.")
        verdicts = [each for each in orjson.loads(path.read_bytes()) if each["status"] != _NOTE]
        for each in verdicts or [{"id": "no-check", "status": "SKIPPED", "errorMessage": "nothing was checked"}]:
            check = _check(match[1], each)
            known = found.get((check.scenario, check.name))
            if known is None or _WORSE.index(known.status) < _WORSE.index(check.status):
                found[check.scenario, check.name] = check
    return [found[key] for key in sorted(found)]


def _check(scenario: str, verdict: dict[str, Any]) -> Check:
    said = " ".join(str(verdict.get("errorMessage") or "").split())
    return Check(scenario, str(verdict["id"]), str(verdict["status"]), said[:300])
