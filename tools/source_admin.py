"""Data sources in the admin. What a kind needs comes from its connector: nothing here knows any kind."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import BooleanRadioFilter  # type: ignore[import-untyped]

from audit.bulk import BulkAdmin, bulk_action
from audit.caller import caller_of
from audit.changes import record_event
from audit.models import Record
from audit.theme import action, badge, code_block, dialog, display, go_to
from tools.connectors.registry import connector_class, kinds
from tools.counting import OF_SOURCES, Counted
from tools.forms import declared_fields, recorded_fields, source_form
from tools.models import DataSource
from tools.recording_form import RECORDED_TITLE
from tools.source_state import state_for
from tools.sync import check_source
from tools.synchronisation import SyncRefused, ask_for_sync


@admin.register(DataSource)
class DataSourceAdmin(Counted, BulkAdmin):
    """Data sources: choose a kind, fill in what its connector declares, test, synchronise."""

    list_display = ("name", "kind_label", "state", "checked", "checked_at", "synced_at", *Counted.columns)
    list_filter = (("enabled", BooleanRadioFilter), ("check_ok", BooleanRadioFilter))
    search_fields = ("name", "description")
    ordering = ("name",)
    actions = ("switch_on", "switch_off")
    actions_detail = ("test_connection", "synchronise")
    change_form_outer_before_template = "admin/source_state.html"
    readonly_fields = ("kind_label", "shown_options", "shown_recording")
    history_of = ("tools.Tool",)
    empty_icon = "database"
    empty_title = "No data sources yet"
    empty_text = "A data source is a database, a service or an MCP server that tools, prompts and resources come from."

    def get_queryset(self, request: HttpRequest) -> QuerySet[DataSource]:
        """With the number of what it offers."""
        rows: QuerySet[DataSource] = super().get_queryset(request).defer("secrets")
        return rows.annotate(**OF_SOURCES)

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """The kinds to choose from, then the form of the kind."""
        if request.GET.get("kind") in kinds():
            return super().add_view(request, form_url, extra_context)
        if not self.has_add_permission(request):
            raise PermissionDenied
        cards = [
            {"title": each.label, "text": each.description, "url": f"?kind={kind}", "icon": "database"}
            for kind, each in kinds().items()
        ]
        return self.choose(request, "What kind of data source?", cards)

    def choose(self, request: HttpRequest, title: str, cards: list[dict[str, str]]) -> HttpResponse:
        """A page of cards to choose from."""
        context = {**self.admin_site.each_context(request), "title": title, "opts": self.opts, "cards": cards}
        return TemplateResponse(request, "admin/choose.html", context)

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """The form with the fields of the source's kind."""
        started = obj or DataSource(kind=request.GET.get("kind", ""))
        return super().get_form(request, obj, change, **{**kwargs, "form": source_form(started)})

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Ours, then the connector's. Who may only look is shown the options as they are stored."""
        general = ("name", "kind_label", "description", "enabled", "timeout_seconds")
        form = source_form(obj or DataSource(kind=request.GET.get("kind", "")))
        declared = declared_fields(form)
        looking = obj is not None and not self.has_change_permission(request, obj)
        return (
            ("Data source", {"fields": (*general, "prefix") if self._discovers(request, obj) else general}),
            ("Connection", {"fields": ("shown_options",) if looking else declared}),
            (RECORDED_TITLE, {"fields": ("shown_recording",) if looking else recorded_fields(form)}),
        )

    def _discovers(self, request: HttpRequest, obj: DataSource | None) -> bool:
        return connector_class(obj.kind if obj else request.GET.get("kind", "")).discovers

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        """With its secrets, which the form needs to know of."""
        found = super().get_object(request, object_id, from_field)
        return found and DataSource.objects.get(pk=found.pk)

    def has_sync_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whether the buttons are there: a permission of its own, since they connect to the outside."""
        return request.user.has_perm("tools.sync_datasource")

    # --- Buttons ------------------------------------------------------------------------------------------------------

    @bulk_action("Switch on", consequence="Their tools that are on can be called again within a second.")
    def switch_on(self, request: HttpRequest, source: DataSource, given: Any) -> None:
        """Back into service."""
        source.enabled = True

    @bulk_action(
        "Switch off", consequence="Within a second all their tools look as if they did not exist.", danger=True
    )
    def switch_off(self, request: HttpRequest, source: DataSource, given: Any) -> None:
        """Out of service."""
        source.enabled = False

    @action(
        description="Test connection",
        permissions=["sync"],
        icon="network_check",
        dialog=dialog("Test the connection?", "Connects once, with the options and secrets that are stored.", "Test"),
    )
    def test_connection(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        """Connect once and say what was found."""
        source = DataSource.objects.get(pk=object_id)
        outcome = check_source(source)
        self._record(request, source, "test", {"ok": outcome.ok, "message": outcome.message})
        messages.add_message(request, messages.SUCCESS if outcome.ok else messages.ERROR, outcome.message)
        return go_to(reverse("admin:tools_datasource_change", args=(object_id,)))

    @action(
        description="Synchronise",
        permissions=["sync"],
        icon="sync",
        dialog=dialog(
            "Synchronise?",
            "A job asks the source what it offers, and updates the catalogue. This page shows what comes of it.",
            "Synchronise",
        ),
    )
    def synchronise(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        """Ask for it; the page follows what becomes of it."""
        try:
            ask_for_sync(DataSource.objects.get(pk=object_id), caller_of(request), "admin")
        except SyncRefused as refused:
            messages.error(request, str(refused))
        return go_to(reverse("admin:tools_datasource_change", args=(object_id,)))

    def get_actions_detail(self, request: HttpRequest, object_id: Any) -> Any:
        """No button to synchronise a kind whose tools are written by hand."""
        kind = DataSource.objects.filter(pk=object_id).values_list("kind", flat=True).first()
        actions = super().get_actions_detail(request, object_id)  # type: ignore[misc]
        if kind in kinds() and kinds()[kind].discovers:
            return actions
        return [each for each in actions if each.path != "synchronise"]

    def get_urls(self) -> list[Any]:
        """And the part of the page that follows a synchronisation."""
        view = self.admin_site.admin_view(self.show_state)
        return [path("<uuid:pk>/state/", view, name="tools_datasource_state"), *super().get_urls()]

    def show_state(self, request: HttpRequest, pk: UUID) -> HttpResponse:
        """What was found at the source lately."""
        source = get_object_or_404(DataSource, pk=pk)
        if not self.has_view_or_change_permission(request, source):
            raise PermissionDenied
        return TemplateResponse(request, self.change_form_outer_before_template, {"source_state": state_for(source)})

    def render_change_form(self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any) -> HttpResponse:
        """With what was found at the source lately."""
        if source := context.get("original"):
            context["source_state"] = state_for(source)
        return super().render_change_form(request, context, *args, **kwargs)

    def _record(self, request: HttpRequest, source: DataSource, code: str, said: dict[str, Any]) -> None:
        record_event(
            Record.Kind.CONFIG,
            code,
            door="admin",
            request=request,
            about=source,
            detail={"action": code, "label": str(source), **said},
        )

    # --- Columns ------------------------------------------------------------------------------------------------------

    @display(description="Kind")
    def kind_label(self, source: DataSource) -> str:
        """What the connector calls itself."""
        found = kinds().get(source.kind)
        return found.label if found else source.kind or "-"

    @display(description="State", ordering="enabled")
    def state(self, source: DataSource) -> SafeString:
        """On or off."""
        return badge("On", "green") if source.enabled else badge("Off", "grey")

    @display(description="Last check", ordering="check_ok")
    def checked(self, source: DataSource) -> SafeString:
        """Whether it could be reached when it was last tested."""
        if source.check_ok is None:
            return badge("Never tested", "grey")
        return badge("Reachable", "green") if source.check_ok else badge("Failed", "red", source.check_message)

    @display(description="Policy")
    def shown_recording(self, source: DataSource) -> SafeString:
        """As it is stored."""
        return code_block(json.dumps(source.recording or {}, indent=2, ensure_ascii=False))

    @display(description="Options")
    def shown_options(self, source: DataSource) -> SafeString:
        """The options without secrets."""
        return code_block(json.dumps(source.options, indent=2, ensure_ascii=False))
