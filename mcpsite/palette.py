"""What Ctrl-K finds: pages and objects that the viewer may see. Unfold's own search keeps what JSON cannot hold."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse

from access import saved_filters
from mcpsite.sidebar import GROUPS, Place, admin_of, opened

_LONGEST, _MOST_OF_A_KIND = 100, 8
# Lists that are too long, or that nobody searches by name. A record is found by its id.
_NOT_SEARCHED = frozenset({"audit.Record", "procrastinate.ProcrastinateJob", "access.RevokedSession", "access.Grant"})


@dataclass(frozen=True, slots=True)
class Found:
    """A line of the palette."""

    title: str
    description: str
    link: str
    icon: str


def search(request: HttpRequest) -> HttpResponse:
    """The lines for `s`, as unfold's palette takes them."""
    started, term = time.perf_counter(), request.GET.get("s", "").replace("\0", "").strip()[:_LONGEST]
    if not term:
        return HttpResponse()
    page = Paginator(list(find(request, term)), 1000).page(1)
    context = {
        "results": page,
        "page_obj": page.paginator,
        "page_counter": 0,
        "execution_time": time.perf_counter() - started,
        "command_show_history": False,
    }
    headers = {"HX-Trigger": "search"}
    return TemplateResponse(request, "unfold/helpers/command_results.html", context, headers=headers)


def find(request: HttpRequest, term: str) -> Iterator[Found]:
    """Pages first, then objects, those with the words in their names before others."""
    if "dashboard".startswith(term.lower()):
        yield Found("Dashboard", "Page", reverse("admin:index"), "dashboard")
    for group, places in GROUPS:
        for place in opened(request, places):
            if term.lower() in place.title.lower():
                yield Found(place.title, group, reverse(place.changelist), place.icon)
    if term.lower() in "api documentation":
        yield Found("API documentation", "System", reverse("api-docs"), "api")
    for each in saved_filters.visible_to(request).filter(name__icontains=term)[:_MOST_OF_A_KIND]:
        yield Found(each.name, "Saved filter", saved_filters.address(each), "bookmark")
    yield from _record(request, term)
    searched = (place for _, places in GROUPS for place in opened(request, places) if place.model not in _NOT_SEARCHED)
    found = (each for place in searched for each in _objects(request, place, term))
    yield from sorted(found, key=lambda each: term.lower() not in each.title.lower())


def _record(request: HttpRequest, term: str) -> Iterator[Found]:
    try:
        wanted = uuid.UUID(term)
    except ValueError:
        return
    if request.user.has_perm("audit.view_record"):
        link = f"{reverse('admin:audit_record_changelist')}?q={wanted}"
        yield Found(str(wanted), "Records with this id, or of this call", link, "receipt_long")


def _objects(request: HttpRequest, place: Place, term: str) -> Iterator[Found]:
    model_admin: Any = admin_of(place.model)
    if not model_admin.get_search_fields(request):
        return
    rows, _ = model_admin.get_search_results(request, model_admin.get_queryset(request), term)
    kind = str(model_admin.opts.verbose_name)
    for obj in rows.distinct()[:_MOST_OF_A_KIND]:
        link = reverse(f"admin:{model_admin.opts.app_label}_{model_admin.opts.model_name}_change", args=(obj.pk,))
        yield Found(str(obj), kind[:1].upper() + kind[1:], link, place.icon)
