"""Known secrets are replaced before anything is written in the clear: exact values that the site stores, and what has
the shape of a secret (our tokens, JWTs, private keys, passwords in addresses, keys of AWS, bearer tokens).

It is no filter for secrets that nobody knows of: what must not be written is kept out by a tool's policy.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from functools import cache
from urllib.parse import quote

from keyring.known import labels, stored_ciphertexts, stored_secrets

MASK = "[secret]"
# What is shorter would be found in ordinary words.
_SHORTEST = 6
_MOST_REMEMBERED = 1024
_STALE_SECONDS = 2.0

# A word without which there can be no match, so that most texts are never searched; the pattern; what replaces it.
# All of them take linear time: what repeats is bounded, or cannot overlap with what follows.
_SHAPES: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("mcps_", re.compile(r"mcps_[A-Za-z0-9_-]{20,}"), MASK),
    ("eyJ", re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(\.[A-Za-z0-9_-]*)?"), MASK),
    (
        "-----BEGIN",
        re.compile(r"-----BEGIN (?!CERTIFICATE|PUBLIC)[A-Z0-9 ]{1,40}-----.*?(-----END [A-Z0-9 ]{1,40}-----|\Z)", re.S),
        MASK,
    ),
    ("://", re.compile(r"(://)[^\s/@\"'<>\\]{1,200}@"), rf"\1{MASK}@"),
    ("AKIA", re.compile(r"\bAKIA[A-Z0-9]{16}\b"), MASK),
    ("ASIA", re.compile(r"\bASIA[A-Z0-9]{16}\b"), MASK),
    ("ecret_access_key", re.compile(r"(ecret_access_key[\s\"'=:\\]{1,8})[A-Za-z0-9/+=]{40}"), rf"\1{MASK}"),
    ("SECRET_ACCESS_KEY", re.compile(r"(SECRET_ACCESS_KEY[\s\"'=:\\]{1,8})[A-Za-z0-9/+=]{40}"), rf"\1{MASK}"),
    ("earer ", re.compile(r"([Bb]earer )[A-Za-z0-9._~+/=-]{16,}"), rf"\1{MASK}"),
)


class Masker:
    """Knows some secrets exactly, and all by their shape."""

    __slots__ = ("_brief", "_exact", "_shortest")

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for each in secrets if len(each) >= _SHORTEST for form in _forms(each)}
        self._exact = tuple(sorted(forms, key=len, reverse=True))
        self._shortest = min(map(len, forms), default=0)
        self._brief: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"Masker({len(self._exact)} secrets)"

    def text(self, value: str) -> str:
        """The text with `[secret]` where one stood; the same object where there was none."""
        for secret in self._exact:
            if secret in value:
                value = value.replace(secret, MASK)
        for word, shape, instead in _SHAPES:
            if word in value:
                value = shape.sub(instead, value)
        return value

    def brief(self, value: str | None) -> str | None:
        """Likewise, for what is said again and again: names of clients, of tools, of people."""
        if value is None:
            return None
        found = self._brief.get(value)
        if found is None:
            if len(self._brief) >= _MOST_REMEMBERED:
                self._brief.clear()
            found = self._brief[value] = self.text(value)
        return found

    def raw(self, value: bytes) -> bytes:
        """Likewise, for bytes; the same object where there was none."""
        said = value.decode("utf-8", "surrogateescape")
        masked = self.text(said)
        return value if masked is said else masked.encode("utf-8", "surrogateescape")


def _forms(secret: str) -> set[str]:
    """A secret as it stands in a text, in JSON and in an address."""
    return {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], quote(secret, safe="")}


# For who knows no secret of the site.
BY_SHAPE = Masker()


class Known:
    """The masker of this process, and how fresh it is."""

    def __init__(self) -> None:
        self.masker = Masker()
        self._stored: frozenset[bytes] = frozenset()
        self._looked = -_STALE_SECONDS

    def refresh(self) -> Masker:
        """Look whether the site's secrets are still the same. Blocking. Raises django.db.Error."""
        stored = stored_ciphertexts()
        if stored != self._stored:
            self.masker, self._stored = Masker(stored_secrets()), stored
        self._looked = time.monotonic()
        return self.masker

    def current(self, about: str | None = None) -> Masker:
        """The masker, looked up anew after two seconds, and at once for what is about a model that has secrets."""
        if time.monotonic() - self._looked > _STALE_SECONDS or about in labels():
            return self.refresh()
        return self.masker


@cache
def known() -> Known:
    """What this process knows of the site's secrets."""
    return Known()
