"""The ids that are taken and not visible: of transactions that have not committed yet, or never will."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class _Gap:
    first: int
    last: int
    since: float
    # Once every transaction before this one has ended, nobody is left who could fill the gap.
    barrier: int | None = None


class Gaps:
    """What is missing among the ids up to `high`. Late commits are looked for here, and only here."""

    def __init__(self, low_water: int, seen: Iterable[int], high: int, now: float) -> None:
        self.high = low_water
        self._gaps: list[_Gap] = []
        self.reach(seen, high, now)

    @property
    def low_water(self) -> int:
        """No record with an id up to this one will be sealed any more."""
        return self._gaps[0].first - 1 if self._gaps else self.high

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The missing ids, both ends included."""
        return [(gap.first, gap.last) for gap in self._gaps]

    def reach(self, seen: Iterable[int], high: int, now: float) -> None:
        """The ids after `self.high` up to `high` were looked at, and these were there, in ascending order."""
        expected = self.high + 1
        for each in seen:
            if each > expected:
                self._gaps.append(_Gap(expected, each - 1, now))
            expected = each + 1
        if high >= expected:
            self._gaps.append(_Gap(expected, high, now))
        self.high = max(high, expected - 1)

    def fill(self, seen: Iterable[int]) -> None:
        """These came late."""
        late = sorted(seen)
        if late:
            self._gaps = [part for gap in self._gaps for part in _without(gap, late)]

    def give_up(self, now: float, after_seconds: float, oldest_running: int, next_transaction: int) -> None:
        """Forget gaps that were looked at for so long, and that no running transaction can fill any more.

        The two are the bounds of a snapshot that was taken before the gaps were looked at for the last time. A
        transaction has its number a moment after it has taken an id: that is what the time is for.
        """
        kept = []
        for gap in self._gaps:
            if now - gap.since >= after_seconds:
                barrier = next_transaction if gap.barrier is None else gap.barrier
                if oldest_running >= barrier:
                    continue
                gap = replace(gap, barrier=barrier)
            kept.append(gap)
        self._gaps = kept


def _without(gap: _Gap, ids: list[int]) -> list[_Gap]:
    parts, first = [], gap.first
    for each in ids:
        if gap.first <= each <= gap.last:
            if each > first:
                parts.append(replace(gap, first=first, last=each - 1))
            first = each + 1
    if first <= gap.last:
        parts.append(replace(gap, first=first))
    return parts
