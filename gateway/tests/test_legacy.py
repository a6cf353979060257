"""Sessions of the older revisions, at two gateways on one Redis: what one began, the other goes on with."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import orjson
import pytest

from access import tokens
from gateway import wire
from gateway.app import Gateway
from gateway.replies import Reply as Answer
from gateway.sessions import Session, Sessions
from gateway.tests.conftest import Company, call, in_thread, make_user, post, records, until
from gateway.tests.old_clients import PING, Stream, begin, initialize
from gateway.visits import Visit
from gateway.wire import Message

NOWHERE = "redis://127.0.0.1:1/0"
LEGACY = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")


async def stranger(company: Company, gateway: Gateway, *, same_user: bool) -> str:
    """The token of somebody else with the same role, or a narrower one of the same user."""

    def make() -> str:
        if same_user:
            return tokens.issue(company.user, name="desk", scopes=["tools"], toolset=company.toolset)[1]
        return tokens.issue(make_user("stan", company.role), name="test", scopes=["tools"])[1]

    raw = await in_thread(make)
    await until(lambda: gateway.feed.snapshot and len(gateway.feed.snapshot.tokens) == 2)
    return raw


# --- Sessions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", LEGACY)
async def test_what_one_worker_began_the_other_goes_on_with_until_it_is_ended(
    gateway: Gateway, other: Gateway, company: Company, version: str
) -> None:
    session = await begin(gateway, company.token, version)
    assert all(0x21 <= ord(char) <= 0x7E for char in session)
    headers = {"mcp_session_id": session, "mcp_protocol_version": version}
    notified = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert (await post(other, notified, company.token, **headers)).status == 202
    assert (await post(other, PING, company.token, mcp_session_id=session)).result == {}
    assert (await post(gateway, b"", company.token, method="DELETE", **headers)).status == 200
    for each in (gateway, other):
        gone = await post(each, PING, company.token, **headers)
        assert (gone.status, gone.json["id"]) == (404, 1)
        assert (await post(each, b"", company.token, method="DELETE", **headers)).status == 404


@pytest.mark.parametrize("same_user", [False, True])
async def test_the_session_of_another_user_or_token_looks_as_if_it_had_ended(
    gateway: Gateway, company: Company, same_user: bool
) -> None:
    session = await begin(gateway, company.token)
    token = await stranger(company, gateway, same_user=same_user)
    theirs = await post(gateway, PING, token, mcp_session_id=session)
    unknown = await post(gateway, PING, token, mcp_session_id="0" * 32)
    assert (theirs.status, theirs.json) == (unknown.status, unknown.json) == (404, theirs.json)
    for method in ("DELETE", "GET"):
        headers = {"mcp_session_id": session, "accept": "text/event-stream", "last_event_id": f"{'0' * 16}-1.1"}
        assert (await post(gateway, b"", token, method=method, **headers)).status == 404
    with gateway.questions.open(session, company.token) as question:
        body = {"jsonrpc": "2.0", "id": question.id, "result": {}}
        assert (await post(gateway, body, token, mcp_session_id=session)).status == 404
        assert not question._answer.done()
    assert (await post(gateway, PING, company.token, mcp_session_id=session)).status == 200


async def test_what_is_no_id_of_ours_is_no_session(gateway: Gateway, company: Company) -> None:
    for session in ("", "x", "0" * 31, "0" * 33, "*" * 32, "é" * 32, "A" * 32):
        assert (await post(gateway, PING, company.token, mcp_session_id=session)).status == 404


async def test_a_request_without_a_session_is_served_without_one(gateway: Gateway, company: Company) -> None:
    await begin(gateway, company.token)
    assert (await post(gateway, PING, company.token)).result == {}


async def test_what_makes_no_sense_without_a_session_needs_one(gateway: Gateway, company: Company) -> None:
    for method, body in (("GET", b""), ("DELETE", b""), ("POST", b'{"jsonrpc":"2.0","id":"x.1","result":{}}')):
        assert (await post(gateway, body, company.token, method=method)).status == 400


async def test_what_was_agreed_counts_whatever_older_revision_a_header_names(
    gateway: Gateway, company: Company
) -> None:
    session = await begin(gateway, company.token, "2025-06-18")
    for version, status in (("2024-11-05", 200), ("2025-11-25", 200), ("2099-01-01", 400)):
        headers = {"mcp_session_id": session, "mcp_protocol_version": version}
        assert (await post(gateway, PING, company.token, **headers)).status == status
    assert (await post(gateway, b"", company.token, method="DELETE", **headers)).status == 400
    stream = await Stream(gateway, company.token, session, mcp_protocol_version="2025-11-25").opened()
    await stream.leave()
    assert not stream.events  # an event without data is of 2025-11-25


async def test_the_modern_era_has_no_sessions(gateway: Gateway, company: Company) -> None:
    reply = await call(gateway, company.token, "echo")
    assert "mcp-session-id" not in reply.headers
    body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "1999-01-01"}}
    assert "mcp-session-id" in (await post(gateway, body, company.token)).headers


async def test_a_session_lives_on_by_being_used_and_ends_by_itself(gateway: Gateway, company: Company) -> None:
    redis, key = gateway.sessions._redis, f"mcpsite:session:{await begin(gateway, company.token)}"
    assert 0 < await redis.ttl(key) <= 300
    await post(gateway, PING, company.token, mcp_session_id=key.rpartition(":")[2])
    assert 3_590 < await redis.ttl(key) <= 3_600


async def test_requests_of_one_turn_ask_redis_together(gateway: Gateway, company: Company) -> None:
    sessions = [await begin(gateway, company.token) for _ in range(3)]

    async def looked_up() -> int:
        stats = await gateway.sessions._redis.info("commandstats")
        return stats.get("cmdstat_getex", {"calls": 0})["calls"]

    before, rounds = await looked_up(), 0
    ask = gateway.sessions._ask_for

    async def counted(asked: Any) -> None:
        nonlocal rounds
        rounds += 1
        await ask(asked)

    gateway.sessions._ask_for = counted  # type: ignore[method-assign]
    found = await asyncio.gather(
        *(gateway.sessions.find(each, company.user.pk, company.token[:12]) for each in [*sessions, "0" * 32])
    )
    assert [each and each.id for each in found] == [*sessions, None]
    assert rounds == 1
    assert await looked_up() == before + 4


async def test_many_who_begin_at_the_same_time_all_get_a_session(gateway: Gateway, company: Company) -> None:
    replies = await asyncio.gather(*(initialize(gateway, company.token) for _ in range(100)))
    assert len({reply.headers.get("mcp-session-id", "") for reply in replies} - {""}) == 100


async def test_who_begins_too_many_sessions_is_served_without_one(
    gateway: Gateway, company: Company, settings: Any
) -> None:
    settings.CALLS_PER_MINUTE = 2
    replies = [await initialize(gateway, company.token) for _ in range(4)]
    assert all(reply.result["protocolVersion"] == "2025-11-25" for reply in replies)
    assert ["mcp-session-id" in reply.headers for reply in replies] == [True, True, False, False]
    assert ["logging" in reply.result["capabilities"] for reply in replies] == [True, True, False, False]


async def test_capabilities_that_cannot_be_kept_are_refused(gateway: Gateway, company: Company) -> None:
    too_many: list[Any] = [[], "x", {"experimental": {"x": "y" * 20_000}}]
    for capabilities in too_many:
        assert (await initialize(gateway, company.token, capabilities=capabilities)).error["code"] == -32602


async def test_the_client_and_its_capabilities_are_those_of_the_session(gateway: Gateway, company: Company) -> None:
    info = {"name": "Desk", "version": "7"}
    session = await begin(gateway, company.token, clientInfo=info, capabilities={"sampling": {}, "roots": {}})
    seen: list[Visit] = []

    async def look(message: Message, visit: Visit, reply: Answer) -> tuple[int, bytes]:
        seen.append(visit)
        assert message.capabilities == {"sampling": {}, "roots": {}}
        return 200, wire.result_body(message.identifier, {})

    gateway.methods[False]["ping"] = look
    await post(gateway, PING, company.token, mcp_session_id=session)
    assert seen[0].session is not None
    assert seen[0].session.revision == "2025-11-25"
    params = {"name": "echo", "arguments": {"text": "hello"}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    (record,) = await records(await post(gateway, body, company.token, mcp_session_id=session))
    assert record.client == "Desk 7"


async def test_sessions_are_on_record_and_cannot_flood_it(gateway: Gateway, company: Company) -> None:
    sessions = [await begin(gateway, company.token, capabilities={"roots": {}}) for _ in range(5)]
    for session in sessions:
        await post(gateway, b"", company.token, method="DELETE", mcp_session_id=session)
    await until(lambda: not gateway.ledger._waiting and not gateway.ledger._in_flight)
    for code in ("session_opened", "session_ended"):
        (record,) = await records(code=code, object_id=sessions[0])
        assert (record.actor, record.token, record.client) == ("carla", company.token[:12], "t 1")
        assert orjson.loads(record.detail or "") == {"revision": "2025-11-25", "capabilities": ["roots"]}
    assert not await records(object_id__in=sessions[1:])


# --- Levels of logging -----------------------------------------------------------------------------------------------


async def test_the_level_of_logging_is_known_to_all_workers(gateway: Gateway, other: Gateway, company: Company) -> None:
    session = await begin(gateway, company.token)
    body = {"jsonrpc": "2.0", "id": 1, "method": "logging/setLevel", "params": {"level": "warning"}}
    assert (await post(gateway, body, company.token, mcp_session_id=session)).result == {}
    found = await other.sessions.find(session, company.user.pk, company.token[:12])
    assert found is not None
    assert found.log_level == "warning"
    wrong = {**body, "params": {"level": "loud"}}
    assert (await post(gateway, wrong, company.token, mcp_session_id=session)).error["code"] == -32602
    assert (await post(gateway, body, company.token)).status == 400


async def test_changes_at_the_same_time_do_not_undo_each_other(
    gateway: Gateway, other: Gateway, company: Company
) -> None:
    session = await gateway.sessions.find(await begin(gateway, company.token), company.user.pk, company.token[:12])
    assert session is not None
    await asyncio.gather(
        gateway.sessions.change(session, log_level="error"), other.sessions.change(session, subscribed=("a://b",))
    )
    found = await gateway.sessions.find(session.id, company.user.pk, company.token[:12])
    assert found is not None
    assert (found.log_level, found.subscribed) == ("error", ("a://b",))
    await gateway.sessions.end(session)
    assert await other.sessions.change(session, log_level="info") is None
    assert await other.sessions.find(session.id, company.user.pk, company.token[:12]) is None


# --- Without Redis ---------------------------------------------------------------------------------------------------


async def test_without_redis_plain_requests_go_on_and_what_needs_a_session_waits(
    gateway: Gateway, company: Company
) -> None:
    session = await begin(gateway, company.token)
    away = Sessions(NOWHERE, gateway.budgets, gateway.mail)
    gateway.legacy._sessions = away
    assert (await post(gateway, PING, company.token, mcp_session_id=session)).result == {}
    assert "mcp-session-id" not in (await initialize(gateway, company.token)).headers
    level = {"jsonrpc": "2.0", "id": 1, "method": "logging/setLevel", "params": {"level": "info"}}
    for method, body in (("GET", b""), ("DELETE", b""), ("POST", orjson.dumps(level))):
        reply = await post(gateway, body, company.token, method=method, mcp_session_id=session)
        assert (reply.status, reply.error["data"]["mcpsite/code"]) == (503, "sessions_unavailable")
        assert reply.headers["retry-after"]
    await away.close()


async def test_sessions_and_streams_are_counted(gateway: Gateway, company: Company) -> None:
    before = await gateway.sessions.count()
    assert before is not None
    first, second = [await begin(gateway, company.token) for _ in range(2)]
    stream = await Stream(gateway, company.token, first).opened()
    assert await gateway.sessions.count() == before + 2
    text, _ = await gateway.metrics.scrape("")
    assert b"mcpsite_mcp_streams 1.0" in text
    assert b"mcpsite_mcp_sessions %d.0" % (before + 2) in text
    await post(gateway, b"", company.token, method="DELETE", mcp_session_id=second)
    assert await gateway.sessions.count() == before + 1
    await stream.leave()
    # Whoever goes on is counted for as long as its session lives, what is over is not kept.
    redis = gateway.sessions._redis
    await redis.zadd("mcpsite:sessions", {"old": 1})
    gateway.sessions._listed_since = 0
    for _ in range(2):
        await post(gateway, PING, company.token, mcp_session_id=first)
    assert float(await redis.zscore("mcpsite:sessions", first) or 0) > time.time() + 3_000
    assert await redis.zscore("mcpsite:sessions", "old") is None


async def test_a_session_that_another_version_wrote_has_ended(gateway: Gateway, company: Company) -> None:
    session = await begin(gateway, company.token)
    await gateway.sessions._redis.set(f"mcpsite:session:{session}", b"[1]")
    assert (await post(gateway, PING, company.token, mcp_session_id=session)).status == 404


async def test_a_client_that_leaves_unheard_leaves_no_stream_behind(
    gateway: Gateway, company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await begin(gateway, company.token)
    stream = Stream(gateway, company.token, session)

    async def swallowing(session: Session) -> int:
        """What `asyncio.wait_for` does when what it waits for is done at the same moment."""
        stream.wire.abort()
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        return 1

    monkeypatch.setattr(gateway.sessions, "number", swallowing)
    await stream.ended()
    await until(lambda: gateway.listening.count == len(gateway.streams) == len(gateway.legacy) == 0)


async def test_more_requests_at_once_than_connections_to_redis_wait_for_each_other(
    gateway: Gateway, company: Company
) -> None:
    session = Session(await begin(gateway, company.token), company.user.pk, "", "2025-11-25", None, {})
    numbers = await asyncio.gather(*(gateway.sessions.number(session) for _ in range(100)))
    assert sorted(numbers) == list(range(1, 101))
