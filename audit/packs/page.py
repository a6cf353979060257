"""The page that a pack opens with: everything on it stands in the files beside it; no network, no script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from django.template.loader import render_to_string

from audit.export.models import Export
from audit.export.writing import Counted
from audit.models import Record
from audit.packs.access import METHOD, Access, Reach
from audit.packs.controls import CONTROLS, NOTE
from audit.packs.population import FATES, Population
from audit.packs.sampling import STRATA
from audit.packs.scope import ALL, PackScope

_MOST_ROWS, _MOST_BARS = 25, 62
_LABELS = {"done": "Carried out", "failed": "Failed", "refused": "Refused", "other": "Changes, logins, intents"}
# In the order of the stack, from below.
_STACK = ("done", "other", "failed", "refused")


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample as the page lists it; `name` is its file without the ending."""

    number: int
    stratum: str
    headline: str
    record: Record
    name: str
    proven: bool


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a bar, in hundredths of the height."""

    fate: str
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Bar:
    """A day, or several."""

    number: int
    said: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """Records over the days of the period."""

    bars: tuple[Bar, ...]
    highest: int
    first: date
    last: date
    days: int


@dataclass(frozen=True, slots=True)
class Row:
    """Who could call which tools, and use which prompts and resources, through a role."""

    user: str
    program: bool
    role: str
    tools: tuple[Reach, ...]


def index_page(
    *,
    export: Export,
    scope: PackScope,
    population: Population,
    samples: Sequence[Sample],
    verdict: Mapping[str, Any],
    **known: Any,
) -> str:
    """The HTML. Whatever comes from records is escaped by the template."""
    access: Access = known["access"]
    counted: Counted = known["counted"]
    fates = {fate: sum(day[fate] for day in population.by_day.values()) for fate in FATES}
    return render_to_string(
        "audit/evidence_pack.html",
        {
            **known,
            "export": export,
            "scope": scope,
            "all_records": scope.records == ALL,
            "population": population,
            "calls": fates["done"] + fates["failed"] + fates["refused"],
            "fates": [(fate, _LABELS[fate], fates[fate]) for fate in _STACK],
            "chart": chart_of(population, scope.since.date(), (scope.until - timedelta(microseconds=1)).date()),
            "tools": _tools(population),
            "more_tools": max(0, len(population.by_tool) - _MOST_ROWS),
            "refused_rows": known["refused"][:_MOST_ROWS],
            "more_refused": max(0, len(known["refused"]) - _MOST_ROWS),
            "key_rows": known["keys"][:_MOST_ROWS],
            "rows": _rows(access),
            "method": METHOD,
            "controls": CONTROLS,
            "control_note": NOTE,
            "strata": [(each, [one for one in samples if one.stratum == each.name]) for each in STRATA],
            "samples": samples,
            "unproven": sum(not each.proven for each in samples),
            "verdict": verdict,
            "findings": Counter(f"{each['verdict']}: {each['what']}" for each in verdict["findings"]).most_common(10),
            "verdict_good": verdict["verdict"] == "OK",
            "unsealed": counted.unsealed,
        },
    )


def chart_of(population: Population, first: date, last: date) -> Chart | None:
    """Bars from the first to the last day without gaps; of a long period each bar is several days."""
    if not population.by_day:
        return None
    days = -(-((last - first).days + 1) // _MOST_BARS)
    sums: dict[int, dict[str, int]] = {}
    for day, counts in population.by_day.items():
        into = sums.setdefault((day - first).days // days, dict.fromkeys(FATES, 0))
        for fate in FATES:
            into[fate] += counts[fate]
    highest = max(sum(each.values()) for each in sums.values())
    bars = tuple(
        _bar(number, first + timedelta(days=number * days), sums.get(number, {}), highest)
        for number in range((last - first).days // days + 1)
    )
    return Chart(bars, highest, first, last, days)


def _bar(number: int, day: date, counts: Mapping[str, int], highest: int) -> Bar:
    blocks, below = [], 0.0
    for fate in _STACK:
        if count := counts.get(fate, 0):
            height = max(count / highest * 100, 1.0)
            below += height
            blocks.append(Block(fate, round(100 - below, 2), round(height, 2)))
    told = ", ".join(f"{counts[fate]:,} {_LABELS[fate].lower()}" for fate in _STACK if counts.get(fate))
    return Bar(number, f"{day:%-d %B %Y}: {told or 'nothing'}", tuple(blocks))


def _tools(population: Population) -> list[tuple[str, dict[str, int]]]:
    found = sorted(population.by_tool.items(), key=lambda pair: (-sum(pair[1].values()), pair[0]))
    return [(name, {fate: counts[fate] for fate in FATES}) for name, counts in found[:_MOST_ROWS]]


def _rows(access: Access) -> list[Row]:
    """Each of them once, however many grants lead to it."""
    found: dict[tuple[str, str], dict[tuple[str, str], Reach]] = {}
    for each in access.reaches:
        found.setdefault((each.user, each.role), {})[each.kind, each.tool] = each
    shown = ((user, role, tuple(tools.values())) for (user, role), tools in sorted(found.items()))
    return [Row(user, tools[0].program, role, tools) for user, role, tools in shown]
