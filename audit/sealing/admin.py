"""The evidence in the admin: how far sealing is, who holds heads outside, and the heads themselves."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import Http404, HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import reverse

from audit.doors import ReadOnlyAdmin
from audit.models import Head
from audit.outside.models import Anchor, Cosignature
from audit.sealing import evidence

LATE_SECONDS = 10.0
_BEFORE, _LONGEST = "before", 18


@admin.register(Head)
class HeadAdmin(ReadOnlyAdmin):
    """One page of all, and one of each head."""

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Whoever may see heads."""
        return self.has_view_permission(request)

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """How far sealing is, and the heads by keyset."""
        if not self.has_view_permission(request):
            return super().changelist_view(request, extra_context)
        before = request.GET.get(_BEFORE, "")
        number = int(before) if before.isascii() and before.isdecimal() and len(before) <= _LONGEST else None
        rows, older = evidence.page(number)
        progress = evidence.progress()
        waiting, answered, last = evidence.requests()
        context = {
            **self.admin_site.each_context(request),
            "title": "Evidence",
            "opts": self.opts,
            "progress": progress,
            "late": progress.lag_seconds > LATE_SECONDS or progress.number is None,
            "keys": evidence.keys(),
            "witnesses": evidence.witnesses(),
            "sinks": evidence.sinks(),
            "requests": {"waiting": waiting, "answered": answered, "last": last},
            "rows": rows,
            "older": older,
            "paged": number is not None,
            "newest": evidence.root_of(rows[0].head) if rows and number is None else "",
        }
        return TemplateResponse(request, "admin/evidence.html", context)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """The head as it was signed."""
        head = self.get_object(request, object_id)
        if head is None or not self.has_view_permission(request, head):
            raise Http404
        context = {
            **self.admin_site.each_context(request),
            "title": f"Head {head.number}",
            "opts": self.opts,
            "head": head,
            "special": evidence.special(head),
            "root": evidence.root_of(head),
            "cosignatures": Cosignature.objects.filter(head=head.number).order_by("witness"),
            "anchors": Anchor.objects.filter(head=head.number).order_by("id"),
            "rest": reverse("head-detail", args=(head.number,)),
            "list": reverse("admin:audit_head_changelist"),
        }
        return TemplateResponse(request, "admin/head.html", context)
