"""Durations by size, counted cheaply enough for the path of every call."""

from __future__ import annotations

from bisect import bisect_left

# Upper bounds in microseconds: from a call that only asks us to one that waits for the slowest upstream.
BOUNDS_US = (
    500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 2_000_000, 5_000_000, 10_000_000, 30_000_000,
)  # fmt: skip


class Histogram:
    """How many durations fell between which bounds, and their sum. One thread writes, any may read."""

    __slots__ = ("counts", "sum_us")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_US) + 1)
        self.sum_us = 0

    def observe(self, duration_us: int) -> None:
        """Count one duration; a bound belongs to the bucket below it, as Prometheus wants it."""
        self.counts[bisect_left(BOUNDS_US, duration_us)] += 1
        self.sum_us += duration_us
