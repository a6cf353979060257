"""The first page of the admin: what went on, what is wrong, what changed; of that, what the viewer may see."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.apps import apps
from django.db.models import F
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone

from access.models import ApiToken, Grant, Role, User
from audit.doors import detail_of, verb_of
from audit.filters import SINCE, UNTIL
from audit.models import Record
from audit.outside.contradictions import unsettled
from audit.outside.cosignatures import standings
from audit.patience import TooSlow
from audit.summary import (
    Bar,
    Parts,
    Summary,
    Usage,
    anything_called,
    calls,
    latest_changes,
    latest_refusals,
    unknown_since,
)
from mcpsite.sidebar import GROUPS, opened
from tools.connectors.registry import kinds
from tools.models import DataSource, EgressRule, Tool

_SPANS = {1: (timedelta(days=1), timedelta(hours=1)), 7: (timedelta(days=7), timedelta(hours=6))}
_ROWS = 7
_UNKNOWN_FOR = timedelta(days=7)
# What a bar's label says, and at which hours there is one.
_LABELS = {1: ("%H:%M", 4), 7: ("%a", 24)}


def fill(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """What the page shows, for unfold's `DASHBOARD_CALLBACK`."""
    days = 7 if request.GET.get("days") == "7" else 1
    context |= {"title": "Dashboard", "days": days, "spans": [(1, "24 hours"), (7, "7 days")]}
    summary = None
    if sees_records := request.user.has_perm("audit.view_record"):
        summary = _summary(days)
        context |= {"contradictions": unsettled(), "silent": [each for each in standings() if each.silent]}
        context |= latest() | (_activity(request, summary, days) if summary else {"too_slow": True})
    if sees_sources := request.user.has_perm("tools.view_datasource"):
        context["sources"] = _sources(summary)
    if not (sees_records or sees_sources):
        found = ((title, opened(request, places)) for title, places in GROUPS)
        context["places"] = [(title, places) for title, places in found if places]
    return context


# --- Calls -----------------------------------------------------------------------------------------------------------


def _summary(days: int) -> Summary | None:
    try:
        return calls(*_SPANS[days])
    except TooSlow:
        return None


def latest() -> dict[str, Any]:
    """What was refused and changed of late, and calls of which nobody knows what became of them."""
    lately = timezone.now() - _UNKNOWN_FOR
    return {
        "unknown": unknown_since(lately),
        "unknown_url": records(lately, code="unknown"),
        "refusals": [_refusal(record) for record in latest_refusals(_ROWS)],
        "refusals_url": records(decision="deny"),
        "changes": [_change(record) for record in latest_changes(_ROWS)],
        "changes_url": records(kind="config"),
    }


def _activity(request: HttpRequest, summary: Summary, days: int) -> dict[str, Any]:
    quiet = not summary.parts.total
    return {
        "summary": summary,
        "figures": _figures(summary),
        "chart": chart_of(summary, days),
        "tools": [_tool(usage, summary) for usage in summary.tools[:_ROWS]],
        "steps": steps_for(request) if quiet and not anything_called() else [],
    }


