"""What a gap certificate says: which records of a month leave, under which policy, by whose word."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from django.db import connection, transaction

from audit.retention.models import RetentionClass
from audit.verify import time_text

FORMAT, PURPOSE = "mcpsite-gap/1", "gap"
_LEVEL = 9


@dataclass(frozen=True, slots=True)
class Selection:
    """Records of a month that may leave, as a bit field over the leaves between the first and the last of them."""

    month: date
    first_seq: int
    last_seq: int
    bits: bytes
    records: int
    kept: int

    @property
    def digest(self) -> str:
        """SHA-256 of the bit field, hex."""
        return hashlib.sha256(self.bits).hexdigest()


@dataclass(frozen=True, slots=True)
class Count:
    """The records of a month as they are now."""

    records: int
    unsealed: int
    first_seq: int | None
    last_seq: int | None


def count(month: date) -> Count:
    """How many records there are, and how many of them the sealer has not seen."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT records, unsealed, first_seq, last_seq FROM audit_month_count(%s)", [month])
        return Count(*cursor.fetchone())


def select(month: date) -> Selection | None:
    """The records of the month that are past their time and not held; None when there are none."""
    first = last = None
    records, field = 0, bytearray()
    with transaction.atomic(), connection.chunked_cursor() as cursor:
        cursor.execute("SELECT seq FROM audit_expired(%s) ORDER BY seq", [month])
        for (seq,) in cursor:
            first = seq if first is None else first
            place, last, records = seq - first, seq, records + 1
            field.extend(bytes((place >> 3) + 1 - len(field)))
            field[place >> 3] |= 1 << (place & 7)
    if first is None or last is None:
        return None
    return Selection(month, first, last, bytes(field), records, count(month).records - records)


def certificates(first: int | None, last: int | None) -> list[dict[str, str]]:
    """The signed certificates that speak of leaves from `first` to `last`, as `gaps.jsonl` has them."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT g.body, s.note FROM audit_gap g JOIN audit_signature s USING (request)"
            " WHERE g.first_seq <= %s AND g.last_seq >= %s"
            " AND NOT EXISTS (SELECT FROM audit_gap_withdrawal w WHERE w.gap = g.id) ORDER BY g.id",
            [last, first],
        )
        return [{"certificate": text, "note": note} for text, note in cursor.fetchall()]


def policy() -> list[dict[str, Any]]:
    """The retention classes as they are now."""
    return [
        {"name": each.name, "months": each.months, "kinds": each.kinds, "tools": each.tools, "sources": each.sources}
        for each in RetentionClass.objects.order_by("name")
    ]


def body(selection: Selection, *, archive: dict[str, Any], reason: str, people: dict[str, Any], hours: float) -> str:
    """The text that is signed. `people` are the entries `proposed` and `approved`."""
    first_at, last_at = _times(selection)
    heads = _heads(selection)
    said = {
        "format": FORMAT,
        "origin": _origin(),
        "month": f"{selection.month:%Y-%m}",
        "first_seq": selection.first_seq,
        "last_seq": selection.last_seq,
        "records": selection.records,
        "kept": selection.kept,
        "removed": base64.b64encode(zlib.compress(selection.bits, _LEVEL)).decode(),
        "removed_sha256": selection.digest,
        "first_at": time_text(first_at),
        "last_at": time_text(last_at),
        "heads": heads,
        "archive": archive,
        "policy": policy(),
        "reason": reason,
        **people,
        "waiting_hours": hours,
    }
    return json.dumps(said, ensure_ascii=False, indent=1) + "\n"


def _times(selection: Selection) -> tuple[datetime, datetime]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT min(l.at), max(l.at) FROM audit_leaf l JOIN audit_expired(%s) e USING (seq)", [selection.month]
        )
        first, last = cursor.fetchone()
        return first, last


def _heads(selection: Selection) -> dict[str, Any]:
    """The last head that ends before the selection, and the first one that covers it."""
    before = "SELECT number, size, root FROM audit_head WHERE size <= %s ORDER BY size DESC, number DESC LIMIT 1"
    after = "SELECT number, size, root FROM audit_head WHERE size > %s ORDER BY size, number LIMIT 1"
    return {"before": _head(before, selection.first_seq), "after": _head(after, selection.last_seq)}


def _head(statement: str, seq: int) -> dict[str, Any] | None:
    with connection.cursor() as cursor:
        cursor.execute(statement, [seq])
        row = cursor.fetchone()
    return row and {"number": row[0], "size": row[1], "root": base64.b64encode(bytes(row[2])).decode()}


def _origin() -> str:
    with connection.cursor() as cursor:
        cursor.execute("SELECT split_part(note, E'\\n', 1) FROM audit_head ORDER BY number DESC LIMIT 1")
        row = cursor.fetchone()
    return row[0] if row else ""
