"""Django's permissions as a table to tick: one line for each sort of object, not a list of two hundred sentences."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from django import forms
from django.apps import apps
from django.contrib.auth.models import Permission
from django.template.loader import render_to_string
from django.utils.safestring import SafeString

STANDARD = ("view", "add", "change", "delete")
# In the order of the sidebar; permissions of other packages come last, folded away.
_OURS = ("tools", "gateway", "access", "agents", "audit", "procrastinate")


@dataclass
class Row:
    """The permissions on one sort of object: the four standard ones, None where there is none, and others."""

    name: str
    standard: dict[str, Permission | None] = field(default_factory=lambda: dict.fromkeys(STANDARD))
    others: list[Permission] = field(default_factory=list)


@dataclass
class Group:
    """The rows of one application."""

    name: str
    ours: bool
    rows: list[Row]


def groups_of(permissions: Iterable[Permission]) -> list[Group]:
    """The permissions by application and sort of object."""
    rows: dict[tuple[str, str], Row] = {}
    for each in permissions:
        kind = each.content_type
        row = rows.setdefault((kind.app_label, kind.model), Row(_capital(str(kind.name))))
        what, _, model = each.codename.partition("_")
        if what in STANDARD and model == kind.model:
            row.standard[what] = each
        else:
            row.others.append(each)
    labels = sorted({label for label, _ in rows}, key=lambda label: (_rank(label), label))
    return [
        Group(_title(label), label in _OURS, [row for (app, _), row in sorted(rows.items()) if app == label])
        for label in labels
    ]


def _rank(label: str) -> int:
    return _OURS.index(label) if label in _OURS else len(_OURS)


def _title(label: str) -> str:
    try:
        return _capital(str(apps.get_app_config(label).verbose_name))
    except LookupError:
        return label


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


class PermissionTable(forms.CheckboxSelectMultiple):
    """A table of check boxes for a field of permissions."""

    def render(self, name: str, value: Any, attrs: Any = None, renderer: Any = None) -> SafeString:
        """The table; `value` are the keys of what is ticked."""
        choices: Any = self.choices
        permissions = [key.instance for key, _ in choices if getattr(key, "instance", None)]
        ticked = {str(each) for each in value or ()}
        groups = groups_of(permissions)
        context = {
            "name": name,
            "groups": groups,
            "foreign": [group for group in groups if not group.ours],
            "ticked": ticked,
            "standard": STANDARD,
        }
        return SafeString(render_to_string("admin/permission_table.html", context))
