"""What other packages register with the admin: shown in our style where it is of use, else left out."""

from __future__ import annotations

import json
from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.safestring import SafeString
from procrastinate.contrib.django.models import ProcrastinateEvent, ProcrastinateJob
from rest_framework_simplejwt.token_blacklist.models import BlacklistedToken, OutstandingToken
from unfold.contrib.filters.admin import ChoicesDropdownFilter  # type: ignore[import-untyped]

from audit.doors import ReadOnlyAdmin
from audit.theme import BaseTabularInline, badge, code_block, display

# Bookkeeping of refresh tokens: nothing to be seen or done there.
admin.site.unregister((OutstandingToken, BlacklistedToken, ProcrastinateJob))

# Pages name things by their own names, not by the package that they come from.
ProcrastinateJob._meta.verbose_name, ProcrastinateJob._meta.verbose_name_plural = "job", "jobs"

_COLOURS = {
    "todo": "grey",
    "doing": "blue",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "orange",
    "aborted": "orange",
}


class EventInline(BaseTabularInline):
    """What became of the job."""

    model = ProcrastinateEvent
    fields = readonly_fields = ("at", "type")
    extra = max_num = 0
    can_delete = False
    hide_title = True
    verbose_name_plural = "events"

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whoever sees the job."""
        return request.user.has_perm("procrastinate.view_procrastinatejob")


@admin.register(ProcrastinateJob)
class JobAdmin(ReadOnlyAdmin):
    """Background jobs: what waits, runs, succeeded and failed."""

    list_display = ("task_name", "shown_status", "queue_name", "attempts", "scheduled_at", "id")
    list_filter = (("status", ChoicesDropdownFilter),)
    list_filter_submit = True
    search_fields = ("task_name", "lock", "queueing_lock")
    ordering = ("-id",)
    show_full_result_count = False
    fields = (
        "id",
        "task_name",
        "shown_status",
        "queue_name",
        "priority",
        "lock",
        "queueing_lock",
        "attempts",
        "scheduled_at",
        "arguments",
    )
    inlines = (EventInline,)
    empty_icon = "schedule"
    empty_title = "No jobs"
    empty_text = "Checks, synchronisations and housekeeping appear here when they are due."

    @display(description="Status", ordering="status")
    def shown_status(self, job: ProcrastinateJob) -> SafeString:
        """Coloured."""
        return badge(job.status, _COLOURS.get(job.status, "grey"))

    @display(description="Arguments")
    def arguments(self, job: ProcrastinateJob) -> SafeString:
        """JSON."""
        return code_block(json.dumps(job.args, indent=2, ensure_ascii=False))
