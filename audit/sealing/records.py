"""Reads records as the bytes that their leaves are over, and looks at each before it is sealed.

A row of `COPY … (FORMAT binary)` is each field as its length and its bytes, which is what a leaf is the hash of: so no
field has to be taken apart. What follows the fields of the leaf has a fixed width.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Sequence
from struct import Struct
from typing import NamedTuple

import psycopg

from audit.entry import COLUMNS, MAC_PURPOSE
from audit.verify import FORMATS
from keyring.keys import KeyRing

CHANGED, FORGED = "changed", "forged"

# Field count, then for each: length and value; after the fields of the leaf: leaf, mac, id, at, writer, no seq?, seq.
_HEADER_BYTES, _COUNT_BYTES = 19, 2
_TAIL = Struct("!i32si32siqiqi16si?i8s")
# A leaf or MAC of another length would shift the tail: nobody of ours writes one, and zeros fit nothing.
_FIXED = "CASE WHEN length({0}) = 32 THEN {0} ELSE '\\x{1}'::bytea END"
_SELECT = (
    f"SELECT {', '.join(name for name, _ in COLUMNS)},"  # noqa: S608 - constants
    f" {_FIXED.format('leaf', '00' * 32)}, {_FIXED.format('mac', '00' * 32)},"
    " id, at, writer_id, writer_seq IS NULL, coalesce(writer_seq, 0) FROM audit_record"
)
_NULL = Struct("!i").pack(-1)
_TRAILER = b"\xff\xff"


class Seen(NamedTuple):
    """A record as the sealer sees it: `refused` says why it must not be sealed. `at` in PostgreSQL's microseconds."""

    id: int
    at: int
    leaf: bytes
    refused: str | None


class Examiner:
    """Tells whether a record is as its writer wrote it: leaf over its columns, MAC with a key of the ring."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = [keys.derive(MAC_PURPOSE, name) for name in keys.key_ids]

    def look(self, row: bytes) -> Seen:
        """What to make of a row of `_SELECT` in PostgreSQL's binary format."""
        split = len(row) - _TAIL.size
        _, leaf, _, mac, _, record, _, at, _, writer, _, unnumbered, _, seq = _TAIL.unpack_from(row, max(split, 0))
        fields = row[_COUNT_BYTES:split]
        if hashlib.sha256(b"\0" + fields).digest() != leaf and not _was_shorter(fields, leaf):
            return Seen(record, at, leaf, CHANGED)
        message = leaf + writer if unnumbered else leaf + writer + seq
        if not self._made(message, mac):
            return Seen(record, at, leaf, FORGED)
        return Seen(record, at, leaf, None)

    def _made(self, message: bytes, mac: bytes) -> bool:
        for place, key in enumerate(self._keys):
            if hmac.compare_digest(hmac.digest(key, message, "sha256"), mac):
                if place:  # the next ones are probably of this key, too
                    self._keys.insert(0, self._keys.pop(place))
                return True
        return False


def _was_shorter(fields: bytes, leaf: bytes) -> bool:
    """Whether it is the leaf of a time when records had fewer columns; those that came later must be NULL."""
    for length in FORMATS:
        later = _NULL * (len(COLUMNS) - length)
        if later and fields.endswith(later) and hashlib.sha256(b"\0" + fields[: -len(later)]).digest() == leaf:
            return True
    return False


def read(connection: psycopg.Connection, examiner: Examiner, where: str, limit: int) -> Iterator[Seen]:
    """The visible records that fit the condition, at most `limit`, in order of id."""
    query = f"COPY ({_SELECT} WHERE {where} ORDER BY id LIMIT {limit:d}) TO STDOUT (FORMAT binary)"
    with connection.cursor() as cursor, cursor.copy(query.encode()) as copy:
        first = True
        for data in copy:
            row = bytes(data)[_HEADER_BYTES:] if first else bytes(data)
            first = False
            if row and row != _TRAILER:
                yield examiner.look(row)


def in_ranges(ranges: Sequence[tuple[int, int]]) -> str:
    """The condition that an id is in one of the ascending ranges, both ends included."""
    # The outer bounds keep the index scan short whatever the planner makes of the rest.
    parts = " OR ".join(f"id BETWEEN {first:d} AND {last:d}" for first, last in ranges)
    return f"id BETWEEN {ranges[0][0]:d} AND {ranges[-1][1]:d} AND ({parts})"


def among(ids: Iterable[int]) -> str:
    """The condition that the id is one of these."""
    return f"id = ANY('{{{','.join(str(int(each)) for each in ids)}}}'::bigint[])"
