"""Keys of the data in records, one for each subject and month: to destroy a key is to erase what it encrypts.

A record's `ct` is encrypted with the key that `key_id` names, a row of `audit_dek`. The row holds the key wrapped by
the key ring and bound to the row, as every encrypted field is, so that `rotate_keys` wraps it anew like any other.

Each writer makes keys of its own when it first needs them, and inserts the row in the transaction of the first record
that uses it: no call waits for a query. So one subject and month can have several keys.
"""

from __future__ import annotations

import base64
import os
import time
import uuid
from datetime import UTC, date, datetime
from struct import Struct
from typing import NamedTuple, Protocol

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from keyring.chance import random_bytes
from keyring.fields import sealed_for
from keyring.keys import KeyRing

TABLE, COLUMN = "audit_dek", "wrapped"
KEY_COLUMNS: tuple[tuple[str, str], ...] = (
    ("id", "uuid"),
    ("subject_kind", "text"),
    ("subject", "text"),
    ("month", "date"),
    (COLUMN, "bytea"),
)
# A key that a lost connection may have brought along before is left as it is.
INSERT_KEY = f"INSERT INTO {TABLE} ({', '.join(name for name, _ in KEY_COLUMNS)}) VALUES ({{}}) ON CONFLICT DO NOTHING"  # noqa: S608 - constants
NONCE_BYTES = 12

_DAYS = Struct("!i")
_EPOCH = date(2000, 1, 1)
_EPOCH_US = int(datetime(2000, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
_MOST_KEYS = 4096


class Subject(NamedTuple):
    """Whose data it is: `user` and the id of one, or what a tool's policy calls it and the keyed hash of a value."""

    kind: str
    value: str


NOBODY = Subject("none", "")


class KeyRow(Protocol):
    """The row of a key, to be inserted with every batch until one of them is committed: then it is `stored`."""

    id: bytes
    parameters: tuple[bytes, ...]
    stored: bool


class DataKey:
    """A key of one writer, ready to encrypt. `parameters` are the binary values of `KEY_COLUMNS`."""

    __slots__ = ("cipher", "id", "parameters", "stored")

    def __init__(self, ring: KeyRing, subject: Subject, month: date) -> None:
        key, row = os.urandom(32), uuid.uuid4()
        self.id = str(row).encode()
        self.cipher = AESGCM(key)
        self.stored = False
        wrapped = sealed_for(ring, TABLE, row, COLUMN, base64.b64encode(key).decode())
        days = _DAYS.pack((month - _EPOCH).days)
        named = (subject.kind.encode(), subject.value.encode())
        self.parameters: tuple[bytes, ...] = (row.bytes, *named, days, bytes(wrapped))

    def __repr__(self) -> str:
        return f"DataKey({self.id.decode()})"

    def encrypt(self, plaintext: bytes, context: bytes) -> bytes:
        """Nonce (12 bytes), ciphertext and tag (16), of AES-256-GCM."""
        nonce = random_bytes(NONCE_BYTES)
        return nonce + self.cipher.encrypt(nonce, plaintext, context)


class DataKeys:
    """The keys that one writer uses in this month, at most 4096 of them. For one thread."""

    def __init__(self, ring: KeyRing) -> None:
        self.ring = ring
        self._keys: dict[Subject | str, DataKey] = {}
        self._month = _EPOCH
        self._until_us = -1

    def of(self, subject: Subject | str, at_us: int) -> DataKey:
        """The key for what is recorded at `at_us` (µs since 2000); a plain word is the id of a user."""
        if at_us >= self._until_us:
            self._turn()
        return self._keys.get(subject) or self._made(subject)

    def forget(self) -> None:
        """Make new keys from here on: some of these may have been destroyed."""
        self._keys.clear()

    def _turn(self) -> None:
        now = time.gmtime()
        self._month = date(now.tm_year, now.tm_mon, 1)
        after = datetime(now.tm_year + now.tm_mon // 12, now.tm_mon % 12 + 1, 1, tzinfo=UTC)
        self._until_us = int(after.timestamp()) * 1_000_000 - _EPOCH_US
        self._keys.clear()

    def _made(self, subject: Subject | str) -> DataKey:
        if len(self._keys) >= _MOST_KEYS:
            del self._keys[next(iter(self._keys))]
        whose = subject if isinstance(subject, Subject) else Subject("user", subject)
        made = self._keys[subject] = DataKey(self.ring, whose, self._month)
        return made
