"""Event streams of sessions, and answers to what was asked on them, at two gateways on one Redis."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from access import tokens
from access.models import ApiToken
from gateway.app import Gateway
from gateway.events import Place
from gateway.replies import Reply as Answer
from gateway.sessions import Session
from gateway.tests.conftest import Company, FakeConnector, in_thread, post, records, until
from gateway.tests.old_clients import Stream, begin
from gateway.tests.test_replies import Wire
from tools import exact

# --- Answers of clients ----------------------------------------------------------------------------------------------


async def test_what_one_worker_asked_is_answered_at_the_other_by_the_right_session_only(
    gateway: Gateway, other: Gateway, company: Company
) -> None:
    asked, wrong = [await begin(gateway, company.token) for _ in range(2)]
    with gateway.questions.open(asked, company.token) as question:
        body = {"jsonrpc": "2.0", "id": question.id, "result": {"action": "accept"}}
        assert (await post(other, body, company.token, mcp_session_id=wrong)).status in (202, 400)
        assert (await post(other, body, company.token, mcp_session_id="0" * 32)).status == 404
        assert not question._answer.done()
        assert (await post(other, body, company.token, mcp_session_id=asked)).status == 202
        async with asyncio.timeout(5):
            assert (await question.answer())["result"] == {"action": "accept"}
    assert (await post(gateway, body, company.token, mcp_session_id=asked)).status == 400


async def test_an_answer_as_deep_as_a_body_may_be_reaches_another_worker(
    gateway: Gateway, other: Gateway, company: Company
) -> None:
    session, depth = await begin(gateway, company.token), 198
    with gateway.questions.open(session, company.token) as question:
        deep = b"[" * depth + b'"e+"' + b"]" * depth
        body = b'{"jsonrpc":"2.0","id":"%b","result":{"a":%b}}' % (question.id.encode(), deep)
        assert (await post(other, body, company.token, mcp_session_id=session)).status == 202
        async with asyncio.timeout(5):
            assert exact.written((await question.answer())["result"]["a"]) == deep
    assert gateway.mail.is_listening


async def test_a_question_and_a_stream_end_with_their_token(gateway: Gateway, company: Company) -> None:
    session = await session_of(gateway, company)
    log = gateway.events.log(session, 1)
    identifier = await log.add(b"")
    assert identifier is not None
    resumed = await Stream(gateway, company.token, session.id, last_event_id=identifier).opened()
    with gateway.questions.open(session.id, company.token) as question:
        await in_thread(lambda: tokens.revoke(ApiToken.objects.get()))
        async with asyncio.timeout(5):
            assert "error" in await question.answer()
    await resumed.ended()
    assert not gateway.listening.count
    await log.end()


async def test_a_stream_that_redis_forgot_ends_with_its_session(
    gateway: Gateway, company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.events._LOOK_UP_SECONDS", 0.01)
    session = await session_of(gateway, company)
    log = gateway.events.log(session, 1)
    identifier = await log.add(b"")
    assert identifier is not None
    resumed = await Stream(gateway, company.token, session.id, last_event_id=identifier).opened()
    await gateway.events._redis.delete(log._key, f"mcpsite:session:{session.id}")
    await resumed.ended()
    await log.end()


async def test_an_answer_that_nobody_waits_for_is_refused(gateway: Gateway, company: Company) -> None:
    session = await begin(gateway, company.token)
    for identifier in (7, "", "x", "0" * 16 + ".1", "workers.1"):
        body = {"jsonrpc": "2.0", "id": identifier, "error": {"code": -1, "message": "no"}}
        assert (await post(gateway, body, company.token, mcp_session_id=session)).status == 400


async def test_a_session_that_ends_answers_what_it_was_asked_with_an_error(
    gateway: Gateway, other: Gateway, company: Company
) -> None:
    session = await begin(gateway, company.token)
    with gateway.questions.open(session, company.token) as question:
        await post(other, b"", company.token, method="DELETE", mcp_session_id=session)
        async with asyncio.timeout(5):
            assert "error" in await question.answer()


# --- Streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "primed"), [("2025-06-18", []), ("2025-11-25", [None])])
async def test_the_newest_stream_of_a_session_closes_the_one_before(
    gateway: Gateway, other: Gateway, company: Company, version: str, primed: list[None]
) -> None:
    session = await begin(gateway, company.token, version)
    for here, there in ((gateway, other), (gateway, gateway)):
        first = await Stream(here, company.token, session).opened()
        second = await Stream(there, company.token, session).opened()
        await first.ended()
        assert first.wire.sent[-1] == {"type": "http.response.body", "body": b""}
        await until(lambda second=second: len(second.events) == len(primed))
        assert [message for _, message in second.events] == primed
        assert not second.task.done()
        again = await Stream(
            here, company.token, session, last_event_id=(second.events or [("get.1", 0)])[0][0]
        ).opened()
        await second.ended()
        await again.leave()
    assert len(gateway.legacy) == len(other.legacy) == 0
    assert not gateway.listening.count
    assert not other.listening.count


async def test_a_session_that_ends_closes_its_stream_at_every_worker(
    gateway: Gateway, other: Gateway, company: Company
) -> None:
    session = await begin(gateway, company.token)
    stream = await Stream(gateway, company.token, session).opened()
    await post(other, b"", company.token, method="DELETE", mcp_session_id=session)
    await stream.ended()


async def test_a_stream_is_for_who_accepts_one(gateway: Gateway, company: Company) -> None:
    session = await begin(gateway, company.token)
    for accept in ("application/json", "*/*", "text/html"):
        reply = await post(gateway, b"", company.token, method="GET", mcp_session_id=session, accept=accept)
        assert reply.status == 406


async def test_a_user_has_so_many_streams_and_no_more(gateway: Gateway, company: Company, settings: Any) -> None:
    settings.MCP_STREAMS_PER_USER = 1
    first, second = [await begin(gateway, company.token) for _ in range(2)]
    stream = await Stream(gateway, company.token, first).opened()
    refused = await Stream(gateway, company.token, second).ended()
    assert refused.status == 429
    await stream.leave()
    await (await Stream(gateway, company.token, second).opened()).leave()


async def session_of(gateway: Gateway, company: Company) -> Session:
    found = await gateway.sessions.find(await begin(gateway, company.token), company.user.pk, company.token[:12])
    assert found is not None
    return found


async def test_a_stream_that_was_cut_goes_on_at_the_other_worker(
    gateway: Gateway, other: Gateway, company: Company
) -> None:
    """Cut after its second event, read on from the third to the answer."""
    session, wire = await session_of(gateway, company), Wire()
    reply = Answer(gateway.streams, wire.scope, wire.send, "r1")
    reply.log, reply.primes = gateway.events.log(session, 7), True
    for n in (1, 2):
        reply.event({"n": n})
    await reply.drain()
    last = [line[4:] for line in wire.text.splitlines() if line.startswith("id: ")][-1]
    resumed = await Stream(other, company.token, session.id, last_event_id=last).opened()
    await until(lambda: reply.is_lost)  # the first connection is left as soon as there is another one
    reply.event({"n": 3})
    await reply.finish(200, b'{"id":7,"result":{}}', [])
    await resumed.ended()
    assert [message for _, message in resumed.events] == [None, {"n": 3}, {"id": 7, "result": {}}]
    assert '"n":3' not in wire.text
    ids = [identifier for identifier, _ in resumed.events]
    assert len(set(ids)) == 3
    assert ids[0] == last
    late = await Stream(gateway, company.token, session.id, last_event_id=ids[1]).ended()
    assert [message for _, message in late.events] == [None, {"id": 7, "result": {}}]


async def test_events_are_read_in_their_own_session_only_and_kept_encrypted(gateway: Gateway, company: Company) -> None:
    mine, another = await session_of(gateway, company), await session_of(gateway, company)
    log = gateway.events.log(mine, 1)
    identifier = await log.add(b'{"secret":1}')
    assert identifier is not None
    refused = await Stream(gateway, company.token, another.id, last_event_id=identifier).ended()
    assert refused.status == 400
    entries: Any = await gateway.events._redis.xrange(f"mcpsite:events:{mine.id}:{log.stream}")
    ((_, fields),) = entries
    assert b"secret" not in b"".join(fields.values())
    await log.end()


async def test_what_is_no_event_that_is_kept_is_refused(gateway: Gateway, company: Company) -> None:
    session = await begin(gateway, company.token)
    for said in ("x", "0" * 16 + "-1.1", "../x.1", "1" * 300):
        assert (await Stream(gateway, company.token, session, last_event_id=said).ended()).status == 400


async def test_a_stream_of_a_dead_worker_ends_with_an_error(
    gateway: Gateway, company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.events._LOOK_UP_SECONDS", 0.01)
    monkeypatch.setattr("gateway.mail._BACK_SECONDS", 0)
    session = await session_of(gateway, company)
    log = gateway.events.log(session, "q")
    log.stream, log._key = f"{'0' * 16}-1", f"mcpsite:events:{session.id}:{'0' * 16}-1"
    identifier = await log.add(b"")
    assert identifier is not None
    stream = await Stream(gateway, company.token, session.id, last_event_id=identifier).ended()
    (_, (_, last)) = stream.events
    assert (last["id"], last["error"]["code"]) == ("q", -32010)
    await log.end()


async def test_a_worker_that_winds_up_ends_at_once_what_is_read_on_there(
    gateway: Gateway, other: Gateway, company: Company
) -> None:
    session = await session_of(gateway, company)
    log = gateway.events.log(session, "q")
    identifier = await log.add(b"")
    assert identifier is not None
    stream = await Stream(other, company.token, session.id, last_event_id=identifier).opened()
    await until(lambda: stream.events)
    other.wind_up()
    await stream.ended()
    assert (stream.status, stream.wire.sent[-1].get("more_body", False)) == (200, False)
    assert stream.events == [(identifier, None)]
    assert (await Stream(other, company.token, session.id, last_event_id=identifier).ended()).status == 503
    await log.add(b"{}")
    await log.end()
    resumed = await Stream(gateway, company.token, session.id, last_event_id=identifier).ended()
    assert [message for _, message in resumed.events] == [None, {}]


async def test_what_is_kept_of_a_stream_is_bounded(
    gateway: Gateway, company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.events._MOST_EVENTS", 3)
    monkeypatch.setattr("gateway.events._MOST_BYTES", 400)
    monkeypatch.setattr("gateway.events._MOST_OF_USER", 1_000)
    session = await session_of(gateway, company)
    log = gateway.events.log(session, 9**30)
    for n in range(5):
        assert await log.add(b'{"n":%d}' % n)
    assert await read(gateway, session, log.stream) == [{"n": 2}, {"n": 3}, {"n": 4}]
    assert await log.add(b"[" + b"0," * 300 + b"0]")
    assert [each["id"] for each in (await read(gateway, session, log.stream))[-1:]] == [9**30]
    assert await gateway.events._redis.ttl(log._key) > 300
    added = [await log.add(b'"%s"' % (b"x" * 200)) for _ in range(6)]
    assert None in added  # the user holds enough
    await log.end()
    assert 0 < await gateway.events._redis.ttl(log._key) <= 300
    assert not gateway.events.writing


async def _yes() -> bool:
    return True


async def read(gateway: Gateway, session: Session, stream: str) -> list[Any]:
    """The messages of the stream that are kept now."""
    place = Place(gateway.mail.worker, stream, 0)
    count = await gateway.events._redis.xlen(f"mcpsite:events:{session.id}:{stream}")
    async with gateway.events.reading(session.id, place, _yes) as events:
        return [exact.taken((await anext(events)).data) for _ in range(count)]


async def test_a_long_call_in_a_session_can_be_come_back_to(
    gateway: Gateway, other: Gateway, company: Company, outside: FakeConnector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost connection is no cancellation: the answer waits, also at the other worker."""
    monkeypatch.setattr("gateway.legacy._LONG_SECONDS", 0.01)
    outside.gate = asyncio.Event()
    session = await begin(gateway, company.token)
    params = {"name": "echo", "arguments": {"text": "hello"}}
    body = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}
    stream = await Stream(gateway, company.token, session, body).opened()
    await until(lambda: stream.events)
    stream.wire.abort()
    ((last, _),) = stream.events
    resumed = await Stream(other, company.token, session, last_event_id=last).opened()
    outside.gate.set()
    await resumed.ended()
    await stream.ended()
    assert [message and message["result"]["content"][0]["text"] for _, message in resumed.events] == [None, "hello"]
    (record,) = await records(kind="call", request_id=dict(stream.wire.sent[0]["headers"])[b"x-request-id"].decode())
    assert record.code == "ok"


async def test_a_short_call_in_a_session_is_one_answer(gateway: Gateway, company: Company) -> None:
    session = await begin(gateway, company.token)
    params = {"name": "echo", "arguments": {"text": "hello"}}
    body = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}
    assert (await post(gateway, body, company.token, mcp_session_id=session)).result["content"][0]["text"] == "hello"
    assert not await gateway.events._redis.keys(f"mcpsite:events:{session}:*")