def records(since: datetime | None = None, until: datetime | None = None, **filters: str) -> str:
    """The list of records with these filters."""
    bounds = ((SINCE, since), (UNTIL, until))
    times = {name: f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" for name, at in bounds if at is not None}
    return f"{reverse('admin:audit_record_changelist')}?{urlencode({**filters, **times})}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One number with its name; `note` says what to make of it."""

    name: str
    value: str
    note: str
    url: str
    colour: str = ""


def _figures(summary: Summary) -> list[Figure]:
    parts, every = summary.parts, records(summary.since, result="any")
    took = f"median {duration(summary.p50_us)}" if summary.p50_us is not None else "nothing was called"
    return [
        Figure("Calls", f"{parts.total:,}", _of_all(parts.ok, parts, "carried out"), every),
        _figure("Failed", parts.failed, summary),
        _figure("Refused", parts.refused, summary),
        Figure("Latency, p95", duration(summary.p95_us), took, every),
    ]


def _figure(name: str, number: int, summary: Summary) -> Figure:
    result = name.lower()
    url = records(summary.since, result=result)
    return Figure(name, f"{number:,}", _of_all(number, summary.parts, "of all calls"), url, result if number else "")


def _of_all(number: int, parts: Parts, said: str) -> str:
    return f"{share(number, parts.total)} {said}" if parts.total else "none in this time"


def share(part: int, whole: int) -> str:
    """`4.2 %`; a dash for nothing. Little is never rounded to none, nor almost all to all."""
    if not whole:
        return "-"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "< 0.1 %"
    return "> 99.9 %" if 99.9 < percent < 100 else f"{percent:.1f} %".replace(".0 ", " ")


def duration(microseconds: int | None) -> str:
    """`0.8 ms`, `12 ms`, `1.4 s`; a dash where nothing was measured."""
    if microseconds is None:
        return "-"
    if microseconds >= 1_000_000:
        return f"{microseconds / 1_000_000:,.1f} s"
    return f"{microseconds / 1000:.1f} ms" if microseconds < 10_000 else f"{microseconds / 1000:.0f} ms"


# --- The chart -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Column:
    """A bar of the chart: heights in percent of the axis, and what it says."""

    bar: Bar
    heights: tuple[tuple[str, float], ...]
    ok: str
    failed: str
    refused: str
    said: str
    label: str
    url: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars, and the marks of the axis as (percent of its height, text)."""

    columns: list[Column]
    marks: list[tuple[float, str]]


def chart_of(summary: Summary, days: int) -> Chart:
    """The calls over time, against an axis that ends at a round number."""
    marks = axis(max(bar.parts.total for bar in summary.bars))
    top = marks[-1]
    return Chart([_column(bar, top, days) for bar in summary.bars], [(100 * mark / top, f"{mark:,}") for mark in marks])


def axis(most: int) -> list[int]:
    """Marks from 0 up to at least `most`, at most five steps of 1, 2 or 5 times a power of ten."""
    most = max(most, 1)
    step = next(factor * 10**power for power in range(19) for factor in (1, 2, 5) if 5 * factor * 10**power >= most)
    return list(range(0, most + step, step))


def _column(bar: Bar, top: int, days: int) -> Column:
    parts = bar.parts
    heights = tuple((name, 100 * getattr(parts, name) / top) for name in ("ok", "failed", "refused"))
    when = f"{bar.start:%a %H:%M} to {bar.end:%H:%M}"
    counts = (f"{parts.ok:,}", f"{parts.failed:,}", f"{parts.refused:,}")
    said = "{}: {} carried out, {} failed, {} refused".format(when, *counts)
    form, every = _LABELS[days]
    label = f"{bar.start:{form}}" if bar.start.hour % every == 0 else ""
    return Column(bar, heights, *counts, said, label, records(bar.start, bar.end, result="any"))


# --- Tables ----------------------------------------------------------------------------------------------------------


def _tool(usage: Usage, summary: Summary) -> dict[str, Any]:
    most = summary.tools[0].parts.total
    url = records(summary.since, tool=usage.tool)
    return {"usage": usage, "width": 100 * usage.parts.total / most, "p95": duration(usage.p95_us), "url": url}


def _refusal(record: Record) -> dict[str, Any]:
    return {"record": record, "url": _page_of(record), "what": record.tool or "Login or token"}


def _change(record: Record) -> dict[str, Any]:
    detail = detail_of(record)
    kind = _kind_of(record.object_type or "")
    name = str(detail.get("label") or record.object_id or "")
    return {"record": record, "url": _page_of(record), "verb": verb_of(record), "kind": kind, "name": name}


def _kind_of(label: str) -> str:
    try:
        name = str(apps.get_model(label)._meta.verbose_name)
    except (LookupError, ValueError):  # of before, when there was such a model
        return label
    return name[:1].upper() + name[1:]


def _page_of(record: Record) -> str:
    return reverse("admin:audit_record_change", args=(record.pk,))


def _sources(summary: Summary | None) -> list[dict[str, Any]]:
    """Those in trouble first, then those in use, by name."""
    used: Mapping[str, Parts] = summary.of_sources() if summary else {}
    rows = DataSource.objects.defer("secrets", "options").order_by(
        F("enabled").desc(), F("check_ok").asc(nulls_last=True), "name"
    )
    return [_source(row, used.get(row.name, Parts()), summary) for row in rows[:_ROWS]]


def _source(row: DataSource, parts: Parts, summary: Summary | None) -> dict[str, Any]:
    kind = kinds().get(row.kind)
    return {
        "row": row,
        "kind": kind.label if kind else row.kind,
        "parts": parts,
        "url": reverse("admin:tools_datasource_change", args=(row.pk,)),
        "records_url": records(summary.since, connector=row.name) if summary else "",
    }


# --- The beginning ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """One of the things to do until the first call. `url` is empty where the viewer may not do it."""

    title: str
    text: str
    url: str
    done: bool


_STEPS: tuple[tuple[str, str, str, str, Callable[[], bool]], ...] = (
    (
        "Allow the address",
        "Only for databases and servers inside your network: everything outside can be reached already.",
        "tools.add_egressrule",
        "admin:tools_egressrule_add",
        lambda: EgressRule.objects.exists(),
    ),
    (
        "Add a data source",
        "A database, a service or an upstream MCP server. Test the connection from its page.",
        "tools.add_datasource",
        "admin:tools_datasource_add",
        lambda: DataSource.objects.exists(),
    ),
    (
        "Get its tools",
        "Synchronise an MCP server from its page; for a database write tools by hand.",
        "tools.add_tool",
        "admin:tools_tool_add",
        lambda: Tool.objects.exists(),
    ),
    (
        "Make a role with a grant",
        "Without a grant nobody can call anything.",
        "access.add_role",
        "admin:access_role_add",
        lambda: Role.objects.exists() and Grant.objects.exists(),
    ),
    (
        "Give the role to somebody",
        "A service account stands for a program, a user for a person.",
        "access.add_serviceaccount",
        "admin:access_serviceaccount_add",
        lambda: User.objects.filter(groups__role__grants__isnull=False).exists(),
    ),
    (
        "Make a token",
        "For the program or person that has the role. The next page shows how to set up a client.",
        "access.add_apitoken",
        "admin:access_apitoken_add",
        lambda: ApiToken.objects.filter(revoked_at=None).exists(),
    ),
)


def steps_for(request: HttpRequest) -> list[Step]:
    """From nothing to the first call."""
    return [
        Step(title, text, reverse(url) if request.user.has_perm(permission) else "", done())
        for title, text, permission, url, done in _STEPS
    ]
