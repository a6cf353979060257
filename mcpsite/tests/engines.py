"""Gives every pytest session real engines of its own, unless `DATABASE_URL` and `REDIS_URL` name some.

The settings read the data directory when they are loaded, and pytest-django loads them very early: so this is a plugin
(`-p mcpsite.tests.engines`) and not a fixture.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator
from pathlib import Path

import psycopg
import pytest

from mcpsite import env
from mcpsite.datadir import OWNER_ROLE, SUPERUSER, DataDir
from mcpsite.engines import Postgres, Valkey
from mcpsite.supervisor import Supervisor


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, None, None]:
    """Before anything reads the settings: a data directory that is thrown away, and the engines that are not named."""
    env.load_file(Path(__file__).resolve().parents[2] / ".env")
    folder = tempfile.mkdtemp(prefix="mcpsite-tests-")
    early_config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    data = DataDir(Path(folder))
    data.create()
    env.override("MCPSITE_DATA", folder)
    options = early_config.known_args_namespace
    if not (options.help or options.version or options.collectonly):
        supervisor = Supervisor()
        early_config.add_cleanup(supervisor.stop)
        _start_engines(supervisor, data)
    return (yield)


def _start_engines(supervisor: Supervisor, data: DataDir) -> None:
    if not env.is_set("REDIS_URL"):
        supervisor.start(Valkey(data).program(0))
        supervisor.wait_ready("valkey", seconds=30)
    if not env.is_set("DATABASE_URL"):
        postgres = Postgres(data)
        postgres.prepare()
        supervisor.start(postgres.program(0))
        supervisor.wait_ready("postgres", seconds=30)
        postgres.provision()
        _let_the_owner_make_databases(data)


def _let_the_owner_make_databases(data: DataDir) -> None:
    with psycopg.connect(data.database_url(SUPERUSER), autocommit=True) as connection:
        connection.execute(f"ALTER ROLE {OWNER_ROLE} CREATEDB")
