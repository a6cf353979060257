"""What somebody changes becomes a record in the transaction of the change: what cannot be recorded does not happen.

A record names the fields that changed, before and after. What is secret is only said to be set, unset or changed.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from typing import Any, Literal

from django.core.exceptions import ObjectDoesNotExist
from django.db import models, router, transaction
from django.db.models.deletion import Collector, ProtectedError, RestrictedError

from audit.caller import caller_of
from audit.entry import Entry
from audit.ledger import record
from audit.models import Record
from keyring.fields import Ciphertext, EncryptedJSONField
from keyring.keys import DecryptionError

Action = Literal["create", "update", "delete"]
Snapshot = dict[str, Any]

HIDDEN_FIELDS = frozenset({"password", "digest"})
_LONGEST_VALUE = 4_000
_MOST_NAMES = 100


@dataclass(frozen=True, slots=True)
class Hidden:
    """Stands for a secret: two can be compared, none can be read."""

    digest: bytes | None = field(repr=False)

    def __str__(self) -> str:
        return "unset" if self.digest is None else "set"


def snapshot(obj: models.Model) -> Snapshot:
    """The object's concrete fields by name, and its many-to-many relations as sorted lists of names.

    Fields that only say when the row was last saved are left out, so that saving without a difference is none.
    """
    found: Snapshot = {}
    for column in obj._meta.concrete_fields:
        if not getattr(column, "auto_now", False):
            found[column.name] = _value(obj, column)
    for relation in obj._meta.many_to_many:
        found[relation.name] = sorted(str(each) for each in getattr(obj, relation.name).all())
    return found


def hidden_state(obj: models.Model) -> dict[str, Hidden]:
    """The object's secrets by name, to be compared and not to be read."""
    values = {each.name: _value(obj, each) for each in obj._meta.concrete_fields if _is_hidden(each)}
    return {name: value for name, value in values.items() if isinstance(value, Hidden)}


def _is_hidden(column: models.Field[Any, Any]) -> bool:
    return column.name in HIDDEN_FIELDS or isinstance(column, EncryptedJSONField)


def stored(obj: models.Model) -> Snapshot:
    """What the database holds of the object now; empty when it holds nothing."""
    found = obj._meta.model._base_manager.filter(pk=obj.pk).first()
    return {} if found is None else snapshot(found)


def _value(obj: models.Model, column: models.Field[Any, Any]) -> Any:
    if isinstance(column, EncryptedJSONField):
        return _hidden_json(obj, column)
    value = column.value_from_object(obj)
    if column.name in HIDDEN_FIELDS:
        usable = bool(value) and not str(value).startswith("!")  # Django's mark of an unusable password
        return Hidden(hashlib.sha256(str(value).encode()).digest() if usable else None)
    if column.is_relation and value is not None:
        return _named(obj, column)
    return _plain(value)


def _hidden_json(obj: models.Model, column: EncryptedJSONField) -> Hidden:
    try:
        value = getattr(obj, column.attname)
    except DecryptionError:
        value = obj.__dict__[column.attname]
    if not value:
        return Hidden(None)
    raw = bytes(value) if isinstance(value, Ciphertext) else json.dumps(value, sort_keys=True).encode()
    return Hidden(hashlib.sha256(raw).digest())


def _named(obj: models.Model, column: models.Field[Any, Any]) -> str:
    key = column.value_from_object(obj)
    try:
        return f"{getattr(obj, column.name)} ({key})"
    except ObjectDoesNotExist:
        return str(key)


def _plain(value: Any) -> Any:
    if isinstance(value, (datetime, date)):
        return value.isoformat()
    if isinstance(value, (bytes, memoryview)):
        return bytes(value).hex()
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def differences(before: Snapshot, after: Snapshot) -> dict[str, list[Any]]:
    """Field → [before, after], for the fields that differ."""
    names = [*after, *(name for name in before if name not in after)]
    changed = [name for name in names if before.get(name) != after.get(name)]
    return {name: _shown(before.get(name), after.get(name)) for name in changed}


def _shown(before: Any, after: Any) -> list[Any]:
    if isinstance(before, Hidden) and isinstance(after, Hidden) and before.digest and after.digest:
        return ["set", "changed"]
    return [_bounded(str(each) if isinstance(each, Hidden) else each) for each in (before, after)]


