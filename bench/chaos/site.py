"""The installation that is put to the test: started as `make run` does it, in a directory that is thrown away."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from bench.chaos.load import READ, WRITE
from bench.processes import BenchError, Stage, free_port
from mcpsite import env
from mcpsite.datadir import OWNER_ROLE, SUPERUSER, DataDir

_MANAGE = str(Path(__file__).resolve().parents[2] / "manage.py")
CALL_SECONDS = 5
_START_SECONDS = 120.0
_CONFIGURE = """
from access import tokens
from access.models import Grant, Role, User
from tools.models import DataSource, EgressRule, Tool
from tools.sync import sync_source
EgressRule.objects.create(network="127.0.0.1/32", note="chaos")
source = DataSource.objects.create(name="outside", kind="mcp", options={"url": URL})
sync_source(source)
role = Role.objects.create(name="load")
for name in NAMES:
    Grant.objects.create(role=role, tool=Tool.objects.get(name=name), calls_per_minute=10_000_000)
user = User.objects.create(username="load", is_service=True)
user.groups.add(role)
print("TOKEN", tokens.issue(user, name="load", scopes=["tools"])[1])
"""


def configuration(upstream: str) -> str:
    """What `manage.py shell` runs to make the source of that URL, its grants and a user whose token it prints."""
    return f"URL, NAMES = {upstream!r}, {(WRITE, READ)!r}\n{_CONFIGURE}"


class Site:
    """One installation, its processes and its database."""

    def __init__(self, stage: Stage, data: Path, workers: int) -> None:
        self._stage = stage
        self._workers = workers
        self.folder = DataDir(data)
        self.port = free_port()
        self.pid = 0

    @property
    def base(self) -> str:
        """Its address."""
        return f"http://localhost:{self.port}"

    def start(self) -> None:
        """Start everything; returns when it is ready. Raises BenchError."""
        ready = self._stage.folder / "ready.json"
        options = ("--port", str(self.port), "--ready-file", str(ready), "--workers", str(self._workers), "--no-demo")
        self.pid = self._stage.start(
            "site",
            sys.executable,
            _MANAGE,
            "up",
            "--data",
            str(self.folder.path),
            *options,
            environment=env.for_child(CALL_TIMEOUT_SECONDS=str(CALL_SECONDS)),
        )
        self._stage.wait("site", ready, _START_SECONDS)

    def configure(self, upstream: str) -> str:
        """Make the source, its grants and a user; returns the user's token."""
        done = self.manage("shell", "-v", "0", "-c", configuration(upstream))
        found = re.search(r"TOKEN (\S+)", done.stdout)
        if not found:
            raise BenchError(f"The site could not be configured: {done.stderr}")
        return found[1]

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """One management command."""
        environment = env.for_child(MCPSITE_DATA=str(self.folder.path), CALL_TIMEOUT_SECONDS=str(CALL_SECONDS))
        command = [sys.executable, _MANAGE, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    # --- Processes ----------------------------------------------------------------------------------------------------

    def processes(self, pattern: str) -> list[int]:
        """The processes of the installation whose command line matches."""
        return sorted(pid for pid, command in _descendants(self.pid) if re.search(pattern, command))

    def send(self, number: signal.Signals, pids: Iterable[int]) -> None:
        """A signal to those that are still there."""
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    # --- The database -------------------------------------------------------------------------------------------------

    @contextmanager
    def database(self, role: str = OWNER_ROLE) -> Iterator[psycopg.Connection[Any]]:
        """A connection; as superuser it is to the site's database as well."""
        url = self.folder.database_url(role)
        if role == SUPERUSER:
            url = url.rpartition("/")[0] + "/" + self.folder.database_url(OWNER_ROLE).rpartition("/")[2]
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
            yield connection

    def rows(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """What the owner of the schema reads."""
        with self.database() as connection:
            return connection.execute(statement, values).fetchall()


def _descendants(parent: int) -> Iterator[tuple[int, str]]:
    try:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii").split()
    except (FileNotFoundError, ProcessLookupError):
        return
    for child in map(int, children):
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield child, command
        yield from _descendants(child)
