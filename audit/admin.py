"""The ledger in the admin: to be read, searched and followed from intent to outcome; nothing of it can be changed."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable
from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.db.models.functions import Substr
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.contrib.filters.admin import (  # type: ignore[import-untyped]
    ChoicesDropdownFilter,
    RangeDateTimeFilter,
    TextFilter,
)

from audit.doors import ReadOnlyAdmin, changes_of, detail_of
from audit.keyset import KeysetChangeList, KeysetPaginator
from audit.models import Record
from audit.theme import badge, code_block, display, mono

KIND_COLOURS = {
    "call": "blue",
    "intent": "orange",
    "outcome": "blue",
    "denied": "red",
    "invalid": "red",
    "config": "grey",
    "auth": "grey",
    "system": "grey",
}
_GOOD = frozenset({"ok", "create", "update", "delete", "login", "logout", "token_created"})
_LABEL = re.compile(r'"label":"((?:[^"\\]|\\.)*)"')


def exactly(column: str, label: str) -> type[Any]:
    """A filter on one exact value, typed in."""

    def queryset(self: Any, request: HttpRequest, rows: QuerySet[Record]) -> QuerySet[Record]:
        value = (self.value() or "").strip().replace("\0", "")
        return rows.filter(**{column: value}) if value else rows

    return type(f"By{column.title()}", (TextFilter,), {"title": label, "parameter_name": column, "queryset": queryset})


@admin.register(Record)
class RecordAdmin(ReadOnlyAdmin):
    """Reads the ledger page by page, without ever counting it."""

    list_display = ("time", "what", "who", "target", "result", "took", "source")
    list_display_links = ("time",)
    list_filter = (
        ("kind", ChoicesDropdownFilter),
        ("decision", ChoicesDropdownFilter),
        exactly("code", "code"),
        exactly("tool", "tool"),
        exactly("actor", "actor"),
        exactly("connector", "data source"),
        ("at", RangeDateTimeFilter),
    )
    list_filter_submit = True
    list_per_page = 50
    list_fullwidth = True
    search_fields = ("rid",)
    search_help_text = "Id, tool, actor or trace, in full"
    sortable_by = ()
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = KeysetPaginator
    empty_title = "No records"
    empty_text = "Nothing in the ledger fits. Every call, change and login leaves a record here."
    fieldsets = (
        (
            "What happened",
            {"fields": ("when", "what", "result", "target", "about", "source", "shown_effect", "changes")},
        ),
        ("Who", {"fields": ("actor", "actor_id", "on_behalf_of", "token", "roles", "door", "client", "address")}),
        ("Times and sizes", {"fields": ("took", "upstream", "result_size")}),
        ("Connections", {"fields": ("related", "shown_call_id", "trace_id", "request_id", "policy_version")}),
        ("Detail", {"fields": ("pretty_detail",)}),
        (
            "Evidence",
            {
                "fields": (
                    "shown_rid",
                    "id",
                    "shown_definition",
                    "arguments_commitment",
                    "result_commitment",
                    "shown_leaf",
                    "shown_mac",
                    "writer",
                    "encryption_key",
                )
            },
        ),
    )

    def get_queryset(self, request: HttpRequest) -> QuerySet[Record]:
        """A list needs no more than the beginning of the detail."""
        rows: QuerySet[Record] = super().get_queryset(request)
        return rows.defer("detail", "ct").annotate(beginning=Substr("detail", 1, 400))

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        """Only what the record says something about."""
        if obj is None:
            return super().get_fieldsets(request, obj)
        said = ((title, [name for name in names["fields"] if _says(obj, str(name))]) for title, names in self.fieldsets)
        return [(title, {"fields": names}) for title, names in said if names]

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[KeysetChangeList]:
        """Pages by id."""
        return KeysetChangeList

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Record], search_term: str
    ) -> tuple[QuerySet[Record], bool]:
        """An id finds its record or its call; anything else must be an exact tool, actor or trace id."""
        term = search_term.strip()
        if not term:
            return queryset, False
        try:
            wanted = uuid.UUID(term)
        except ValueError:
            return queryset.filter(Q(tool=term) | Q(actor=term) | Q(trace_id=term)), False
        return queryset.filter(Q(rid=wanted) | Q(call_id=wanted)), False

    # --- What the list and the page show -----------------------------------------------------------------------------

    @display(description="Time")
    def time(self, record: Record) -> str:
        """To the second, in the site's time zone."""
        return f"{record.at:%Y-%m-%d %H:%M:%S}"

    @display(description="Time")
    def when(self, record: Record) -> str:
        """To the microsecond."""
        return f"{record.at:%Y-%m-%d %H:%M:%S.%f %Z}"

    @display(description="Event")
    def what(self, record: Record) -> SafeString:
        """The kind, explained on hovering."""
        return badge(record.kind, KIND_COLOURS.get(record.kind, "grey"), record.get_kind_display())

    @display(description="Actor")
    def who(self, record: Record) -> str:
        """The principal, or a dash."""
        return record.actor or "-"

    @display(description="Tool or object")
    def target(self, record: Record) -> str:
        """The tool that was called, or what was changed."""
        if record.tool:
            return record.tool
        if not record.object_type:
            return "-"
        found = _LABEL.search(getattr(record, "beginning", None) or "")
        name = json.loads(f'"{found[1]}"') if found else record.object_id
        return f"{record.object_type.rpartition('.')[2]}: {name}"

    @display(description="Result")
    def result(self, record: Record) -> SafeString:
        """Decision and code, coloured by whether it went well."""
        if record.decision == Record.Decision.DENY:
            return badge(record.code, "red", "Denied")
        if record.kind == Record.Kind.INTENT:
            return badge(record.code, "grey", "Announced")
        return badge(record.code, "green" if record.code in _GOOD else "orange", "Allowed")

    @display(description="Duration")
    def took(self, record: Record) -> str:
        """Until it was recorded, in ms."""
        return milliseconds(record.total_us)

    @display(description="In the upstream")
    def upstream(self, record: Record) -> str:
        """The part of it that the upstream took, in ms."""
        return milliseconds(record.upstream_us)

    @display(description="Data source")
    def source(self, record: Record) -> str:
        """The data source, or a dash."""
        return record.connector or "-"

    @display(description="Effect")
    def shown_effect(self, record: Record) -> str:
        """What the tool was said to do at that moment."""
        return record.effect or "-"

    @display(description="Object")
    def about(self, record: Record) -> str:
        """The changed object's type and id."""
        return f"{record.object_type} {record.object_id or ''}" if record.object_type else "-"

    @display(description="Size of the result")
    def result_size(self, record: Record) -> str:
        """In bytes."""
        return "-" if record.result_bytes is None else f"{record.result_bytes:,} bytes"

    @display(description="Changes")
    def changes(self, record: Record) -> SafeString | str:
        """Field, before, after."""
        rows = changes_of(detail_of(record))
        if not rows:
            return "-"
        return format_html(
            '<table class="text-sm w-full"><thead><tr><th class="pb-1 pr-4 text-left">Field</th>'
            '<th class="pb-1 pr-4 text-left">Before</th><th class="pb-1 text-left">After</th></tr></thead>{}</table>',
            format_html_join(
                "",
                '<tr class="align-top"><td class="pr-4 py-1">{}</td><td class="kept-lines pr-4 py-1">{}</td>'
                '<td class="kept-lines py-1">{}</td></tr>',
                ((name[:1].upper() + name[1:], old or "-", new or "-") for name, old, new in rows),
            ),
        )

    @display(description="Same call")
    def related(self, record: Record) -> SafeString | str:
        """The other records of the call, with links: from an intent to its outcome and back."""
        if record.call_id is None:
            return "-"
        others = Record.objects.filter(call_id=record.call_id).exclude(id=record.id).order_by("id")[:20]
        links = ((reverse("admin:audit_record_change", args=(other.id,)), other.kind, other.code) for other in others)
        text = '<a class="text-primary-600 dark:text-primary-500" href="{}">{} ({})</a>'
        return format_html_join(", ", text, links) or _alone(record)

    @display(description="Detail")
    def pretty_detail(self, record: Record) -> SafeString | str:
        """The JSON as it was committed, indented."""
        if not record.detail:
            return "-"
        return code_block(
            json.dumps(detail_of(record), indent=2, ensure_ascii=False) if detail_of(record) else record.detail
        )


