"""Tasks in the admin: what is under way, what came of it, and a button that ends it."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Q, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import ChoicesDropdownFilter  # type: ignore[import-untyped]

from access.models import User
from audit.doors import ReadOnlyAdmin
from audit.keyset import KeysetChangeList, KeysetPaginator
from audit.theme import badge, display
from gateway.models import Task
from gateway.task_control import cancel_task, may_cancel, may_read, visible_tasks, without_contents

_COLOURS = {
    Task.Status.WORKING: "blue",
    Task.Status.INPUT_REQUIRED: "orange",
    Task.Status.COMPLETED: "green",
    Task.Status.FAILED: "red",
    Task.Status.CANCELLED: "grey",
}
_PILLS = {
    Task.Status.INPUT_REQUIRED: "pill-warning",
    Task.Status.COMPLETED: "pill-good",
    Task.Status.FAILED: "pill-bad",
}
# What came of it, besides having come to an end.
_QUIET = ("", "ok")


class TaskChangeList(KeysetChangeList):
    """Tasks without their contents, which would be decrypted for nothing."""

    moment = "created_at"
    keys = re.compile("[A-Za-z0-9_-]{1,32}")

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> Any:
        """See `KeysetChangeList`."""
        return without_contents(super().get_queryset(request, exclude_parameters))


@admin.register(Task)
class TaskAdmin(ReadOnlyAdmin):
    """Tasks: everybody sees their own."""

    list_display = ("created_at", "shown_status", "tool", "user", "code", "took", "expires_at")
    list_display_links = ("created_at", "shown_status")
    list_filter = (("status", ChoicesDropdownFilter),)
    list_filter_submit = True
    list_select_related = ("user",)
    search_fields = ("id",)
    search_help_text = "Id of a task or call, or a tool or user in full"
    sortable_by = ()
    list_before_template = "admin/tasks_before.html"
    list_per_page = 50
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = KeysetPaginator
    empty_icon = "hourglass_top"
    empty_title = "No tasks"
    empty_text = "A call of a client that knows tasks becomes one when it is slow, or when its tool says so."

    def get_queryset(self, request: HttpRequest) -> QuerySet[Task]:
        """All, or one's own."""
        return visible_tasks(request.user, super().get_queryset(request))

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[KeysetChangeList]:
        """Pages by time and id."""
        return TaskChangeList

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Task], search_term: str
    ) -> tuple[QuerySet[Task], bool]:
        """What is called exactly so: an index leads to it."""
        term = search_term.strip()
        return (queryset.filter(_called(term)) if term else queryset), False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whoever may view tasks, and who has some; `get_queryset` leaves out those of others."""
        allowed = super().has_view_permission(request, obj)
        return allowed or Task.objects.filter(user=request.user.pk).exists()

    def has_module_permission(self, request: HttpRequest) -> bool:
        """As above."""
        return self.has_view_permission(request)

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """The task as it is; a POST cancels it."""
        task = self.get_queryset(request).select_related("user").filter(pk=object_id).first()
        if task is None:
            raise Http404
        if request.method == "POST":
            if not may_cancel(request.user, task):
                raise PermissionDenied
            assert isinstance(request.user, User), "the admin lets nobody else in"
            cancel_task(task, actor=request.user, door="admin", request=request)
            return HttpResponseRedirect(request.path)
        request.current_app = self.admin_site.name
        return TemplateResponse(
            request, "admin/task.html", {**self.admin_site.each_context(request), **_shown(request, task)}
        )

    @display(description="Status")
    def shown_status(self, task: Task) -> SafeString:
        """Coloured."""
        return badge(task.get_status_display(), _COLOURS[Task.Status(task.status)], task.message)

    @display(description="Took")
    def took(self, task: Task) -> str:
        """Seconds from its beginning to its end."""
        return _took(task)


def _called(term: str) -> Q:
    try:
        return Q(call_id=uuid.UUID(term))
    except ValueError:
        term = term.replace("\0", "")
        # Not by a join: so each part has an index, and all are of one table.
        users = list(User.objects.filter(username=term).values_list("pk", flat=True))
        return Q(id=term) | Q(tool=term) | Q(user__in=users)


def _shown(request: HttpRequest, task: Task) -> dict[str, Any]:
    readable = may_read(request.user, task)
    failed = task.status == Task.Status.FAILED
    return {
        "title": f"Task of {task.tool}",
        "opts": Task._meta,
        "original": task,
        "task": task,
        "pill": _PILLS.get(Task.Status(task.status), ""),
        "took": _took(task),
        "code": "" if task.code in _QUIET else task.code,
        "readable": readable,
        "arguments": _pretty(task.request["arguments"]) if readable else "",
        "questions": _pretty(task.questions) if readable and task.questions else "",
        "outcome_title": "Error" if failed else "Result",
        "outcome": _pretty(task.result) if readable and task.result is not None else "",
        "may_cancel": not task.is_finished and may_cancel(request.user, task),
        "may_see_records": request.user.has_perm("audit.view_record"),
    }


def _took(task: Task) -> str:
    return f"{(task.updated_at - task.created_at).total_seconds():.1f} s" if task.is_finished else "-"


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
