"""Where in the admin the things are that a record names, as far as they still exist and the reader may see them.

Models are named as in `object_type` of the records, so that this floor imports nothing from above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse

from audit.models import Record

TOOL, SOURCE, USER, TOKEN, VERSION = (
    "tools.Tool",
    "tools.DataSource",
    "access.User",
    "access.ApiToken",
    "tools.ToolVersion",
)


@dataclass(frozen=True, slots=True)
class Version:
    """The state of a tool's definition that a record names by its fingerprint."""

    number: int
    current: int | None
    definition: str
    url: str


def url_of(request: HttpRequest, label: str | None, **lookup: Any) -> str:
    """The page of the object that `lookup` finds; empty when there is none, or none for this reader.

    Each admin shows the objects that are its own: a user may be a person or a program.
    """
    for model in apps.get_models():
        concrete = model._meta.concrete_model
        if concrete is None or concrete._meta.label != label or not admin.site.is_registered(model):
            continue
        shown = admin.site.get_model_admin(model)
        if not shown.has_view_permission(request):
            continue
        try:
            obj = shown.get_queryset(request).filter(**lookup).first()
            if obj is not None and shown.has_view_permission(request, obj):
                return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_change", args=(obj.pk,))
        except (ValueError, ValidationError, NoReverseMatch):
            continue
    return ""


def name_of(label: str) -> str:
    """What people call such objects; the label itself when there is no such model any more."""
    try:
        return str(apps.get_model(label)._meta.verbose_name)
    except (LookupError, ValueError):
        return label


def version_of(request: HttpRequest, record: Record) -> Version | None:
    """The tool's definition at the time of the record, for those who may see the tool."""
    if record.definition is None or not record.tool:
        return None
    model: Any = apps.get_model(VERSION)
    versions = model.objects.filter(fingerprint=bytes(record.definition).hex()).select_related("tool__current")
    found = versions.filter(tool__name=record.tool).first() or versions.first()
    place = found and url_of(request, TOOL, pk=found.tool_id)
    if not place:
        return None
    current = found.tool.current
    return Version(found.number, current and current.number, found.definition, f"{place}#version-{found.number}")
