"""The catalogue in the admin. What a kind of source needs comes from its connector: nothing here knows any kind."""

from __future__ import annotations

import json
from typing import Any, cast
from uuid import UUID

import orjson
from django import forms
from django.contrib import admin, messages
from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import PermissionDenied
from django.db import models
from django.db.models import Count, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import (  # type: ignore[import-untyped]
    BooleanRadioFilter,
    ChoicesDropdownFilter,
    RelatedDropdownFilter,
)
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget  # type: ignore[import-untyped]

from audit.bulk import BulkAdmin, bulk_action
from audit.caller import caller_of
from audit.changes import record_event
from audit.doors import RecordedAdmin
from audit.models import Record
from audit.theme import BaseTabularInline, action, badge, code_block, dialog, display, go_to, mono
from tools import clients
from tools.connectors.registry import connector_class, kinds
from tools.definitions import DefinitionRefused, publish
from tools.forms import CLEAR, PREFIX, source_form, tool_form
from tools.models import DataSource, EgressRule, Tool, Toolset, ToolVersion, tag
from tools.recording_form import RECORDED, recording_example
from tools.source_state import state_for
from tools.sync import check_source
from tools.synchronisation import SyncRefused, ask_for_sync

RECORDED_TITLE = "What the ledger keeps"
EFFECT_COLOURS = {Tool.Effect.READ: "green", Tool.Effect.WRITE: "orange", Tool.Effect.DESTRUCTIVE: "red"}


def _recorded(form: type[Any]) -> list[str]:
    return [name for name in form.base_fields if name.startswith(RECORDED)]


def _declared(form: type[Any]) -> list[str]:
    return [name for name in form.base_fields if name.startswith((PREFIX, CLEAR))]


