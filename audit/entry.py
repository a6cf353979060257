"""What a record says, how its bytes are laid out, and the commitments that make a later change visible.

Leaf: `SHA-256(0x00 || field || field || …)` over the columns of `COLUMNS` in that order (RFC 6962, section 2.1, leaf
hash). A field is a 4-byte big-endian length and that many bytes, or the length -1 for NULL; the bytes are PostgreSQL's
binary form of the value: a bigint is 8 bytes big-endian, a timestamptz the microseconds since 2000-01-01 UTC as a
bigint, a uuid 16 bytes, text is UTF-8. That is how the row crosses the wire and how `COPY … (FORMAT binary)` gives it
back.

Arguments and results enter by commitment: `HMAC-SHA-256(salt, 0x61 || arguments)` and `HMAC-SHA-256(salt, 0x72 ||
result)` over the raw bytes, with a random 32-byte salt of the record. `ct` holds the salt and what is kept of both
(`audit.payload`), encrypted with the key of the subject and the month (`audit.datakeys`) and bound to the record's id,
so that whoever holds the key can recompute both, and whoever does not cannot guess.
"""

from __future__ import annotations

import hashlib
import hmac
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Any, NamedTuple

from audit.datakeys import KEY_COLUMNS, NOBODY, DataKeys, KeyRow, Subject
from audit.masking import BY_SHAPE, Masker
from audit.payload import SALT_BYTES, Payload, packed, packed_arguments
from audit.verify import COLUMNS as COLUMNS
from keyring.chance import random_bytes
from keyring.keys import KeyRing

# The purpose of CT is that of records from before there were data keys.
CT_PURPOSE, MAC_PURPOSE = "ledger", "ledger-mac"
# From here on a copy costs more than three calls.
_LONG_BYTES = 16 * 1024

ALL_COLUMNS = (*COLUMNS, ("leaf", "bytea"), ("mac", "bytea"))
INSERT = f"INSERT INTO audit_record ({', '.join(name for name, _ in ALL_COLUMNS)}) VALUES "  # noqa: S608 - constants

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_EPOCH_US = int(_EPOCH.timestamp()) * 1_000_000
_LENGTH, _BIGINT = Struct("!i"), Struct("!q")
_NULL = _LENGTH.pack(-1)
_PACKED_LENGTHS = tuple(_LENGTH.pack(length) for length in range(1024))
_LONGEST_TEXT = 512
_LONGEST_DETAIL = 256 * 1024
_LONGEST_SHOWN = 32 * 1024


class Entry(NamedTuple):
    """What the caller of the ledger knows about an event. Times in microseconds; `arguments` and `result` are raw
    bytes. Without `keeps_arguments` the arguments are committed to, but not kept; `some_arguments` are kept instead of
    them where a policy drops others. `shown` is the JSON of what a policy shows, `subject` whose data it is (otherwise
    the actor's). Of a result, `keeps_result` bytes at most are kept.

    A named tuple, since every call makes one or two of them and a frozen dataclass costs twice as much.
    """

    kind: str
    code: str
    call_id: uuid.UUID | None = None
    actor: str | None = None
    actor_id: str | None = None
    on_behalf_of: str | None = None
    token: str | None = None
    roles: str | None = None
    door: str | None = None
    client: str | None = None
    address: str | None = None
    connector: str | None = None
    tool: str | None = None
    effect: str | None = None
    definition: bytes | None = None
    policy_version: int | None = None
    decision: str | None = None
    object_type: str | None = None
    object_id: str | None = None
    detail: str | None = None
    trace_id: str | None = None
    request_id: str | None = None
    arguments: bytes | None = None
    keeps_arguments: bool = True
    result: bytes | None = None
    upstream_us: int | None = None
    total_us: int | None = None
    shown: str | None = None
    some_arguments: bytes | None = None
    keeps_result: int = 0
    subject: Subject | None = None


class Row(NamedTuple):
    """An entry as it is stored: the binary parameters of `ALL_COLUMNS`, in order.

    `key` is what its `ct` is encrypted with: whoever writes the row has to write that too, unless it is `stored`.
    """

    rid: uuid.UUID
    at_us: int
    parameters: tuple[bytes | None, ...]
    size: int
    key: KeyRow | None = None

    def value(self, column: str) -> Any:
        """The value of a column, as Python has it."""
        place, kind = _PLACES[column]
        raw = self.parameters[place]
        return None if raw is None else _PYTHON[kind](raw)


