"""What each database role may do with the ledger, and what it is refused: asked of PostgreSQL, role by role."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection, connections

from audit.entry import Entry, uuid7
from audit.ledger import Ledger
from mcpsite.dbroles import SEALED
from mcpsite.postgres import conninfo

pytestmark = pytest.mark.skipif(
    not settings.EMBEDDED_DATABASE, reason="roles of another's database are its owner's matter"
)
REFUSED = psycopg.errors.InsufficientPrivilege
TABLES = (
    "audit_record",
    *SEALED,
    "audit_cosignature",
    "audit_anchor",
    "audit_signing_request",
)
INSERTS = {
    "audit_leaf": "INSERT INTO audit_leaf VALUES (-1, -1, now(), sha256('x'))",
    "audit_node": "INSERT INTO audit_node VALUES (8, -1, sha256('x'))",
    "audit_head": "INSERT INTO audit_head VALUES (-1, 0, sha256('x'), sha256('x'), now(), 0, 'x')",
    "audit_key": "INSERT INTO audit_key VALUES ('x', 0)",
    "audit_refused": "INSERT INTO audit_refused VALUES (-1, 'forged')",
    "audit_signature": (
        "INSERT INTO audit_signature SELECT id, 'x' FROM audit_signing_request"
        " WHERE id NOT IN (SELECT request FROM audit_signature)"
    ),
}
# What somebody would try who has got hold of the role.
ATTACKS = (
    "UPDATE {table} SET {column} = {column}",
    "DELETE FROM {table}",
    "TRUNCATE {table} CASCADE",
    "ALTER TABLE {table} DISABLE TRIGGER ALL",
    "ALTER TABLE {table} ADD COLUMN x int",
    "DROP TABLE {table} CASCADE",
    "CREATE TRIGGER t BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION audit_refuse()",
    "CREATE RULE r AS ON INSERT TO {table} DO INSTEAD NOTHING",
    "MERGE INTO {table} t USING (VALUES (1)) v ON true WHEN MATCHED THEN DELETE",
)


def of(name: str) -> str:
    """The connection string of a role on the database of the tests."""
    if name in ("default", "owner"):
        return conninfo(connections[name].settings_dict)
    return conninfo({**settings.LEDGER_DATABASES[name], "NAME": connection.settings_dict["NAME"]})


@contextmanager
def undone(role: str) -> Iterator[psycopg.Connection]:
    """A transaction of the role that is rolled back."""
    with psycopg.connect(of(role)) as each:
        try:
            yield each
        finally:
            each.rollback()


@pytest.fixture(autouse=True)
def migrated(django_db_setup: None) -> None:
    """The roles have their privileges from `migrate`."""


@pytest.mark.parametrize("role", ["default", "writer", "sealer", "reader"])
@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("attack", ATTACKS)
def test_no_role_can_change_evidence_or_what_guards_it(role: str, table: str, attack: str) -> None:
    with psycopg.connect(of("owner")) as owner:
        column = owner.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum = 2", [table]
        ).fetchone()
    assert column
    with undone(role) as each, pytest.raises(REFUSED):
        each.execute(attack.format(table=table, column=column[0]).encode())


@pytest.mark.parametrize("role", ["default", "writer", "sealer", "reader"])
def test_no_role_reaches_a_partition_by_its_own_name(role: str) -> None:
    with psycopg.connect(of("owner")) as owner:
        partitions = owner.execute("SELECT relid::regclass::text FROM pg_partition_tree('audit_record') WHERE isleaf")
        names = [row[0] for row in partitions]
    assert names
    for name in names:
        for statement in ("SELECT FROM {}", "DELETE FROM {}", "TRUNCATE {}", "COPY {} TO STDOUT"):
            with undone(role) as each, pytest.raises(REFUSED):
                each.execute(statement.format(name).encode())


@pytest.mark.parametrize("role", ["default", "writer", "reader"])
@pytest.mark.parametrize("table", sorted(INSERTS))
def test_only_the_sealer_makes_evidence(role: str, table: str) -> None:
    with undone(role) as each, pytest.raises(REFUSED):
        each.execute(INSERTS[table].encode())
    with undone("sealer") as each:
        each.execute(INSERTS[table].encode())


@pytest.mark.parametrize("statement", ["SELECT FROM {}", "SELECT count(*) FROM {}", "COPY {} TO STDOUT"])
@pytest.mark.parametrize("table", [*TABLES, "access_user", "tools_datasource", "audit_dek", "django_migrations"])
def test_the_writer_reads_nothing(table: str, statement: str) -> None:
    with undone("writer") as each, pytest.raises(REFUSED):
        each.execute(statement.format(table).encode())


@pytest.mark.parametrize("role", ["sealer", "reader"])
@pytest.mark.parametrize("table", ["access_user", "access_apitoken", "tools_datasource", "audit_dek"])
def test_sealer_and_reader_see_the_ledger_only(role: str, table: str) -> None:
    with undone(role) as each, pytest.raises(REFUSED):
        each.execute(f"SELECT FROM {table}".encode())


@pytest.mark.parametrize("table", TABLES)
def test_the_reader_reads_the_evidence_and_adds_nothing(table: str) -> None:
    with undone("reader") as each:
        each.execute(f"SELECT * FROM {table} LIMIT 1".encode())
    with undone("reader") as each, pytest.raises(REFUSED):
        each.execute(f"COPY {table} FROM STDIN".encode())


@pytest.mark.parametrize("role", ["default", "writer", "sealer", "reader"])
def test_no_role_can_become_another_or_turn_replication_tricks(role: str) -> None:
    for statement in (
        "SET ROLE mcpsite_owner",
        "SET session_replication_role = replica",
        "ALTER ROLE mcpsite_reader SUPERUSER",
        "GRANT DELETE ON audit_record TO mcpsite_site",
        "SELECT setval('audit_record_id_seq', 1)",
    ):
        with undone(role) as each:
            try:
                each.execute(statement.encode())
            except REFUSED:
                continue
            # A GRANT of what one may not grant is a warning.
            assert statement.startswith("GRANT")
            may = each.execute("SELECT has_table_privilege('mcpsite_site', 'audit_record', 'DELETE')").fetchone()
            assert may == (False,)


async def test_the_ledger_writes_as_the_writer(committed_db: None) -> None:
    """Also what it is not sure to have written, and the keys of subjects."""
    ledger = Ledger(of("writer"))
    await ledger.start()
    async with asyncio.timeout(5):
        while not ledger.available:
            await asyncio.sleep(0.005)
    first = await ledger.write(
        Entry(kind="call", code="ok", call_id=uuid7(), actor_id="7", arguments=b"{}", result=b"r")
    )
    unsure = ledger._enqueue(Entry(kind="call", code="ok", call_id=uuid7()), 5)
    unsure.again, unsure.written = True, asyncio.get_running_loop().create_future()
    await unsure.written
    second = unsure.row.rid
    await ledger.stop()
    async with await psycopg.AsyncConnection.connect(of("reader")) as reader:
        found = await (
            await reader.execute("SELECT count(*) FROM audit_record WHERE rid = ANY(%s)", [[first, second]])
        ).fetchone()
    assert found == (2,)


def test_the_writer_waits_for_the_disk_whatever_the_server_says() -> None:
    with psycopg.connect(of("writer")) as each:
        row: Any = each.execute(
            "SELECT current_setting('synchronous_commit'), current_setting('statement_timeout'),"
            " current_setting('lock_timeout')"
        ).fetchone()
    assert row == ("on", "250ms", "100ms")


def test_a_role_that_is_not_there_is_named(settings: Any, committed_db: None) -> None:
    settings.LEDGER_DATABASES = {"writer": {"USER": "nobody_here"}}
    with pytest.raises(CommandError, match=r"no database role nobody_here.*roles\.sql"):
        call_command("migrate", verbosity=0, interactive=False)


def test_without_roles_of_its_own_the_site_does_all_of_it(settings: Any, committed_db: None) -> None:
    site = connection.settings_dict["USER"]
    with settings_of(settings, {name: {"USER": site} for name in ("writer", "sealer", "reader")}):
        call_command("migrate", verbosity=0, interactive=False)
        with undone("default") as each:
            each.execute(INSERTS["audit_head"].encode())
    call_command("migrate", verbosity=0, interactive=False)
    with undone("default") as each, pytest.raises(REFUSED):
        each.execute(INSERTS["audit_head"].encode())


@contextmanager
def settings_of(settings: Any, databases: dict[str, Any]) -> Iterator[None]:
    before, settings.LEDGER_DATABASES = settings.LEDGER_DATABASES, databases
    try:
        yield
    finally:
        settings.LEDGER_DATABASES = before
