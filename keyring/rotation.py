"""Brings what is encrypted in the database under the primary key, so that an old key can be taken off the ring."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import orjson
from django.apps import apps
from django.db import models, router, transaction

from keyring.fields import PURPOSE, Ciphertext, EncryptedJSONField, Sealed
from keyring.keys import DecryptionError, KeyRing, ring

UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Batch:
    """What became of some rows of one field. `changed` counts by the key that they were under before."""

    rows: int
    changed: Counter[str] = field(default_factory=Counter)
    failed: tuple[str, ...] = ()


def encrypted_fields() -> list[EncryptedJSONField]:
    """Every encrypted field of every model that has a table of its own."""
    found = (each for model in apps.get_models() if not model._meta.proxy for each in model._meta.local_fields)
    return [each for each in found if isinstance(each, EncryptedJSONField) and each.model._meta.managed]


def label(each: EncryptedJSONField) -> str:
    """The field's name for people: `tools.DataSource.secrets`."""
    return f"{each.model._meta.label}.{each.name}"


def by_key(each: EncryptedJSONField) -> Counter[str]:
    """How many values are under which key; what is no ciphertext of ours counts as `unreadable`."""
    rows = each.model._base_manager.exclude(**{each.name: None}).values_list(each.name, flat=True)
    return Counter(_key_id(value) for value in rows.iterator(chunk_size=1000))


def rotate(each: EncryptedJSONField, size: int, start: object = None) -> Iterator[tuple[Batch, object]]:
    """Bring the field's values under the primary key, `size` rows at a time in the order of their primary keys.

    Yields what was done and the primary key of the batch's last row, inside the batch's transaction: what the caller
    writes there is committed with it. Stop when you like: what is done stays done and is passed over the next time.
    """
    last = start
    while True:
        with transaction.atomic(using=router.db_for_write(each.model)):
            keys = list(islice(_after(each, last), size))
            if not keys:
                return
            last = keys[-1]
            yield _rotated(each, keys), last


def _after(each: EncryptedJSONField, last: object) -> Iterator[Any]:
    rows = each.model._base_manager.exclude(**{each.name: None}).order_by("pk")
    if last is not None:
        rows = rows.filter(pk__gt=last)
    yield from rows.values_list("pk", flat=True)


def _rotated(each: EncryptedJSONField, keys: list[Any]) -> Batch:
    rows = each.model._base_manager.select_for_update().filter(pk__in=keys).only("pk", each.name).order_by("pk")
    keyring, changed, failed = ring(), Counter[str](), []
    for row in rows:
        value = row.__dict__[each.attname]
        if value is None or _key_id(value) == keyring.primary:
            continue
        try:
            sealed = _again(each, row, value, keyring)
        except DecryptionError as error:
            failed.append(f"{each.model._meta.label} {row.pk}: {error}")
            continue
        each.model._base_manager.filter(pk=row.pk).update(**{each.name: sealed})
        changed[_key_id(value)] += 1
    return Batch(len(keys), changed, tuple(failed))


def _again(each: EncryptedJSONField, row: models.Model, value: Ciphertext, keyring: KeyRing) -> Sealed:
    context = each.context(row)
    plain = keyring.decrypt(value, purpose=PURPOSE, context=context)
    orjson.loads(plain)
    return Sealed(keyring.encrypt(plain, purpose=PURPOSE, context=context))


def _key_id(value: bytes) -> str:
    try:
        return KeyRing.key_id_of(value)
    except DecryptionError:
        return UNREADABLE
