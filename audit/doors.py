"""What the classes of admin and REST inherit so that every change they make is recorded, and can be read as history."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from django.contrib import messages
from django.contrib.admin.exceptions import DisallowedModelAdminLookup
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db import models, transaction
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from unfold.widgets import UnfoldAdminTextareaWidget  # type: ignore[import-untyped]

from audit.changes import Action, Snapshot, delete_recorded, link_to, record_change, stored, type_of
from audit.conditions import Guarded
from audit.models import Record
from audit.theme import BaseAdmin, with_code

_HISTORY_PAGE = 50
_LOOKUP = r"(__(id|pk|group_ptr))?(__(exact|in|isnull|gte|lte|lt|gt))?"
_VERBS = {"create": "Created", "update": "Changed", "delete": "Deleted", "test": "Tested", "sync": "Synchronised"}


@dataclass(frozen=True, slots=True)
class Told:
    """A record as a history shows it; `about` names the object when it is not the one whose history this is."""

    record: Record
    about: str
    changes: list[tuple[str, str, str]]
    detail: dict[str, Any]

    @property
    def verb(self) -> str:
        """What was done, as a word for people."""
        return verb_of(self.record)


def verb_of(record: Record) -> str:
    """What was done, as a word for people."""
    return _VERBS.get(record.code, record.code.replace("_", " ").capitalize())


class OwnFiltersOnly(BaseAdmin):
    """Refuses parameters that name other columns than the filters do: they could help to guess what is hidden."""

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """A list is called by what it lists."""
        name = str(self.opts.verbose_name_plural)
        return super().changelist_view(request, {"title": name[:1].upper() + name[1:], **(extra_context or {})})

    def get_changelist_instance(self, request: HttpRequest) -> Any:
        """Says what was wrong with the address before Django goes on to the list without filters."""
        try:
            return super().get_changelist_instance(request)
        except DisallowedModelAdminLookup as error:
            messages.warning(request, "The address named a filter that this list does not have: all are shown.")
            raise IncorrectLookupParameters from error
        except IncorrectLookupParameters as error:
            said = error.args[0] if error.args and isinstance(error.args[0], str) else ""
            messages.warning(request, said or "The address named a value that a filter cannot have: all are shown.")
            raise

    def lookup_allowed(self, lookup: str, value: Any, request: Any = None) -> bool:
        """Whether the parameter belongs to one of the filters."""
        filters = self.get_list_filter(request)
        names = (each[0] if isinstance(each, (tuple, list)) else each for each in filters)
        names = (getattr(name, "parameter_name", name) for name in names)
        return any(re.fullmatch(re.escape(str(name)) + _LOOKUP, lookup) for name in names)


class RecordedAdmin(OwnFiltersOnly):
    """An admin whose changes are ledger records of the same transaction. The records are the object's only history."""

    formfield_overrides = {models.TextField: {"widget": UnfoldAdminTextareaWidget(attrs={"rows": 3})}}
    object_history_template = "admin/ledger_history.html"
    # The object's related records that its history shows as well, by model label ("access.Grant").
    history_of: ClassVar[tuple[str, ...]] = ()

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """With code in help texts shown as code, also to those who may only look."""
        columns = (*self.opts.fields, *self.opts.many_to_many)
        said = {field.name: with_code(str(field.help_text)) for field in columns if field.help_text}
        return super().get_form(request, obj, change, **{"help_texts": said, **kwargs})

    def save_model(self, request: HttpRequest, obj: models.Model, form: Any, change: bool) -> None:
        """Keep the state before; `save_related` records when relations are saved too."""
        form.state_before = stored(obj) if change else {}
        super().save_model(request, obj, form, change)

    def save_related(self, request: HttpRequest, form: Any, formsets: Any, change: bool) -> None:
        """Save relations and inlines, then record the object and each inline object that changed."""
        super().save_related(request, form, formsets, change)
        self.settle(request, form.instance)
        self.record_saved(request, form.instance, form.state_before)

    def settle(self, request: HttpRequest, obj: models.Model) -> None:
        """What has to follow a save before it is recorded."""

    def record_saved(self, request: HttpRequest, obj: models.Model, before: Snapshot) -> None:
        """Record what the object is now against what it was."""
        action: Action = "update" if before else "create"
        record_change(action=action, obj=obj, before=before, after=stored(obj), door="admin", request=request)

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        """Save the inline objects of one kind, each with a record of its own."""
        formset.save(commit=False)
        gone: list[models.Model] = list(formset.deleted_objects)
        kept = [*(changed for changed, _ in formset.changed_objects), *formset.new_objects]
        before = [(obj, stored(obj)) for obj in kept]
        for obj in gone:
            delete_recorded(obj, door="admin", request=request)
        formset.deleted_objects = []
        for obj, _ in before:
            obj.save()
        formset.save_m2m()
        for obj, old in before:
            self.record_saved(request, obj, old)

    def delete_model(self, request: HttpRequest, obj: models.Model) -> None:
        """Delete and record."""
        delete_recorded(obj, door="admin", request=request)

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Delete and record each, all or none."""
        with transaction.atomic():
            for obj in queryset:
                delete_recorded(obj, door="admin", request=request)

    def log_addition(self, request: HttpRequest, obj: models.Model, message: Any) -> Any:
        """Not written: the ledger is the only history."""

    def log_change(self, request: HttpRequest, obj: models.Model, message: Any) -> Any:
        """Not written: the ledger is the only history."""

    def log_deletion(self, request: HttpRequest, obj: models.Model, object_repr: str) -> Any:
        """Not written: the ledger is the only history."""

    def log_deletions(self, request: HttpRequest, queryset: QuerySet[Any]) -> Any:
        """Not written: the ledger is the only history."""

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        """The object's records, newest first, fifty at a time."""
        obj = self.get_object(request, unquote(object_id))
        if obj is None:
            raise Http404
        if not self.has_view_or_change_permission(request, obj):
            raise PermissionDenied
        entries, older = history(obj, self.history_of, request.GET.get("before", ""))
        context = {
            **self.admin_site.each_context(request),
            "title": f"History of {obj}",
            "entries": entries,
            "older": older,
            "object": obj,
            "opts": self.opts,
            "may_see_records": request.user.has_perm("audit.view_record"),
            "preserved_filters": self.get_preserved_filters(request),
            **(extra_context or {}),
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, self.object_history_template, context)