def _bounded(value: Any) -> Any:
    text = value if isinstance(value, str) else json.dumps(value)
    return value if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}… ({len(text)} characters)"


def record_change(
    *,
    action: Action,
    obj: models.Model,
    before: Snapshot,
    after: Snapshot,
    door: str,
    request: Any = None,
    actor: Any = None,
    pk: object = None,
    extra: Mapping[str, Any] | None = None,
) -> uuid.UUID | None:
    """Record a change in the current transaction and return the record's id, or None when nothing differs.

    `pk` is for objects that have lost theirs by being deleted. Raises what the database raises: let it end the change.
    """
    changes = differences(before, after)
    if not changes and action == "update":
        return None
    detail = {"action": action, "label": str(obj)[:200], "changes": changes, "links": links(obj), **(extra or {})}
    return record_event(
        Record.Kind.CONFIG,
        action,
        door=door,
        request=request,
        actor=actor,
        object_type=type_of(obj),
        object_id=str(pk if pk is not None else obj.pk),
        detail=detail,
    )


def record_event(
    kind: Record.Kind,
    code: str,
    *,
    door: str,
    request: Any = None,
    actor: Any = None,
    claimed: str | None = None,
    about: models.Model | None = None,
    detail: Mapping[str, Any] | None = None,
    **columns: Any,
) -> uuid.UUID:
    """Record an event of a person's making in the current transaction; `columns` are further fields of the entry.

    `claimed` is the user name that somebody gave who has not proved it, `about` the object in whose history it stands.
    """
    known = {**asdict(caller_of(request, actor)), **columns}
    if about is not None:
        known |= {"object_type": type_of(about), "object_id": str(about.pk)}
    if claimed is not None:
        known |= {"actor": claimed, "actor_id": None, "roles": None}
    text = None if detail is None else json.dumps(detail, ensure_ascii=False, separators=(",", ":"))
    return record(Entry(kind=kind.value, code=code, door=door, detail=text, **known))


def links(obj: models.Model) -> list[str]:
    """What the object hangs on, as `app.Model:id`, so that the history of one tells of the other."""
    relations = (column for column in obj._meta.concrete_fields if column.is_relation and column.related_model)
    pairs = ((column.related_model, column.value_from_object(obj)) for column in relations)
    return [link_to(model, key) for model, key in pairs if key is not None]


def link_to(model: Any, pk: object) -> str:
    """The name under which other records link to an object."""
    return f"{type_of(model)}:{pk}"


def type_of(model: Any) -> str:
    """`app.Model` of a model or an object; a proxy is what it stands for."""
    return str(model._meta.concrete_model._meta.label)


def also_deleted(objects: Iterable[models.Model]) -> dict[str, list[str]]:
    """What deleting `objects` takes along: model → names, at most a hundred of each."""
    wanted = list(objects)
    if not wanted:
        return {}
    collector = Collector(using=router.db_for_write(type(wanted[0])), origin=wanted[0])
    try:
        collector.collect(wanted)
    except (ProtectedError, RestrictedError):
        return {}
    own = {type(wanted[0])._meta.label, *(parent._meta.label for parent in wanted[0]._meta.get_parent_list())}
    found: dict[str, list[str]] = {}
    for each in (*collector.data.values(), *collector.fast_deletes):
        for victim in list(each)[:_MOST_NAMES]:
            if victim._meta.label not in own and not victim._meta.auto_created:
                found.setdefault(victim._meta.label, []).append(str(victim)[:120])
    return {label: sorted(names)[:_MOST_NAMES] for label, names in sorted(found.items())}


def delete_recorded(obj: models.Model, *, door: str, request: Any = None, actor: Any = None) -> None:
    """Delete the object and record it, with what went along, in one transaction."""
    with transaction.atomic():
        before, pk, taken = stored(obj), obj.pk, also_deleted([obj])
        record_change(
            action="delete",
            obj=obj,
            before=before,
            after={},
            door=door,
            request=request,
            actor=actor,
            pk=pk,
            extra={"also_deleted": taken} if taken else None,
        )
        obj.delete()
