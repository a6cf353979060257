"""The writer of the ledger: durable before it answers, grouped, and whole after every failure."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import psycopg
import pytest
from django.db import DatabaseError, connection, connections, transaction

from audit import ledger
from audit.entry import COLUMNS, Entry, leaf_of, mac_of, uuid7
from audit.ledger import Ledger, LedgerUnavailable
from audit.models import Record
from keyring.keys import ring
from mcpsite.postgres import conninfo


def make_entry(**fields: object) -> Entry:
    return Entry(**{"kind": "call", "code": "ok", "call_id": uuid7(), **fields})  # type: ignore[arg-type]


@pytest.fixture
async def writer(committed_db: None) -> AsyncIterator[Ledger]:
    writer = Ledger(conninfo(connection.settings_dict))
    await writer.start()
    async with asyncio.timeout(5):
        while not writer.available:
            await asyncio.sleep(0.005)
    yield writer
    await writer.stop()


async def rows(where: str, *values: object) -> list[tuple[object, ...]]:
    async with await psycopg.AsyncConnection.connect(conninfo(connection.settings_dict)) as reader:
        cursor = await reader.execute(
            f"SELECT rid, code, writer_seq FROM audit_record WHERE {where} ORDER BY id", values
        )
        return await cursor.fetchall()


async def test_a_record_is_durable_when_write_returns(writer: Ledger) -> None:
    rid = await writer.write(make_entry(actor="ada"))
    assert [row[0] for row in await rows("rid = %s", rid)] == [rid]


async def test_records_that_wait_share_a_commit(writer: Ledger) -> None:
    call_id = uuid7()
    await asyncio.gather(*(writer.write(make_entry(call_id=call_id)) for _ in range(300)))
    found = await rows("call_id = %s", call_id)
    assert len(found) == 300
    assert writer.batches < 50
    assert [row[2] for row in found] == list(range(1, 301))


async def test_the_leaf_is_over_what_the_database_gives_back(writer: Ledger) -> None:
    rid = await writer.write(
        make_entry(arguments=b'{"a":1}', result=b"r", actor="é\0", detail="{}", definition=b"\xff\x00", total_us=7)
    )
    names = ", ".join(name for name, _ in COLUMNS)
    async with await psycopg.AsyncConnection.connect(conninfo(connection.settings_dict)) as reader:
        result = reader.pgconn.exec_params(
            f"SELECT {names}, leaf, mac FROM audit_record WHERE rid = $1".encode(), [rid.bytes], [2950], [1], 1
        )
    values = tuple(result.get_value(0, column) for column in range(result.nfields))
    assert leaf_of(values[:-2]) == values[-2]
    assert mac_of(ring(), leaf_of(values[:-2]), writer.writer_id, writer._seq) == values[-1]
    changed = (*values[:6], b"mallory", *values[7:-2])
    assert leaf_of(changed) != values[-2]


async def test_the_database_being_gone_fails_the_impatient_and_keeps_the_patient(writer: Ledger) -> None:
    writer._lose("test")
    with pytest.raises(LedgerUnavailable):
        await writer.write(make_entry(), ledger.INTENT_SECONDS)
    rid = await writer.write(make_entry(), ledger.ANSWER_SECONDS)
    assert len(await rows("rid = %s", rid)) == 1


async def test_a_connection_that_is_killed_loses_nothing_and_writes_nothing_twice(writer: Ledger) -> None:
    call_id = uuid7()
    tasks = [asyncio.create_task(writer.write(make_entry(call_id=call_id))) for _ in range(200)]
    await asyncio.sleep(0)
    async with await psycopg.AsyncConnection.connect(conninfo(connection.settings_dict), autocommit=True) as other:
        await other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mcpsite ledger'"
        )
        more = [asyncio.create_task(writer.write(make_entry(call_id=call_id))) for _ in range(200)]
        ids = await asyncio.gather(*tasks, *more)
    found = await rows("call_id = %s", call_id)
    assert {row[0] for row in found} == set(ids)
    assert len(found) == 400


async def test_one_bad_row_does_not_take_the_others_with_it(writer: Ledger) -> None:
    good = [writer.write(make_entry()) for _ in range(3)]
    bad = writer.write(make_entry(kind="call", code="ok", policy_version=1))
    tasks = [asyncio.ensure_future(each) for each in (*good, bad)]
    await asyncio.sleep(0)
    broken = writer._waiting[-1] if writer._waiting else writer._in_flight[-1]
    parameters = list(broken.row.parameters)
    parameters[2] = None
    broken.row = broken.row._replace(parameters=tuple(parameters))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [uuid.UUID] * 3 + [LedgerUnavailable]


async def test_a_lock_delays_records_and_loses_none(writer: Ledger) -> None:
    call_id = uuid7()
    await writer.write(make_entry(call_id=call_id))
    owner = await psycopg.AsyncConnection.connect(conninfo(connections["owner"].settings_dict))
    async with owner:
        await owner.execute("LOCK TABLE audit_record IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(LedgerUnavailable):
            await writer.write(make_entry(call_id=call_id), ledger.INTENT_SECONDS)
        assert not writer.available
        tasks = [asyncio.ensure_future(writer.write(make_entry(call_id=call_id), 30)) for _ in range(20)]
        await asyncio.sleep(1.5)
    await asyncio.gather(*tasks)
    found = await rows("call_id = %s", call_id)
    assert [row[2] for row in found] == list(range(1, 23))


async def test_batches_and_the_queue_are_bounded_in_bytes(writer: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_BATCH_BYTES", 100_000)
    big = [writer.write(make_entry(arguments=b"x" * 60_000)) for _ in range(10)]
    await asyncio.gather(*big)
    assert writer.batches >= 5
    assert writer._bytes == 0
    monkeypatch.setattr(ledger, "_QUEUE_BYTES", 1)
    monkeypatch.setattr(writer, "_send", lambda: None)
    waiting = asyncio.ensure_future(writer.write(make_entry()))
    await asyncio.sleep(0)
    with pytest.raises(LedgerUnavailable):
        await writer.write(make_entry())
    monkeypatch.undo()
    writer._send()
    await waiting


async def test_the_queue_is_bounded(writer: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_QUEUE_LIMIT", 10)
    monkeypatch.setattr(writer, "_send", lambda: None)
    waiting = [asyncio.ensure_future(writer.write(make_entry())) for _ in range(10)]
    await asyncio.sleep(0)
    with pytest.raises(LedgerUnavailable):
        await writer.write(make_entry())
    assert not writer.available
    monkeypatch.undo()
    writer._send()
    await asyncio.gather(*waiting)


async def test_stop_writes_what_is_waiting(committed_db: None) -> None:
    writer = Ledger(conninfo(connection.settings_dict))
    await writer.start()
    call_id = uuid7()
    for _ in range(20):
        writer.put(make_entry(call_id=call_id))
    await writer.stop()
    assert len(await rows("call_id = %s", call_id)) == 20


# --- What the database refuses ----------------------------------------------------------------------------------------


@pytest.fixture
def kept(committed_db: None) -> uuid.UUID:
    return ledger.record(make_entry(kind="system"))


@pytest.mark.parametrize("alias", ["default", "owner"])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_record SET actor = 'mallory'",
        "DELETE FROM audit_record",
        "TRUNCATE audit_record",
        "TRUNCATE {partition}",
        "UPDATE {partition} SET code = 'x'",
        "DELETE FROM {partition}",
    ],
)
def test_nobody_changes_a_record(kept: uuid.UUID, alias: str, statement: str) -> None:
    record = Record.objects.get(rid=kept)
    partition = f"audit_record_{record.at:%Y%m}"
    with pytest.raises(DatabaseError), transaction.atomic(alias), connections[alias].cursor() as cursor:
        cursor.execute(statement.format(partition=partition))
    assert Record.objects.get(rid=kept).actor is None
    connections["owner"].close()


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE audit_record ADD COLUMN x int",
        "ALTER TABLE audit_record DISABLE TRIGGER ALL",
        "DROP TABLE audit_record",
        "DROP TRIGGER audit_record_frozen ON audit_record",
        "INSERT INTO {partition} SELECT * FROM audit_record",
        "SELECT * FROM {partition}",
        "CREATE TABLE mine (x int)",
        "ALTER TABLE access_user ADD COLUMN x int",
        "DELETE FROM django_migrations",
        "COPY audit_record TO PROGRAM 'cat'",
        "SET session_replication_role = replica",
        "SELECT audit_make_partitions(1000)",
    ],
)
def test_the_sites_role_cannot_get_around_it(kept: uuid.UUID, statement: str) -> None:
    partition = f"audit_record_{Record.objects.get(rid=kept).at:%Y%m}"
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement.format(partition=partition))


def test_the_site_can_have_the_coming_months_prepared(committed_db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT audit_make_partitions(5)")
        cursor.execute(
            "SELECT count(to_regclass('audit_record_' || to_char(now() AT TIME ZONE 'UTC' + make_interval(months => m),"
            " 'YYYYMM'))) FROM generate_series(0, 5) AS m"
        )
        assert cursor.fetchone()[0] == 6
        cursor.execute("SELECT audit_make_partitions(5)")
        assert cursor.fetchone()[0] == 0


def test_the_model_refuses_too(kept: uuid.UUID) -> None:
    record = Record.objects.get(rid=kept)
    for attempt in (record.save, record.delete, lambda: Record.objects.update(code="x"), Record.objects.all().delete):
        with pytest.raises(TypeError):
            attempt()


def test_a_record_goes_with_its_transaction(committed_db: None) -> None:
    rid = uuid.uuid4()
    try:
        with transaction.atomic():
            rid = ledger.record(make_entry(kind="config"))
            raise RuntimeError
    except RuntimeError:
        pass
    assert not Record.objects.filter(rid=rid).exists()
    kept = Record.objects.get(rid=ledger.record(make_entry(kind="config", detail="a\0b")))
    assert kept.detail == "a\ufffdb"
    assert kept.writer_seq is None
