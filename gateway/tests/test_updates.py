"""However often a source says that a resource changed: who watches hears of it now and then, and calls go on."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from itertools import pairwise

from gateway import updates
from gateway.listening import and_above
from gateway.tests.conftest import until
from gateway.updates import Updates, Watched

SOURCE = uuid.uuid4()


class Crowd:
    """So many who watch the same."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.told: list[str] = []

    def __call__(self, watched: Watched, uri: str) -> Iterator[None]:
        for _ in range(self.size):
            self.told.append(uri)
            yield


async def test_what_is_said_again_and_again_is_told_once_in_a_round() -> None:
    crowd = Crowd(2)
    gathered = Updates(crowd)
    for _ in range(1_000):
        gathered.add((SOURCE, "a://x"), "a://x")
    await until(lambda: crowd.told)
    for _ in range(1_000):
        gathered.add((SOURCE, "a://x"), "a://x")
    await asyncio.sleep(0)
    assert crowd.told == ["a://x"] * 2
    await until(lambda: len(crowd.told) == 4)


async def test_thousands_are_told_a_few_at_a_time() -> None:
    crowd = Crowd(2_000)
    Updates(crowd).add((SOURCE, "a://x"), "a://x")
    steps = []
    while len(crowd.told) < 2_000:
        steps.append(len(crowd.told))
        await asyncio.sleep(0)
    assert max(after - before for before, after in pairwise(steps)) <= updates._AT_ONCE


async def test_of_a_folder_in_which_everything_changes_the_folder_is_told() -> None:
    crowd = Crowd(1)
    gathered = Updates(crowd)
    for number in range(5_000):
        gathered.add((SOURCE, "a://folder"), f"a://folder/{number}")
    await until(lambda: crowd.told)
    assert crowd.told == [*(f"a://folder/{number}" for number in range(100)), "a://folder"]


def test_of_a_uri_without_end_nothing_is_a_part() -> None:
    # To look for all that is above it would take an hour.
    assert list(and_above("a://" + "a/" * 1_000_000)) == []
    assert list(and_above("a://b/c")) == ["a://b/c", "a://b/", "a://b"]
