"""Letters between workers: heard by whom they are for, in order, and known not to be heard by anybody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from django.conf import settings

from gateway.mail import Mail, MailAway
from gateway.tests.conftest import until

NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
async def two() -> AsyncIterator[tuple[Mail, Mail]]:
    pair = Mail(settings.REDIS_URL), Mail(settings.REDIS_URL)
    for each in pair:
        each.start()
    await until(lambda: all(each.is_listening for each in pair))
    yield pair
    for each in pair:
        await each.stop()


async def test_letters_come_to_whom_they_are_for_and_in_order(two: tuple[Mail, Mail]) -> None:
    here, there = two
    heard: list[Any] = []
    here.on("word", lambda payload: heard.append(("here", payload["n"])))
    there.on("word", lambda payload: heard.append(("there", payload["n"])))
    for n in range(3):
        assert await here.send(there.worker, "word", {"n": n})
    assert await here.send(here.worker, "word", {"n": 3})
    await until(lambda: len(heard) == 4)
    assert [each for each in heard if each[0] == "there"] == [("there", 0), ("there", 1), ("there", 2)]


async def test_many_letters_of_one_moment_all_arrive(two: tuple[Mail, Mail]) -> None:
    here, there = two
    heard: list[int] = []
    there.on("many", lambda letter: heard.append(letter["n"]))
    assert all(await asyncio.gather(*(here.send(there.worker, "many", {"n": n}) for n in range(100))))
    await until(lambda: len(heard) == 100)
    assert sorted(heard) == list(range(100))


async def test_a_letter_to_all_is_heard_once_by_each(two: tuple[Mail, Mail]) -> None:
    heard: list[Any] = []
    for name, each in zip(("here", "there"), two, strict=True):
        each.on("word", lambda payload, name=name: heard.append((name, payload["n"])))  # type: ignore[misc]
    await two[0].broadcast("word", {"n": 1})
    await two[1].broadcast("word", {"n": 2})
    await until(lambda: len(heard) == 4)
    assert sorted(heard) == [("here", 1), ("here", 2), ("there", 1), ("there", 2)]


@pytest.mark.parametrize("worker", ["0" * 16, "*", "", "workers", "0" * 15 + "\n"])
async def test_who_sends_to_nobody_is_told_so(two: tuple[Mail, Mail], worker: str) -> None:
    assert await two[0].send(worker, "word", {}) is False


async def test_a_worker_that_stopped_hears_nothing(two: tuple[Mail, Mail]) -> None:
    here, there = two
    assert await here.send(there.worker, "word", {})
    await there.stop()
    async with asyncio.timeout(5):
        while await here.send(there.worker, "word", {}):
            await asyncio.sleep(0.005)


async def test_a_handler_that_fails_does_not_end_the_hearing(two: tuple[Mail, Mail]) -> None:
    here, there = two
    heard: list[int] = []

    def fail(payload: dict[str, Any]) -> None:
        heard.append(payload["n"])
        raise ValueError(payload["n"])

    there.on("word", fail)
    for n in range(2):
        assert await here.send(there.worker, "word", {"n": n})
    assert await here.send(there.worker, "unknown", {})
    await until(lambda: heard == [0, 1])


async def test_a_letter_that_cannot_be_read_does_not_end_the_hearing(two: tuple[Mail, Mail]) -> None:
    here, there = two
    heard: list[int] = []
    there.on("word", lambda payload: heard.append(payload["n"]))
    for letter in (b"", b"[1]", b"\xff", b'["w","word",' + b"[" * 2_000 + b"]" * 2_000 + b"]"):
        assert await here._redis.publish(f"mcpsite:worker:{there.worker}", letter) == 1
    assert await here.send(there.worker, "word", {"n": 1})
    await until(lambda: heard == [1])


async def test_a_worker_has_ended_when_nobody_hears_twice(
    two: tuple[Mail, Mail], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.mail._BACK_SECONDS", 0)
    here, there = two
    assert await here.deliver(there.worker, "word", {})
    assert not await here.has_ended(there.worker)
    assert not await here.deliver("0" * 16, "word", {})
    assert await here.has_ended("0" * 16)
    answers = iter([0, 1])  # it had lost its connection

    async def publish(channel: str, kind: str, payload: dict[str, Any]) -> int:
        return next(answers)

    here._publish = publish  # type: ignore[method-assign]
    assert await here.deliver(there.worker, "word", {})


async def test_without_redis_nobody_hears_and_nothing_fails() -> None:
    mail = Mail(NOWHERE)
    mail.start()
    assert await mail.send("0" * 16, "word", {}) is False
    with pytest.raises(MailAway):  # which says nothing of the worker
        await mail.deliver("0" * 16, "word", {})
    await mail.broadcast("word", {})
    await mail.stop()


async def test_the_hearing_comes_back_after_a_lost_connection(two: tuple[Mail, Mail]) -> None:
    here, there = two
    heard: list[int] = []
    there.on("word", lambda payload: heard.append(payload["n"]))
    await here._redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    await until(lambda: not there.is_listening)
    await until(lambda: there.is_listening)
    assert await here.send(there.worker, "word", {"n": 1})
    await until(lambda: heard == [1])
