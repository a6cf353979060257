"""The catalogue in the admin. What a tool needs comes from its source's connector: nothing here knows any kind."""

from __future__ import annotations

import json
from typing import Any, cast

from django import forms
from django.contrib import admin, messages
from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import PermissionDenied
from django.db import models
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import (  # type: ignore[import-untyped]
    BooleanRadioFilter,
    ChoicesDropdownFilter,
    RelatedDropdownFilter,
)
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget  # type: ignore[import-untyped]

from audit.bulk import BulkAdmin, bulk_action
from audit.doors import RecordedAdmin
from audit.theme import BaseTabularInline, action, badge, code_block, display, mono
from tools import clients, exact, source_admin  # noqa: F401 - registers its own model
from tools.connectors.registry import kinds
from tools.counting import OF_TOOLSETS, Counted
from tools.definitions import DefinitionRefused, publish
from tools.forms import declared_fields, recorded_fields, tool_form
from tools.models import DataSource, EgressRule, Tool, Toolset, ToolVersion
from tools.offered_admin import SILENT, TagForm
from tools.recording_form import RECORDED_TITLE, recording_example

EFFECT_COLOURS = {Tool.Effect.READ: "green", Tool.Effect.WRITE: "orange", Tool.Effect.DESTRUCTIVE: "red"}


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
        declared = declared_fields(form)
        sets: list[Any] = [("Tool", {"fields": ("name", "source_name", "effect", "as_task", "tags", "enabled")})]
        if obj is not None and not self.has_change_permission(request, obj):
            sets.append(("How it is called", {"fields": ("shown_spec",)}))
        elif declared:
            sets.append(("What it is", {"fields": declared}))
        if obj is not None:
            looking = not self.has_change_permission(request, obj)
            recorded = ["shown_recording"] if looking else recorded_fields(form)
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
        if tool.enabled and tool.source.check_ok is False:
            return badge("Last known", "orange", SILENT)
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
    found: dict[str, Any] = exact.taken(tool.current.definition)
    return found


@admin.register(Toolset)
class ToolsetAdmin(Counted, RecordedAdmin):
    """Toolsets: a selection of tools, prompts and resources with an endpoint of its own."""

    list_display = ("name", "title", "endpoint", *Counted.columns, "updated_at")
    search_fields = ("name", "title", "description")
    filter_horizontal = ("tools",)
    autocomplete_fields = ("prompts", "resources")
    actions_detail = ("connect",)
    readonly_fields = ("endpoint",)
    fields = ("name", "title", "description", "endpoint", "tools", "prompts", "resources")
    history_of = ("access.Grant",)
    empty_icon = "category"
    empty_title = "No toolsets yet"
    empty_text = "A toolset groups tools, prompts and resources: granted as one, served at an address of its own."

    def get_queryset(self, request: HttpRequest) -> QuerySet[Toolset]:
        """With the number of what it selects."""
        rows: QuerySet[Toolset] = super().get_queryset(request)
        return rows.annotate(**OF_TOOLSETS)

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Without a button to make another: what can be chosen comes from data sources."""
        field = super().formfield_for_dbfield(db_field, request, **kwargs)
        if db_field.many_to_many and field is not None:
            field.widget.can_add_related = False
        return field

    @action(description="Connect a client", permissions=["view"], icon="cable")
    def connect(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """What to paste into MCP clients, so that they find the toolset."""
        toolset = get_object_or_404(Toolset, pk=object_id)
        context = {
            **self.admin_site.each_context(request),
            "title": f"Connect a client to {toolset.name}",
            "doing": "Connect a client",
            "opts": self.opts,
            "original": toolset,
            "endpoint": clients.endpoint(toolset.name),
            "serves": [
                (toolset.tools.count(), "tool"),
                (toolset.prompts.count(), "prompt"),
                (toolset.resources.count(), "resource"),
            ],
            "snippets": clients.configurations(toolset.name),
            "may_make_tokens": request.user.has_perm("access.add_apitoken"),
        }
        return TemplateResponse(request, "admin/connect_client.html", context)

    @display(description="Endpoint")
    def endpoint(self, toolset: Toolset) -> SafeString | str:
        """Where MCP clients find it."""
        return mono(clients.endpoint(toolset.name)) if toolset.name else "-"


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
