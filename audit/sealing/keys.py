"""The keys that sign heads. Only the sealer reads them; everybody else knows their public halves (`audit_key`)."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from audit.sealing import kms
from audit.verify import ED25519, Key, Note, Signature

_ID = re.compile(r"[A-Za-z0-9]{1,32}")


class Signer(Protocol):
    """Something that signs with Ed25519, and whose public key is known."""

    @property
    def name(self) -> str:
        """Its id among LEDGER_SIGNING_KEYS."""

    @property
    def public(self) -> bytes:
        """The 32 bytes of the public key."""

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of the signature. Raises audit.sealing.kms.CannotSign."""


@dataclass(frozen=True, slots=True)
class SeedSigner:
    """Signs with a key that stands in LEDGER_SIGNING_KEYS."""

    name: str
    _private: Ed25519PrivateKey

    @property
    def public(self) -> bytes:
        """The 32 bytes of the public key."""
        return self._private.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of the signature."""
        return self._private.sign(message)


def parse(text: str) -> list[Signer]:
    """The signers that `LEDGER_SIGNING_KEYS` describes, `id:base64,id:awskms:///…`; raises ImproperlyConfigured.

    Its sentences name an entry by its place and never repeat it: in a wrong one, anything can be the key.
    """
    found: list[Signer] = []
    for place, entry in enumerate((part.strip() for part in text.split(",") if part.strip()), 1):
        name, colon, encoded = entry.partition(":")
        if not colon or not _ID.fullmatch(name):
            raise _wrong(place, "is not id:base64, with an id of 1 to 32 letters or digits")
        signer = _signer(place, name, encoded.strip())
        if any(name == other.name or signer.public == other.public for other in found):
            raise _wrong(place, "has the id or the key of an entry before it")
        found.append(signer)
    if not found:
        raise ImproperlyConfigured("LEDGER_SIGNING_KEYS is empty: give it at least one key, as id:base64.")
    return found


def _signer(place: int, name: str, value: str) -> Signer:
    if not value.startswith(kms.SCHEME):
        return SeedSigner(name, Ed25519PrivateKey.from_private_bytes(_seed(place, value)))
    try:
        return kms.read(name, value)
    except ValueError as error:
        raise _wrong(place, str(error)) from None


def _seed(place: int, encoded: str) -> bytes:
    try:
        seed = base64.b64decode(encoded.replace("-", "+").replace("_", "/"), validate=True)
    except ValueError:
        raise _wrong(place, "has a key that is not base64") from None
    if len(seed) != 32 or len(set(seed)) < 8:
        raise _wrong(place, "has a key that is not 32 random bytes")
    return seed


def _wrong(place: int, what: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"LEDGER_SIGNING_KEYS: entry {place} {what}.")


def signers() -> Sequence[Signer]:
    """The signers of this installation, the one that signs first; raises ImproperlyConfigured.

    They are read anew each time: a key that is put in front of a file signs without a restart.
    """
    text = settings.LEDGER_SIGNING_KEYS()
    if not text:
        raise ImproperlyConfigured(
            "The sealer has no key: set LEDGER_SIGNING_KEYS or LEDGER_SIGNING_KEYS_FILE, as id:base64 of 32 bytes or"
            " id:awskms:///… of a key of AWS KMS."
        )
    return parse(text)


def key_of(origin: str, signer: Signer) -> Key:
    """The public key under the name of the ledger."""
    return Key(origin, ED25519, signer.public)


def signed(origin: str, text: str, by: Sequence[Signer]) -> Note:
    """The text as a note that each of the signers has signed."""
    message = text.encode()
    return Note(text, tuple(Signature(origin, key_of(origin, each).id, each.sign(message)) for each in by))
