"""A ledger of each test's own: a schema that is thrown away, since what is append-only could not be emptied."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from django.db import connections
from psycopg import sql
from psycopg.conninfo import make_conninfo

from audit.datakeys import DataKeys
from audit.entry import ALL_COLUMNS, INSERT, Entry, encode, python_values, uuid7
from audit.sealing.keys import Signer, parse
from audit.sealing.process import connect
from audit.sealing.sealer import LOCK, Sealer
from audit.sealing.state import State
from audit.sealing.tests.kms import kms
from keyring.keys import KeyRing, ring
from mcpsite.postgres import conninfo

__all__ = ["kms"]

SCHEMA = "sealing_tests"
WRITER = uuid7()
_TABLES = ("leaf", "node", "head", "cosignature", "anchor", "signing_request", "signature", "key", "refused")
_RECORD = f"{INSERT}({', '.join(['%s'] * len(ALL_COLUMNS))})"


def new_signer(name: str = "s1") -> Signer:
    return parse(f"{name}:{b64encode(os.urandom(32)).decode()}")[0]


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Ledger:
    """Tables like those of the site, and sealers on them."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self.dsn = dsn
        self.clock = Clock()
        self.signers = [new_signer()]
        self.state = State(folder / "sealer.json")
        self.connection = psycopg.connect(dsn, autocommit=True)
        self._opened: list[psycopg.Connection] = []

    def sealer(self, *, keys: KeyRing | None = None, opened: bool = True) -> Sealer:
        """A new one, as after a start of its process."""
        connection = connect(self.dsn)
        connection.execute(f"SET search_path TO {SCHEMA}")
        self._opened.append(connection)
        sealer = Sealer(connection, keys or ring(), lambda: self.signers, self.state, "mcp.example.com", self.clock)
        if opened:
            assert sealer.lock()
            sealer.open()
        return sealer

    def end_sealers(self) -> None:
        """What a kill does: the connections are gone, and with them locks and what was not committed."""
        for connection in self._opened:
            connection.close()
        self._opened.clear()
        held = f"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = {LOCK & 0xFFFFFFFF}"
        self.wait(lambda: not self.one(held))

    def wait(self, condition: Callable[[], bool]) -> None:
        for _ in range(2000):
            if condition():
                return
            self.connection.execute("SELECT pg_sleep(0.005)")
        raise AssertionError("It did not come about.")

    def write(self, count: int = 1, connection: psycopg.Connection | None = None) -> None:
        """Records, as the ledger writes them."""
        rows = [
            python_values(encode(Entry(kind="call", code="ok"), DataKeys(ring()), WRITER, n + 1)) for n in range(count)
        ]
        with (connection or self.connection).cursor() as cursor:
            cursor.executemany(_RECORD, rows)

    def leaves(self) -> list[bytes]:
        """All leaves in the order of their numbers, which must have no gap."""
        found = self.connection.execute("SELECT seq, leaf FROM audit_leaf ORDER BY seq").fetchall()
        assert [row[0] for row in found] == list(range(len(found)))
        return [row[1] for row in found]

    def one(self, query: str) -> object:
        row = self.connection.execute(query.encode()).fetchone()
        return row and row[0]

    def notes(self) -> list[str]:
        return [row[0] for row in self.connection.execute("SELECT note FROM audit_head ORDER BY number")]


@pytest.fixture
def ledger(django_db_setup: None, tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger, as its own tables in a schema of their own."""
    owner = conninfo(connections["owner"].settings_dict)
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        connection.execute(f"CREATE SCHEMA {SCHEMA}")
        copy = "CREATE TABLE {0}.{1} (LIKE public.{1} INCLUDING ALL)"
        for name in ("audit_record", *(f"audit_{table}" for table in _TABLES)):
            connection.execute(sql.SQL(copy).format(sql.Identifier(SCHEMA), sql.Identifier(name)))
        found = Ledger(make_conninfo(owner, options=f"-c search_path={SCHEMA}"), tmp_path)
        try:
            yield found
        finally:
            found.end_sealers()
            found.connection.close()
            connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE")