def uuid7() -> uuid.UUID:
    """A time-ordered UUID (RFC 9562, section 5.7), so that neighbours in time are neighbours in the index."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(random_bytes(10))
    return uuid.UUID(int=value & ~(0xF << 76) & ~(0x3 << 62) | 0x7 << 76 | 0x2 << 62)


def text(value: str | None, longest: int = _LONGEST_TEXT) -> bytes | None:
    """UTF-8 that PostgreSQL can hold: no NUL, no lone surrogate, at most `longest` characters."""
    if value is None:
        return None
    if len(value) > longest:
        value = value[: longest - 1] + "…"
    if "\0" in value:
        value = value.replace("\0", "\ufffd")
    return value.encode("utf-8", "replace")


def _bigint(value: int | None) -> bytes | None:
    return None if value is None else _BIGINT.pack(value)


def leaf_of(fields: tuple[bytes | None, ...]) -> bytes:
    """The leaf over the binary fields of `COLUMNS`, in that order."""
    parts = [b"\x00"]
    for field in fields:
        if field is None:
            parts.append(_NULL)
        else:
            length = len(field)
            parts.append(_PACKED_LENGTHS[length] if length < 1024 else _LENGTH.pack(length))
            parts.append(field)
    return hashlib.sha256(b"".join(parts)).digest()


def mac_of(ring: KeyRing, leaf: bytes, writer_id: uuid.UUID, writer_seq: int | None) -> bytes:
    """Ties the leaf to its writer and place, under a key that the database does not hold."""
    place = b"" if writer_seq is None else _BIGINT.pack(writer_seq)
    return hmac.digest(ring.derive(MAC_PURPOSE), leaf + writer_id.bytes + place, "sha256")


def commitment(salt: bytes, tag: bytes, raw: bytes | None) -> bytes | None:
    """HMAC-SHA-256 of `tag || raw`; tag 0x61 for arguments, 0x72 for results."""
    if raw is None:
        return None
    if len(raw) < _LONG_BYTES:
        return hmac.digest(salt, tag + raw, "sha256")
    made = hmac.new(salt, tag, "sha256")
    made.update(raw)
    return made.digest()


def encode(
    entry: Entry, keys: DataKeys, writer_id: uuid.UUID, writer_seq: int | None, masker: Masker = BY_SHAPE
) -> Row:
    """Give the entry its id and time, mask the secrets that `masker` knows, commit to its content and lay out the row.

    The commitments are over what was given, since masking is none of the caller's doing.
    """
    rid = uuid7()
    at_us = time.time_ns() // 1_000 - _EPOCH_US
    args_commit = result_commit = sealed = key = key_id = None
    if entry.arguments is not None or entry.result is not None:
        salt = random_bytes(SALT_BYTES)
        args_commit = commitment(salt, b"a", entry.arguments)
        result_commit = commitment(salt, b"r", entry.result)
        key = keys.of(entry.subject or entry.actor_id or NOBODY, at_us)
        sealed, key_id = key.encrypt(_kept(entry, salt, masker), rid.bytes), key.id
    fields = (
        rid.bytes,
        _BIGINT.pack(at_us),
        entry.kind.encode(),
        entry.call_id.bytes if entry.call_id else None,
        writer_id.bytes,
        _bigint(writer_seq),
        text(masker.brief(entry.actor)),
        text(entry.actor_id),
        text(entry.on_behalf_of),
        text(entry.token),
        text(entry.roles),
        text(entry.door),
        text(masker.brief(entry.client)),
        text(entry.address),
        text(entry.connector),
        text(masker.brief(entry.tool)),
        text(entry.effect),
        entry.definition,
        _bigint(entry.policy_version),
        text(entry.decision),
        entry.code.encode(),
        text(entry.object_type),
        text(entry.object_id),
        None if entry.detail is None else text(masker.text(entry.detail), _LONGEST_DETAIL),
        text(entry.trace_id),
        text(entry.request_id),
        args_commit,
        result_commit,
        None if entry.result is None else _BIGINT.pack(len(entry.result)),
        _bigint(entry.upstream_us),
        _bigint(entry.total_us),
        sealed,
        key_id,
        None if entry.shown is None else text(masker.text(entry.shown), _LONGEST_SHOWN),
    )
    leaf = leaf_of(fields)
    # What varies: arguments and detail; the rest of a record is less than a kilobyte.
    size = 1024 + len(sealed or b"") + len(entry.detail or "") + len(entry.shown or "")
    return Row(rid, at_us, (*fields, leaf, mac_of(keys.ring, leaf, writer_id, writer_seq)), size, key)


def _kept(entry: Entry, salt: bytes, masker: Masker) -> bytes:
    if entry.some_arguments is None and not entry.keeps_result:
        return packed_arguments(salt, entry.arguments) if entry.arguments and entry.keeps_arguments else salt
    return packed(_payload(entry, salt, masker))


def _payload(entry: Entry, salt: bytes, masker: Masker) -> Payload:
    arguments = entry.arguments if entry.keeps_arguments and entry.some_arguments is None else None
    if entry.result is None or not entry.keeps_result:
        return Payload(salt, arguments, entry.some_arguments)
    result = masker.raw(entry.result)
    if len(result) <= entry.keeps_result and result is entry.result:
        return Payload(salt, arguments, entry.some_arguments, result)
    return Payload(salt, arguments, entry.some_arguments, None, result[: entry.keeps_result])


_PLACES = {name: (place, kind) for place, (name, kind) in enumerate(ALL_COLUMNS)}
_PYTHON: dict[str, Callable[[bytes], object]] = {
    "uuid": lambda raw: uuid.UUID(bytes=raw),
    "timestamptz": lambda raw: _EPOCH + timedelta(microseconds=_BIGINT.unpack(raw)[0]),
    "date": lambda raw: _EPOCH.date() + timedelta(days=_LENGTH.unpack(raw)[0]),
    "text": bytes.decode,
    "bigint": lambda raw: _BIGINT.unpack(raw)[0],
    "bytea": bytes,
}


def python_values(row: Row) -> list[Any]:
    """The row as Python values, for a connection that takes those."""
    return _values(ALL_COLUMNS, row.parameters)


def key_values(key: KeyRow) -> list[Any]:
    """The row of a key, likewise."""
    return _values(KEY_COLUMNS, key.parameters)


def _values(columns: tuple[tuple[str, str], ...], parameters: tuple[bytes | None, ...]) -> list[Any]:
    pairs = zip(columns, parameters, strict=True)
    return [None if raw is None else _PYTHON[kind](raw) for (_, kind), raw in pairs]
