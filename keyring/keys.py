"""The key ring: named 256-bit keys, of which the first encrypts and all decrypt.

A ciphertext names its key, so that keys can be rotated without a stop, and is bound to a context (which table, row and
field it belongs to), so that it cannot be moved. AES-256-GCM, a random 96-bit nonce for each message (NIST SP 800-38D);
each purpose uses a key of its own, derived with HKDF-SHA256 (RFC 5869).
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping
from functools import cache

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

_FORMAT = b"\x01"
_NONCE_BYTES = 12
_ID = re.compile(rb"[A-Za-z0-9]{1,32}")


class DecryptionError(Exception):
    """A ciphertext that no key of the ring opens in this context."""

    code = "decryption_failed"


class KeyRing:
    """Encrypts with its first key and decrypts with whichever key the ciphertext names."""

    __slots__ = ("_ciphers", "_derived", "_keys", "primary")

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        self._keys = dict(keys)
        self._ciphers: dict[tuple[str, str], AESGCM] = {}
        self._derived: dict[tuple[str, str], bytes] = {}
        self.primary = next(iter(self._keys))

    def __repr__(self) -> str:
        return f"KeyRing({', '.join(self._keys)})"

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of all keys, the encrypting one first."""
        return tuple(self._keys)

    def derive(self, purpose: str, key_id: str | None = None) -> bytes:
        """A 32-byte key for `purpose` only, from the named key or the primary one. Raises DecryptionError."""
        name = self.primary if key_id is None else key_id
        if (found := self._derived.get((name, purpose))) is not None:
            return found
        if name not in self._keys:
            raise DecryptionError(f"The key {name!r} is not in the key ring: add it to ENCRYPTION_KEYS.")
        hkdf = HKDF(algorithm=SHA256(), length=32, salt=b"mcpsite", info=purpose.encode())
        return self._derived.setdefault((name, purpose), hkdf.derive(self._keys[name]))

    def _cipher(self, purpose: str, key_id: str) -> AESGCM:
        found = self._ciphers.get((key_id, purpose))
        return found or self._ciphers.setdefault((key_id, purpose), AESGCM(self.derive(purpose, key_id)))

    def encrypt(self, plaintext: bytes, *, purpose: str, context: bytes) -> bytes:
        """Format (1 byte) | length of key id (1) | key id | nonce (12) | ciphertext and tag (16)."""
        name = self.primary.encode()
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher(purpose, self.primary).encrypt(nonce, plaintext, context)
        return b"".join((_FORMAT, bytes((len(name),)), name, nonce, sealed))

    def decrypt(self, ciphertext: bytes, *, purpose: str, context: bytes) -> bytes:
        """The plaintext; raises DecryptionError when key, context or content do not fit."""
        name = self.key_id_of(ciphertext)
        start = 2 + len(name.encode())
        nonce, sealed = ciphertext[start : start + _NONCE_BYTES], ciphertext[start + _NONCE_BYTES :]
        try:
            return self._cipher(purpose, name).decrypt(nonce, sealed, context)
        except (InvalidTag, ValueError) as error:
            raise DecryptionError("The ciphertext was changed, or belongs to another row, field or key.") from error

    @staticmethod
    def key_id_of(ciphertext: bytes) -> str:
        """The id of the key that made `ciphertext`; raises DecryptionError when it is not one of ours."""
        length = ciphertext[1] if len(ciphertext) >= 2 else 0
        name = bytes(ciphertext[2 : 2 + length])
        if ciphertext[:1] != _FORMAT or len(name) != length or not _ID.fullmatch(name):
            raise DecryptionError("This is not a ciphertext of the key ring.")
        return name.decode()


def parse(text: str) -> KeyRing:
    """The ring that `ENCRYPTION_KEYS` describes: `id:base64,id:base64`. Raises ImproperlyConfigured.

    Its sentences name an entry by its place and never repeat it: in a wrong one, anything can be the key.
    """
    keys: dict[str, bytes] = {}
    entries = [entry for entry in (part.strip() for part in text.split(",")) if entry]
    for place, entry in enumerate(entries, 1):
        name, colon, encoded = entry.partition(":")
        if not colon or not _ID.fullmatch(name.encode()):
            raise _wrong(place, "is not id:base64, with an id of 1 to 32 letters or digits")
        if name in keys:
            raise _wrong(place, "has the id of an entry before it")
        key = _checked_key(place, encoded)
        if key in keys.values():
            raise _wrong(place, "has the key of an entry before it")
        keys[name] = key
    if not keys:
        raise ImproperlyConfigured("ENCRYPTION_KEYS is empty: give it at least one key, as id:base64.")
    return KeyRing(keys)


def _wrong(place: int, what: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"ENCRYPTION_KEYS: entry {place} {what}.")


def _checked_key(place: int, encoded: str) -> bytes:
    try:
        key = base64.b64decode(encoded.strip().replace("-", "+").replace("_", "/"), validate=True)
    except ValueError:
        raise _wrong(place, "has a key that is not base64") from None
    if len(key) != 32:
        raise _wrong(place, f"has a key of {len(key)} bytes, but 32 random ones are needed")
    if len(set(key)) < 8:
        raise _wrong(place, "has a key that is not random")
    return key


@cache
def ring() -> KeyRing:
    """The key ring of this process, from settings."""
    return parse(settings.ENCRYPTION_KEYS)
