"""What is measured: the upstream itself, a bare forwarder, this site with everything on, and FastMCP's proxy."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from bench.load import Job, LoadError, open_sessions
from bench.measure import Generator, Target
from bench.processes import BenchError, Stage, free_port, python
from mcpsite import env

_ROOT = Path(__file__).resolve().parent.parent
_FASTMCP_VENV = _ROOT / ".venv-bench"
_FASTMCP_PINS = Path(__file__).with_name("requirements-fastmcp.txt")
_FASTMCP_PROXY = Path(__file__).with_name("fastmcp_proxy.py")
_SITE_SECONDS = 180.0
_POLICY_SECONDS = 60.0
# Of each of: tools (of two sources), grants, tokens, sessions. So many users share the sessions.
GROWN_TO = 10_000
_SHARERS = 20
# The backlog of a million records is sealed in less.
_SEALING_SECONDS = 30.0

NAMES = ("direct", "bare", "mcpsite", "mcpsite-legacy", "mcpsite-unrecorded", "fastmcp", "fastmcp-shared")
# Measured when they are named: the list of tools instead of a call; calls of other kinds; a large installation.
LISTS = ("mcpsite-list", "mcpsite-list-legacy")
KINDS = ("mcpsite-stdio", "mcpsite-sql", "direct-long", "bare-long", "mcpsite-long")
GROWN = "mcpsite-grown"
MORE = (*LISTS, *KINDS, GROWN)
_OF_SITE = ("mcpsite-legacy", "mcpsite-stdio", "mcpsite-sql", "mcpsite-long", *LISTS)
# By its path: servers of this kind start in a folder of their own.
_ECHO = [sys.executable, str(Path(__file__).with_name("echo.py")), "--stdio"]
_LAUNCHERS = orjson.dumps({"echo": {"command": _ECHO}}).decode()


def start_all(stage: Stage, generator: Generator, names: list[str], tools: int = 1) -> list[Target]:
    """Start the echo server with so many tools, and what is named; raises BenchError."""
    echo = _start_echo(stage)
    address = f"http://127.0.0.1:{echo.port}{echo.path}"
    upstream, long = f"{address}/{tools}", f"{address}/0" if set(KINDS) & set(names) else ""
    starters: dict[str, Callable[[], list[Target]]] = {
        "direct": lambda: _with_long(echo),
        "bare": lambda: _with_long(_start_bare(stage, upstream)),
        "mcpsite": lambda: _start_recorded(stage, generator, upstream, long),
        GROWN: lambda: [_start_grown(stage, generator, f"{address}/{GROWN_TO // 2}")],
        "mcpsite-unrecorded": lambda: [_start_unrecorded(stage, generator, upstream)],
        "fastmcp": lambda: [_start_fastmcp(stage, upstream, shared=False)],
        "fastmcp-shared": lambda: [_start_fastmcp(stage, upstream, shared=True)],
    }
    wanted = {"mcpsite" if name in _OF_SITE else name.removesuffix("-long") for name in names}
    started = [target for name, start in starters.items() if name in wanted for target in start()]
    return [target for target in started if target.name in names]


def _start_echo(stage: Stage) -> Target:
    port = free_port()
    pid = stage.start("echo", *python("bench.echo", "--port", str(port)))
    stage.wait("echo", port, 20)
    return Target(name="direct", what="the upstream echo server, called without anything between", pid=pid, port=port)


def _start_bare(stage: Stage, upstream: str) -> Target:
    port = free_port()
    pid = stage.start("bare", *python("bench.forwarder", "--port", str(port), "--upstream", upstream))
    stage.wait("bare", port, 20)
    return Target(name="bare", what="uvicorn + aiohttp: forwards, no auth, no audit", pid=pid, port=port)


def _with_long(target: Target) -> list[Target]:
    return [target, replace(target, name=f"{target.name}-long", what="the same with answers of 1 MB", tool="long")]


def _start_fastmcp(stage: Stage, upstream: str, *, shared: bool) -> Target:
    _install_fastmcp()
    name, port = "fastmcp-shared" if shared else "fastmcp", free_port()
    # -P keeps this folder's modules out of the import path of the other venv.
    command = [
        str(_FASTMCP_VENV / "bin/python"),
        "-P",
        str(_FASTMCP_PROXY),
        "--port",
        str(port),
        "--upstream",
        upstream,
    ]
    pid = stage.start(name, *command, *(["--shared"] if shared else []))
    stage.wait(name, port, 60)
    what = "create_proxy(a connected client): one upstream session" if shared else "create_proxy(url), as it comes"
    # A session of 2025-11-25 is what it serves at the least cost: a call of 2026-07-28 makes it list the tools first.
    return Target(name=name, what=f"FastMCP {_fastmcp_version()}, {what}", pid=pid, port=port, era="legacy")


def _install_fastmcp() -> None:
    stamp = _FASTMCP_VENV / "installed.txt"
    pins = _FASTMCP_PINS.read_text(encoding="utf-8")
    if stamp.exists() and stamp.read_text(encoding="utf-8") == pins:
        return
    print(f"Installing FastMCP into {_FASTMCP_VENV.name}, once …", file=sys.stderr, flush=True)
    shutil.rmtree(_FASTMCP_VENV, ignore_errors=True)
    _run(sys.executable, "-m", "venv", str(_FASTMCP_VENV))
    _run(str(_FASTMCP_VENV / "bin/python"), "-m", "pip", "install", "-q", "-r", str(_FASTMCP_PINS))
    stamp.write_text(pins, encoding="utf-8")


def _fastmcp_version() -> str:
    pins = _FASTMCP_PINS.read_text(encoding="utf-8").splitlines()
    return next(line.partition("==")[2] for line in pins if line.startswith("fastmcp=="))


def _run(*command: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise BenchError(f"{' '.join(command)} failed:\n{(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def _start_recorded(stage: Stage, generator: Generator, upstream: str, long: str) -> list[Target]:
    what = "everything on: token, grant, budget, argument check, durable record; one web worker"
    modern = _start_site(stage, generator, upstream, "mcpsite", what, str(_ROOT / "manage.py"))
    legacy = replace(modern, name="mcpsite-legacy", what="the same called as 2025-11-25", era="legacy")
    listed, listed_legacy, *others = [
        replace(modern, name=LISTS[0], what="the list of its tools", tool=""),
        replace(legacy, name=LISTS[1], what="the list of its tools, as 2025-11-25", tool=""),
    ]
    if long:
        _configure(stage.folder / "mcpsite", "--more", long)
        others = [
            replace(modern, name="mcpsite-stdio", what="before an upstream over stdio", tool="stdio_echo"),
            replace(modern, name="mcpsite-sql", what="a statement of SQL that finds 20 rows", tool="purchases"),
            replace(modern, name="mcpsite-long", what="the same with answers of 1 MB", tool="long"),
        ]
        for target in others:
            _wait_for_policy(generator, target)
    return [modern, legacy, listed, listed_legacy, *others]


def _start_grown(stage: Stage, generator: Generator, upstream: str) -> Target:
    what = f"another installation, with {GROWN_TO:,} tools, grants, tokens and sessions, and a million records"
    print(f"{what} …", file=sys.stderr, flush=True)
    site = _start_site(stage, generator, upstream, GROWN, what, str(_ROOT / "manage.py"))
    data = stage.folder / GROWN
    tokens = _configure(data, "--grow", str(GROWN_TO))["tokens"][-_SHARERS:]
    _wait_for_policy(generator, replace(site, headers=(("Authorization", f"Bearer {tokens[-1]}"),)))
    try:
        for token in tokens:
            open_sessions(site.port, token, GROWN_TO // _SHARERS)
    except LoadError as error:
        raise BenchError(str(error)) from error
    _run(*python("bench.ledger_rows", "--rows", "1000000"), environment=own_engines(data))
    time.sleep(_SEALING_SECONDS)
    return site


def _start_unrecorded(stage: Stage, generator: Generator, upstream: str) -> Target:
    what = "another installation like it, whose web worker writes no records"
    return _start_site(stage, generator, upstream, "mcpsite-unrecorded", what, "-m", "bench.unrecorded")


def _start_site(stage: Stage, generator: Generator, upstream: str, name: str, what: str, *program: str) -> Target:
    port, data, ready = free_port(), stage.folder / name, stage.folder / f"{name}.json"
    pid = stage.start(
        name, sys.executable, *program, "up", "--data", str(data), "--no-demo", "--workers", "1",
        "--port", str(port), "--ready-file", str(ready), environment=own_engines(data),
    )  # fmt: skip
    stage.wait(name, ready, _SITE_SECONDS)
    headers = (("Authorization", f"Bearer {_configure(data, '--upstream', upstream)['token']}"),)
    target = Target(name=name, what=what, pid=pid, port=port, headers=headers)
    _wait_for_policy(generator, target)
    return target


def own_engines(data: Path) -> dict[str, str]:
    """An environment in which nothing names another installation; empty values also win over a `.env` file."""
    return env.for_child(
        MCPSITE_DATA=str(data), DATABASE_URL="", DATABASE_OWNER_URL="", REDIS_URL="", SECRET_KEY="", ENCRYPTION_KEYS="",
        MCP_LAUNCHERS=_LAUNCHERS,
    )  # fmt: skip


def _configure(data: Path, *arguments: str) -> dict[str, Any]:
    said = _run(*python("bench.configure", *arguments), environment=own_engines(data))
    found: dict[str, Any] = orjson.loads(said.splitlines()[-1])
    return found


def _wait_for_policy(generator: Generator, target: Target) -> None:
    """Return when the worker knows the new token and grant."""
    job = Job(
        port=target.port, path=target.path, headers=dict(target.headers), tool=target.tool, seconds=0, warmup_seconds=0
    )
    deadline = time.monotonic() + _POLICY_SECONDS
    while True:
        try:
            generator.warm_up(job)
            generator.measure()
            return
        except BenchError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
