"""Every secret that the database holds in a field called `secrets`, for whoever keeps them out of what is written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from keyring.keys import DecryptionError
from keyring.rotation import encrypted_fields

# What other encrypted fields hold is confidential, but not what somebody logs in with.
_NAME = "secrets"


def stored_ciphertexts() -> frozenset[bytes]:
    """The secrets as they are stored, to learn whether any has changed."""
    return frozenset(
        bytes(value)
        for each in _fields()
        for value in each.model._base_manager.exclude(**{each.name: None}).values_list(each.name, flat=True)
    )


def stored_secrets() -> frozenset[str]:
    """The secrets in the clear: each text within each encrypted value. What cannot be decrypted is left out."""
    found: set[str] = set()
    for each in _fields():
        for row in each.model._base_manager.exclude(**{each.name: None}).only("pk", each.name):
            try:
                found.update(_texts(getattr(row, each.attname)))
            except DecryptionError:
                continue
    return frozenset(found)


def labels() -> frozenset[str]:
    """The models that have secrets, as `app.Model`."""
    return frozenset(each.model._meta.label for each in _fields())


def _fields() -> Iterator[Any]:
    return (each for each in encrypted_fields() if each.name == _NAME)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)
