"""A small ledger in a schema of its own, so that each test knows every place in it, and can take records away."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.db import connections

from audit.streams.delivery import Delivery, Work
from audit.streams.senders import Sender
from audit.streams.tests.authority import Authority
from mcpsite.postgres import conninfo

NO_FILTER: dict[str, list[str]] = {"kinds": [], "decisions": [], "tools": []}
_TABLES = ("audit_record", "audit_leaf", "audit_streamstate")


@dataclass
class Book:
    """A ledger, and one stream's state."""

    schema: str
    conninfo: str
    connection: psycopg.Connection[Any]
    stream: uuid.UUID = field(default_factory=uuid.uuid4)
    ids: list[int] = field(default_factory=list)

    def write(self, how_many: int = 1, **columns: Any) -> None:
        """Records, not sealed yet."""
        for _ in range(how_many):
            columns = {"kind": "call", "code": "ok", "decision": "allow", "tool": "rooms", "actor": "mia", **columns}
            given = {**columns, "rid": uuid.uuid4(), "at": datetime.now(UTC), "writer_id": uuid.uuid4()}
            given |= {"leaf": os.urandom(32), "mac": os.urandom(32)}
            names, places = ", ".join(given), ", ".join(["%s"] * len(given))
            self.connection.execute(
                f"INSERT INTO audit_record ({names}) VALUES ({places})",
                list(given.values()),
            )

    def seal(self) -> None:
        """Give each record without one its place, in the order of the ids that are visible now."""
        self.connection.execute(
            "INSERT INTO audit_leaf (seq, record_id, at, leaf)"
            " SELECT (SELECT count(*) FROM audit_leaf) - 1 + row_number() OVER (ORDER BY id), id, at, leaf"
            " FROM audit_record WHERE id NOT IN (SELECT record_id FROM audit_leaf)"
        )

    def grow(self, how_many: int = 1, **columns: Any) -> None:
        """Sealed records."""
        self.write(how_many, **columns)
        self.seal()

    def drop(self, first: int, last: int) -> None:
        """Take the records of these places away, as dropping a partition does."""
        self.connection.execute(
            "DELETE FROM audit_record WHERE id IN (SELECT record_id FROM audit_leaf WHERE seq BETWEEN %s AND %s)",
            [first, last],
        )

    def begin(self, cursor: int = 0, number: int = 1) -> None:
        """The stream's state."""
        self.connection.execute(
            "INSERT INTO audit_streamstate (stream_id, cursor, number, resend_cursor, resend_number, error, missed,"
            " test_message, alarm) VALUES (%s, %s, %s, %s, %s, '', 0, '', '')",
            [self.stream, cursor, number, cursor, number],
        )

    @property
    def state(self) -> dict[str, Any]:
        """As it stands."""
        with self.connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            found = cursor.execute("SELECT * FROM audit_streamstate").fetchone()
        assert found is not None
        return found

    def set(self, **values: Any) -> None:
        """Change the state, as somebody else does."""
        names = ", ".join(f"{name} = %({name})s" for name in values)
        self.connection.execute(f"UPDATE audit_streamstate SET {names}", values)

    def ask_to_test(self, by: str = "mia") -> None:
        """As the admin does."""
        self.set(test_asked_at=datetime.now(UTC), test_message=by)

    def work(self, batch: int = 50, enabled: bool = True, **filters: list[str]) -> Work:
        """What to deliver."""
        return Work(self.stream, "tests", {**NO_FILTER, **filters}, enabled, batch)


@pytest.fixture
def book(django_db_setup: None, django_db_blocker: Any) -> Iterator[Book]:
    """An empty ledger."""
    schema = f"streams_{uuid.uuid4().hex[:12]}"
    with django_db_blocker.unblock():
        owner = conninfo(connections["owner"].settings_dict)
        site = conninfo(connections["default"].settings_dict)
    name = settings.DATABASES["default"]["USER"] or connections["default"].settings_dict["USER"]
    with psycopg.connect(owner, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")
        for table in _TABLES:
            connection.execute(f"CREATE TABLE {schema}.{table} (LIKE public.{table} INCLUDING ALL)")
        connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO {name}")
        connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {name}")
        connection.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {name}")
        info = psycopg.conninfo.make_conninfo(site, options=f"-c search_path={schema}")
        try:
            with psycopg.connect(info, autocommit=True) as own:
                yield Book(schema, info, own)
        finally:
            connection.execute(f"DROP SCHEMA {schema} CASCADE")


Deliver = Callable[[Work, Sender], Delivery]


@pytest.fixture
def deliver(book: Book) -> Iterator[Deliver]:
    """Runs deliveries in threads, until the end of the test."""
    with ExitStack() as running:
        yield lambda work, sender: running.enter_context(delivering(book, work, sender))


@contextmanager
def delivering(book: Book, work: Work, sender: Sender) -> Iterator[Delivery]:
    """One delivery in a thread."""
    delivery = Delivery(book.conninfo, work, sender)
    failures: list[BaseException] = []

    def run() -> None:
        try:
            delivery.run()
        except Exception as error:  # noqa: BLE001 - the test is told of all
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield delivery
    finally:
        delivery.stop()
        thread.join(20)
        assert not thread.is_alive()
        assert not failures, failures


@pytest.fixture(scope="session")
def authority() -> Authority:
    """Whom the tests trust."""
    return Authority()
