"""By what the list of records is narrowed: each filter has an index behind it, and refuses what it cannot read."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import reduce
from operator import or_
from typing import Any

from django import forms
from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.postgres.search import SearchConfig, SearchQuery, SearchVectorExact, SearchVectorField
from django.db.models import Func, Q, QuerySet
from django.db.models.functions import Left
from django.http import HttpRequest
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from unfold.contrib.filters.admin import DropdownFilter, TextFilter  # type: ignore[import-untyped]
from unfold.widgets import UnfoldAdminSelectWidget, UnfoldAdminTextInputWidget  # type: ignore[import-untyped]

from audit.codes import CARRIED_OUT
from audit.models import Record

LAST, SINCE, UNTIL = "last", "since", "until"
SPANS = {
    "1h": ("1 hour", timedelta(hours=1)),
    "24h": ("24 hours", timedelta(days=1)),
    "7d": ("7 days", timedelta(days=7)),
    "30d": ("30 days", timedelta(days=30)),
}
DOORS = {"mcp": "MCP", "rest": "REST", "admin": "Admin", "agent": "Agent", "command": "Command"}
_HEX_ID = re.compile(r"[0-9a-f]{32}")
# As in the index of audit/migrations/0005: later words of a longer detail are not found.
_INDEXED_CHARACTERS = 8000


def given(params: dict[str, Any], name: str) -> str:
    """The last value of a parameter, without what no column can hold."""
    value = params.get(name) or ""
    value = value[-1] if isinstance(value, list) else value
    return str(value).strip().replace("\0", "")


def exactly(column: str, label: str) -> type[Any]:
    """A filter on one exact value, typed in."""

    def queryset(self: Any, request: HttpRequest, rows: QuerySet[Record]) -> QuerySet[Record]:
        value = given(self.used_parameters, column)
        return rows.filter(**{column: value}) if value else rows

    return type(f"By{column.title()}", (TextFilter,), {"title": label, "parameter_name": column, "queryset": queryset})


class ByCall(TextFilter):  # type: ignore[misc]
    """All records of one call."""

    title, parameter_name = "call id", "call_id"

    def queryset(self, request: HttpRequest, rows: QuerySet[Record]) -> QuerySet[Record]:
        """Raises IncorrectLookupParameters for what is no id."""
        value = given(self.used_parameters, "call_id")
        if not value:
            return rows
        try:
            return rows.filter(call_id=uuid.UUID(value))
        except ValueError as error:
            raise IncorrectLookupParameters(
                "A call id is a UUID, 32 hexadecimal digits and hyphens: all records are shown."
            ) from error


def chosen(column: str, label: str, choices: list[tuple[str, str]]) -> type[Any]:
    """A filter on one of a few values."""

    def lookups(self: Any, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return choices

    def queryset(self: Any, request: HttpRequest, rows: QuerySet[Record]) -> QuerySet[Record]:
        value = given(self.used_parameters, column)
        return rows.filter(**{column: value}) if value else rows

    members = {"title": label, "parameter_name": column, "lookups": lookups, "queryset": queryset}
    return type(f"By{column.title()}", (DropdownFilter,), members)


_ENDED = Q(kind__in=(Record.Kind.CALL, Record.Kind.OUTCOME))
# Of what is denied, nearly all is a call: said like this, PostgreSQL knows, and reads the index of denials in order.
_REFUSED = Q(decision=Record.Decision.DENY) & ~Q(kind__in=(Record.Kind.AUTH, Record.Kind.CONFIG, Record.Kind.SYSTEM))
# What became of calls, as the dashboard counts them: an intent is none of these, its outcome is.
RESULTS = {
    "any": ("Any", Q(kind__in=(Record.Kind.CALL, Record.Kind.OUTCOME, Record.Kind.DENIED, Record.Kind.INVALID))),
    "ok": ("Carried out", _ENDED & Q(code__in=CARRIED_OUT)),
    "failed": ("Failed", _ENDED & ~Q(code__in=(*CARRIED_OUT, "intended"))),
    "refused": ("Refused", _REFUSED),
}


class ByResult(DropdownFilter):  # type: ignore[misc]
    """Calls only, by what became of them."""

    title, parameter_name = "result of calls", "result"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """What there is to choose."""
        return [(name, label) for name, (label, _) in RESULTS.items()]

    def queryset(self, request: HttpRequest, rows: QuerySet[Record]) -> QuerySet[Record]:
        """Raises IncorrectLookupParameters for what is no result."""
        value = given(self.used_parameters, "result")
        if not value:
            return rows
        if value not in RESULTS:
            raise IncorrectLookupParameters(f"`result` is one of {', '.join(RESULTS)}: all records are shown.")
        return rows.filter(RESULTS[value][1])


_PRIVILEGED = (
    "access.Grant",
    "access.Role",
    "access.User",
    "access.ServiceAccount",
    "access.ApiToken",
    "tools.EgressRule",
)
# What auditors ask for by name; each is one condition over several columns.
TOPICS = {
    "privileges": (
        "Changes of privilege",
        Q(kind=Record.Kind.CONFIG, object_type__in=_PRIVILEGED) | Q(code__in=("token_created", "token_revoked")),
    ),
    "payloads": (
        "Break-glass reads",
        Q(kind=Record.Kind.SYSTEM, code__in=("arguments_read", "value_sought", "subject_erased")),
    ),
    "unknown": ("Unknown outcomes", Q(code="unknown")),
    "administrators": (
        "Administrators' calls",
        RESULTS["any"][1] & Q(roles__regex=r"(^|,)administrator(,|$)"),
    ),
    "exports": ("Exports", Q(kind=Record.Kind.SYSTEM, code__startswith="export_")),
    "ledger": (
        "The ledger itself",
        Q(kind=Record.Kind.SYSTEM)
        & (
            Q(code__startswith="ledger_")
            | Q(code__startswith="head_")
            | Q(code__startswith="anchor_")
            | Q(code__startswith="expiry_")
            | Q(code__startswith="archive_")
            | Q(code__startswith="stream_")
            | Q(
                code__in=("keys_rotated", "records_dropped", "record_refused", "spool_drained", "configuration_changed")
            )
        ),
    ),
}


class ByTopic(DropdownFilter):  # type: ignore[misc]
    """What auditors look for."""

    title, parameter_name = "topic", "topic"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """What there is to choose."""
        return [(name, label) for name, (label, _) in TOPICS.items()]

    def queryset(self, request: HttpRequest, rows: QuerySet[Record]) -> QuerySet[Record]:
        """Raises IncorrectLookupParameters for what is no topic."""
        value = given(self.used_parameters, "topic")
        if not value:
            return rows
        if value not in TOPICS:
            raise IncorrectLookupParameters(f"`topic` is one of {', '.join(TOPICS)}: all records are shown.")
        return rows.filter(TOPICS[value][1])


class ByText(TextFilter):  # type: ignore[misc]
    """Words in what a record tells: names of changed objects, values, messages of refusals."""

    title, parameter_name = "words in the detail", "text"

    def queryset(self, request: HttpRequest, rows: QuerySet[Record]) -> QuerySet[Record]:
        """All words; `-word` and `"two words"` as in search engines."""
        value = given(self.used_parameters, "text")
        return rows.filter(says(value)) if value else rows


class TimeForm(forms.Form):
    """The last so and so long, or from and until."""

    last = forms.ChoiceField(
        label="Time",
        required=False,
        choices=[("", "All, or as below"), *((name, f"The last {label}") for name, (label, _) in SPANS.items())],
        widget=UnfoldAdminSelectWidget,
    )
    since = forms.CharField(
        label="From", required=False, widget=UnfoldAdminTextInputWidget(attrs={"type": "datetime-local", "step": 1})
    )
    until = forms.CharField(
        label="Until, not included",
        required=False,
        widget=UnfoldAdminTextInputWidget(attrs={"type": "datetime-local", "step": 1}),
    )


class ByTime(admin.ListFilter):
    """`last`, or `since` (inclusive) and `until` (exclusive), as at `/api/v1/audit/records/`."""

    title = "time"
    parameter_names = (LAST, SINCE, UNTIL)
    template = "unfold/filters/filters_field.html"

    def __init__(self, request: HttpRequest, params: dict[str, Any], model: Any, model_admin: Any) -> None:
        super().__init__(request, params, model, model_admin)
        self._given: dict[str, str] = {}
        for name in self.parameter_names:
            if name in params:
                self._given[name] = self.used_parameters[name] = given(params, name)
                del params[name]

    def has_output(self) -> bool:
        """Always shown."""
        return True

    def expected_parameters(self) -> list[str | None]:
        """Its three parameters."""
        return list(self.parameter_names)

    def choices(self, changelist: Any) -> Iterator[Any]:
        """The form, with the times as the browser's field wants them."""
        since, until = self.range()
        shown = {LAST: self._given.get(LAST, ""), SINCE: _local(since), UNTIL: _local(until)}
        if shown[LAST]:
            shown[SINCE] = shown[UNTIL] = ""
        yield {"form": TimeForm(shown)}

    def queryset(self, request: HttpRequest, rows: QuerySet[Record]) -> QuerySet[Record]:
        """Raises IncorrectLookupParameters for what is no time."""
        since, until = self.range()
        rows = rows if since is None else rows.filter(at__gte=since)
        return rows if until is None else rows.filter(at__lt=until)

    def said(self) -> str:
        """The time as words; empty when it is open."""
        last = self._given.get(LAST)
        if last:
            return f"the last {SPANS[last][0]}"
        bounds = [(word, at) for word, at in zip(("from", "until"), self.range(), strict=True) if at is not None]
        return " ".join(f"{word} {timezone.localtime(at):%Y-%m-%d %H:%M:%S}" for word, at in bounds)

    def range(self) -> tuple[datetime | None, datetime | None]:
        """From (inclusive) and until (exclusive), None for open. Raises IncorrectLookupParameters."""
        last = self._given.get(LAST)
        if last:
            if last not in SPANS:
                raise IncorrectLookupParameters(f"`last` is one of {', '.join(SPANS)}: all records are shown.")
            return timezone.now() - SPANS[last][1], None
        return self._moment(SINCE), self._moment(UNTIL)

    def _moment(self, name: str) -> datetime | None:
        value = self._given.get(name)
        if not value:
            return None
        try:
            found = parse_datetime(value)
        except ValueError:
            found = None
        # What local time and the bars of the timeline make of it has to be a time as well.
        if found is None or not 1970 < found.year < 9000:
            raise IncorrectLookupParameters(f"`{name}` is a time such as 2026-11-23T12:00:00Z: all records are shown.")
        return found if timezone.is_aware(found) else timezone.make_aware(found)


