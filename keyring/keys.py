"""The key ring: named 256-bit keys, of which the first encrypts and all decrypt.

A ciphertext names its key, so that keys can be rotated without a stop, and is bound to a context (which table, row and
field it belongs to), so that it cannot be moved. AES-256-GCM, a random 96-bit nonce for each message (NIST SP 800-38D);
each purpose uses a key of its own, derived with HKDF-SHA256 (RFC 5869).
"""

from __future__ import annotations

import base64
import binascii
import os
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
        name = key_id or self.primary
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
        if len(ciphertext) < 2 or ciphertext[:1] != _FORMAT:
            raise DecryptionError("This is not a ciphertext of the key ring.")
        return ciphertext[2 : 2 + ciphertext[1]].decode("ascii", "replace")


def parse(text: str) -> KeyRing:
    """The ring that `ENCRYPTION_KEYS` describes: `id:base64,id:base64`. Raises ImproperlyConfigured."""
    keys: dict[str, bytes] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        name, _, encoded = entry.partition(":")
        keys[_checked_id(name, keys)] = _checked_key(name, encoded)
    if not keys:
        raise ImproperlyConfigured("ENCRYPTION_KEYS is empty: give it at least one key, as id:base64.")
    return KeyRing(keys)


def _checked_id(name: str, known: Mapping[str, bytes]) -> str:
    if not (name.isascii() and name.isalnum() and len(name) <= 32):
        raise ImproperlyConfigured(
            "ENCRYPTION_KEYS: a key id is 1 to 32 letters or digits, followed by a colon and the key."
        )
    if name in known:
        raise ImproperlyConfigured(f"ENCRYPTION_KEYS: the key id {name!r} occurs twice.")
    return name


def _checked_key(name: str, encoded: str) -> bytes:
    try:
        key = base64.b64decode(encoded.replace("-", "+").replace("_", "/"), validate=True)
    except binascii.Error as error:
        raise ImproperlyConfigured(f"ENCRYPTION_KEYS: the key {name!r} is not base64.") from error
    if len(key) != 32:
        raise ImproperlyConfigured(f"ENCRYPTION_KEYS: the key {name!r} has {len(key)} bytes, but needs 32 random ones.")
    if len(set(key)) < 8:
        raise ImproperlyConfigured(f"ENCRYPTION_KEYS: the key {name!r} is not random.")
    return key


@cache
def ring() -> KeyRing:
    """The key ring of this process, from settings."""
    return parse(settings.ENCRYPTION_KEYS)
