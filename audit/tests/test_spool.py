"""The spool: what the database did not take in time is on another disk, once, readable by its keys, and drained."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from django.db import connection, connections

from audit import ledger, spool
from audit.datakeys import DataKeys
from audit.entry import Row, encode, uuid7
from audit.ledger import Ledger, LedgerUnavailable
from audit.models import Record
from audit.opening import payload_of
from audit.spool import Spool, SpoolFull
from audit.tests.test_ledger import make_entry, rows
from keyring.keys import KeyRing, ring
from mcpsite.postgres import conninfo


def make_row(**fields: object) -> Row:
    return encode(make_entry(**fields), DataKeys(ring()), uuid.uuid4(), 7)


def abandon(given: Spool) -> Path:
    """As if its process had been killed: the kernel lets go of the lock."""
    os.close(given._file)
    return given._path


@pytest.fixture
def kept(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool", ring())


# --- The file ---------------------------------------------------------------------------------------------------------


def test_what_one_process_wrote_another_reads(kept: Spool, tmp_path: Path) -> None:
    wanted = [make_row(kind="outcome", arguments=b"{}", detail='{"a": "é"}') for _ in range(3)]
    kept.append(wanted[:1])
    kept.append(wanted[1:])
    abandon(kept)
    (left,) = Spool(tmp_path / "spool", ring()).left_behind()
    found, damaged = left.read()
    assert [(row.rid, row.at_us, row.parameters) for row in found] == [
        (row.rid, row.at_us, row.parameters) for row in wanted
    ]
    assert [row.key.parameters for row in found if row.key] == [row.key.parameters for row in wanted if row.key]
    assert len([row for row in found if row.key]) == 3
    assert damaged == 0
    left.close(keep=False)
    assert list((tmp_path / "spool").iterdir()) == []


def test_the_file_of_a_living_process_is_left_alone(kept: Spool, tmp_path: Path) -> None:
    kept.append([make_row()])
    other = Spool(tmp_path / "spool", ring())
    assert other.left_behind() == []
    abandon(kept)
    (left,) = other.left_behind()
    assert Spool(tmp_path / "spool", ring()).left_behind() == []
    left.release()


def test_nothing_in_it_can_be_read_without_the_key(kept: Spool) -> None:
    kept.append([make_row(actor="canary-actor", arguments=b'{"text": "canary-argument"}', detail="canary-detail")])
    assert b"canary" not in kept._path.read_bytes()
    assert kept._path.stat().st_mode & 0o077 == 0
    assert kept._path.parent.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("cut", [7, 9, 200])
def test_a_torn_tail_takes_nothing_else_with_it(kept: Spool, tmp_path: Path, cut: int) -> None:
    first, second = make_row(), make_row()
    kept.append([first])
    place = kept._end
    kept.append([second])
    os.ftruncate(kept._file, place + cut)
    abandon(kept)
    (left,) = Spool(tmp_path / "spool", ring()).left_behind()
    found, damaged = left.read()
    assert [row.rid for row in found] == [first.rid]
    assert 0 < damaged <= cut
    left.close(keep=True)
    assert [path.suffix for path in (tmp_path / "spool").iterdir()] == [".damaged"]


def test_an_entry_of_another_key_or_a_later_version_is_not_taken_and_takes_nothing_with_it(
    kept: Spool, tmp_path: Path
) -> None:
    first, later, last = make_row(), make_row(), make_row()
    kept.append([first, later._replace(parameters=(*later.parameters, b""))])
    ours, kept._keys = kept._keys, KeyRing({"k1": os.urandom(32)})
    kept.append([make_row(actor="mallory")])
    kept._keys = ours
    kept.append([last])
    abandon(kept)
    (left,) = Spool(tmp_path / "spool", ring()).left_behind()
    found, damaged = left.read()
    assert [row.rid for row in found] == [first.rid, last.rid]
    assert damaged > 0
    left.release()


def test_what_is_no_file_of_ours_keeps_nobody_from_the_others(kept: Spool, tmp_path: Path) -> None:
    kept.append([make_row()])
    abandon(kept)
    folder = tmp_path / "spool"
    (folder / "0.spool").mkdir()
    (folder / "1.spool").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "2.spool")
    found = Spool(folder, ring()).left_behind()
    assert kept._path in [left.path for left in found]
    for left in found:
        left.release()


def test_it_is_bounded(kept: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "LIMIT_BYTES", 3_000)
    kept.append([make_row()])
    with pytest.raises(SpoolFull):
        kept.append([make_row() for _ in range(10)])
    kept.append([make_row()])


def test_emptied_it_leaves_nothing(kept: Spool, tmp_path: Path) -> None:
    kept.append([make_row()])
    kept.clear()
    kept.append([again := make_row()])
    abandon(kept)
    (left,) = Spool(tmp_path / "spool", ring()).left_behind()
    assert [row.rid for row in left.read()[0]] == [again.rid]
    left.close(keep=False)
    unused = Spool(tmp_path / "spool", ring())
    unused.open()
    unused.close()
    assert list((tmp_path / "spool").iterdir()) == []


# --- The writer -------------------------------------------------------------------------------------------------------


async def started(kept: Spool | None) -> Ledger:
    writer = Ledger(conninfo(connection.settings_dict), ring(), kept)
    await writer.start()
    async with asyncio.timeout(5):
        while not writer.available:
            await asyncio.sleep(0.005)
    return writer


@pytest.fixture
async def writer(committed_db: None, kept: Spool, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Ledger]:
    monkeypatch.setattr(ledger, "SPOOL_SECONDS", 0.1)
    writer = await started(kept)
    yield writer
    await writer.stop()


async def locked() -> psycopg.AsyncConnection[object]:
    """The ledger's table, kept from everybody until it is closed."""
    owner = await psycopg.AsyncConnection.connect(conninfo(connections["owner"].settings_dict))
    await owner.execute("LOCK TABLE audit_record IN ACCESS EXCLUSIVE MODE")
    return owner


