"""What the `ct` of a record holds: the salt of its commitments, and what is kept of arguments and result.

Under a data key (`key_id` is a UUID) the plaintext is `salt (32) || part || part || …`, each part a tag of one byte, a
length (uint32, big-endian) and that many bytes. Under a key of the ring (`key_id` is its name) it is `salt ||
arguments`: so it was before there were data keys.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

SALT_BYTES = 32
_HEAD = Struct("!cI")
_ARGUMENTS, _SOME_ARGUMENTS, _RESULT, _SOME_RESULT = b"a", b"p", b"r", b"b"


class Payload(NamedTuple):
    """`arguments` and `result` are the raw bytes that the record commits to. `some_arguments` are the arguments without
    those that a policy drops, `some_result` is a result that was cut or masked: no commitment is over these.
    """

    salt: bytes
    arguments: bytes | None = None
    some_arguments: bytes | None = None
    result: bytes | None = None
    some_result: bytes | None = None


def packed(payload: Payload) -> bytes:
    """The plaintext of a `ct` under a data key."""
    parts = [payload.salt]
    for tag, kept in zip((_ARGUMENTS, _SOME_ARGUMENTS, _RESULT, _SOME_RESULT), payload[1:], strict=True):
        if kept:
            parts += (_HEAD.pack(tag, len(kept)), kept)
    return b"".join(parts)


def packed_arguments(salt: bytes, arguments: bytes) -> bytes:
    """The same of salt and arguments alone: what almost every call keeps, at a third of the cost."""
    return salt + _HEAD.pack(_ARGUMENTS, len(arguments)) + arguments


def unpacked(plain: bytes) -> Payload:
    """What `packed` was given. Raises ValueError."""
    found: dict[bytes, bytes] = {}
    place = SALT_BYTES
    while place < len(plain):
        if place + _HEAD.size > len(plain):
            raise ValueError("The payload of the record ends too early.")
        tag, length = _HEAD.unpack_from(plain, place)
        place += _HEAD.size
        found[tag] = plain[place : place + length]
        if len(found[tag]) != length:
            raise ValueError("The payload of the record ends too early.")
        place += length
    return Payload(
        plain[:SALT_BYTES],
        found.get(_ARGUMENTS),
        found.get(_SOME_ARGUMENTS),
        found.get(_RESULT),
        found.get(_SOME_RESULT),
    )


def unpacked_before(plain: bytes) -> Payload:
    """What was kept under a key of the ring."""
    return Payload(plain[:SALT_BYTES], plain[SALT_BYTES:] or None)