@admin.register(DataSource)
class DataSourceAdmin(BulkAdmin):
    """Data sources: choose a kind, fill in what its connector declares, test, synchronise."""

    list_display = ("name", "kind_label", "state", "checked", "checked_at", "synced_at", "tool_count")
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
    empty_text = "A data source is a database, a service or an upstream MCP server that tools come from."

    def get_queryset(self, request: HttpRequest) -> QuerySet[DataSource]:
        """With the number of tools."""
        rows: QuerySet[DataSource] = super().get_queryset(request).defer("secrets")
        return rows.annotate(how_many=Count("tools"))

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
        declared = _declared(form)
        looking = obj is not None and not self.has_change_permission(request, obj)
        return (
            ("Data source", {"fields": (*general, "prefix") if self._discovers(request, obj) else general}),
            ("Connection", {"fields": ("shown_options",) if looking else declared}),
            (RECORDED_TITLE, {"fields": ("shown_recording",) if looking else _recorded(form)}),
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
            "Synchronise the tools?",
            "A job asks the source what it offers and updates its tools. This page shows what comes of it.",
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

    @display(description="Tools", ordering="how_many")
    def tool_count(self, source: Any) -> int:
        """How many tools it has."""
        return int(source.how_many)

    @display(description="Policy")
    def shown_recording(self, source: DataSource) -> SafeString:
        """As it is stored."""
        return code_block(json.dumps(source.recording or {}, indent=2, ensure_ascii=False))

    @display(description="Options")
    def shown_options(self, source: DataSource) -> SafeString:
        """The options without secrets."""
        return code_block(json.dumps(source.options, indent=2, ensure_ascii=False))


class VersionInline(BaseTabularInline):
    """The tool's definitions, newest first."""

    model = ToolVersion
    fields = readonly_fields = ("number", "created_at", "print")
    ordering = ("-number",)
    extra = max_num = 0
    can_delete = False
    hide_title = True
    per_page = 10
    verbose_name_plural = "versions of the definition"

    @display(description="Fingerprint")
    def print(self, version: ToolVersion) -> SafeString:
        """SHA-256, as a place that records lead to."""
        return format_html('<span id="version-{}">{}</span>', version.number, mono(version.fingerprint))

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never: a version is made by publishing."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never."""
        return False

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whoever sees the tool."""
        return request.user.has_perm("tools.view_tool")


class EffectForm(forms.Form):
    """Which effect."""

    effect = forms.ChoiceField(choices=Tool.Effect.choices, widget=UnfoldAdminSelectWidget())


class TagForm(forms.Form):
    """Which tag."""

    tag = forms.CharField(max_length=32, validators=[tag], widget=UnfoldAdminTextInputWidget())


@admin.register(Tool)
class ToolAdmin(BulkAdmin):
    """Tools: what they may do, how they are tagged, and, for those written by hand, what they are."""

    list_display = ("name", "title", "effect_badge", "state", "source", "tag_list", "updated_at")
    list_filter = (
        ("source", RelatedDropdownFilter),
        ("effect", ChoicesDropdownFilter),
        ("enabled", BooleanRadioFilter),
    )
    list_filter_submit = True
    list_select_related = ("source", "current")
    search_fields = ("name", "tags", "source__name", "current__definition")
    readonly_fields = ("source_name", "definition", "updated_at", "shown_spec", "shown_recording", "example")
    formfield_overrides = {ArrayField: {"widget": UnfoldAdminTextInputWidget}}
    inlines = (VersionInline,)
    actions = ("switch_on", "switch_off", "set_effect", "add_tag")
    actions_detail = ("try_it",)
    history_of = ("access.Grant",)
    empty_icon = "build"
    empty_title = "No tools yet"
    empty_text = "Tools come from synchronising a data source, or are written by hand for a database."

    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """The sources for which tools are written by hand, then the form."""
        if not self.has_add_permission(request):
            raise PermissionDenied
        sources = {str(each.pk): each for each in self._writable_sources()}
        if request.GET.get("source") in sources:
            return super().add_view(request, form_url, extra_context)
        cards = [
            {"title": each.name, "text": each.description or each.kind, "url": f"?source={pk}", "icon": "database"}
            for pk, each in sources.items()
        ]
        context = {
            **self.admin_site.each_context(request),
            "title": "A tool of which data source?",
            "opts": self.opts,
            "cards": cards,
            "empty": "There is no data source for which tools are written by hand. Add a database first; the tools of "
            "other sources come by synchronising them.",
        }
        return TemplateResponse(request, "admin/choose.html", context)

    def _writable_sources(self) -> QuerySet[DataSource]:
        by_hand = [kind for kind, each in kinds().items() if not each.discovers]
        return DataSource.objects.filter(kind__in=by_hand).order_by("name")

    def _started(self, request: HttpRequest, obj: Tool | None) -> Tool:
        return obj or Tool(source=self._writable_sources().get(pk=request.GET["source"]))

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """The form with the fields of the source's kind."""
        return super().get_form(request, obj, change, **{**kwargs, "form": tool_form(self._started(request, obj))})

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Ours, the connector's, and what clients see."""
        form = tool_form(self._started(request, obj))
        declared = _declared(form)
        sets: list[Any] = [("Tool", {"fields": ("name", "source_name", "effect", "tags", "enabled")})]
        if obj is not None and not self.has_change_permission(request, obj):
            sets.append(("How it is called", {"fields": ("shown_spec",)}))
        elif declared:
            sets.append(("What it is", {"fields": declared}))
        if obj is not None:
            looking = not self.has_change_permission(request, obj)
            recorded = ["shown_recording"] if looking else _recorded(form)
            sets.append((RECORDED_TITLE, {"fields": [*recorded, "example"]}))
            sets.append(("What clients see", {"fields": ("definition", "updated_at")}))
        return sets

    def get_inlines(self, request: HttpRequest, obj: Any) -> Any:
        """No versions before the first."""
        return () if obj is None else self.inlines

    @bulk_action("Switch on", consequence="Whoever is granted them can call them within a second.")
    def switch_on(self, request: HttpRequest, tool: Tool, given: Any) -> None:
        """Into service."""
        tool.enabled = True

    @bulk_action("Switch off", consequence="Within a second they look as if they did not exist.", danger=True)
    def switch_off(self, request: HttpRequest, tool: Tool, given: Any) -> None:
        """Out of service."""
        tool.enabled = False

    @bulk_action(
        "Set the effect of",
        button="Set effect",
        form=EffectForm,
        consequence="Calls of tools that write or destroy leave an intent in the ledger before they start.",
    )
    def set_effect(self, request: HttpRequest, tool: Tool, given: Any) -> None:
        """What calling them does."""
        tool.effect = given["effect"]

    @bulk_action(
        "Add a tag to",
        button="Add tag",
        form=TagForm,
        consequence="Every role with a grant for the tag can call them within a second.",
    )
    def add_tag(self, request: HttpRequest, tool: Tool, given: Any) -> None:
        """For grants by tag."""
        tool.tags = [*tool.tags, *({given["tag"]} - set(tool.tags))]

    @action(description="Try", permissions=["try"], icon="play_arrow")
    def try_it(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Go to the page where the tool can be called; it is the gateway's."""
        return HttpResponseRedirect(reverse("try-tool", args=(object_id,)))

    def has_try_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """A permission of its own, since a call reaches outside."""
        return request.user.has_perm("tools.try_tool")

    def settle(self, request: HttpRequest, obj: models.Model) -> None:
        """Publish what was saved, so that the record tells of the new definition too."""
        publish(cast(Tool, obj))

    def changeform_view(
        self, request: HttpRequest, object_id: str | None = None, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """A definition that is refused takes the change with it."""
        try:
            return super().changeform_view(request, object_id, form_url, extra_context)
        except DefinitionRefused as error:
            messages.error(request, f"Nothing was saved: {error}")
            return HttpResponseRedirect(request.get_full_path())

    @display(description="Data source")
    def source_name(self, tool: Tool) -> str:
        """Where it comes from."""
        return tool.source.name

    @display(description="Title")
    def title(self, tool: Tool) -> str:
        """What the definition calls it."""
        found = definition_of(tool)
        return str(found.get("title") or (found.get("annotations") or {}).get("title") or "-")[:80]

    @display(description="Effect", ordering="effect")
    def effect_badge(self, tool: Tool) -> SafeString:
        """Green reads, orange writes, red destroys."""
        return badge(tool.get_effect_display(), EFFECT_COLOURS.get(Tool.Effect(tool.effect), "grey"))

    @display(description="State", ordering="enabled")
    def state(self, tool: Tool) -> SafeString:
        """On, off, or off with its source."""
        if not tool.source.enabled:
            return badge("Source off", "grey")
        return badge("On", "green") if tool.enabled else badge("Off", "grey")

    @display(description="Tags")
    def tag_list(self, tool: Tool) -> str:
        """Separated by commas."""
        return ", ".join(tool.tags) or "-"

    @display(description="Current definition")
    def definition(self, tool: Tool) -> SafeString | str:
        """The tool object of tools/list."""
        return (
            code_block(json.dumps(definition_of(tool), indent=2, ensure_ascii=False))
            if tool.current
            else "Not published"
        )

    @display(description="Policy")
    def shown_recording(self, tool: Tool) -> SafeString:
        """As it is stored."""
        return code_block(json.dumps(tool.recording or {}, indent=2, ensure_ascii=False))

    @display(description="An example")
    def example(self, tool: Tool) -> SafeString:
        """What a record will hold."""
        return recording_example(tool)

    @display(description="Specification")
    def shown_spec(self, tool: Tool) -> SafeString:
        """What the connector needs to carry out a call."""
        return code_block(json.dumps(tool.spec, indent=2, ensure_ascii=False))


def definition_of(tool: Tool) -> dict[str, Any]:
    """The current definition; empty when there is none."""
    if tool.current is None:
        return {}
    found: dict[str, Any] = orjson.loads(tool.current.definition)
    return found


@admin.register(Toolset)
class ToolsetAdmin(RecordedAdmin):
    """Toolsets: a selection of tools with an endpoint of its own."""

    list_display = ("name", "title", "endpoint", "how_many_tools", "updated_at")
    search_fields = ("name", "title", "description")
    filter_horizontal = ("tools",)
    actions_detail = ("connect",)
    readonly_fields = ("endpoint",)
    fields = ("name", "title", "description", "endpoint", "tools")
    history_of = ("access.Grant",)
    empty_icon = "category"
    empty_title = "No toolsets yet"
    empty_text = "A toolset groups tools so that they can be granted as one, and serves them at an address of its own."

    def get_queryset(self, request: HttpRequest) -> QuerySet[Toolset]:
        """With the number of tools."""
        rows: QuerySet[Toolset] = super().get_queryset(request)
        return rows.annotate(how_many=Count("tools"))

    @action(description="Connect a client", permissions=["view"], icon="cable")
    def connect(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """What to paste into MCP clients, so that they find the toolset."""
        toolset = get_object_or_404(Toolset, pk=object_id)
        context = {
            **self.admin_site.each_context(request),
            "title": f"Connect a client to {toolset.name}",
            "opts": self.opts,
            "original": toolset,
            "endpoint": clients.endpoint(toolset.name),
            "snippets": clients.configurations(toolset.name),
            "may_make_tokens": request.user.has_perm("access.add_apitoken"),
        }
        return TemplateResponse(request, "admin/connect_client.html", context)

    @display(description="Endpoint")
    def endpoint(self, toolset: Toolset) -> SafeString | str:
        """Where MCP clients find it."""
        return mono(clients.endpoint(toolset.name)) if toolset.name else "-"

    @display(description="Tools", ordering="how_many")
    def how_many_tools(self, toolset: Any) -> int:
        """How many tools it has."""
        return int(toolset.how_many)


@admin.register(EgressRule)
class EgressRuleAdmin(RecordedAdmin):
    """Exceptions from the rule that connectors reach nothing inside."""

    list_display = ("network", "shown_port", "note", "created_at")
    search_fields = ("network", "note")
    empty_icon = "shield"
    empty_title = "No exceptions"
    empty_text = "Connectors reach only public addresses. Add a rule for each database or server inside your network."

    @display(description="Port", ordering="port")
    def shown_port(self, rule: EgressRule) -> str:
        """Every port, unless one is named."""
        return str(rule.port or "every")