# What a line of the page shows, where that is not the column of the same name.
_COLUMN_OF = {
    "about": "object_type",
    "source": "connector",
    "shown_effect": "effect",
    "took": "total_us",
    "upstream": "upstream_us",
    "result_size": "result_bytes",
    "related": "call_id",
    "shown_call_id": "call_id",
    "pretty_detail": "detail",
    "shown_definition": "definition",
    "arguments_commitment": "args_commit",
    "result_commitment": "result_commit",
    "encryption_key": "key_id",
}


def _says(record: Record, name: str) -> bool:
    if name == "changes":
        return bool(changes_of(detail_of(record)))
    return getattr(record, _COLUMN_OF.get(name, name), True) is not None


def _alone(record: Record) -> str:
    if record.kind == Record.Kind.INTENT:
        return "No outcome is recorded: the call is still under way, or its outcome is unknown."
    return "-"


def milliseconds(microseconds: int | None) -> str:
    """`1.2 ms`, or a dash for None."""
    return "-" if microseconds is None else f"{microseconds / 1000:,.1f} ms"


def _hexadecimal(column: str, label: str) -> Callable[[Any, Record], SafeString | str]:
    @display(description=label)
    def show(self: Any, record: Record) -> SafeString | str:
        value = getattr(record, column)
        return "-" if value is None else mono(bytes(value).hex())

    return show


def _identifier(column: str, label: str) -> Callable[[Any, Record], SafeString | str]:
    @display(description=label)
    def show(self: Any, record: Record) -> SafeString | str:
        value = getattr(record, column)
        return "-" if value is None else mono(str(value))

    return show


for _name, _column, _label in (
    ("shown_definition", "definition", "Fingerprint of the definition"),
    ("arguments_commitment", "args_commit", "Commitment to the arguments"),
    ("result_commitment", "result_commit", "Commitment to the result"),
    ("shown_leaf", "leaf", "Leaf"),
    ("shown_mac", "mac", "MAC"),
):
    setattr(RecordAdmin, _name, _hexadecimal(_column, _label))
for _name, _column, _label in (
    ("shown_rid", "rid", "Record id"),
    ("shown_call_id", "call_id", "Call id"),
    ("writer", "writer_id", "Writer"),
    ("encryption_key", "key_id", "Key that encrypts the arguments"),
):
    setattr(RecordAdmin, _name, _identifier(_column, _label))
