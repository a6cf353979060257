"""Chance that falls the same everywhere: Python promises only the sequence of `random()`, so all is made of it."""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from datetime import timedelta
from itertools import accumulate
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """Draws from a fixed sequence."""

    def __init__(self, seed: int) -> None:
        self.roll = random.Random(seed).random  # noqa: S311 - no secret depends on it

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.roll() < probability

    def between(self, low: float, high: float) -> float:
        """A number from `low` up to `high`."""
        return low + (high - low) * self.roll()

    def whole(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included."""
        return low + int(self.roll() * (high - low + 1))

    def pick(self, things: Sequence[T]) -> T:
        """One of `things`, each as likely."""
        return things[int(self.roll() * len(things))]

    def weighted(self, things: Sequence[T], weights: Sequence[float]) -> T:
        """One of `things`, as likely as its weight says."""
        return self.by_sums(things, list(accumulate(weights)))

    def by_sums(self, things: Sequence[T], sums: Sequence[float]) -> T:
        """As `weighted`, for weights that were added up beforehand."""
        return things[bisect_right(sums, self.roll() * sums[-1])]

    def hours(self, low: float, high: float) -> timedelta:
        """A duration in hours."""
        return timedelta(seconds=int(self.between(low, high) * 3600))

    def hours_around(self, median: float, spread: float = 0.9) -> timedelta:
        """A duration in hours as people need it: mostly about `median`, sometimes much longer (log-normal)."""
        normal = math.sqrt(-2 * math.log(1 - self.roll())) * math.cos(math.tau * self.roll())
        return timedelta(seconds=int(median * math.exp(spread * normal) * 3600))
