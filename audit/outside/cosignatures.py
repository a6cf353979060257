"""Takes the signatures of witnesses on heads, and says how current each witness is."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import connection

from audit.outside.contradictions import take_down
from audit.verify import Head, Key, Note, NoteError, parse_head, parse_note, parse_signature

# Clocks of other machines may be ahead of ours by this much.
_AHEAD_SECONDS = 300
SILENT_AFTER = timedelta(minutes=5)

_KEEP = """
INSERT INTO audit_cosignature (head, witness, line) VALUES (%s, %s, %s)
ON CONFLICT (head, witness) DO NOTHING RETURNING head
"""
# Of each witness the newest head that it signed.
_LATEST = """
SELECT w.witness, c.head, c.at FROM unnest(%s::text[]) AS w (witness) LEFT JOIN LATERAL (
    SELECT head, at FROM audit_cosignature c WHERE c.witness = w.witness ORDER BY head DESC LIMIT 1
) c ON true
"""
_HEADS = """
SELECT (SELECT number FROM audit_head ORDER BY number DESC LIMIT 1), (SELECT sealed_at FROM audit_head WHERE number = 0)
"""


class Unsigned(Exception):
    """What was handed in is no signature of a witness on this head; the text says why."""

    code = "not_cosigned"


@dataclass(frozen=True, slots=True)
class Standing:
    """How current a witness is: the newest head that it signed, and when; `silent` when that is too long ago."""

    name: str
    head: int | None
    at: datetime | None
    behind: int
    silent: bool


def add(number: int, line: str) -> bool | None:
    """Keep a witness's signature line on the head of that number: whether it is new; None where there is no such head.

    Raises Unsigned.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT note FROM audit_head WHERE number = %s", [number])
        row = cursor.fetchone()
        if row is None:
            return None
        key = _signed_by(parse_note(row[0]).text, line)
        cursor.execute(_KEEP, [number, key.name, line])
        return cursor.fetchone() is not None


def _signed_by(text: str, line: str) -> Key:
    """The witness of LEDGER_WITNESSES whose signature on the text this is. Raises Unsigned."""
    try:
        signature = parse_signature(line)
    except NoteError as error:
        raise Unsigned(f"{error}.") from error
    keys: tuple[Key, ...] = settings.LEDGER_WITNESSES
    key = next((each for each in keys if (each.name, each.id) == (signature.name, signature.key)), None)
    if key is None:
        raise Unsigned(f"{signature.name} ({signature.key.hex()}) is none of the witnesses of LEDGER_WITNESSES.")
    if len(signature.blob) != 72 or not key.signed(text, signature.blob):
        raise Unsigned(f"This is not the signature of {key.name} on this head.")
    if int.from_bytes(signature.blob[:8]) > time.time() + _AHEAD_SECONDS:
        raise Unsigned(f"The signature of {key.name} is dated in the future: set its clock.")
    return key


def contradict(code: str, text: str, *, request: Any = None) -> tuple[int, bool]:
    """Take down the head that a witness holds against the ledger: its id, and whether it is new.

    Raises Unsigned and NotContradicted. The witness's own signature vouches for it: after a restore, the ledger may not
    know the key that signed it.
    """
    note, head = _head_of(text)
    for signature in note.signatures:
        if signature.name in {key.name for key in settings.LEDGER_WITNESSES}:
            key = _signed_by(note.text, str(signature))
            return take_down(f"witness {key.name}", code, note, head, door="rest", request=request)
    raise Unsigned("None of the witnesses of LEDGER_WITNESSES has signed this head.")


def _head_of(text: str) -> tuple[Note, Head]:
    try:
        note = parse_note(text)
        return note, parse_head(note.text)
    except NoteError as error:
        raise Unsigned(f"{error}.") from error


def standings() -> list[Standing]:
    """Every witness of LEDGER_WITNESSES, by name."""
    names = sorted(key.name for key in settings.LEDGER_WITNESSES)
    if not names:
        return []
    with connection.cursor() as cursor:
        cursor.execute(_HEADS)
        newest, began = cursor.fetchone()
        cursor.execute(_LATEST, [names])
        rows = cursor.fetchall()
    found = (_standing(name, head, at, newest, began) for name, head, at in rows)
    return sorted(found, key=lambda each: each.name)


def _standing(name: str, head: int | None, at: datetime | None, newest: int | None, began: datetime | None) -> Standing:
    behind = 0 if newest is None else newest - (-1 if head is None else head)
    since = at or began
    silent = behind > 0 and since is not None and datetime.now(since.tzinfo) - since > SILENT_AFTER
    return Standing(name, head, at, behind, silent)
