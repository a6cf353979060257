"""Exports in the admin: asked for from the list of records, watched, and downloaded."""

from __future__ import annotations

from typing import Any, ClassVar
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, HttpResponseRedirect
from django.template.defaultfilters import filesizeformat
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import ChoicesDropdownFilter  # type: ignore[import-untyped]

from audit.arguments import PERMISSION
from audit.doors import OwnFiltersOnly
from audit.export.asking import ExportRefused, ask_for_export, cancel_export, delete_export, may_read, worker_is_gone
from audit.export.download import download
from audit.export.models import Export
from audit.export.scope import KNOWN, TIMES, BadScope, moment, read, words_for
from audit.theme import badge, display

COLOURS = {
    Export.State.WAITING: "grey",
    Export.State.RUNNING: "blue",
    Export.State.DONE: "green",
    Export.State.FAILED: "red",
    Export.State.CANCELLED: "orange",
    Export.State.EXPIRED: "grey",
}
_PILLS = {"green": "pill-good", "red": "pill-bad", "orange": "pill-warning", "blue": "pill-busy"}
_RECORDS = "audit.view_record"


class ArchiveAdmin(OwnFiltersOnly):
    """What exports and evidence packs have in common: nothing of them can be edited."""

    actions = None
    list_filter: ClassVar[Any] = (("state", ChoicesDropdownFilter),)
    list_filter_submit = True
    list_per_page = 50
    ordering = ("-asked_at", "-id")
    show_full_result_count = False
    form_template = "admin/export/form.html"

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never."""
        return False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Only who may see what it would hold."""
        return super().has_add_permission(request) and request.user.has_perm(_RECORDS)

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        """Delete and record."""
        delete_export(obj, door="admin", request=request)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """The archive alone: its parts are not things that anybody knows of."""
        return [str(obj) for obj in objs], {}, set(), []

    def log_deletion(self, request: HttpRequest, obj: Any, object_repr: str) -> Any:
        """Not written: the ledger is the only history."""

    def log_deletions(self, request: HttpRequest, queryset: QuerySet[Any]) -> Any:
        """Not written: the ledger is the only history."""

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        """Its records."""
        listed = reverse("admin:audit_record_changelist")
        return HttpResponseRedirect(f"{listed}?{urlencode({'text': object_id})}")

    # --- Asking -------------------------------------------------------------------------------------------------------

    def asked(self, request: HttpRequest) -> dict[str, Any]:
        """What the form shows: from the address at first, then what was sent."""
        raise NotImplementedError

    def ask(self, request: HttpRequest) -> Export:
        """Queue what was sent. Raises ExportRefused and BadScope."""
        raise NotImplementedError

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """The form; what it asks for is queued, and its page follows it."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        problem = ""
        if request.method == "POST":
            try:
                export = self.ask(request)
            except (ExportRefused, BadScope) as error:
                problem = str(error)
            else:
                return HttpResponseRedirect(self.address(export))
        context = {
            **self.admin_site.each_context(request),
            "title": f"Make an {self.opts.verbose_name}",
            "doing": "Add",
            "opts": self.opts,
            "problem": problem,
            **self.asked(request),
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, self.form_template, context, status=400 if problem else 200)

    def address(self, export: Export, what: str = "change") -> str:
        """A page of the export."""
        return reverse(f"admin:audit_{self.opts.model_name}_{what}", args=(export.pk,))

    # --- Watching -----------------------------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        """With the addresses that cancel and download."""
        name = f"audit_{self.opts.model_name}"
        own = [
            path("<uuid:pk>/cancel/", self.admin_site.admin_view(self.cancel_view), name=f"{name}_cancel"),
            path("<uuid:pk>/download/", self.admin_site.admin_view(self.download_view), name=f"{name}_download"),
        ]
        return [*own, *super().get_urls()]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """How far it is, and what it has become."""
        export = self.get_object(request, object_id)
        if export is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined,no-any-return]
        if not self.has_view_permission(request, export):
            raise PermissionDenied
        context = {
            **self.admin_site.each_context(request),
            "title": str(export),
            "opts": self.opts,
            "original": export,
            "export": export,
            "pill": _PILLS.get(COLOURS[Export.State(export.state)], ""),
            "percent": percent_of(export),
            "worker_is_gone": worker_is_gone(export),
            "scope": self.told(export),
            "may_read": may_read(request.user, export),
            "may_cancel": self.has_add_permission(request) and not export.is_finished,
            "may_delete": self.has_delete_permission(request, export),
            "cancel_url": self.address(export, "cancel"),
            "download_url": self.address(export, "download"),
            "delete_url": self.address(export, "delete"),
            "records_url": f"{reverse('admin:audit_record_changelist')}?{urlencode({'text': export.pk})}",
        }
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "admin/export/export.html", context)

    def told(self, export: Export) -> list[tuple[str, str]]:
        """The scope, as names and values."""
        times = {
            name: f"{moment(name, export.scope[name]):%Y-%m-%d %H:%M:%S}" for name in TIMES if name in export.scope
        }
        values = {**export.scope, **times}
        return [(words_for(name).capitalize(), values[name]) for name in KNOWN if name in values]

    def cancel_view(self, request: HttpRequest, pk: Any) -> HttpResponse:
        """Give it up."""
        export = self._found(request, pk)
        if request.method == "POST":
            if not self.has_add_permission(request):
                raise PermissionDenied
            cancel_export(export, door="admin", request=request)
        return HttpResponseRedirect(self.address(export))

    def download_view(self, request: HttpRequest, pk: Any) -> HttpResponseBase:
        """The archive."""
        export = self._found(request, pk)
        if not may_read(request.user, export):
            raise PermissionDenied
        if export.state != Export.State.DONE:
            messages.warning(request, "There is no archive to download.")
            return HttpResponseRedirect(self.address(export))
        return download(request, export, "admin")

    def _found(self, request: HttpRequest, pk: Any) -> Export:
        export: Export | None = self.get_queryset(request).filter(pk=pk).first()
        if export is None:
            raise Http404
        if not self.has_view_permission(request, export):
            raise PermissionDenied
        return export

    # --- What the list shows ------------------------------------------------------------------------------------------

    @display(description="State")
    def shown_state(self, export: Export) -> SafeString:
        """In a colour."""
        return badge(export.get_state_display(), COLOURS[Export.State(export.state)], export.problem)

    @display(description="Records")
    def shown_records(self, export: Export) -> str:
        """How many, so far."""
        return f"{export.records:,}"

    @display(description="Size")
    def shown_size(self, export: Export) -> str:
        """Of the archive."""
        return filesizeformat(export.size) if export.size else "-"


def percent_of(export: Export) -> int | None:
    """How much is done, in hundredths; None when nobody knows how much there is."""
    if not export.expected:
        return None
    return min(99, export.records * 100 // export.expected)


@admin.register(Export)
class ExportAdmin(ArchiveAdmin):
    """Records to take away."""

    list_display = ("asked_at", "form", "asked_by", "shown_state", "shown_records", "shown_size", "expires_at")
    list_filter: ClassVar[Any] = (("state", ChoicesDropdownFilter), ("form", ChoicesDropdownFilter))
    empty_icon = "download"
    empty_title = "No exports yet"
    empty_text = "Filter the records, then choose “Export what is listed” above the list."

    def get_queryset(self, request: HttpRequest) -> QuerySet[Export]:
        """Evidence packs have a list of their own."""
        rows: QuerySet[Export] = super().get_queryset(request)
        return rows.exclude(form=Export.Form.PACK)

    def asked(self, request: HttpRequest) -> dict[str, Any]:
        """The filters of the list, and the choices."""
        given = request.POST if request.method == "POST" else request.GET
        scope = {name: given[name] for name in KNOWN if given.get(name)}
        return {
            "filters": scope,
            "scope": [(words_for(name).capitalize(), value) for name, value in scope.items()],
            "form": given.get("form", Export.Form.JSONL),
            "payloads": bool(given.get("payloads")),
            "reason": given.get("reason", ""),
            "may_read_arguments": request.user.has_perm(PERMISSION),
            "list_url": f"{reverse('admin:audit_record_changelist')}?{urlencode(scope)}",
        }

    def ask(self, request: HttpRequest) -> Export:
        """Queue it. Raises ExportRefused and BadScope."""
        given = request.POST
        payloads = bool(given.get("payloads"))
        if payloads and not request.user.has_perm(PERMISSION):
            raise PermissionDenied
        form = given.get("form", "")
        if form not in (Export.Form.JSONL, Export.Form.CSV):
            raise BadScope("form", "Choose JSON lines or CSV.")
        return ask_for_export(
            form,
            read({name: given[name] for name in KNOWN if given.get(name)}),
            user=request.user,
            door="admin",
            request=request,
            payloads=payloads,
            reason=given.get("reason", ""),
        )
