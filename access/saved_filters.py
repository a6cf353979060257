"""Lists of the admin under names: what is kept of a list's address, who sees it, and the way back to it.

Only the query of a list is kept, and checked by the list itself; the path is always made anew from the model. So a
saved filter leads nowhere but to a list of ours.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlencode

from django.apps import apps
from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.core.exceptions import SuspiciousOperation, ValidationError
from django.db.models import Q, QuerySet
from django.http import HttpRequest, QueryDict
from django.urls import reverse

from access.models import SavedFilter

MOST_OF_A_USER = 200
_LONGEST_QUERY = 2000
# Where one is in a list, and in which window, is not what the list shows. The last two are `audit.keyset`'s, which a
# module of template tags cannot import: unfold looks for these while it is being imported itself.
_PASSING = frozenset({"p", "all", "e", "_popup", "_to_field", "_changelist_filters", "older_than", "newer_than"})


class NotSavable(ValueError):
    """The list cannot be saved; the message says why and what to do."""


def admin_for(request: HttpRequest, label: str) -> admin.ModelAdmin[Any] | None:
    """The admin of a model, if there is one that the user may see."""
    try:
        model = apps.get_model(label)
    except (LookupError, ValueError):
        return None
    if not admin.site.is_registered(model):
        return None
    found = admin.site.get_model_admin(model)
    return found if found.has_view_or_change_permission(request) else None


def kept(query: str) -> str:
    """What is worth keeping of a query string."""
    pairs = [(name, value) for name, value in parse_qsl(query) if name not in _PASSING and "\0" not in name + value]
    return urlencode(pairs)


def save(request: HttpRequest, label: str, query: str, name: str, *, shared: bool) -> SavedFilter:
    """Keep the list under a name for the user of the request. Raises NotSavable."""
    model_admin = admin_for(request, label)
    if model_admin is None:
        raise NotSavable("There is no such list.")
    query = kept(query)
    if not query:
        raise NotSavable("The list is not filtered, searched or sorted: there is nothing to save.")
    if len(query) > _LONGEST_QUERY:
        raise NotSavable("There are too many filters to save.")
    _check(request, model_admin, query)
    if SavedFilter.objects.filter(user=request.user).count() >= MOST_OF_A_USER:  # type: ignore[misc]
        raise NotSavable(f"You have {MOST_OF_A_USER} saved filters: delete some first.")
    found = SavedFilter(user=request.user, model=label, query=query, name=name.strip(), shared=shared)  # type: ignore[misc]
    try:
        found.full_clean()
    except ValidationError as error:
        raise NotSavable(" ".join(error.messages)) from error
    found.save()
    return found


def _check(request: HttpRequest, model_admin: Any, query: str) -> None:
    """Refuse what the list itself would refuse: everybody whom it is shown would run into it."""
    before = request.GET
    request.GET = QueryDict(query)
    try:
        model_admin.get_changelist_instance(request)
    except (IncorrectLookupParameters, SuspiciousOperation) as error:
        raise NotSavable("The list cannot be filtered like this.") from error
    finally:
        request.GET = before


def visible_to(request: HttpRequest) -> QuerySet[SavedFilter]:
    """One's own, and those for everybody, of lists that one may see."""
    labels = SavedFilter.objects.order_by().values_list("model", flat=True).distinct()
    allowed = [label for label in labels if admin_for(request, label)]
    return SavedFilter.objects.filter(Q(user=request.user) | Q(shared=True), model__in=allowed)


def for_list(request: HttpRequest, label: str) -> list[SavedFilter]:
    """Those of one list, one's own first."""
    found = SavedFilter.objects.filter(Q(user=request.user) | Q(shared=True), model=label)
    return sorted(found.select_related("user"), key=lambda each: (each.user_id != request.user.pk, each.name.lower()))


def address(saved: SavedFilter) -> str:
    """Where it leads."""
    name = saved.model.replace(".", "_").lower()
    return f"{reverse(f'admin:{name}_changelist')}?{saved.query}"
