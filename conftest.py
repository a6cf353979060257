"""Tests run as the site does: the owner makes and migrates the database, the site's own role uses it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connections, transaction
from psycopg import sql
from pytest_django.plugin import DjangoDbBlocker

from audit.floods import turned_away
from mcpsite.datadir import SUPERUSER

_KEPT = (
    "audit\\_record%",
    "audit\\_leaf",
    "audit\\_node",
    "audit\\_head",
    "audit\\_cosignature",
    "audit\\_anchor",
    "audit\\_contradiction",
    "audit\\_sign%",
    "audit\\_gap%",
    "audit\\_retentionclass",
    "audit\\_configured",
    "audit\\_key",
    "audit\\_refused",
    "django\\_migrations",
    "django\\_content\\_type",
    "auth\\_permission",
    "access\\_policyversion",
    "procrastinate\\_%",
)
# Its rows can neither be changed nor deleted.
_FROZEN = ("public.audit_dek",)


@pytest.fixture(scope="session")
def django_db_setup(
    django_test_environment: None, django_db_blocker: DjangoDbBlocker, django_db_keepdb: bool, django_db_createdb: bool
) -> Iterator[None]:
    """One test database for both aliases, made by `owner`; pytest-django would make it as `default`."""
    keep = django_db_keepdb and not django_db_createdb
    owner = _connection("owner")
    original = owner.settings_dict["NAME"]
    with django_db_blocker.unblock():
        name = owner.creation._create_test_db(verbosity=0, autoclobber=True, keepdb=keep)
        _use_database(name)
        if settings.EMBEDDED_DATABASE:
            _forbid_databases(owner.settings_dict["USER"])
        call_command("migrate", verbosity=0, interactive=False)
    yield
    if not settings.EMBEDDED_DATABASE and not django_db_keepdb:
        with django_db_blocker.unblock():
            _use_database(original)
            owner.creation._destroy_test_db(name, verbosity=0)


def _forbid_databases(role: str) -> None:
    """Take back what only making the test database needed: from here on the owner may what it may in real life."""
    with psycopg.connect(settings.DATA_DIR.database_url(SUPERUSER), autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER ROLE {} NOCREATEDB").format(sql.Identifier(role)))


@pytest.fixture(autouse=True)
def nobody_turned_away() -> None:
    """What a process counts of floods begins anew with each test."""
    turned_away.cache_clear()


def _connection(alias: str) -> Any:
    """The alias's connection, with what Django's stubs do not know of it."""
    return connections[alias]


def _use_database(name: str) -> None:
    for connection in (_connection("default"), _connection("owner")):
        connection.close()
        connection.close_pool()
        connection.settings_dict["NAME"] = name
    for database in settings.LEDGER_DATABASES.values():
        database["NAME"] = name


@pytest.fixture
def committed_db(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """A database whose changes are committed, for what other connections must see. The owner empties it afterwards.

    What is append-only stays, as do the rows that migrations made.
    """
    with django_db_blocker.unblock():
        yield
        connections["default"].close()
        _empty()
        connections["owner"].close()


def _empty() -> None:
    """What TRUNCATE does, in a tenth of its time: a test fills few of the tables, and needs no new files for them."""
    tables = _tables()
    with transaction.atomic("owner"), connections["owner"].cursor() as cursor:
        cursor.execute("SET LOCAL lock_timeout = '5s'")
        cursor.execute(f"LOCK TABLE {', '.join(tables)} IN EXCLUSIVE MODE")
        cursor.execute(" UNION ALL ".join(f"SELECT '{name}' WHERE EXISTS (SELECT FROM {name})" for name in tables))
        # References are checked at the end of the transaction.
        for (name,) in cursor.fetchall():
            cursor.execute(f"TRUNCATE {name}" if name in _FROZEN else f"DELETE FROM {name}")


@cache
def _tables() -> tuple[str, ...]:
    with connections["owner"].cursor() as cursor:
        cursor.execute(
            "SELECT format('%%I.%%I', schemaname, tablename) FROM pg_tables"
            " WHERE schemaname = 'public' AND NOT tablename LIKE ANY (%s)",
            [list(_KEPT)],
        )
        return tuple(name for (name,) in cursor.fetchall())
