"""Pages of the admin about the installation itself."""

from __future__ import annotations

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils import timezone

from mcpsite.check import State
from mcpsite.doctor import SEES_CHECKS, examine, worst

_PILLS = {State.OK: "pill-good", State.WARN: "pill-warning", State.FAIL: "pill-bad"}
_WORDS = {State.OK: "In order", State.WARN: "Could be better", State.FAIL: "Needs you"}


def doctor(request: HttpRequest) -> HttpResponse:
    """What is wrong with the installation, and what to do about it."""
    if not request.user.has_perm(SEES_CHECKS):
        raise PermissionDenied
    checks = examine()
    context = {
        **admin.site.each_context(request),
        "title": "Doctor",
        "checks": [(check, _PILLS[check.state], _WORDS[check.state]) for check in checks],
        "all_pill": _PILLS[worst(checks)],
        "all_word": _WORDS[worst(checks)],
        "at": timezone.now(),
    }
    return TemplateResponse(request, "admin/doctor.html", context)
