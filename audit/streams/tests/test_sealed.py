from __future__ import annotations

import json

import pytest

from audit.streams import sealed
from audit.streams.sealed import EVERYTHING, Gone, Sealed


@pytest.fixture
def cursor(book):
    with book.connection.cursor() as cursor:
        yield cursor


def places(stretch):
    return [item.seq for item in stretch.found]


def test_records_come_in_the_order_in_which_they_were_sealed_and_not_in_that_of_their_ids(book, cursor):
    book.write(3)
    ids = [row[0] for row in book.connection.execute("SELECT id FROM audit_record ORDER BY id")]
    for seq, number in enumerate([ids[2], ids[0], ids[1]]):
        book.connection.execute(
            "INSERT INTO audit_leaf SELECT %s, id, at, leaf FROM audit_record WHERE id = %s", [seq, number]
        )
    assert [item.number for item in sealed.read(cursor, 0, EVERYTHING, 10).found] == [ids[2], ids[0], ids[1]]


def test_what_is_not_sealed_is_not_read(book, cursor):
    book.grow(2)
    book.write(3)
    stretch = sealed.read(cursor, 0, EVERYTHING, 10)
    assert (places(stretch), stretch.end) == ([0, 1], 2)
    assert sealed.read(cursor, 2, EVERYTHING, 10).end == 2


def test_a_full_page_ends_after_its_last_record(book, cursor):
    book.grow(7)
    stretch = sealed.read(cursor, 0, EVERYTHING, 3)
    assert (places(stretch), stretch.end) == ([0, 1, 2], 3)
    assert places(sealed.read(cursor, stretch.end, EVERYTHING, 10)) == [3, 4, 5, 6]


def test_a_filter_moves_on_over_what_does_not_fit(book, cursor):
    book.grow(2)
    book.grow(1, kind="denied", decision="deny", code="not_granted", tool="safe")
    book.grow(2)
    for filters in ({"kinds": ["denied"]}, {"decisions": ["deny"]}, {"tools": ["safe"]}):
        stretch = sealed.read(cursor, 0, {**EVERYTHING, **filters}, 10)
        assert (places(stretch), stretch.end) == ([2], 5)
    stretch = sealed.read(cursor, 0, {**EVERYTHING, "kinds": ["denied"], "tools": ["rooms"]}, 10)
    assert (places(stretch), stretch.end) == ([], 5)


def test_one_look_is_bounded_however_little_fits(book, cursor, monkeypatch):
    monkeypatch.setattr(sealed, "WINDOW", 4)
    book.grow(10)
    assert sealed.read(cursor, 0, {**EVERYTHING, "kinds": ["auth"]}, 10).end == 4


def test_records_that_are_gone_are_told_as_one_gap_whatever_the_filter(book, cursor):
    book.grow(10)
    book.drop(3, 6)
    assert sealed.read(cursor, 0, EVERYTHING, 100).end == 3
    for filters in (EVERYTHING, {**EVERYTHING, "kinds": ["auth"]}):
        gap = sealed.read(cursor, 3, filters, 2)
        assert (gap.found, gap.end) == ([Gone(3, 6)], 7)
    assert places(sealed.read(cursor, 7, EVERYTHING, 100)) == [7, 8, 9]


def test_arguments_results_and_their_keys_do_not_leave(book, cursor):
    secret = b'{"password": "hunter2"}'
    book.grow(1, ct=secret, key_id="k1", args_commit=b"\1" * 32, result_commit=b"\2" * 32)
    item = sealed.read(cursor, 0, EVERYTHING, 1).found[0]
    assert isinstance(item, Sealed)
    told = json.dumps(item.body())
    assert not {"ct", "key_id", "mac"} & set(item.body()["record"])
    assert "hunter2" not in told
    assert secret.hex() not in told
    assert item.body()["record"]["args_commit"]


def test_values_are_written_as_the_evidence_describes_them(book, cursor):
    book.grow(1, detail='{"changes": {"name": ["a", "b"]}}', definition=b"\x01\xff", total_us=12)
    body = sealed.read(cursor, 0, EVERYTHING, 1).found[0].body()
    record = body["record"]
    assert record["at"].endswith("Z")
    assert len(record["at"]) == len("2026-01-02T03:04:05.123456Z")
    assert record["definition"] == "01ff"
    assert record["detail"] == {"changes": {"name": ["a", "b"]}}
    assert record["total_us"] == 12
    assert "connector" not in record
    assert len(bytes.fromhex(body["leaf"])) == 32
