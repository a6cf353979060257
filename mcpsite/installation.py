"""Brings a whole installation up as one process tree and takes it down again: what `manage.py up` does."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from socket import socket
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.management import call_command
from django.db import connections

from mcpsite import env, witness_program
from mcpsite.bootstrap import PASSWORD_FILE, first_administrator, witness_account
from mcpsite.datadir import DataDir, default_path, write_private
from mcpsite.demo.kept import upstream_environment
from mcpsite.engines import Postgres, Valkey
from mcpsite.greeting import Access, Progress, greet, greet_services
from mcpsite.prelude import local_url
from mcpsite.ready import answers
from mcpsite.supervisor import Program, StopRequested, Supervisor, spawn
from mcpsite.web import GRACEFUL_SECONDS, CannotListen, listen

# Programs of a higher order are stopped first.
_POSTGRES, _VALKEY, _UPSTREAM, _SEALER, _WORKER, _WEB, _WITNESS = range(7)
_SEALER_ONLY = ("LEDGER_SIGNING_KEYS", "LEDGER_SEALER_URL")
_ENGINE_SECONDS = 120.0
_SITE_SECONDS = 60.0
_FIRST_CALL_SECONDS = 30.0


class AlreadyRunning(Exception):
    """Another process uses the data directory; the text is a sentence for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `manage.py up` was told."""

    host: str
    port: int
    workers: int
    services: bool
    demo: bool
    ready_file: Path | None


@contextmanager
def locked(data: DataDir) -> Iterator[None]:
    """Hold the data directory for this process alone; raises AlreadyRunning. The lock ends with the process."""
    with (data.path / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise AlreadyRunning(
                f"mcpsite already runs on {data.path} as process {file.read().strip()}: "
                "stop that one first, or name another directory with --data DIR."
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


class Installation:
    """One installation, from its data directory to its greeting."""

    def __init__(self, data: DataDir, options: Options, progress: Progress) -> None:
        self._data = data
        self._options = options
        self._progress = progress
        self._supervisor = Supervisor()
        self._first_call: subprocess.Popen[bytes] | None = None
        self._listeners: list[socket] = []  # open for as long as a process may have to be replaced
        self._local_url = local_url(options.host, options.port)
        self._password_file = data.path / "secrets" / PASSWORD_FILE
        self._token_file = data.path / "secrets" / "first_call_token"

    def run(self) -> None:
        """Start everything, greet, and keep it running until a signal asks to stop; then stop everything in order."""
        self._remove_ready_file()
        with self._supervisor.signals():
            try:
                self._start_engines_only() if self._options.services else self._start_all()
                self._supervisor.run()
            except StopRequested:
                self._progress.say()  # a terminal has printed ^C without an end of line
            finally:
                self._stop()

    def _start_engines_only(self) -> None:
        self._start_engines()
        greet_services(self._progress, self._data.path, self._data.path == default_path())

    def _start_all(self) -> None:
        listener = listen(self._options.host, self._options.port)
        self._listeners.append(listener)
        if settings.METRICS_DIR:
            shutil.rmtree(settings.METRICS_DIR, ignore_errors=True)  # a new start counts from zero
        witness_program.announce(self._data)
        # Importing takes the longest: the programs do it while the engines start, and wait at the gate.
        gate, opener = os.pipe()
        self._start_web(listener, gate)
        upstream = self._start_demo_programs() if self._options.demo else ""
        self._start_engines()
        with self._progress.step("Migrations"), self._supervisor.interruptible():
            call_command("migrate", verbosity=0, interactive=False)
        os.close(opener)
        access = self._fill(upstream)
        self._wait_for_site()
        for program in (*worker_programs(), witness_program.program(self._data, _WITNESS, self._local_url)):
            self._supervisor.start(program)
        call = self._make_first_call(access)
        if self._options.ready_file:
            write_private(self._options.ready_file, json.dumps(access.ready_document(), indent=2))
        greet(self._progress, access, self._password_file, call)

    def _start_web(self, listener: socket, gate: int) -> None:
        for program in web_programs(listener, self._options.workers, gate):
            self._supervisor.start(program)

    def _start_demo_programs(self) -> str:
        """Start the demo's upstream and the client of the first call; returns the upstream's URL."""
        listener = _demo_listener(self._data.path / "demo-port")
        self._listeners.append(listener)
        descriptor, port = listener.fileno(), listener.getsockname()[1]
        program = _module(
            "upstream", _UPSTREAM, "mcpsite.demo.upstream", "--fd", str(descriptor), pass_fds=(descriptor,)
        )
        self._supervisor.start(replace(program, environment=env.for_child(**upstream_environment(self._data.path))))
        options = ("--url", f"{self._local_url}/mcp", "--token-file", str(self._token_file), "--when-ready")
        client = _module("first call", _WEB, "mcpsite.first_call", *options)
        self._first_call = spawn(client, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return f"http://127.0.0.1:{port}/mcp"

    def _start_engines(self) -> None:
        if settings.EMBEDDED_REDIS:
            valkey = Valkey(self._data)
            valkey.prepare()
            self._supervisor.start(valkey.program(_VALKEY))
        if settings.EMBEDDED_DATABASE:
            self._start_postgres()
        if settings.EMBEDDED_REDIS:
            with self._progress.step("Valkey"):
                self._supervisor.wait_ready("valkey", seconds=_ENGINE_SECONDS)

    def _start_postgres(self) -> None:
        postgres = Postgres(self._data)
        with self._progress.step(f"PostgreSQL {postgres.version}"):
            with self._supervisor.interruptible():
                postgres.prepare()
            self._supervisor.start(postgres.program(_POSTGRES))
            self._supervisor.wait_ready("postgres", seconds=_ENGINE_SECONDS)
            postgres.provision()

    def _fill(self, upstream: str) -> Access:
        with self._progress.step("First administrator"), self._supervisor.interruptible():
            user, new_password = first_administrator()
            witness_account(self._data.path / "secrets" / witness_program.TOKEN_FILE)
        password = self._password_file.read_text(encoding="utf-8") if self._password_file.exists() else None
        tokens = self._load_demo(upstream) if upstream else {}
        _close_database_connections()
        return Access(
            public_url=settings.PUBLIC_URL, user=user, password=password, new_password=new_password, tokens=tokens
        )

    def _load_demo(self, upstream: str) -> dict[str, str]:
        from mcpsite.demo.load import load_demo

        with self._progress.step("Demo"):
            self._supervisor.wait_until(partial(_answers, upstream, "/healthz"), "the demo's upstream", _SITE_SECONDS)
            with self._supervisor.interruptible():
                return load_demo(upstream, self._data.path).tokens

    def _wait_for_site(self) -> None:
        with self._progress.step(_counted(self._options.workers, "web worker")):
            self._supervisor.wait_until(
                lambda: _answers(self._local_url, "/readyz"), "the site to be ready", _SITE_SECONDS
            )

    def _make_first_call(self, access: Access) -> dict[str, Any] | None:
        if self._first_call is None or access.shown_token is None:
            return None
        write_private(self._token_file, access.shown_token)
        try:
            with self._progress.step("First call"), self._supervisor.interruptible():
                output, _ = self._first_call.communicate(b"\n", timeout=_FIRST_CALL_SECONDS)
        except subprocess.TimeoutExpired:
            output = b""
        finally:
            self._token_file.unlink()
        if self._first_call.returncode != 0:
            self._progress.say("  The first call failed; the lines above say why. The site keeps running.")
            return None
        call: dict[str, Any] = json.loads(output)
        return call

    def _stop(self) -> None:
        self._remove_ready_file()
        if self._first_call is not None:
            self._first_call.kill()
            self._first_call.wait()
        with self._progress.step("Stopped"):
            self._supervisor.stop()

    def _remove_ready_file(self) -> None:
        if self._options.ready_file:
            self._options.ready_file.unlink(missing_ok=True)


def web_programs(listener: socket, workers: int, gate: int | None = None) -> list[Program]:
    """The web workers on a socket; they serve at once, or when the other end of the pipe `gate` is closed."""
    descriptors = (listener.fileno(),) if gate is None else (listener.fileno(), gate)
    options = ("--fd", str(listener.fileno()), *(() if gate is None else ("--gate", str(gate))))
    return [
        _module(f"web-{number}", _WEB, "mcpsite.web", *options, pass_fds=descriptors)
        for number in range(1, workers + 1)
    ]


def worker_programs() -> list[Program]:
    """What works on jobs, what works on the runs of agents, and what seals the ledger, which alone has the keys."""
    kinds = (("worker", "jobs"), ("agents", "agents"))
    workers = [_python(name, _WORKER, "manage.py", "worker", what) for name, what in kinds]
    sealer = _python("sealer", _SEALER, "manage.py", "worker", "sealer")
    return [*workers, replace(sealer, environment=env.for_child())]


def _module(name: str, order: int, module: str, *arguments: str, pass_fds: tuple[int, ...] = ()) -> Program:
    return _python(name, order, "-m", module, *arguments, pass_fds=pass_fds)


def _python(name: str, order: int, *arguments: str, pass_fds: tuple[int, ...] = ()) -> Program:
    return Program(
        name=name,
        order=order,
        command=(sys.executable, *arguments),
        environment=env.without(*_SEALER_ONLY),
        directory=settings.BASE_DIR,
        pass_fds=pass_fds,
        stop_seconds=GRACEFUL_SECONDS + 5.0,
    )


def _demo_listener(file: Path) -> socket:
    """A socket on the port that `file` remembers, or on another one, which it then remembers."""
    try:
        return listen("127.0.0.1", int(file.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, OverflowError, CannotListen):
        listener = listen("127.0.0.1", 0)
        write_private(file, str(listener.getsockname()[1]))
        return listener


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _answers(url: str, path: str, host: str | None = None) -> bool:
    """Whether a GET of `path` at the server of `url`, called `host`, is answered with 200."""
    parts = urlsplit(url)
    return answers(parts.hostname or "", parts.port, path, timeout=1, headers={"Host": host or parts.netloc})


def _close_database_connections() -> None:
    """Also ends the pool's threads, which must not be there when processes are forked."""
    connection: Any  # Django's stubs do not know of pools
    for connection in connections.all(initialized_only=True):
        connection.close()
        connection.close_pool()
