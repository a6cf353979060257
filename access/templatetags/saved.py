"""The saved filters of a list, for its page."""

from __future__ import annotations

from typing import Any

from django import template

from access import saved_filters
from audit.selections import VIEWS

register = template.Library()


@register.inclusion_tag("admin/saved_filters.html", takes_context=True)
def saved_filters_of(context: Any, changelist: Any) -> dict[str, Any]:
    """A menu with them, and a form to save what is shown now."""
    request, label = context["request"], changelist.opts.label
    now = saved_filters.kept(request.META.get("QUERY_STRING", ""))
    found = saved_filters.for_list(request, label)
    return {
        "request": request,
        "own": [each for each in found if each.user_id == request.user.pk],
        "shared": [each for each in found if each.user_id != request.user.pk],
        "current": next((each for each in found if each.query == now), None),
        "ready": [(view.name, view.address) for view in VIEWS] if label == "audit.Record" else [],
        "label": label,
        "now": now,
        "csrf_token": context.get("csrf_token"),
    }
