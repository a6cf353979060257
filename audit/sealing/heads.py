"""The heads as they are stored, and the next one of a ledger."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

import psycopg

from audit.sealing.keys import Signer, key_of, signed
from audit.verify import FIRST_PREVIOUS, Head, Key, Note, check_note, parse_head, parse_note, parse_vkey


class CannotSeal(Exception):
    """The sealer must not go on; the text says why, and what to do."""

    code = "ledger_not_sealed"


class OlderState(CannotSeal):
    """The database does not have the newest head that this sealer made."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A head of the database."""

    head: Head
    note: Note
    low_water: int


def newest(connection: psycopg.Connection) -> Stored | None:
    """The newest head, or None before the first. Raises CannotSeal when its row is not what was signed."""
    row = connection.execute(
        "SELECT note, low_water, number, size, root FROM audit_head ORDER BY number DESC LIMIT 1"
    ).fetchone()
    if row is None:
        return None
    try:
        note = parse_note(row[0])
        head = parse_head(note.text)
    except ValueError as error:
        raise CannotSeal(f"The newest head (number {row[2]}) cannot be read: {error}.") from error
    if (head.number, head.size, head.root) != (row[2], row[3], bytes(row[4])):
        raise CannotSeal(f"The newest head (number {row[2]}) does not say what its row says: the row was changed.")
    return Stored(head, note, row[1])


def new_origin(host: str) -> str:
    """The name under which a ledger signs for ever."""
    return f"{host}/ledger/{secrets.token_hex(4)}"


def current_key(stored: Stored, signers: Sequence[Signer]) -> Key:
    """The key that signs the head after this one. Raises CannotSeal when none of the signers can have signed it."""
    keys = [key_of(stored.head.origin, each) for each in signers]
    try:
        found = check_note(stored.note, keys)
    except ValueError as error:
        raise CannotSeal(f"The newest head (number {stored.head.number}) is not validly signed: {error}.") from error
    if not found:
        lines = ", ".join(each.key.hex() for each in stored.note.signatures)
        raise CannotSeal(
            f"The newest head is signed by a key ({lines}) that is not among LEDGER_SIGNING_KEYS: put that key"
            " back, behind a new one if you meant to exchange it."
        )
    return parse_vkey(stored.head.successor or found[0])


def following(
    stored: Stored | None, origin: str, size: int, root: bytes, at: datetime, further: tuple[str, ...] = ()
) -> Head:
    """The head after `stored`. Its time is never before that of the one it follows."""
    if stored is None:
        return Head(origin, size, root, 0, FIRST_PREVIOUS, at, further)
    previous = stored.head
    return Head(previous.origin, size, root, previous.number + 1, previous.hash, max(at, previous.sealed_at), further)


def note_of(head: Head, by: Sequence[Signer]) -> Note:
    """The head, signed."""
    return signed(head.origin, head.text, by)


def hash_of(note: str) -> bytes:
    """What the head after this one names as its `previous`."""
    return sha256(parse_note(note).text.encode()).digest()