class ReadOnlyAdmin(OwnFiltersOnly):
    """An admin in which nothing can be added, changed or deleted."""

    actions = None

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        """Without a button for a history: there is none."""
        return super().render_change_form(request, {**context, "show_history": False}, *args, **kwargs)

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        """What cannot change has no history."""
        raise Http404

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never."""
        return False


def history(obj: models.Model, related: Iterable[str] = (), before: str = "") -> tuple[list[Told], int | None]:
    """Records that tell of the object or of what hangs on it, and the id to go on from for older ones."""
    link = json.dumps(link_to(obj, obj.pk))
    wanted = Q(object_type=type_of(obj), object_id=str(obj.pk))
    if related:
        wanted |= Q(object_type__in=list(related), detail__contains=link)
    records = Record.objects.filter(wanted).order_by("-id")
    if before.isdecimal() and len(before) < 19:
        records = records.filter(id__lt=int(before))
    found = list(records[: _HISTORY_PAGE + 1])
    older = found[_HISTORY_PAGE - 1].id if len(found) > _HISTORY_PAGE else None
    return [_told(record, obj) for record in found[:_HISTORY_PAGE]], older


def _told(record: Record, obj: models.Model) -> Told:
    detail = detail_of(record)
    about = "" if record.object_type == type_of(obj) else str(detail.get("label", ""))
    return Told(record, about, changes_of(detail), detail)


def detail_of(record: Record) -> dict[str, Any]:
    """The record's detail as an object; empty when it has none."""
    try:
        found = json.loads(record.detail or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def changes_of(detail: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(field, before, after) as text for people; an empty string where there was or is nothing."""
    changes = detail.get("changes")
    if not isinstance(changes, dict):
        return []
    pairs = ((name, pair) for name, pair in changes.items() if isinstance(pair, list) and len(pair) == 2)
    return [
        (each.replace("_", " "), _readable(before), _readable(after))
        for name, (old, new) in pairs
        for each, before, after in _parts(name, old, new)
    ]


def _parts(name: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """Of an object with names and values only the values that differ, so that nobody has to compare the rest."""
    values = [each for each in (old, new) if each is not None]
    if not all(isinstance(each, dict) for each in values):
        return [(name, old, new)]
    before, after = old or {}, new or {}
    found = [
        (f"{name}: {key}", before.get(key), after.get(key))
        for key in {**before, **after}
        if before.get(key) != after.get(key)
    ]
    return found or [(name, old, new)]


def _readable(value: Any) -> str:
    if value is None or value in ("", [], {}):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)


class RecordedViewSet(Guarded):
    """Mixed into a DRF viewset: create, update and destroy are recorded in the transaction of the change.

    Retrieved and written objects have ETags, which `If-Match` asks for (`audit.conditions`). A viewset that lacks one
    of these actions says so in `http_method_names`.
    """

    def perform_create(self, serializer: Any) -> None:
        """Create and record."""
        with transaction.atomic():
            obj = serializer.save()
            record_change(action="create", obj=obj, before={}, after=stored(obj), door="rest", request=self.request)

    def perform_update(self, serializer: Any) -> None:
        """Update and record the difference, if there is one."""
        with transaction.atomic():
            before = stored(serializer.instance)
            obj = serializer.save()
            record_change(action="update", obj=obj, before=before, after=stored(obj), door="rest", request=self.request)

    def perform_destroy(self, instance: models.Model) -> None:
        """Delete and record."""
        delete_recorded(instance, door="rest", request=self.request)
