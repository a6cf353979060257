"""Budgets: exact while Redis is there, bounded while it is not."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
from django.conf import settings

from gateway.limits import Budgets

NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
async def two(request: pytest.FixtureRequest) -> AsyncIterator[tuple[Budgets, Budgets]]:
    pair = Budgets(settings.REDIS_URL, 2), Budgets(settings.REDIS_URL, 2)
    yield pair
    for each in pair:
        await each.close()


async def spent(budgets: Budgets, tool: object, per_minute: int, times: int) -> int:
    """How many of so many calls there was a budget for."""
    waits = await asyncio.gather(*(budgets.spend(1, tool, per_minute) for _ in range(times)))
    return sum(1 for wait in waits if wait == 0)


@pytest.mark.parametrize("per_minute", [1, 7, 60, 600])
async def test_two_processes_share_one_budget(two: tuple[Budgets, Budgets], per_minute: int) -> None:
    tool = uuid.uuid4()
    counts = await asyncio.gather(*(spent(each, tool, per_minute, per_minute) for each in two))
    assert per_minute <= sum(counts) <= per_minute + 1 + per_minute // 30


async def test_one_process_gets_all_of_it(two: tuple[Budgets, Budgets]) -> None:
    assert await spent(two[0], uuid.uuid4(), 300, 300) == 300


async def test_the_wait_is_told(two: tuple[Budgets, Budgets]) -> None:
    tool = uuid.uuid4()
    assert await two[0].spend(1, tool, 2) == 0
    assert await two[0].spend(1, tool, 2) == 0
    assert 20 < await two[0].spend(1, tool, 2) <= 30


async def test_budgets_of_different_principals_and_tools_are_apart(two: tuple[Budgets, Budgets]) -> None:
    first, second = uuid.uuid4(), uuid.uuid4()
    assert [await two[0].spend(user, tool, 1) for user in (1, 2) for tool in (first, second)] == [0, 0, 0, 0]


async def test_without_redis_each_process_has_its_share_and_no_more() -> None:
    budgets = Budgets(NOWHERE, 4)
    tool = uuid.uuid4()
    assert await spent(budgets, tool, 40, 200) in (10, 11)
    assert await budgets.spend(1, tool, 40) > 0
    assert await spent(budgets, uuid.uuid4(), 1, 5) == 1
    await budgets.close()


async def test_redis_going_away_in_between_does_not_open_the_budget(two: tuple[Budgets, Budgets]) -> None:
    tool = uuid.uuid4()
    budgets = two[0]
    assert await spent(budgets, tool, 20, 100) == 20
    away = Budgets(NOWHERE, 2)
    budgets._take = away._take
    budgets._buckets.clear()
    assert await spent(budgets, tool, 20, 100) == 10
    await away.close()
