"""The timeline over a list of records: how many there were when, and what became of them.

As many records as a page can count are counted. Where there are more, bars are cut into slices, and of each slice no
more than so many records are read: a slice with more is estimated from its newest ones, and the bar says so. So it
costs the same over an hour and over ten years.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from django.db import connection
from django.db.models import Case, QuerySet, TextField, Value, When
from django.utils import timezone

from audit.codes import CARRIED_OUT
from audit.models import Record
from audit.patience import TooSlow, at_most

MOST_BARS, MOST_COUNTED, MOST_SLICES, MOST_OF_A_BAR = 72, 5_000, 24, 720
_PATIENCE_MS, _ESTIMATE_MS = 1_000, 200
_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400
# What people count time in; the last ones are weeks and years.
_STEPS = (
    *(1, 2, 5, 10, 15, 30),
    *(_MINUTE * n for n in (1, 2, 5, 10, 15, 30)),
    *(_HOUR * n for n in (1, 2, 3, 6, 12)),
    *(_DAY * n for n in (1, 2, 7, 14, 28, 91, 364, 3640)),
)


class Fate(StrEnum):
    """What became of it. In the order in which bars are stacked, from the bottom."""

    DONE = "done"
    OTHER = "other"
    FAILED = "failed"
    REFUSED = "refused"

    @property
    def label(self) -> str:
        """For people."""
        return _LABELS[self]


_LABELS = {
    Fate.DONE: "Carried out",
    Fate.OTHER: "Changes, logins, intents",
    Fate.FAILED: "Failed",
    Fate.REFUSED: "Refused",
}
_FATE = Case(
    When(decision=Record.Decision.DENY, then=Value(Fate.REFUSED.value)),
    When(kind__in=(Record.Kind.CALL, Record.Kind.OUTCOME), code__in=CARRIED_OUT, then=Value(Fate.DONE.value)),
    When(kind__in=(Record.Kind.CALL, Record.Kind.OUTCOME), then=Value(Fate.FAILED.value)),
    default=Value(Fate.OTHER.value),
    output_field=TextField(),
)
_COUNT = """
SELECT floor(extract(epoch FROM at - %s::timestamptz) / %s)::integer AS bar, fate, count(*), min(at)
FROM (SELECT at, fate FROM ({rows}) AS chosen ORDER BY at DESC LIMIT {most}) AS newest GROUP BY 1, 2
"""
_ESTIMATE = """
SELECT slice, part.fate, count(*), min(part.at)
FROM generate_series(0, %s - 1) AS slice CROSS JOIN LATERAL (
    SELECT at, fate FROM ({rows}) AS chosen
    WHERE at >= %s::timestamptz + slice * make_interval(secs => %s)
      AND at < %s::timestamptz + (slice + 1) * make_interval(secs => %s)
    ORDER BY at DESC LIMIT {most}
) AS part GROUP BY 1, 2
"""

# Of a slice: what became of so many records, and when the oldest of them that was read happened.
Part = tuple[Fate, int, datetime]


@dataclass(frozen=True, slots=True)
class Bar:
    """What happened from `start` until before `end`. With `estimated`, the numbers are rounded guesses."""

    start: datetime
    end: datetime
    counts: Mapping[Fate, float]
    estimated: bool = False

    @property
    def total(self) -> int:
        """Of all fates."""
        return round(sum(self.counts.values()))


@dataclass(frozen=True, slots=True)
class Timeline:
    """Bars without gaps, none when there is nothing to show or it took too long.

    With `begins`, only what happened since then was counted: the newest records, of too many.
    """

    bars: tuple[Bar, ...] = ()
    begins: datetime | None = None
    too_slow: bool = False

    @property
    def total(self) -> int:
        """Of all bars."""
        return sum(bar.total for bar in self.bars)

    @property
    def estimated(self) -> bool:
        """Whether any bar is a guess."""
        return any(bar.estimated for bar in self.bars)


def timeline_of(
    rows: QuerySet[Record], since: datetime | None, until: datetime | None, *, may_estimate: bool = True
) -> Timeline:
    """Count `rows`, which are filtered by time already, over that time. Open ends are the oldest record and now.

    Without `may_estimate` only the newest are drawn of what is too much to count: for what no index has by time.
    """
    rows = rows.order_by()
    try:
        with at_most(_PATIENCE_MS):
            first = since or rows.order_by("at", "id").values_list("at", flat=True).first()
            if first is None:
                return Timeline()
            last = max(first, min(until or timezone.now(), timezone.now()))
            bars, begins = _counted(rows, first, last)
    except TooSlow:
        return Timeline(too_slow=True)
    if begins is None or not may_estimate:
        return Timeline(bars, begins)
    try:
        with at_most(_ESTIMATE_MS):
            return Timeline(_estimated(rows, first, last))
    except TooSlow:
        return Timeline(bars, begins)


def grid(first: datetime, last: datetime) -> tuple[datetime, int, int]:
    """Where the first bar begins, how many seconds a bar is long, and how many there are: at most `MOST_BARS`."""
    begin, end = first.timestamp(), max(last.timestamp(), first.timestamp() + 1)
    for step in _STEPS:
        start = math.floor(begin / step) * step
        if (bars := math.ceil((end - start) / step)) <= MOST_BARS:
            break
    return datetime.fromtimestamp(start, UTC), step, min(bars, MOST_BARS)


def _read(
    statement: str, rows: QuerySet[Record], most: int, before: list[Any], after: list[Any]
) -> dict[int, list[Part]]:
    inner, values = rows.values("at", fate=_FATE).query.sql_with_params()
    found: dict[int, list[Part]] = {}
    with connection.cursor() as cursor:
        cursor.execute(statement.format(rows=inner, most=most), [*before, *values, *after])
        for number, fate, count, oldest in cursor.fetchall():
            found.setdefault(number, []).append((Fate(fate), count, oldest))
    return found


def _counted(rows: QuerySet[Record], first: datetime, last: datetime) -> tuple[tuple[Bar, ...], datetime | None]:
    """The bars, and since when they are complete if they are not from the beginning."""
    start, step, bars = grid(first, last)
    found = _read(_COUNT, rows, MOST_COUNTED + 1, [start, step], [])
    parts = [part for each in found.values() for part in each]
    begins = min(at for _, _, at in parts) if sum(count for _, count, _ in parts) > MOST_COUNTED else None
    every = timedelta(seconds=step)
    counts = ({fate: count for fate, count, _ in found.get(number, [])} for number in range(bars))
    return tuple(Bar(start + every * n, start + every * (n + 1), each) for n, each in enumerate(counts)), begins


def _estimated(rows: QuerySet[Record], first: datetime, last: datetime) -> tuple[Bar, ...]:
    start, step, bars = grid(first, last)
    slices = slices_of(step)
    every, length, most = timedelta(seconds=step), step / slices, MOST_OF_A_BAR // slices
    bounded = rows.filter(at__gte=start, at__lte=last)  # so that PostgreSQL leaves out the partitions of other months
    found = _read(_ESTIMATE, bounded, most, [bars * slices], [start, length, start, length])
    part = every / slices
    guessed = [_slice(start + part * n, part, found.get(n, []), most, first, last) for n in range(bars * slices)]
    begins = [start + every * n for n in range(bars)]
    return tuple(_sum(at, at + every, guessed[n * slices : (n + 1) * slices]) for n, at in enumerate(begins))


def slices_of(step: int) -> int:
    """Into how many slices a bar of so many seconds is cut: of an hour, which is about how fast traffic changes."""
    return min(max(step // _HOUR, 4), MOST_SLICES)


def _slice(start: datetime, length: timedelta, parts: list[Part], most: int, first: datetime, last: datetime) -> Bar:
    end = start + length
    counts = {fate: float(count) for fate, count, _ in parts}
    if sum(counts.values()) < most:
        return Bar(start, end, counts)
    low, high = max(start, first), min(end, last)
    read = high - min(at for _, _, at in parts)
    factor = max(1.0, (high - low) / max(read, timedelta(milliseconds=1)))
    return Bar(start, end, {fate: count * factor for fate, count in counts.items()}, True)


def _sum(start: datetime, end: datetime, slices: list[Bar]) -> Bar:
    estimated = any(each.estimated for each in slices)
    totals = {fate: sum(each.counts.get(fate, 0) for each in slices) for fate in Fate}
    counts = {fate: _rounded(total) if estimated else round(total) for fate, total in totals.items() if total}
    return Bar(start, end, counts, estimated)


def _rounded(number: float) -> int:
    """Two digits: more would pretend to know."""
    digits = max(0, len(str(round(number))) - 2)
    return int(round(number, -digits))


# --- How it is drawn -------------------------------------------------------------------------------------------------

HEIGHT = 100.0


@dataclass(frozen=True, slots=True)
class Block:
    """One colour of a bar, in hundredths of the height."""

    fate: Fate
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class DrawnBar:
    """A bar with its link and what it says."""

    bar: Bar
    number: int
    parts: tuple[Block, ...]
    url: str
    said: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """What the template draws."""

    bars: tuple[DrawnBar, ...]
    highest: str
    ticks: tuple[tuple[float, str], ...]
    fates: tuple[tuple[Fate, str], ...]


def draw(timeline: Timeline, link: Callable[[Bar], str]) -> Drawing:
    """Stack the fates of each bar; `link` gives the address that narrows the time to the bar."""
    highest = _nice(max((bar.total for bar in timeline.bars), default=0))
    drawn = tuple(
        DrawnBar(bar, number, _stacked(bar, highest), link(bar), _said(bar)) for number, bar in enumerate(timeline.bars)
    )
    totals = tuple((fate, f"{sum(bar.counts.get(fate, 0) for bar in timeline.bars):,}") for fate in Fate)
    return Drawing(drawn, f"{highest:,}", _ticks(timeline.bars), totals)


def _nice(highest: int) -> int:
    """The top of the scale: 1, 2 or 5 times a power of ten, at least 5."""
    if highest <= 5:
        return 5
    power: int = 10 ** (len(str(highest)) - 1)
    return next(power * n for n in (1, 2, 5, 10) if power * n >= highest)


def _stacked(bar: Bar, highest: int) -> tuple[Block, ...]:
    parts, below = [], 0.0
    for fate in Fate:
        if count := bar.counts.get(fate, 0):
            # What is rare must still be seen.
            height = max(count / highest * HEIGHT, 1.5)
            below += height
            parts.append(Block(fate, round(HEIGHT - below, 2), round(height, 2)))
    return tuple(parts)


def _said(bar: Bar) -> str:
    about = "about " if bar.estimated else ""
    counts = ", ".join(f"{count:,} {fate.label.lower()}" for fate in Fate if (count := bar.counts.get(fate, 0)))
    return f"{span(bar.start, bar.end)}: {about}{counts}" if counts else f"{span(bar.start, bar.end)}: nothing"


def span(start: datetime, end: datetime) -> str:
    """`23 Nov 12:00 to 13:00`; with seconds where they count."""
    start, end = timezone.localtime(start), timezone.localtime(end)
    form = "%H:%M" if start.second == end.second == 0 else "%H:%M:%S"
    date = f"{start.day} {start:%b}"
    if end - start >= timedelta(days=1) and (start.hour, start.minute) == (end.hour, end.minute) == (0, 0):
        last = end - timedelta(days=1)
        return date if last.date() == start.date() else f"{date} to {last.day} {last:%b}"
    day = "" if end.date() == start.date() else f"{end.day} {end:%b} "
    return f"{date} {start.strftime(form)} to {day}{end.strftime(form)}"


def _ticks(bars: tuple[Bar, ...]) -> tuple[tuple[float, str], ...]:
    """Some moments under the bars: how far to the right in hundredths, and what they are called."""
    if not bars:
        return ()
    whole = bars[-1].end - bars[0].start
    every = max(1, math.ceil(len(bars) / 6))
    form = "%H:%M:%S" if whole <= timedelta(minutes=10) else "%H:%M" if whole <= timedelta(days=1) else ""
    told = []
    for number in range(0, len(bars), every):
        at = timezone.localtime(bars[number].start)
        day = f"{at.day} {at:%b}" + (f" {at.year}" if whole > timedelta(days=300) else "")
        name = at.strftime(form) if form else day if whole > timedelta(days=6) else f"{day} {at:%H:%M}"
        told.append((round(number / len(bars) * 100, 2), name))
    return tuple(told)
