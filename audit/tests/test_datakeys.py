"""Keys of subjects and months: on disk with the first record that needs them, and gone for ever once destroyed."""

from __future__ import annotations

import asyncio
import hmac
import uuid
from collections.abc import AsyncIterator

import psycopg
import pytest
from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from audit import datakeys, ledger
from audit.datakeys import DataKeys, Subject
from audit.entry import COLUMNS, Entry, commitment, encode, leaf_of, mac_of
from audit.ledger import Ledger, record
from audit.models import DataKey, Record
from audit.opening import KeyDestroyed, payload_of
from audit.payload import Payload, packed, packed_arguments, unpacked
from audit.verify import FORMATS
from keyring.keys import DecryptionError, ring
from mcpsite.postgres import conninfo


def make_entry(**fields: object) -> Entry:
    return Entry(**{"kind": "call", "code": "ok", "actor": "ada", "actor_id": "7", "arguments": b'{"a":1}', **fields})  # type: ignore[arg-type]


def make_record(**fields: object) -> Record:
    return Record.objects.get(rid=record(make_entry(**fields)))


def destroy(key: DataKey) -> None:
    key.wrapped, key.destroyed_at = None, timezone.now()
    key.save()


@pytest.fixture
async def writer(committed_db: None) -> AsyncIterator[Ledger]:
    writer = Ledger(conninfo(connection.settings_dict))
    await writer.start()
    async with asyncio.timeout(5):
        while not writer.available:
            await asyncio.sleep(0.005)
    yield writer
    await writer.stop()


def found(rid: uuid.UUID) -> Record:
    return Record.objects.get(rid=rid)


async def in_thread(call, *arguments):
    """As the site does it: with a connection that is closed afterwards."""

    def run():
        try:
            return call(*arguments)
        finally:
            connection.close()

    return await asyncio.to_thread(run)


# --- The payload ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        Payload(b"s" * 32),
        Payload(b"s" * 32, b"{}"),
        Payload(b"s" * 32, None, b'{"b":2}', None, b"begin"),
        Payload(b"s" * 32, b"{}", None, b"result"),
    ],
)
def test_a_payload_comes_back_as_it_was(payload: Payload) -> None:
    assert unpacked(packed(payload)) == payload


def test_arguments_alone_are_packed_the_same() -> None:
    assert packed_arguments(b"s" * 32, b"{}") == packed(Payload(b"s" * 32, b"{}"))


@pytest.mark.parametrize("cut", [1, 3, 6])
def test_a_payload_that_ends_too_early_is_refused(cut: int) -> None:
    with pytest.raises(ValueError, match="ends too early"):
        unpacked(packed(Payload(b"s" * 32, b"{}"))[:-cut])


# --- Writing ----------------------------------------------------------------------------------------------------------


async def test_a_key_is_written_once_with_the_first_record_that_needs_it(writer: Ledger) -> None:
    rids = await asyncio.gather(*(writer.write(make_entry(actor_id="7")) for _ in range(200)))
    rids += await asyncio.gather(*(writer.write(make_entry(actor_id="8")) for _ in range(3)))

    def look() -> tuple[set[str | None], list[tuple[str, str]]]:
        used = set(Record.objects.filter(rid__in=rids).values_list("key_id", flat=True))
        return used, list(DataKey.objects.order_by("subject").values_list("subject_kind", "subject"))

    used, keys = await in_thread(look)
    assert len(used) == 2
    assert keys == [("user", "7"), ("user", "8")]


async def test_what_was_encrypted_is_read_back_and_proven(writer: Ledger) -> None:
    made = await in_thread(found, await writer.write(make_entry(result=b"answer", keeps_result=100)))
    kept = await in_thread(payload_of, made)
    assert (kept.arguments, kept.result) == (b'{"a":1}', b"answer")
    assert hmac.digest(kept.salt, b"r" + b"answer", "sha256") == bytes(made.result_commit)
    assert b"answer" not in bytes(made.ct)


async def test_a_key_whose_first_batch_failed_comes_with_the_next(writer: Ledger) -> None:
    """The row that the database refuses takes the key's row with it: that of the second brings it along."""
    first = asyncio.ensure_future(writer.write(make_entry()))
    second = asyncio.ensure_future(writer.write(make_entry()))
    await asyncio.sleep(0)
    broken = writer._waiting[0]
    broken.row = broken.row._replace(parameters=(*broken.row.parameters[:2], None, *broken.row.parameters[3:]))
    results = await asyncio.gather(first, second, return_exceptions=True)
    assert isinstance(results[0], ledger.LedgerUnavailable)
    assert isinstance(results[1], uuid.UUID)
    kept = await in_thread(payload_of, await in_thread(found, results[1]))
    assert kept.arguments == b'{"a":1}'


async def test_a_connection_that_is_lost_leaves_no_record_without_its_key(writer: Ledger) -> None:
    tasks = [asyncio.ensure_future(writer.write(make_entry(actor_id=str(n)))) for n in range(100)]
    await asyncio.sleep(0)
    async with await psycopg.AsyncConnection.connect(conninfo(connection.settings_dict), autocommit=True) as other:
        await other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mcpsite ledger'"
        )
    rids = await asyncio.gather(*tasks)

    def look() -> tuple[int, int]:
        names = Record.objects.filter(rid__in=rids).values_list("key_id", flat=True)
        return len(names), DataKey.objects.filter(pk__in=set(names)).count()

    assert await in_thread(look) == (100, 100)


