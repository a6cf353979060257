"""The ledger in the admin: to be read, searched and followed from intent to outcome; nothing of it can be changed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.db.models.functions import Substr
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from audit.arguments import PERMISSION, Arguments, ReadingRefused, open_arguments
from audit.doors import ReadOnlyAdmin
from audit.export.admin import ExportAdmin as ExportAdmin
from audit.filters import (
    DOORS,
    LAST,
    SINCE,
    SPANS,
    UNTIL,
    ByCall,
    ByResult,
    ByText,
    ByTime,
    ByTopic,
    chosen,
    exactly,
    sought,
)
from audit.keyset import KeysetChangeList, KeysetPaginator
from audit.models import Record
from audit.outside.admin import AnchorAdmin as AnchorAdmin
from audit.packs.admin import EvidencePackAdmin as EvidencePackAdmin
from audit.privacy.admin import PrivacyAdmin as PrivacyAdmin
from audit.sealing.admin import HeadAdmin as HeadAdmin
from audit.story import Story, address_of, colour_of, milliseconds
from audit.streams.admin import StreamAdmin as StreamAdmin
from audit.theme import badge, display
from audit.timeline import MOST_COUNTED, Bar, Drawing, Timeline, draw, span, timeline_of

KIND_COLOURS = {
    "call": "blue",
    "intent": "orange",
    "outcome": "blue",
    "denied": "red",
    "invalid": "red",
    "config": "grey",
    "auth": "grey",
    "agent": "grey",
    "system": "grey",
}
_LABEL = re.compile(r'"label":"((?:[^"\\]|\\.)*)"')


class RecordChangeList(KeysetChangeList):
    """The list with what stands above it: the timeline, and the filters that are in force."""

    timeline = Timeline()
    drawing: Drawing | None = None
    timeline_most = f"{MOST_COUNTED:,}"

    def get_results(self, request: HttpRequest) -> None:
        """The page, then the timeline over all pages."""
        super().get_results(request)
        if self.is_popup:
            return
        since, until = self._time.range()
        rows: QuerySet[Record] = self.queryset
        if not self.newer_url and not self.older_url:
            # The page holds all: no need to look for them again.
            rows = Record.objects.filter(pk__in=[each.pk for each in self.result_list])
        by_words = bool(self.query) or any(isinstance(each, ByText) and each.value() for each in self.filter_specs)
        if self.result_list:
            self.timeline = timeline_of(rows, since, until, may_estimate=not by_words)
        self.drawing = draw(self.timeline, self._link)

    @property
    def _time(self) -> ByTime:
        return next(each for each in self.filter_specs if isinstance(each, ByTime))

    def _link(self, bar: Bar) -> str:
        since, until = self._time.range()
        start, end = max(bar.start, since or bar.start), min(bar.end, until or bar.end)
        return self._at({SINCE: _iso(start), UNTIL: _iso(end)})

    def _at(self, times: dict[str, str]) -> str:
        kept = {name: value for name, value in self.filter_params.items() if name not in (LAST, SINCE, UNTIL)}
        return "?" + urlencode(sorted({**kept, **times}.items()), doseq=True)

    # --- What the template asks -----------------------------------------------------------------------------------

    @property
    def export_url(self) -> str:
        """Where what is listed can be exported."""
        given = {name: _last(value) for name, value in self.filter_params.items()}
        if self.query:
            given["q"] = self.query
        return f"{reverse('admin:audit_export_add')}?{urlencode(sorted(given.items()))}"

    @property
    def timeline_total(self) -> str:
        """How many records, with separators."""
        return f"{self.timeline.total:,}"

    @property
    def timeline_range(self) -> str:
        """From when until when."""
        bars = self.timeline.bars
        return span(bars[0].start, bars[-1].end) if bars else ""

    @property
    def time_links(self) -> list[dict[str, Any]]:
        """The last hour, day, week, month, and all."""
        now = self._time.used_parameters
        spans = [{"label": name, "url": self._at({LAST: name}), "chosen": now.get(LAST) == name} for name in SPANS]
        return [*spans, {"label": "All", "url": self._at({}), "chosen": not any(now.values())}]

    @property
    def wider_url(self) -> str:
        """Three times as long, around the same middle; empty when the time is not bounded on both sides."""
        since, until = self._time.range()
        if since is None or until is None:
            return ""
        long = max(until - since, timedelta(seconds=1))
        return self._at(
            {SINCE: _iso(since - long), UNTIL: _iso(min(until + long, timezone.now() + timedelta(minutes=1)))}
        )

    @property
    def chips(self) -> list[dict[str, str]]:
        """The filters and the search in force, each with the address without it."""
        found = [self._chip("Search", self.query, ["q"])] if self.query else []
        for each in self.filter_specs:
            said = each.said() if isinstance(each, ByTime) else " ".join(map(_last, each.used_parameters.values()))
            if said:
                title = str(each.title)
                found.append(self._chip(title[:1].upper() + title[1:], said, list(each.used_parameters)))
        return found

    def _chip(self, label: str, value: str, names: list[str]) -> dict[str, str]:
        kept = {name: held for name, held in self.filter_params.items() if name not in names}
        return {"label": label, "value": value, "url": "?" + urlencode(sorted(kept.items()), doseq=True)}


def _last(value: Any) -> str:
    return str(value[-1] if isinstance(value, list) else value)


def _iso(moment: Any) -> str:
    return f"{timezone.localtime(moment):%Y-%m-%dT%H:%M:%S}"


@admin.register(Record)
class RecordAdmin(ReadOnlyAdmin):
    """Reads the ledger page by page, without ever counting it."""

    list_display = ("time", "what", "who", "target", "result", "took", "source")
    list_display_links = ("time",)
    list_filter = (
        ByTime,
        chosen("kind", "kind", Record.Kind.choices),
        chosen("decision", "decision", Record.Decision.choices),
        ByResult,
        ByTopic,
        exactly("code", "code"),
        exactly("tool", "tool"),
        exactly("actor", "actor"),
        exactly("connector", "data source"),
        chosen("door", "door", list(DOORS.items())),
        ByText,
        ByCall,
        exactly("trace_id", "trace id"),
        exactly("request_id", "request id"),
    )
    list_filter_submit = True
    list_filter_sheet = True
    list_before_template = "admin/records_timeline.html"
    list_per_page = 50
    list_fullwidth = True
    search_fields = ("rid",)
    search_help_text = "An id, tool, actor, data source or code in full, else words of the detail"
    sortable_by = ()
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = KeysetPaginator
    empty_title = "No records"
    empty_text = "Nothing in the ledger fits. Every call, change and login leaves a record here."

    class Media:
        css = {"all": ("mcpsite/activity.css",)}

    def get_queryset(self, request: HttpRequest) -> QuerySet[Record]:
        """A list needs no more than the beginning of the detail."""
        rows: QuerySet[Record] = super().get_queryset(request)
        return rows.defer("detail", "ct").annotate(beginning=Substr("detail", 1, 400))

    def lookup_allowed(self, lookup: str, value: str, request: Any = None) -> bool:
        """The filter of time has three parameters."""
        return lookup in ByTime.parameter_names or super().lookup_allowed(lookup, value, request)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[KeysetChangeList]:
        """Pages by time and id."""
        return RecordChangeList

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Record], search_term: str
    ) -> tuple[QuerySet[Record], bool]:
        """What `audit.filters.sought` says."""
        term = search_term.strip()
        return (queryset.filter(sought(term)) if term else queryset), False

    # --- The page of a record -----------------------------------------------------------------------------------------

    def get_urls(self) -> list[URLPattern]:
        """With the address that opens the arguments."""
        opened = self.admin_site.admin_view(self.arguments_view)
        own = [path("<int:object_id>/arguments/", opened, name="audit_record_arguments")]
        return [*own, *super().get_urls()]

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """The record as a story."""
        if request.method != "GET":
            raise PermissionDenied
        return self._told(request, object_id, None)

    def arguments_view(self, request: HttpRequest, object_id: int) -> HttpResponse:
        """The story with its arguments, for those who may read them. That they did is on record."""
        if request.method != "POST":
            return HttpResponseRedirect(address_of(object_id))
        return self._told(request, str(object_id), request.POST.get("reason", ""))

    def _told(self, request: HttpRequest, object_id: str, reason: str | None) -> HttpResponse:
        record = self.get_object(request, object_id)
        if record is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined,no-any-return]
        if not self.has_view_permission(request, record):
            raise PermissionDenied
        arguments: Arguments | None = None
        if reason is not None:
            if not request.user.has_perm(PERMISSION):
                raise PermissionDenied
            try:
                arguments = open_arguments(request, record, reason)
            except ReadingRefused as refused:
                messages.error(request, str(refused))
                return HttpResponseRedirect(address_of(record.pk))
        story = Story(request, record, arguments)
        context = {
            **self.admin_site.each_context(request),
            "title": str(record),
            "opts": self.opts,
            "original": record,
            "story": story,
            "definition": _indented(story.version.definition) if story.version else "",
            "further": _further(record),
        }
        request.current_app = self.admin_site.name
        response = TemplateResponse(request, "admin/record_story.html", context)
        if arguments is not None:
            response["Cache-Control"] = "no-store"
        return response

    # --- What the list shows ------------------------------------------------------------------------------------------

    @display(description="Time (UTC)")
    def time(self, record: Record) -> str:
        """To the second."""
        return f"{record.at:%Y-%m-%d %H:%M:%S}"

    @display(description="Event")
    def what(self, record: Record) -> SafeString:
        """The kind, explained on hovering."""
        return badge(record.kind, KIND_COLOURS.get(record.kind, "grey"), record.get_kind_display())

    @display(description="Actor")
    def who(self, record: Record) -> str:
        """The principal, or a dash."""
        return record.actor or "-"

    @display(description="Tool or object")
    def target(self, record: Record) -> SafeString | str:
        """The tool that was called and what its policy shows of the arguments, or what was changed."""
        if record.tool and record.shown:
            return format_html('{}<span class="shown-arguments" title="{}">{}</span>', record.tool, *[record.shown] * 2)
        if record.tool:
            return record.tool
        if not record.object_type:
            return "-"
        found = _LABEL.search(getattr(record, "beginning", None) or "")
        name = json.loads(f'"{found[1]}"') if found else record.object_id
        return f"{record.object_type.rpartition('.')[2]}: {name}"

    @display(description="Result")
    def result(self, record: Record) -> SafeString:
        """The code, coloured by what became of it."""
        return badge(record.code, colour_of(record), record.get_decision_display() or "")

    @display(description="Duration")
    def took(self, record: Record) -> str:
        """Until it was recorded, in ms."""
        return milliseconds(record.total_us)

    @display(description="Data source")
    def source(self, record: Record) -> str:
        """The data source, or a dash."""
        return record.connector or "-"


def _indented(text: str) -> str:
    return json.dumps(json.loads(text), indent=2, ensure_ascii=False)


def _further(record: Record) -> list[tuple[str, str]]:
    """Lists in which the record stands, and what they are called."""
    listed = reverse("admin:audit_record_changelist")
    around = {SINCE: _iso(record.at - timedelta(minutes=5)), UNTIL: _iso(record.at + timedelta(minutes=5))}
    wanted: list[tuple[Mapping[str, str | None], str]] = [
        ({"actor": record.actor}, f"All records of {record.actor}"),
        ({"tool": record.tool}, f"All calls of {record.tool}"),
        ({"tool": record.tool, "code": record.code}, f"{record.tool} with the code {record.code}"),
        ({"trace_id": record.trace_id}, "The whole trace"),
        (around, "Everything in the five minutes before and after"),
    ]
    return [(f"{listed}?{urlencode(values)}", label) for values, label in wanted if all(values.values())]


# Registers its own models.
from audit.retention import admin as retention_admin  # noqa: E402, F401
