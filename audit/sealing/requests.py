"""Signatures of the sealer over what people download: asked for by a row, answered by a row within half a second.

The sealer alone has the key. Whoever asks proves with a MAC that it is a process of the installation: the database
alone is not enough to have something signed.
"""

from __future__ import annotations

import hmac
import uuid
from typing import Any, cast

from django.db import connections

from audit.entry import uuid7
from keyring.keys import DecryptionError, KeyRing, ring

MAC_PURPOSE = "signing-request"


def request_signature(purpose: str, digest: bytes, using: str = "default") -> uuid.UUID:
    """Ask, in the current transaction, for a signature over the SHA-256 `digest` of a manifest; returns the id.

    `purpose` is a word of letters and hyphens, which is signed along. It is answered when the transaction is committed.
    """
    request = uuid7()
    row: list[Any] = [request, purpose, digest, mac_of(ring(), None, request, purpose, digest)]
    with connections[using].cursor() as cursor:
        cursor.execute("INSERT INTO audit_signing_request (id, purpose, digest, mac) VALUES (%s, %s, %s, %s)", row)
    return request


def signature_of(request: uuid.UUID, using: str = "default") -> str | None:
    """The signed note over `manifest_text` that answers the request, or None while there is none."""
    with connections[using].cursor() as cursor:
        cursor.execute("SELECT note FROM audit_signature WHERE request = %s", [request])
        found = cursor.fetchone()
    return cast(str, found[0]) if found else None


def mac_of(keys: KeyRing, key_id: str | None, request: uuid.UUID, purpose: str, digest: bytes) -> bytes:
    """Ties the request to a process that has the key ring."""
    message = request.bytes + digest + purpose.encode()
    return hmac.digest(keys.derive(MAC_PURPOSE, key_id), message, "sha256")


def is_ours(keys: KeyRing, request: uuid.UUID, purpose: str, digest: bytes, mac: bytes) -> bool:
    """Whether a key of the ring made the request's MAC."""
    try:
        made = (mac_of(keys, name, request, purpose, digest) for name in keys.key_ids)
        return any(hmac.compare_digest(each, mac) for each in made)
    except DecryptionError:
        return False
