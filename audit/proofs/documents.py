"""The JSON documents of docs/evidence.md: what a record, a head and a proof look like outside of the database."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from django.db import connection

from audit.models import Head, Record
from audit.plain import record_json
from audit.proofs.paths import consistency_path, inclusion_path
from audit.verify import COLUMNS

PROOF, CONSISTENCY = "mcpsite-proof/1", "mcpsite-consistency/1"


class NotSealed(Exception):
    """No head covers the record yet."""

    code = "not_sealed"

    def __init__(self) -> None:
        super().__init__(
            "The record is not sealed yet. That takes half a second; if it lasts, the sealer does not run."
        )


def record_document(record: Record) -> dict[str, Any]:
    """A record as JSON: all that its leaf covers."""
    values = (getattr(record, name) for name, _ in COLUMNS)
    return record_json(seq_of(record), record.pk, bytes(record.leaf), values)


def seq_of(record: Record) -> int | None:
    """The record's place in the tree; None while it has none."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT seq FROM audit_leaf WHERE record_id = %s", [record.pk])
        found = cursor.fetchone()
    return None if found is None else int(found[0])


def newest_head() -> Head | None:
    """The newest head."""
    return Head.objects.order_by("-number").first()


def first_head_over(seq: int) -> Head | None:
    """The head that sealed the leaf."""
    return Head.objects.filter(size__gt=seq).order_by("size", "number").first()


@dataclass(frozen=True, slots=True)
class Sealing:
    """Where the record stands in the tree, and who signed that: the sealer with `head`, and these witnesses."""

    seq: int
    head: Head
    witnesses: tuple[str, ...]


def sealing_of(record: Record) -> Sealing | None:
    """When and how the record was sealed; None while it is not."""
    seq = seq_of(record)
    head = None if seq is None else first_head_over(seq)
    if seq is None or head is None:
        return None
    with connection.cursor() as cursor:
        # A later head covers the record as well.
        cursor.execute("SELECT DISTINCT witness FROM audit_cosignature WHERE head >= %s ORDER BY 1", [head.number])
        return Sealing(seq, head, tuple(witness for (witness,) in cursor.fetchall()))


def keys() -> list[str]:
    """The keys that signed heads, the oldest first; whoever verifies should have them from elsewhere, too."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT vkey FROM audit_key GROUP BY vkey ORDER BY min(since), vkey")
        return [vkey for (vkey,) in cursor.fetchall()]


def cosigned(heads: Sequence[Head]) -> dict[int, str]:
    """Number of a head → its note, with the signatures of witnesses under that of the sealer."""
    notes = {head.number: head.note for head in heads}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT head, line FROM audit_cosignature WHERE head = ANY(%s) ORDER BY head, witness", [list(notes)]
        )
        for number, line in cursor.fetchall():
            notes[number] += line.rstrip("\n") + "\n"
    return notes


def proof_of(record: Record) -> dict[str, Any]:
    """That the record is in the tree of the newest head. Raises NotSealed and TreeIncomplete."""
    document, head = record_document(record), newest_head()
    seq = document["seq"]
    if head is None or seq is None or head.size <= seq:
        raise NotSealed
    path = inclusion_path(seq, head.size)
    return {
        "format": PROOF,
        "record": document,
        "seq": seq,
        "path": _base64(path),
        "head": cosigned([head])[head.number],
        "keys": keys(),
    }


def consistency_of(first: Head, second: Head) -> dict[str, Any]:
    """That the tree of the second head continues that of the first. Raises TreeIncomplete."""
    notes = cosigned([first, second])
    return {
        "format": CONSISTENCY,
        "from": notes[first.number],
        "to": notes[second.number],
        "path": _base64(consistency_path(first.size, second.size)),
        "keys": keys(),
    }


def _base64(path: Sequence[bytes]) -> list[str]:
    return [base64.b64encode(each).decode() for each in path]