def _local(moment: datetime | None) -> str:
    return "" if moment is None else f"{timezone.localtime(moment):%Y-%m-%dT%H:%M:%S}"


class _Words(Func):
    """The words of the detail, as the index has them."""

    function = "to_tsvector"
    output_field = SearchVectorField()


def says(words: str) -> Q:
    """The records whose detail holds all the words."""
    indexed = _Words(SearchConfig("simple"), Left("detail", _INDEXED_CHARACTERS))
    found = SearchVectorExact(indexed, SearchQuery(words, config="simple", search_type="websearch"))
    # As in the condition of the index: without it, PostgreSQL knows nothing about how frequent words are.
    return Q(found, detail__isnull=False)


def sought(term: str) -> Q:
    """What the search box finds: any id in full, else an exact tool, actor, data source or code, else words."""
    try:
        wanted = uuid.UUID(term)
    except ValueError:
        names = (Q(**{column: term}) for column in ("tool", "actor", "connector", "code"))
        # A name that nothing has would make PostgreSQL look for it everywhere.
        known = [name for name in names if Record.objects.filter(name).exists()]
        return reduce(or_, known) if known else says(term)
    ids = Q(rid=wanted) | Q(call_id=wanted)
    return ids | Q(trace_id=term) | Q(request_id=term) if _HEX_ID.fullmatch(term) else ids
