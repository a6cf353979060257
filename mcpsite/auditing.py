"""The auditor's first page: what can be trusted, what happened of late, and the way to everything else."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse

from audit.auditing import checks, counts
from audit.selections import VIEWS
from mcpsite.dashboard import latest
from mcpsite.sidebar import AUDIT, GROUPS, audits_only, opened

PERMISSION = "audit.view_record"


def overview(request: HttpRequest) -> HttpResponse:
    """The page."""
    if not request.user.has_perm(PERMISSION):
        raise PermissionDenied
    listed, numbers = reverse("admin:audit_record_changelist"), counts()
    context: dict[str, Any] = {
        **admin.site.each_context(request),
        "title": "Audit overview",
        "checks": checks(),
        "views": [(view, f"{listed}?{view.address}", numbers[view.name]) for view in VIEWS],
        "places": [place for title, places in GROUPS if title in AUDIT for place in opened(request, places)],
        **latest(),
    }
    request.current_app = admin.site.name
    return TemplateResponse(request, "admin/auditing.html", context)


def index(request: HttpRequest) -> HttpResponse:
    """The admin's first page: for who only audits that is the page above."""
    if not request.GET and audits_only(request.user):
        return HttpResponseRedirect(reverse("audit-overview"))
    return admin.site.index(request)