async def until_written(writer: Ledger) -> None:
    async with asyncio.timeout(10):
        while writer.queued or writer._spooled_since:
            await asyncio.sleep(0.01)


async def test_an_outcome_is_durable_in_the_spool_while_the_database_hangs(writer: Ledger, kept: Spool) -> None:
    call_id = uuid7()
    async with await locked():
        rid = await asyncio.wait_for(writer.conclude(make_entry(kind="outcome", call_id=call_id)), 1)
        assert writer.spooled == 1
        assert await rows_of(kept) == [rid]
    await until_written(writer)
    assert [row[0] for row in await rows("call_id = %s", call_id)] == [rid]
    assert kept._end == 0


async def rows_of(kept: Spool) -> list[uuid.UUID]:
    """What is in the file, without taking it over."""
    with kept._path.open("rb") as file:
        return [row.rid for row in spool.Left(kept._path, file.fileno(), ring()).read()[0]]


async def test_an_intent_is_not_content_with_the_spool(writer: Ledger, kept: Spool) -> None:
    async with await locked():
        intent = asyncio.ensure_future(writer.write(make_entry(kind="intent"), 0.5))
        await writer.conclude(make_entry(kind="outcome"))
        # In the file as well, so that the count of the writer shows no gap; its caller is refused all the same.
        assert len(await rows_of(kept)) == 2
        with pytest.raises(LedgerUnavailable):
            await intent
    await until_written(writer)


