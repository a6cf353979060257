"""Actions on many objects of a list: shown before they are done, then done and recorded in one transaction.

A method that changes one object, unsaved, becomes such an action:

    @bulk_action("Switch on", consequence="They can be called within a second.")
    def switch_on(self, request, tool, given):
        tool.enabled = True

To leave an object out, the method raises `ValidationError` with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse

from audit.changes import differences, snapshot, stored
from audit.doors import RecordedAdmin, changes_of

# One confirmation is one page, one form and one transaction.
MOST = 500

Given = Mapping[str, Any]
Change = Callable[[Any, HttpRequest, Any, Given], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bulk:
    """What is to be confirmed. `permission` is asked of the admin for each object."""

    verb: str
    button: str
    consequence: str
    change: Change
    form: type[forms.Form] | None
    permission: str
    danger: bool


@dataclass(frozen=True, slots=True)
class Planned:
    """One object and what would become of it: the fields that change, or the reason why none does."""

    obj: models.Model
    changes: list[tuple[str, str, str]]
    reason: str = ""


class BulkAdmin(RecordedAdmin):
    """An admin that has bulk actions."""

    def save_bulk(self, request: HttpRequest, obj: models.Model) -> None:
        """Save and record one object that an action has changed. Raises ValidationError when that must not be."""
        before = stored(obj)
        obj.save()
        self.record_saved(request, obj, before)


def bulk_action(
    verb: str,
    *,
    consequence: str,
    button: str = "",
    form: type[forms.Form] | None = None,
    permission: str = "change",
    danger: bool = False,
) -> Callable[[Change], Any]:
    """Make an action of a method that changes one object; `given` is what was filled in, if there is a `form`.

    `verb` goes before a number and the name of the objects, `button` stands alone.
    """

    def made(change: Change) -> Any:
        bulk = Bulk(
            verb=verb,
            button=button or verb,
            consequence=consequence,
            change=change,
            form=form,
            permission=permission,
            danger=danger,
        )

        def act(self: BulkAdmin, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
            return _answer(self, request, queryset, bulk, change.__name__)

        act.__name__ = change.__name__
        act.__doc__ = change.__doc__
        act.short_description = f"{verb} selected %(verbose_name_plural)s"  # type: ignore[attr-defined]
        act.allowed_permissions = (permission,)  # type: ignore[attr-defined]
        return act

    return made


def _answer(
    admin: BulkAdmin, request: HttpRequest, queryset: QuerySet[Any], bulk: Bulk, action: str
) -> HttpResponse | None:
    """The page that asks, or, once it is confirmed, back to the list."""
    chosen = list(queryset.values_list("pk", flat=True)[: MOST + 1])
    if len(chosen) > MOST:
        messages.error(request, f"At most {MOST} can be changed at once. Narrow the list with filters first.")
        return None
    confirmed = "confirmed" in request.POST
    form = bulk.form(request.POST if confirmed else None) if bulk.form else None
    given = form.cleaned_data if form is not None and form.is_valid() else {}
    if confirmed and (form is None or form.is_valid()):
        _carry_out(admin, request, chosen, bulk, given)
        return HttpResponseRedirect(request.get_full_path())
    return _ask(admin, request, _planned(admin, request, chosen, bulk, given), bulk, form, action)


def _ask(
    admin: BulkAdmin, request: HttpRequest, plan: list[Planned], bulk: Bulk, form: forms.Form | None, action: str
) -> HttpResponse:
    affected = [each for each in plan if not each.reason]
    many = len(affected) != 1
    noun = admin.opts.verbose_name_plural if many else admin.opts.verbose_name
    context = {
        **admin.admin_site.each_context(request),
        "title": f"{bulk.verb} {len(affected)} {noun}?",
        "opts": admin.opts,
        "bulk": bulk,
        "form": form,
        "affected": affected,
        "left_out": [each for each in plan if each.reason],
        "action": action,
        "action_checkbox_name": ACTION_CHECKBOX_NAME,
        "back": request.get_full_path(),
    }
    request.current_app = admin.admin_site.name
    return TemplateResponse(request, "admin/bulk.html", context)


def _planned(admin: BulkAdmin, request: HttpRequest, chosen: list[Any], bulk: Bulk, given: Given) -> list[Planned]:
    """What the action would do to each object. Before a form is filled in, that is not known yet."""
    rows = admin.model._base_manager.filter(pk__in=chosen)
    known = bulk.form is None or bool(given)
    return sorted((_plan(admin, request, obj, bulk, given, known) for obj in rows), key=lambda each: str(each.obj))


def _plan(admin: BulkAdmin, request: HttpRequest, obj: Any, bulk: Bulk, given: Given, known: bool) -> Planned:
    if not _may(admin, request, obj, bulk):
        return Planned(obj, [], "You may not change it.")
    if not known:
        return Planned(obj, [])
    before = snapshot(obj)
    try:
        bulk.change(admin, request, obj, given)
    except ValidationError as error:
        return Planned(obj, [], " ".join(error.messages))
    changes = changes_of({"changes": differences(before, snapshot(obj))})
    return Planned(obj, changes, "" if changes else "It is so already.")


def _may(admin: BulkAdmin, request: HttpRequest, obj: Any, bulk: Bulk) -> bool:
    return bool(getattr(admin, f"has_{bulk.permission}_permission")(request, obj))


def _carry_out(admin: BulkAdmin, request: HttpRequest, chosen: list[Any], bulk: Bulk, given: Given) -> None:
    """Change and record all that can be changed, or nothing; say how many."""
    done = 0
    try:
        with transaction.atomic():
            # Locked in one order, so that two administrators do not wait for each other for ever.
            rows = admin.model._base_manager.select_for_update(of=("self",)).filter(pk__in=chosen).order_by("pk")
            for obj in rows:
                if not _plan(admin, request, obj, bulk, given, known=True).reason:
                    admin.save_bulk(request, obj)
                    done += 1
    except ValidationError as error:
        messages.error(request, f"Nothing was changed. {' '.join(error.messages)}")
        return
    noun = admin.opts.verbose_name if done == 1 else admin.opts.verbose_name_plural
    unchanged = len(chosen) - done
    rest = f" {unchanged} stayed as {'it was' if unchanged == 1 else 'they were'}." if unchanged else ""
    messages.add_message(
        request, messages.SUCCESS if done else messages.WARNING, f"{done or 'No'} {noun} changed.{rest}"
    )
