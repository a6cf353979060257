"""Prompts and resources in the admin: what sources offer, and what people decide about it."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.contrib.postgres.fields import ArrayField
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.text import Truncator
from unfold.contrib.filters.admin import BooleanRadioFilter, RelatedDropdownFilter  # type: ignore[import-untyped]
from unfold.widgets import UnfoldAdminTextInputWidget  # type: ignore[import-untyped]

from audit.bulk import BulkAdmin, bulk_action
from audit.theme import badge, code_block, display, mono
from tools import exact
from tools.models import Offered, Prompt, Resource, tag

SILENT = "Its data source did not answer when it was last checked: this is what it offered before. Lists still have it."


class TagForm(forms.Form):
    """Which tag."""

    tag = forms.CharField(max_length=32, validators=[tag], widget=UnfoldAdminTextInputWidget())


class OfferedAdmin(BulkAdmin):
    """What prompts and resources have in common."""

    list_filter: ClassVar[Any] = (("source", RelatedDropdownFilter), ("enabled", BooleanRadioFilter))
    list_filter_submit = True
    list_select_related = ("source",)
    formfield_overrides = {ArrayField: {"widget": UnfoldAdminTextInputWidget}}
    actions = ("switch_on", "switch_off", "add_tag")
    marks: ClassVar[Any] = ("print", "updated_at")
    shown: ClassVar[Any] = ("title", "described", "shown_definition", *marks)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Never: they come by synchronising a data source."""
        return False

    @bulk_action("Switch on", consequence="Whoever is granted them can use them within a second.")
    def switch_on(self, request: HttpRequest, offered: Offered, given: Any) -> None:
        """Into service."""
        offered.enabled = True

    @bulk_action("Switch off", consequence="Within a second they look as if they did not exist.", danger=True)
    def switch_off(self, request: HttpRequest, offered: Offered, given: Any) -> None:
        """Out of service."""
        offered.enabled = False

    @bulk_action(
        "Add a tag to",
        button="Add tag",
        form=TagForm,
        consequence="Every role with a grant for the tag can use them within a second.",
    )
    def add_tag(self, request: HttpRequest, offered: Offered, given: Any) -> None:
        """For grants by tag."""
        offered.tags = [*offered.tags, *({given["tag"]} - set(offered.tags))]

    @display(description="State", ordering="enabled")
    def state(self, offered: Offered) -> SafeString:
        """On, off, off with its source, or not there any more."""
        if offered.missing:
            return badge("No longer offered", "orange")
        if not offered.source.enabled:
            return badge("Source off", "grey")
        if offered.enabled and offered.source.check_ok is False:
            return badge("Last known", "orange", SILENT)
        return badge("On", "green") if offered.enabled else badge("Off", "grey")

    @display(description="Tags")
    def tag_list(self, offered: Offered) -> str:
        """Separated by commas."""
        return ", ".join(offered.tags) or "-"

    @display(description="Title")
    def title(self, offered: Offered) -> str:
        """What the definition calls it."""
        found = exact.taken(offered.definition)
        return Truncator(found.get("title") or found.get("description") or "-").chars(80)

    @display(description="Description")
    def described(self, offered: Offered) -> str:
        """What the definition says of it."""
        return str(exact.taken(offered.definition).get("description") or "-")

    @display(description="Toolsets")
    def in_toolsets(self, offered: Any) -> SafeString | str:
        """Where it is, with their pages."""
        page = "admin:tools_toolset_change"
        links = [(reverse(page, args=(each.pk,)), each.name) for each in offered.toolsets.all()]
        link = '<a class="text-primary-600 dark:text-primary-500" href="{}">{}</a>'
        return format_html_join(", ", link, links) or "None: grants by tag alone lead to it."

    @display(description="Definition")
    def shown_definition(self, offered: Offered) -> SafeString:
        """The object of the list, as clients get it."""
        return code_block(json.dumps(exact.taken(offered.definition), indent=2, ensure_ascii=False))

    @display(description="Fingerprint")
    def print(self, offered: Offered) -> SafeString:
        """SHA-256 of the definition, which records name."""
        return mono(offered.fingerprint)


@admin.register(Prompt)
class PromptAdmin(OfferedAdmin):
    """Prompts of upstream MCP servers."""

    list_display = ("name", "title", "state", "source", "tag_list", "updated_at")
    search_fields = ("name", "tags", "source__name", "definition")
    ordering = ("name",)
    readonly_fields = ("name", "source", "source_name", "state", "in_toolsets", "arguments", *OfferedAdmin.shown)
    fieldsets = (
        ("Prompt", {"fields": ("name", "source", "source_name", "state", "enabled", "tags", "in_toolsets")}),
        ("What clients see", {"fields": ("title", "described", "arguments", "shown_definition", *OfferedAdmin.marks)}),
    )
    empty_icon = "chat"
    empty_title = "No prompts yet"
    empty_text = "Prompts come from synchronising an MCP server that offers some."

    @display(description="Arguments")
    def arguments(self, prompt: Prompt) -> SafeString | str:
        """What it is filled in with."""
        given = exact.taken(prompt.definition).get("arguments")
        wanted = [each for each in given if isinstance(each, dict)] if isinstance(given, list) else []
        line = '<tr class="align-top"><td class="pr-6">{}</td><td class="pr-6">{}</td><td>{}</td></tr>'
        words = {True: "required", False: "optional"}
        rows = [
            (mono(str(each.get("name"))), words[each.get("required") is True], each.get("description") or "")
            for each in wanted
        ]
        return format_html("<table>{}</table>", format_html_join("", line, rows)) if rows else "None."


@admin.register(Resource)
class ResourceAdmin(OfferedAdmin):
    """Resources of upstream MCP servers, and templates of them."""

    list_display = ("uri", "title", "kind", "state", "source", "tag_list", "updated_at")
    list_filter: ClassVar[Any] = (*OfferedAdmin.list_filter, ("is_template", BooleanRadioFilter))
    search_fields = ("uri", "tags", "source__name", "definition")
    ordering = ("uri",)
    readonly_fields = ("uri", "source", "kind", "state", "in_toolsets", "media_type", *OfferedAdmin.shown)
    fieldsets = (
        ("Resource", {"fields": ("uri", "kind", "source", "state", "enabled", "tags", "in_toolsets")}),
        ("What clients see", {"fields": ("title", "described", "media_type", "shown_definition", *OfferedAdmin.marks)}),
    )
    empty_icon = "description"
    empty_title = "No resources yet"
    empty_text = "Resources come from synchronising an MCP server that offers some."

    @display(description="Kind", ordering="is_template")
    def kind(self, resource: Resource) -> SafeString:
        """One, or a template of many."""
        return badge("Template", "blue") if resource.is_template else badge("Resource", "grey")

    @display(description="Media type")
    def media_type(self, resource: Resource) -> str:
        """As the source says."""
        return str(exact.taken(resource.definition).get("mimeType") or "-")
