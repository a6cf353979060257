"""Health is told in one form and always in time, even when an engine hangs or is gone."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from datetime import UTC, datetime, timedelta

import pytest
from django.conf import settings
from django.db.migrations.loader import MigrationLoader
from django.test import AsyncRequestFactory, RequestFactory

from audit.durability import complaint
from mcpsite import health
from mcpsite.postgres import conninfo

pytestmark = pytest.mark.django_db
IN_TIME_SECONDS = 0.1


@pytest.fixture(autouse=True)
async def disconnected():
    yield
    await health.probe().close()


@pytest.fixture(autouse=True)
def no_sealer_is_expected(monkeypatch):
    """No sealer runs here, and other tests leave records."""
    monkeypatch.setattr(health, "_LONGEST_LAG_SECONDS", float("inf"))


@pytest.mark.parametrize(("lag", "said"), [(9.9, "healthy"), (10.1, "degraded")])
async def test_a_ledger_that_is_not_sealed_in_time_degrades_the_site(monkeypatch, lag, said):
    monkeypatch.setattr(health, "_LONGEST_LAG_SECONDS", 10.0)
    monkeypatch.setattr(health, "PROGRESS", f"SELECT 1, 1, now(), 0::float, {lag}::float, 1, 0")
    for _ in range(20):
        status, body, _ = await ask()
        if body["status"] == said:
            break
    assert (status, body["status"], body["postgresql"], body["redis"]) == (200, said, "connected", "connected")


async def test_a_server_that_may_forget_keeps_a_site_from_being_ready(monkeypatch):
    await warm()
    monkeypatch.setattr(health, "SWITCHED_OFF", "SELECT 'fsync'")
    status, body, _ = await ask(health.ready, **{"mcpsite.gateway": Ready(True)})
    assert status == 503
    assert body["reasons"] == [complaint(["fsync"])]


@pytest.fixture
def deaf():
    """A port that takes connections and never answers, as an engine does that was stopped."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def without_postgresql(monkeypatch, port: int) -> None:
    database = {**settings.DATABASES["default"], "HOST": "127.0.0.1", "PORT": str(port)}
    monkeypatch.setattr(health, "conninfo", lambda _: conninfo(database))


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


async def ask(view=None, **scope):
    request = AsyncRequestFactory().get("/health")
    request.scope.update(scope)
    began = time.perf_counter()
    response = await (view or health.health)(request)
    return response.status_code, json.loads(response.content), time.perf_counter() - began


async def warm():
    """The first question imports and connects; a site that has just started may be late once."""
    for _ in range(20):
        if (await ask())[1]["status"] == "healthy":
            return
        await asyncio.sleep(0.05)


async def test_a_healthy_site_says_so_in_exactly_five_words():
    await warm()
    status, body, _ = await ask()
    assert (status, list(body)) == (200, ["status", "service", "postgresql", "redis", "timestamp"])
    assert [body[key] for key in ("status", "service", "postgresql", "redis")] == [
        "healthy",
        "mcpsite",
        "connected",
        "connected",
    ]
    assert datetime.now(UTC) - datetime.fromisoformat(body["timestamp"]) < timedelta(seconds=5)


async def test_it_answers_within_a_tenth_of_a_second():
    await warm()
    times = sorted([(await ask())[2] for _ in range(50)])
    assert times[24] < 0.03
    assert times[47] < IN_TIME_SECONDS


@pytest.mark.parametrize("how", ["gone", "hangs"])
async def test_without_redis_the_site_is_degraded(settings, deaf, how):
    await warm()
    settings.REDIS_URL = f"redis://127.0.0.1:{closed_port() if how == 'gone' else deaf}/0"
    status, body, seconds = await ask()
    assert (status, body["status"], body["redis"]) == (200, "degraded", "disconnected")
    assert seconds < IN_TIME_SECONDS


@pytest.mark.parametrize("how", ["gone", "hangs"])
async def test_without_postgresql_the_site_is_unhealthy(monkeypatch, deaf, how):
    without_postgresql(monkeypatch, closed_port() if how == "gone" else deaf)
    for _ in range(3):
        status, body, seconds = await ask()
        assert (status, body["status"], body["postgresql"]) == (503, "unhealthy", "disconnected")
        assert seconds < IN_TIME_SECONDS


async def test_a_late_answer_is_no_lost_database_until_two_seconds_have_passed(monkeypatch):
    await warm()

    async def late(connection):
        await asyncio.sleep(60)

    monkeypatch.setattr(health.probe(), "_look_at_seals", late)
    status, body, seconds = await ask()
    assert (status, body["postgresql"], seconds < IN_TIME_SECONDS) == (200, "connected", True)
    monkeypatch.setattr(health.probe(), "_answered_at", time.monotonic() - 2)
    assert (await ask())[0] == 503


async def test_a_question_that_hangs_is_not_asked_twice(monkeypatch, deaf):
    without_postgresql(monkeypatch, deaf)
    await ask()
    first = health.probe()._question
    await ask()
    assert health.probe()._question is first


async def test_it_comes_back_by_itself(monkeypatch):
    without_postgresql(monkeypatch, closed_port())
    assert (await ask())[0] == 503
    monkeypatch.undo()
    await warm()
    assert (await ask())[0] == 200


async def test_nothing_sensitive_is_said(monkeypatch):
    without_postgresql(monkeypatch, closed_port())
    _, body, _ = await ask()
    secret = settings.DATABASES["default"]["PASSWORD"]
    assert secret not in json.dumps(body)


class Ready:
    def __init__(self, ready: bool) -> None:
        self.ready = lambda: ready


async def test_a_site_is_ready_when_the_gateway_the_schema_and_postgresql_are():
    await warm()
    assert (await ask(health.ready, **{"mcpsite.gateway": Ready(True)}))[:2] == (200, {"ready": True, "reasons": []})


async def test_a_site_that_is_not_ready_says_why():
    await warm()
    status, body, _ = await ask(health.ready, **{"mcpsite.gateway": Ready(False)})
    assert (status, body["reasons"]) == (503, ["The gateway is not ready."])
    assert (await ask(health.ready))[0] == 503


def test_migrations_are_known_by_their_files_as_django_knows_them():
    assert health._known_migrations() == frozenset(MigrationLoader(None).graph.nodes)


async def test_unapplied_migrations_keep_a_site_from_being_ready(monkeypatch):
    await warm()
    wanted = frozenset({*health._known_migrations(), ("tools", "9999_not_yet")})
    monkeypatch.setattr(health, "_known_migrations", lambda: wanted)
    status, body, _ = await ask(health.ready, **{"mcpsite.gateway": Ready(True)})
    assert (status, body["reasons"]) == (503, ["There are migrations to apply."])


async def test_a_process_lives_as_long_as_it_answers(monkeypatch):
    without_postgresql(monkeypatch, closed_port())
    assert (await ask(health.livez))[0] == 200


def test_under_wsgi_no_connection_is_left_behind():
    response = asyncio.run(health.health(RequestFactory().get("/health")))
    assert response.status_code in (200, 503)


async def test_a_head_that_is_held_against_the_ledger_is_told(monkeypatch):
    monkeypatch.setattr(health, "_CONTRADICTED", "SELECT 1")
    status, body, _ = await ask()
    assert (status, body["status"], body["ledger"]) == (200, "degraded", "contradicted")
    monkeypatch.setattr(health, "_CONTRADICTED", "SELECT 1 FROM no_such_table")
    assert (await ask())[0] == 200, "before the first migration there is no such table"
