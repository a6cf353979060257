"""Floods are counted: a record a minute for each source, and a bounded number of sources."""

from __future__ import annotations

import time

import pytest

from audit import floods
from audit.floods import Counted, Flood, source_of


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_one_source_has_one_record_a_minute_that_counts_the_others(clock: list[float]) -> None:
    flood = Flood()
    assert [flood.take("a") for _ in range(100_000)].count(None) == 99_999
    assert flood.counted() == []
    clock[0] += 60
    assert flood.take("a") == 99_999


def test_what_was_counted_is_told_also_when_it_never_comes_again(clock: list[float]) -> None:
    flood = Flood()
    for _ in range(7):
        flood.take("a")
    clock[0] += 61
    assert flood.counted() == [Counted("a", 6)]
    assert flood.take("a") is None, "that was the record of this minute"
    assert flood.counted(at_once=True) == [Counted("a", 1)]


def test_a_hundred_thousand_sources_are_a_bounded_number_of_records(clock: list[float]) -> None:
    flood = Flood()
    recorded = [flood.take(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}") for n in range(100_000)]
    assert len(recorded) - recorded.count(None) == floods._MOST_SOURCES
    assert len(flood._windows) <= floods._MOST_SOURCES
    assert len(flood._others) <= 50_000
    clock[0] += 60
    (rest,) = flood.counted()
    assert (rest.source, rest.times) == (None, 99_500)
    assert flood.take("new") == 0


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        (None, "unknown"),
        ("not:one", "not:one"),
    ],
)
def test_a_host_of_ipv6_is_one_source_whatever_addresses_it_takes(address: str | None, source: str) -> None:
    assert source_of(address) == source