async def test_a_spool_that_cannot_be_written_leaves_it_at_a_refusal(
    writer: Ledger, kept: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(rows: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept, "append", full)
    monkeypatch.setattr(ledger, "ANSWER_SECONDS", 0.5)
    async with await locked():
        with pytest.raises(LedgerUnavailable):
            await writer.conclude(make_entry(kind="outcome"))
    await until_written(writer)


async def test_after_a_minute_the_spool_no_longer_stands_in(writer: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_SPOOL_LASTS_SECONDS", 0.2)
    monkeypatch.setattr(ledger, "ANSWER_SECONDS", 0.5)
    async with await locked():
        await writer.conclude(make_entry(kind="outcome"))
        await asyncio.sleep(0.3)
        with pytest.raises(LedgerUnavailable):
            await writer.conclude(make_entry(kind="outcome"))
    await until_written(writer)


async def test_outcomes_are_not_refused_for_a_full_queue(writer: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_QUEUE_LIMIT", 0)
    with pytest.raises(LedgerUnavailable):
        await writer.write(make_entry())
    await writer.conclude(make_entry(kind="outcome", call_id=(call_id := uuid7())))
    assert len(await rows("call_id = %s", call_id)) == 1


def test_an_entry_of_a_version_with_fewer_columns_can_be_written() -> None:
    wanted = make_row(arguments=b"{}")
    fewer = wanted._replace(parameters=(*wanted.parameters[:-3], *wanted.parameters[-2:]))
    assert spool._unpacked(spool._packed(fewer)).parameters == wanted.parameters


async def away() -> None:
    raise OSError("away")


def arguments_of(call_id: uuid.UUID) -> list[bytes | None]:
    """What the records of the call keep; the thread gives its connection back."""
    try:
        return [payload_of(each).arguments for each in Record.objects.filter(call_id=call_id)]
    finally:
        connection.close()


async def test_what_is_left_when_a_process_stops_is_written_by_the_next(
    committed_db: None, tmp_path: Path, kept: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    call_id = uuid7()
    writer = await started(kept)
    monkeypatch.setattr(writer, "_connect", away)
    writer._lose("test")
    for number in range(5):
        kind = "outcome" if number else "call"
        writer.put(make_entry(kind=kind, call_id=call_id, arguments=b'{"a": 1}', actor_id=str(call_id)))
    await writer.stop(within=0.2)
    assert await rows("call_id = %s", call_id) == []
    following = await started(Spool(tmp_path / "spool", ring()))
    async with asyncio.timeout(10):
        while len(found := await rows("call_id = %s", call_id)) < 5:
            await asyncio.sleep(0.02)
    assert [row[2] for row in found] == [1, 2, 3, 4, 5]
    assert await asyncio.to_thread(arguments_of, call_id) == [b'{"a": 1}'] * 5
    await following.stop()
    assert list((tmp_path / "spool").iterdir()) == []


async def test_what_is_drained_is_written_once_and_is_on_record(
    committed_db: None, tmp_path: Path, kept: Spool
) -> None:
    call_id = uuid7()
    there = [make_row(call_id=call_id) for _ in range(2)]
    writer = await started(None)
    assert await writer._write_rows(there[:1]) == 0
    await writer.stop()
    kept.append(there)
    name = abandon(kept).name
    following = await started(Spool(tmp_path / "spool", ring()))
    async with asyncio.timeout(10):
        while not (told := await system_records(name)):
            await asyncio.sleep(0.02)
    await following.stop()
    assert [row[0] for row in await rows("call_id = %s", call_id)] == [row.rid for row in there]
    assert told == [("spool_drained", {"file": name, "records": 2, "refused": 0, "damaged_bytes": 0})]


async def test_a_file_that_cannot_be_read_is_let_go_of_and_the_next_is_written(
    committed_db: None, tmp_path: Path, kept: Spool
) -> None:
    kept.append([make_row(call_id=(call_id := uuid7()))])
    abandon(kept)
    os.mkfifo(pipe := tmp_path / "spool" / "0.spool")
    following = await started(Spool(tmp_path / "spool", ring()))
    async with asyncio.timeout(10):
        while kept._path.exists():
            await asyncio.sleep(0.02)
    assert len(await rows("call_id = %s", call_id)) == 1
    (left,) = Spool(tmp_path / "spool", ring()).left_behind()
    assert left.path == pipe
    left.release()
    await following.stop()


async def system_records(word: str) -> list[tuple[str, dict[str, object]]]:
    async with await psycopg.AsyncConnection.connect(conninfo(connection.settings_dict)) as reader:
        found = await reader.execute(
            "SELECT code, detail FROM audit_record WHERE kind = 'system' AND detail LIKE %s", [f"%{word}%"]
        )
        return [(str(code), json.loads(str(detail))) for code, detail in await found.fetchall()]


async def test_a_record_that_is_never_taken_leaves_a_gap_that_is_on_record(writer: Ledger) -> None:
    task = asyncio.ensure_future(writer.write(make_entry(call_id=(call_id := uuid7()))))
    await asyncio.sleep(0)
    broken = writer._waiting[-1]
    parameters = list(broken.row.parameters)
    parameters[20] = None
    broken.row = broken.row._replace(parameters=tuple(parameters))
    with pytest.raises(LedgerUnavailable):
        await task
    await until_written(writer)
    ((code, detail),) = await system_records(str(writer.writer_id))
    assert code == "record_refused"
    assert detail["writer_seq"] == broken.row.value("writer_seq")
    assert [row[1] for row in await rows("call_id = %s", call_id)] == ["record_refused"]
