"""Opens what the `ct` of a record keeps, as long as its key exists."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterable, Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from audit.datakeys import NONCE_BYTES
from audit.entry import CT_PURPOSE
from audit.models import DataKey, Record
from audit.payload import Payload, unpacked, unpacked_before
from keyring.keys import DecryptionError, ring


class KeyDestroyed(Exception):
    """What the record kept was erased: nobody can read it any more. The record still verifies."""

    code = "erased"


def keys_of(records: Iterable[Record]) -> dict[str, DataKey]:
    """The data keys of these records by their names, in one query."""
    names = {uuid.UUID(each.key_id) for each in records if each.key_id and "-" in each.key_id}
    return {str(each.pk): each for each in DataKey.objects.filter(pk__in=names)}


def payload_of(record: Record, keys: Mapping[str, DataKey] | None = None) -> Payload:
    """What the record keeps. Raises KeyDestroyed, and DecryptionError when no key of ours opens it."""
    sealed, name = bytes(record.ct or b""), record.key_id or ""
    if "-" not in name:
        return unpacked_before(ring().decrypt(sealed, purpose=CT_PURPOSE, context=record.rid.bytes))
    cipher = _key(name, keys_of([record]) if keys is None else keys)
    try:
        return unpacked(cipher.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], record.rid.bytes))
    except (InvalidTag, ValueError) as error:
        raise DecryptionError("What the record keeps was changed, or belongs to another record or key.") from error


def _key(name: str, keys: Mapping[str, DataKey]) -> AESGCM:
    row = keys.get(name)
    if row is None:
        raise DecryptionError(f"The data key {name} is not in the database: it was never written, or was lost.")
    if row.destroyed_at is not None:
        raise KeyDestroyed(
            f"The data key was destroyed on {row.destroyed_at:%Y-%m-%d %H:%M} UTC: what the record kept is erased."
        )
    return AESGCM(base64.b64decode(row.wrapped))
