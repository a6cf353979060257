"""What one process counts of calls and requests: plain numbers, since every call adds to them.

Labels are names of the catalogue, codes and classes of statuses, never what a client wrote: so their number is bounded.
"""

from __future__ import annotations

import time

from access.offered import OfferedEntry
from access.snapshot import ToolEntry
from audit.histogram import Histogram
from gateway.http import Send

# Stands for every name that is not in the catalogue.
UNKNOWN = "unknown"
_AREAS = {"admin": "admin", "api": "api"}

CallKey = tuple[str, str, str, str]


class Meter:
    """Counts; `gateway.metrics` reads."""

    def __init__(self) -> None:
        # (tool, connector, decision, code) → calls
        self.calls: dict[CallKey, int] = {}
        # connector → how long calls took until they were answered, and how long the upstream took of that
        self.answered: dict[str, Histogram] = {}
        self.upstream: dict[str, Histogram] = {}
        # how tasks ended → tasks
        self.tasks: dict[str, int] = {}
        # status at /mcp → requests
        self.statuses: dict[int, int] = {}
        # (area, class of status) → requests, and area → how long they took until the answer began
        self.pages: dict[tuple[str, str], int] = {}
        self.page_times: dict[str, Histogram] = {}

    def count(self, entry: ToolEntry | OfferedEntry | None, decision: str, code: str) -> str:
        """One call came to its end. Returns the label of its connector."""
        if entry is None:
            connector, key = UNKNOWN, (UNKNOWN, UNKNOWN, decision, code)
        else:
            connector = entry.source.source.name
            key = (entry.label, connector, decision, code)
        self.calls[key] = self.calls.get(key, 0) + 1
        return connector

    def answer(self, entry: ToolEntry | OfferedEntry | None, code: str, took_ns: int) -> None:
        """One call was carried out and put on record."""
        _of(self.answered, self.count(entry, "allow", code)).observe(took_ns // 1000)

    def asked(self, connector: str, took_us: int) -> None:
        """The upstream of `connector` answered or failed."""
        _of(self.upstream, connector).observe(took_us)

    def task(self, status: str) -> None:
        """One task has ended."""
        self.tasks[status] = self.tasks.get(status, 0) + 1

    def status(self, status: int) -> None:
        """One request at /mcp was answered."""
        self.statuses[status] = self.statuses.get(status, 0) + 1

    def page(self, path: str, send: Send) -> Send:
        """`send` of a request to Django, which counts it when its answer begins."""
        started = time.perf_counter_ns()
        area = _AREAS.get(path[1:].partition("/")[0], "other")

        async def counting(event: dict[str, object]) -> None:
            if event["type"] == "http.response.start":
                key = (area, f"{str(event['status'])[0]}xx")
                self.pages[key] = self.pages.get(key, 0) + 1
                _of(self.page_times, area).observe((time.perf_counter_ns() - started) // 1000)
            await send(event)

        return counting  # type: ignore[return-value]


def _of(histograms: dict[str, Histogram], name: str) -> Histogram:
    found = histograms.get(name)
    if found is None:
        found = histograms[name] = Histogram()
    return found
