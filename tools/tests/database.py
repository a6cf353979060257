"""A PostgreSQL server of the connector tests' own, which they may restart, stop and attack."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from mcpsite.datadir import SUPERUSER, DataDir
from mcpsite.engines import Postgres
from mcpsite.supervisor import Supervisor
from tools.connectors.base import Context, Result, Source
from tools.connectors.sql import SqlConnector
from tools.connectors.sql_options import SqlOptions
from tools.connectors.sql_tool import Parameter, SqlTool
from tools.egress import Egress, Rule

READER, WRITER = "reader", "writer"
SCHEMA = """
CREATE SCHEMA shop;
CREATE TABLE shop.items (id bigint PRIMARY KEY, name text NOT NULL, price numeric, secret text);
INSERT INTO shop.items SELECT n, 'item ' || n, n / 100.0, 'row-canary-' || n FROM generate_series(1, 5000) n;
CREATE TABLE shop.hidden (secret text);
INSERT INTO shop.hidden VALUES ('hidden-canary');
CREATE TABLE shop.log (line text);
CREATE SEQUENCE shop.counter;
CREATE FUNCTION shop.leave_traces() RETURNS text LANGUAGE plpgsql AS $$ BEGIN
  PERFORM pg_advisory_lock(7); PERFORM set_config('shop.trace', 'left', false);
  PERFORM set_config('statement_timeout', '0', false); RETURN 'left'; END $$;
CREATE FUNCTION shop.write() RETURNS int LANGUAGE sql AS $$ INSERT INTO shop.log VALUES ('x') RETURNING 1 $$;
CREATE ROLE reader LOGIN PASSWORD 'reader-canary';
CREATE ROLE writer LOGIN PASSWORD 'writer-canary';
GRANT USAGE ON SCHEMA shop TO reader, writer;
GRANT SELECT ON shop.items TO reader;
GRANT ALL ON ALL TABLES IN SCHEMA shop TO writer;
GRANT ALL ON ALL SEQUENCES IN SCHEMA shop TO writer;
"""

STATE = (
    "SELECT count(*), sum(id), md5(string_agg(name, ',' ORDER BY id)) FROM shop.items",
    "SELECT * FROM shop.hidden",
    "SELECT * FROM shop.log",
    "SELECT last_value, is_called FROM shop.counter",
    "SELECT oid, relname, relowner, relacl FROM pg_class WHERE relpersistence = 'p' ORDER BY oid",
    "SELECT proname FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace WHERE nspname = 'shop'",
    "SELECT rolname, rolpassword, rolsuper FROM pg_authid ORDER BY 1",
    "SELECT * FROM pg_db_role_setting",
    "SELECT oid FROM pg_largeobject_metadata",
    "SELECT slot_name FROM pg_replication_slots",
    "SELECT datname FROM pg_database ORDER BY 1",
    "SELECT extname FROM pg_extension",
    "SELECT gid FROM pg_prepared_xacts",
    "SELECT pid FROM pg_locks WHERE locktype = 'advisory'",
)


class Server:
    """One running server."""

    def __init__(self, folder: Path, supervisor: Supervisor) -> None:
        self.data = DataDir(folder)
        self._supervisor = supervisor

    def start(self) -> None:
        self.data.create()
        postgres = Postgres(self.data)
        postgres.prepare()
        self._supervisor.start(postgres.program(0))
        self._supervisor.wait_ready("postgres", seconds=30)
        with self.connect("postgres") as connection:
            connection.execute("CREATE DATABASE shop")
        self.run(SCHEMA)

    def restart(self) -> None:
        before = self._supervisor.pid("postgres")
        assert before is not None
        os.kill(before, signal.SIGINT)
        self._supervisor.wait_until(
            lambda: self._supervisor.pid("postgres") not in (None, before), "another server", 20
        )
        self._supervisor.wait_ready("postgres", seconds=30)

    def connect(self, database: str = "shop") -> psycopg.Connection[Any]:
        return psycopg.connect(self.data.database_url(SUPERUSER), dbname=database, autocommit=True)

    def run(self, sql: str, *values: Any) -> list[Any]:
        with self.connect() as connection:
            cursor = connection.execute(sql, values or None)
            return cursor.fetchall() if cursor.description else []

    def state(self) -> list[Any]:
        """What a statement could have changed: rows, sequences, relations, roles, settings, large objects, slots."""
        with self.connect() as connection:
            return [connection.execute(query).fetchall() for query in STATE]

    def running(self, part: str) -> list[Any]:
        return self.run(
            "SELECT pid FROM pg_stat_activity WHERE state = 'active' AND query LIKE %s AND pid <> pg_backend_pid()",
            f"%{part}%",
        )


@contextmanager
def started() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="mcpsite-sql-"))
    supervisor = Supervisor()
    try:
        server = Server(folder, supervisor)
        server.start()
        yield server
    finally:
        supervisor.stop()
        shutil.rmtree(folder, ignore_errors=True)


def make_connector(server: Server, user: str = READER, rules: Iterable[str] = (), **options: Any) -> SqlConnector:
    folder = str(server.data.run_dir)
    given = {"host": folder, "database": "shop", "user": user, "password": f"{user}-canary", "schema": "shop"}
    source = Source(uuid.uuid4(), "shop", SqlOptions.model_validate({**given, **options}), 5)
    return SqlConnector(source, Egress(Rule.parse(rule, None) for rule in (f"unix:{folder}", *rules)))


def make_tool(statement: str, *parameters: Parameter | dict[str, Any]) -> SqlTool:
    return SqlTool.model_validate({"description": "d", "statement": statement, "parameters": list(parameters)})


def make_context(deadline_seconds: float = 5) -> Context:
    return Context(uuid.uuid4(), deadline_seconds, "someone")


async def ask(connector: SqlConnector, tool: SqlTool | str, deadline_seconds: float = 5, **arguments: Any) -> Result:
    spec = make_tool(tool) if isinstance(tool, str) else tool
    return await connector.call(spec, arguments, make_context(deadline_seconds))
