"""Following a run as it happens."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from django.contrib.auth.models import Permission
from django.test import AsyncClient

from access import tokens
from access.models import User
from agents import events as module
from agents.live import Announcer
from agents.models import Run
from agents.tests.conftest import found, in_thread, queued, ran, until
from gateway.tests.conftest import make_user

pytestmark = pytest.mark.usefixtures("company")


def parsed(raw: bytes) -> list[tuple[str, int | None, dict[str, Any]]]:
    """(event, id, data) of what was sent; comments and hints are left out."""
    told = []
    for block in raw.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "event" in fields:
            number = int(fields["id"]) if "id" in fields else None
            told.append((fields["event"], number, orjson.loads(fields["data"])))
    return told


async def all_of(stream) -> list[tuple[str, int | None, dict[str, Any]]]:
    return parsed(b"".join([part async for part in stream]))


async def test_a_finished_run_is_told_from_the_beginning(worker, agent, starter):
    run = await ran(worker, agent, starter)
    told = await all_of(module.events(run.pk, 0))
    assert [(name, number) for name, number, _ in told] == [("step", 1), ("step", 2), ("step", 3), ("end", None)]
    assert told[-1][2]["status"] == "succeeded"
    assert told[-1][2]["output"] == "The echo says carla@example.com."
    outline = await all_of(module.events(run.pk, 0, whole=False))
    assert [(name, number) for name, number, _ in outline] == [(name, number) for name, number, _ in told]
    assert ("carla" in str(told), "carla" in str(outline)) == (True, False)


async def test_a_broken_stream_goes_on_where_it_stopped(worker, agent, starter):
    run = await ran(worker, agent, starter)
    told = await all_of(module.events(run.pk, 2))
    assert [(name, number) for name, number, _ in told] == [("step", 3), ("end", None)]


async def test_words_and_calls_are_told_as_they_come(worker, agent, starter):
    run = await queued(agent, starter)
    telling = asyncio.create_task(all_of(module.events(run.pk, 0)))
    await until(lambda: not telling.done())
    await asyncio.sleep(0.2)  # the stream has to be listening: that cannot be seen from here
    await worker.execute(run.pk)
    async with asyncio.timeout(5):
        told = await telling
    names = [name for name, _, _ in told]
    assert names[0] == "status"
    assert [name for name in names if name not in ("delta", "status")] == ["step", "calling", "step", "step", "end"]
    words = "".join(data["text"] for name, _, data in told if name == "delta")
    assert words == "The echo says carla@example.com."
    assert names.index("delta") < len(names) - 2, "words come before their step"


async def test_without_redis_the_steps_come_all_the_same(worker, agent, starter, settings):
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    await worker.announcer.close()
    worker.announcer = Announcer()
    run = await queued(agent, starter)
    telling = asyncio.create_task(all_of(module.events(run.pk, 0)))
    await worker.execute(run.pk)
    async with asyncio.timeout(8):
        told = await telling
    assert [name for name, _, _ in told if name != "status"] == ["step", "step", "step", "end"]


async def test_a_stream_says_that_it_lives_and_ends_in_time(agent, starter, monkeypatch):
    monkeypatch.setattr(module, "_HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(module, "_LONGEST_SECONDS", 0.5)
    run = await queued(agent, starter)
    async with asyncio.timeout(5):
        sent = [part async for part in module.events(run.pk, 0)]
    assert sent.count(b": still here\n\n") >= 2
    assert parsed(b"".join(sent))[-1][0] == "status"


async def test_a_run_that_is_deleted_ends_its_streams(agent, starter):
    run = await queued(agent, starter)
    await in_thread(lambda: Run.objects.all().delete())
    assert (await all_of(module.events(run.pk, 0)))[-1] == ("end", None, {"status": "deleted"})


async def test_closing_the_browser_lets_go_of_everything(agent, starter):
    import redis.asyncio
    from django.conf import settings as site

    run = await queued(agent, starter)
    channel = f"mcpsite:run:{run.pk}"
    client = redis.asyncio.from_url(site.REDIS_URL)
    stream = module.events(run.pk, 0)
    await anext(stream)
    await anext(stream)
    assert (await client.pubsub_numsub(channel))[0][1] == 1
    await stream.aclose()
    assert (await client.pubsub_numsub(channel))[0][1] == 0
    await client.aclose()


async def test_the_stream_is_served_to_bearers_with_its_media_type(worker, agent, starter):
    run = await ran(worker, agent, starter)
    _, raw = await in_thread(lambda: tokens.issue(starter, name="t", scopes=["read"]))
    headers = {"Authorization": f"Bearer {raw}", "Last-Event-ID": "2", "Accept": "text/event-stream"}
    answer = await AsyncClient().get(f"/api/v1/runs/{run.pk}/events/", headers=headers)
    assert answer.status_code == 200
    assert (answer["Content-Type"], answer["Cache-Control"]) == ("text/event-stream", "no-store")
    assert [name for name, _, _ in await all_of(answer.streaming_content)] == ["step", "end"]
    refused = await AsyncClient().get(f"/api/v1/runs/{run.pk}/events/", headers={"Accept": "text/event-stream"})
    assert (refused.status_code, refused["Content-Type"]) == (401, "application/problem+json")
    assert (await found(run)).status == "succeeded"


@pytest.mark.parametrize("taken", ["token", "user", "permission"])
async def test_a_stream_ends_when_its_reader_is_no_longer_let_in(company, agent, starter, monkeypatch, taken):
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.1)
    run = await queued(agent, starter)
    viewer = await in_thread(lambda: make_user("victor", company.role))
    view = await in_thread(lambda: Permission.objects.get(codename="view_run"))
    await in_thread(lambda: viewer.user_permissions.add(view))
    token, raw = await in_thread(lambda: tokens.issue(viewer, name="t", scopes=["read"]))
    take = {
        "token": lambda: tokens.revoke(token),
        "user": lambda: User.objects.filter(pk=viewer.pk).update(is_active=False),
        "permission": lambda: viewer.user_permissions.clear(),
    }
    headers = {"Authorization": f"Bearer {raw}", "Accept": "text/event-stream"}
    answer = await AsyncClient().get(f"/api/v1/runs/{run.pk}/events/", headers=headers)
    stream = aiter(answer.streaming_content)
    async with asyncio.timeout(5):
        for _ in range(2):
            await anext(stream)
        await asyncio.sleep(0.5)
        assert (await found(run)).status == "queued"
        await in_thread(take[taken])
        assert [part async for part in stream] == []


async def test_nobody_follows_more_runs_at_once_than_are_allowed(worker, agent, starter):
    run = await ran(worker, agent, starter)

    async def endless():
        while True:
            yield b": still here\n\n"

    streams = [module.followed(starter.pk, endless()) for _ in range(module.MOST_STREAMS)]
    for stream in streams:
        await anext(stream)
    _, raw = await in_thread(lambda: tokens.issue(starter, name="t", scopes=["read"]))
    headers = {"Authorization": f"Bearer {raw}"}
    refused = await AsyncClient().get(f"/api/v1/runs/{run.pk}/events/", headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_streams")
    await streams[0].aclose()
    assert (await AsyncClient().get(f"/api/v1/runs/{run.pk}/events/", headers=headers)).status_code == 200
    for stream in streams:
        await stream.aclose()
    assert not module.has_too_many(starter.pk)
