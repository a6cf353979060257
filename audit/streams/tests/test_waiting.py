"""Who pulls can wait for what comes next, without holding anything."""

from __future__ import annotations

import asyncio
import json
import time

from asgiref.sync import sync_to_async
from django.test import AsyncClient

from access import tokens
from access.models import User
from audit.streams import api
from audit.streams.tests.test_steering import grow

PULL = "/api/v1/audit/stream/"


def prepared() -> tuple[dict[str, str], int]:
    user = User.objects.create_user("dora", is_superuser=True)
    _, secret = tokens.issue(user, name="tests", scopes=["read"])
    return {"Authorization": f"Bearer {secret}"}, grow() - 1


async def whole(answer):
    assert answer.streaming
    return json.loads(b"".join([part async for part in answer.streaming_content]))


async def test_who_waits_is_answered_as_soon_as_there_is_something(committed_db, monkeypatch):
    monkeypatch.setattr(api, "_LOOK_SECONDS", 0.05)
    headers, last = await sync_to_async(prepared)()
    answer = await AsyncClient().get(PULL, {"after": last, "wait": 8}, headers=headers)
    waiting = asyncio.create_task(whole(answer))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await sync_to_async(grow)()
    body = await asyncio.wait_for(waiting, 10)
    assert body["records"][0]["seq"] == last + 1


async def test_waiting_ends_with_its_time(committed_db):
    headers, last = await sync_to_async(prepared)()
    answer = await AsyncClient().get(PULL, {"after": last, "wait": 1}, headers=headers)
    started = time.monotonic()
    body = await whole(answer)
    assert (body["records"], body["next"]) == ([], last)
    assert 0.5 < time.monotonic() - started < 5