async def test_after_it_forgot_a_writer_makes_new_keys(writer: Ledger) -> None:
    before = await in_thread(found, await writer.write(make_entry()))
    writer.forget_keys()
    after = await in_thread(found, await writer.write(make_entry()))
    assert before.key_id != after.key_id


def test_the_number_of_keys_that_a_writer_keeps_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datakeys, "_MOST_KEYS", 3)
    keys = DataKeys(ring())
    made = [keys.of(str(n), 0) for n in range(5)]
    assert len(keys._keys) == 3
    assert keys.of("4", 0) is made[4]
    assert keys.of("0", 0) is not made[0]


def test_a_new_month_has_new_keys() -> None:
    keys = DataKeys(ring())
    before = keys.of("7", 0)
    assert keys.of("7", keys._until_us - 1) is before
    assert keys.of("7", keys._until_us) is not before


@pytest.mark.django_db
def test_a_record_inside_a_transaction_brings_its_key() -> None:
    made = make_record(subject=Subject("customer", "ab" * 32))
    assert payload_of(made).arguments == b'{"a":1}'
    key = DataKey.objects.get(pk=str(made.key_id))
    assert (key.subject_kind, key.subject, key.month) == ("customer", "ab" * 32, made.at.date().replace(day=1))


# --- Reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_without_its_key_nothing_is_readable_and_the_leaf_stays() -> None:
    made = make_record()
    destroy(DataKey.objects.get(pk=str(made.key_id)))
    with pytest.raises(KeyDestroyed, match="destroyed on"):
        payload_of(made)
    assert leaf_of(fields_of(made)) == bytes(made.leaf)


@pytest.mark.django_db
def test_a_key_cannot_be_given_to_another_row() -> None:
    made, other = make_record(), make_record(actor_id="8")
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE audit_dek SET wrapped = (SELECT wrapped FROM audit_dek WHERE id = %s) WHERE id = %s",
            [other.key_id, made.key_id],
        )
    with pytest.raises(DecryptionError):
        payload_of(made)


@pytest.mark.django_db
def test_a_ct_cannot_be_given_to_another_record() -> None:
    made, other = make_record(), make_record()
    other.ct, other.key_id = made.ct, made.key_id
    with pytest.raises(DecryptionError, match="belongs to another record"):
        payload_of(other)


@pytest.mark.django_db
def test_what_was_written_under_a_key_of_the_ring_is_still_read() -> None:
    made, salt = make_record(), b"s" * 32
    made.ct = ring().encrypt(salt + b'{"old":1}', purpose="ledger", context=made.rid.bytes)
    made.key_id = ring().primary
    assert payload_of(made) == Payload(salt, b'{"old":1}')


# --- What the database refuses ----------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM audit_dek",
        "UPDATE audit_dek SET subject = '8'",
        "UPDATE audit_dek SET month = '2001-01-01'",
        "UPDATE audit_dek SET wrapped = NULL",
        "UPDATE audit_dek SET destroyed_at = now()",
    ],
)
def test_a_key_is_neither_deleted_nor_given_to_somebody_else(statement: str) -> None:
    make_record()
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)


@pytest.mark.django_db
def test_a_destroyed_key_stays_destroyed() -> None:
    made = make_record()
    key = DataKey.objects.get(pk=str(made.key_id))
    destroy(key)
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("UPDATE audit_dek SET wrapped = 'x', destroyed_at = NULL WHERE id = %s", [key.pk])


# --- The leaf ---------------------------------------------------------------------------------------------------------


def fields_of(made: Record) -> tuple[bytes | None, ...]:
    names = ", ".join(name for name, _ in COLUMNS)
    with connection.cursor() as cursor:
        raw = cursor.connection.pgconn.exec_params(
            f"SELECT {names} FROM audit_record WHERE rid = $1".encode(), [made.rid.bytes], [2950], [1], 1
        )
    return tuple(raw.get_value(0, column) for column in range(raw.nfields))


@pytest.mark.django_db
def test_what_a_policy_shows_is_part_of_the_leaf() -> None:
    made = make_record(shown='{"city":"Paris"}')
    fields = fields_of(made)
    assert fields[-1] == b'{"city":"Paris"}'
    assert leaf_of(fields) == bytes(made.leaf)
    assert leaf_of((*fields[:-1], b'{"city":"Rome"}')) != bytes(made.leaf)


def test_a_leaf_of_the_first_format_still_verifies() -> None:
    """As the first release wrote it: over 33 columns. Its bytes are fixed here."""
    fields = (bytes(16), bytes(8), b"call", *([None] * 30))
    assert len(fields) == FORMATS[0]
    old = leaf_of(fields)
    assert old.hex() == "8cbea3d880b35961c744cd183ec848e7f991430c52bc70c9d07db2d3307879cb"
    longer = (*fields, *([None] * (len(COLUMNS) - len(fields))))
    assert [leaf_of(longer[:length]) == old for length in FORMATS] == [True] + [False] * (len(FORMATS) - 1)
    assert FORMATS[-1] == len(COLUMNS)


def test_the_mac_is_over_leaf_writer_and_place() -> None:
    writer = uuid.uuid4()
    row = encode(make_entry(), DataKeys(ring()), writer, 5)
    leaf, mac = row.parameters[-2:]
    assert leaf == leaf_of(row.parameters[:-2])
    assert mac == mac_of(ring(), leaf or b"", writer, 5)
    assert commitment(b"s" * 32, b"a", None) is None
