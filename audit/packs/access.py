"""Who could call what at a date: the present configuration with every recorded change since then undone.

What was changed without a record (with SQL, say) cannot be undone. Where a change that is undone does not fit what is
there, the list says so. Models are named by their labels, so that this floor imports nothing from above.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.apps import apps
from django.conf import settings

from audit.changes import Hidden, snapshot
from audit.doors import detail_of
from audit.models import Record

USER, ROLE, GRANT, TOOL, PROMPT, RESOURCE, TOOLSET, SOURCE = (
    "access.User",
    "access.Role",
    "access.Grant",
    "tools.Tool",
    "tools.Prompt",
    "tools.Resource",
    "tools.Toolset",
    "tools.DataSource",
)
LABELS = (USER, ROLE, GRANT, TOOL, PROMPT, RESOURCE, TOOLSET, SOURCE)
# Large, and of no account here: the fingerprint beside it says which one it was.
_DEFINITION = "definition"
# Whose names others keep a list of: label → the label and field of those that do.
_NAMED_BY = {ROLE: (USER, "groups"), TOOL: (TOOLSET, "tools")}
_KEY = re.compile(r"\(([^()]*)\)\Z")
_CUT = re.compile(r"… \(\d+ characters\)\Z")
METHOD = (
    "The present configuration, read when the pack was made, with every change that the ledger recorded since the date"
    " undone, the newest first. Changes made past the site (with SQL or Django's shell) leave no record and are not"
    " undone."
)

Objects = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Reach:
    """A user could call a tool, or use a prompt or resource (`tool` is its name or URI), through a grant of a role."""

    user: str
    program: bool
    role: str
    tool: str
    source: str
    effect: str
    grant: str
    per_minute: int
    kind: str


@dataclass(frozen=True, slots=True)
class _Thing:
    kind: str
    name: str
    source: str
    effect: str


@dataclass(frozen=True, slots=True)
class _Usable:
    """What could be used, by the ways in which grants lead to it."""

    tools: dict[str, _Thing]
    # By the field of toolsets in which it stands, and how it stands there.
    members: dict[tuple[str, str], _Thing]
    tagged: dict[str, list[_Thing]]


@dataclass(slots=True)
class Access:
    """The objects at the date, what they come to, and where a change did not fit."""

    objects: Objects
    undone: int = 0
    misfits: list[str] = field(default_factory=list)
    reaches: list[Reach] = field(default_factory=list)


def access_as_of(at: datetime) -> Access:
    """Rebuild what the configuration was at that time."""
    found = Access({label: _present(label) for label in LABELS})
    changes = Record.objects.filter(kind=Record.Kind.CONFIG, object_type__in=LABELS, at__gte=at)
    for record in changes.order_by("-at", "-id").iterator():
        if record.code in ("create", "update", "delete") and record.object_id:
            _undo(found, record)
            found.undone += 1
    found.reaches = sorted(_reaches(found.objects), key=lambda each: (each.user, each.tool, each.role, each.grant))
    return found


def _present(label: str) -> dict[str, dict[str, Any]]:
    model: Any = apps.get_model(label)
    return {str(obj.pk): _shown(snapshot(obj)) for obj in model._base_manager.select_related()}


def _shown(values: dict[str, Any]) -> dict[str, Any]:
    plain = {name: str(value) if isinstance(value, Hidden) else value for name, value in values.items()}
    plain.pop(_DEFINITION, None)
    return plain


def _undo(access: Access, record: Record) -> None:
    label, key = str(record.object_type), str(record.object_id)
    changes = detail_of(record).get("changes") or {}
    objects = access.objects[label]
    if record.code == "create":
        if objects.pop(key, None) is None:
            access.misfits.append(f"record {record.pk}: created {label} {key}, which is not there")
        return
    if record.code == "delete":
        if key in objects:
            access.misfits.append(f"record {record.pk}: deleted {label} {key}, which is there")
        objects[key] = {}
    elif key not in objects:
        access.misfits.append(f"record {record.pk}: changed {label} {key}, which is not there")
        return
    for name, pair in changes.items():
        if isinstance(pair, list) and len(pair) == 2 and name != _DEFINITION:
            _undo_field(access, record, objects[key], name, pair)


def _undo_field(access: Access, record: Record, values: dict[str, Any], name: str, pair: list[Any]) -> None:
    before, after = pair
    known = record.code != "delete" and name in values and after not in ("changed", "set", "unset")
    if known and values[name] != after and not _is_cut(after):
        access.misfits.append(
            f"record {record.pk}: {record.object_type} {record.object_id}, {name} is not what it says"
        )
    if _is_cut(before):
        access.misfits.append(f"record {record.pk}: {name} was too long to be recorded in full")
    values[name] = before
    if name == "name" and record.code == "update" and (named := _NAMED_BY.get(str(record.object_type))):
        label, field_name = named
        for other in access.objects[label].values():
            if after in (other.get(field_name) or ()):
                other[field_name] = sorted(before if each == after else each for each in other[field_name])


def _is_cut(value: Any) -> bool:
    return isinstance(value, str) and bool(_CUT.search(value))


def key_in(named: Any) -> str:
    """The key of a relation as snapshots show it: `support (7)`."""
    found = _KEY.search(str(named or ""))
    return found[1] if found else str(named or "")


def _reaches(objects: Objects) -> Iterator[Reach]:
    usable = _usable(objects)
    grants: dict[str, list[dict[str, Any]]] = {}
    for grant in objects[GRANT].values():
        grants.setdefault(key_in(grant.get("role")), []).append(grant)
    roles = {str(role.get("name")): key for key, role in objects[ROLE].items()}
    for user in objects[USER].values():
        if not user.get("is_active"):
            continue
        for role in user.get("groups") or ():
            for grant in grants.get(roles.get(role, ""), ()):
                for thing in _led_to(grant, usable, objects[TOOLSET]):
                    yield _reach(user, role, grant, thing)


def _usable(objects: Objects) -> _Usable:
    found = _Usable({}, {}, {})
    for label, member_of in ((TOOL, "tools"), (PROMPT, "prompts"), (RESOURCE, "resources")):
        for key, each in objects[label].items():
            if not _can_be_used(label, each, objects[SOURCE]):
                continue
            thing = _thing(label, each)
            if label == TOOL:
                found.tools[key] = thing
            found.members[member_of, thing.name] = thing
            for tag in each.get("tags") or ():
                found.tagged.setdefault(tag, []).append(thing)
    return found


def _can_be_used(label: str, each: dict[str, Any], sources: dict[str, dict[str, Any]]) -> bool:
    is_offered = each.get("current") if label == TOOL else not each.get("missing")
    return bool(each.get("enabled") and is_offered and sources.get(key_in(each.get("source")), {}).get("enabled"))


def _thing(label: str, each: dict[str, Any]) -> _Thing:
    source = _KEY.sub("", str(each.get("source"))).strip()
    if label == RESOURCE:
        return _Thing("template" if each.get("is_template") else "resource", str(each.get("uri")), source, "read")
    if label == PROMPT:
        return _Thing("prompt", str(each.get("name")), source, "read")
    return _Thing("tool", str(each.get("name")), source, str(each.get("effect")))


def _led_to(grant: dict[str, Any], usable: _Usable, toolsets: dict[str, dict[str, Any]]) -> list[_Thing]:
    if grant.get("tool"):
        tool = usable.tools.get(key_in(grant["tool"]))
        return [tool] if tool else []
    if grant.get("toolset"):
        toolset = toolsets.get(key_in(grant["toolset"]), {})
        named = ((field, name) for field in ("tools", "prompts", "resources") for name in toolset.get(field) or ())
        return [usable.members[each] for each in named if each in usable.members]
    return usable.tagged.get(str(grant.get("tag")), [])


def _reach(user: dict[str, Any], role: str, grant: dict[str, Any], thing: _Thing) -> Reach:
    named = next(
        (f"{kind} {_KEY.sub('', str(grant[kind])).strip()}" for kind in ("toolset", "tool") if grant.get(kind)), ""
    )
    return Reach(
        user=str(user.get("username")),
        program=bool(user.get("is_service")),
        role=role,
        tool=thing.name,
        source=thing.source,
        effect=thing.effect,
        grant=named or f"tag {grant.get('tag')}",
        per_minute=int(grant.get("calls_per_minute") or settings.CALLS_PER_MINUTE),
        kind=thing.kind,
    )
