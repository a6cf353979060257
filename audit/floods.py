"""What comes again and again is recorded once a minute for each source, with the number of times in between.

So neither one caller who keeps asking, nor a hundred thousand who each ask once, fill the disk.
"""

from __future__ import annotations

import ipaddress
import time
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import NamedTuple

WINDOW_SECONDS = 60.0
_MOST_SOURCES = 500


class Counted(NamedTuple):
    """What came since the last record of a source. Without a source: of so many others, which had no record."""

    source: str | None
    times: int
    sources: int = 1


@dataclass(slots=True)
class _Window:
    since: float
    times: int = 0


class Flood:
    """Of how many sources something comes, and how often. At most 500 of them have a record in a minute."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._windows: dict[str, _Window] = {}
        self._others: set[str] = set()
        self._rest = _Window(0.0)
        self._looked_at = 0.0

    def take(self, source: str) -> int | None:
        """None when it is only counted; else it is to be recorded, with the number that was not before it."""
        with self._lock:
            now = time.monotonic()
            known = self._windows.get(source)
            if known is not None and now - known.since < WINDOW_SECONDS:
                known.times += 1
                return None
            if known is None and len(self._windows) >= _MOST_SOURCES and not self._forget_quiet(now):
                self._count_rest(source, now)
                return None
            self._windows[source] = _Window(now)
            return known.times if known is not None else 0

    def _count_rest(self, source: str, now: float) -> None:
        if not self._rest.times:
            self._rest.since = now
        self._rest.times += 1
        if len(self._others) < _MOST_SOURCES * 100:
            self._others.add(source)

    def _forget_quiet(self, now: float) -> bool:
        """Make room; looked for once a second, since a flood asks at each of its requests."""
        if now - self._looked_at < 1:
            return False
        self._looked_at = now
        quiet = [each for each, window in self._windows.items() if not window.times and self._is_over(window, now)]
        for each in quiet:
            del self._windows[each]
        return bool(quiet)

    @staticmethod
    def _is_over(window: _Window, now: float) -> bool:
        return now - window.since >= WINDOW_SECONDS

    def counted(self, *, at_once: bool = False) -> list[Counted]:
        """What is to be recorded since its minute is over; with `at_once`, also where it is not."""
        with self._lock:
            now = time.monotonic()
            found = []
            for source, window in self._windows.items():
                if window.times and (at_once or self._is_over(window, now)):
                    found.append(Counted(source, window.times))
                    window.since, window.times = now, 0
            if self._rest.times and (at_once or self._is_over(self._rest, now)):
                found.append(Counted(None, self._rest.times, len(self._others)))
                self._rest.times = 0
                self._others.clear()
            self._forget_quiet(now)
            return found


def source_of(address: str | None) -> str:
    """What counts as one source: an IPv4 address, or the /64 network of an IPv6 address, which one host has."""
    if not address or ":" not in address:
        return address or "unknown"
    try:
        return str(ipaddress.ip_network(f"{address}/64", strict=False))
    except ValueError:
        return address


@cache
def turned_away() -> Flood:
    """Of this process: who was turned away at any door, since no valid token was shown."""
    return Flood()
