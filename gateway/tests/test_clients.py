"""What clients are told and asked while their call goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from gateway.app import Gateway
from gateway.clients import LEVELS, is_at_least
from gateway.tests.conftest import META, Company, FakeConnector, Reply, modern, post, records, until
from gateway.tests.old_clients import begin
from gateway.tests.test_replies import Wire
from tools.connectors.base import ClientError, Context

LOG_LEVEL = "io.modelcontextprotocol/logLevel"


async def ask(gateway: Gateway, company: Company, meta: dict[str, Any], tool: str = "echo", **headers: str) -> Reply:
    """A modern tools/call with this in its `_meta`."""
    body = modern("tools/call", {"name": tool, "arguments": {"text": "hello"}})
    body["params"]["_meta"] = {**META, **meta}
    sent = {"mcp_protocol_version": "2026-07-28", "mcp_method": "tools/call", "mcp_name": tool, **headers}
    return await post(gateway, body, company.token, **sent)


async def talks(context: Context) -> None:
    """Progress that does not always grow, and messages of all levels."""
    if context.client is None:
        return
    for progress in (0, 50, 50, 20, "100", 100):
        context.client.tell("notifications/progress", {"progress": progress, "total": 100})
    for level in (*LEVELS, "loud", None):
        context.client.tell("notifications/message", {"level": level, "data": {"a": 1}})


async def test_progress_comes_with_the_clients_token_and_grows(
    gateway: Gateway, company: Company, outside: FakeConnector
) -> None:
    outside.during = talks
    reply = await ask(gateway, company, {"progressToken": "mine"})
    *told, last = reply.events
    assert [each["method"] for each in told] == ["notifications/progress"] * 3
    assert [each["params"]["progress"] for each in told] == [0, 50, 100]
    assert {each["params"]["progressToken"] for each in told} == {"mine"}
    assert last["id"] == 1
    assert last["result"]["content"][0]["text"] == "hello"


async def test_messages_come_from_the_wanted_level_on_and_are_counted_on_record(
    gateway: Gateway, company: Company, outside: FakeConnector
) -> None:
    outside.during = talks
    *told, last = (await ask(gateway, company, {LOG_LEVEL: "error"}, "write")).events
    assert [each["params"]["level"] for each in told] == ["error", "critical", "alert", "emergency"]
    found = await records(call_id=last["result"]["_meta"]["mcpsite/call"])
    assert [orjson.loads(record.detail or "{}") for record in found] == [{}, {"told": 4}]


@pytest.mark.parametrize("accept", ["application/json", "Application/JSON, text/event-stream;q=0"])
async def test_an_older_client_that_takes_json_alone_gets_one_answer_and_is_asked_nothing(
    gateway: Gateway, company: Company, outside: FakeConnector, monkeypatch: pytest.MonkeyPatch, accept: str
) -> None:
    monkeypatch.setattr("gateway.legacy._LONG_SECONDS", 0)
    outside.during = talks
    session = await begin(gateway, company.token, capabilities={"elicitation": {}})
    params = {"name": "echo", "arguments": {"text": "hello"}, "_meta": {"progressToken": 7}}
    body = {"jsonrpc": "2.0", "id": "a", "method": "tools/call", "params": params}
    reply = await post(gateway, body, company.token, mcp_session_id=session, accept=accept)
    assert (reply.headers["content-type"], reply.json["id"]) == ("application/json", "a")
    assert reply.result["content"]
    assert outside.contexts[0].client is None


@pytest.mark.parametrize(
    ("meta", "headers"),
    [
        ({}, {}),
        ({"progressToken": True}, {}),
        ({"progressToken": 1, LOG_LEVEL: "debug"}, {"accept": "application/json"}),
    ],
)
async def test_who_wants_to_hear_nothing_gets_the_answer_alone(
    gateway: Gateway, company: Company, outside: FakeConnector, meta: dict[str, Any], headers: dict[str, str]
) -> None:
    outside.during = talks
    reply = await ask(gateway, company, meta, **headers)
    assert reply.headers["content-type"] == "application/json"
    assert reply.result["content"]
    assert outside.contexts[0].client is None


async def test_a_level_that_does_not_exist_is_refused(gateway: Gateway, company: Company) -> None:
    reply = await ask(gateway, company, {LOG_LEVEL: "loud"})
    assert (reply.status, reply.error["code"]) == (400, -32602)


async def test_an_older_client_hears_of_progress_too(
    gateway: Gateway, company: Company, outside: FakeConnector
) -> None:
    outside.during = talks
    params = {"name": "echo", "arguments": {"text": "hello"}, "_meta": {"progressToken": 7}}
    body = {"jsonrpc": "2.0", "id": "a", "method": "tools/call", "params": params}
    reply = await post(gateway, body, company.token, mcp_protocol_version="2025-06-18")
    *told, last = reply.events
    assert [each["params"]["progressToken"] for each in told] == [7, 7, 7]
    assert last["id"] == "a"


def test_levels_have_an_order() -> None:
    assert is_at_least("error", "info")
    assert is_at_least("info", "info")
    assert not is_at_least("debug", "info")
    assert not is_at_least("emergency", None)


# --- In a session of the older revisions ------------------------------------------------------------------------------

FORM = {"message": "Who?", "requestedSchema": {"type": "object"}}


class Caller:
    """A client of an older revision that calls in a session, and reads what comes on the stream of the call."""

    def __init__(self, gateway: Gateway, token: str, session: str, identifier: Any = 5, **meta: Any) -> None:
        self.gateway, self.token, self.session, self.identifier = gateway, token, session, identifier
        self.wire = Wire()
        body = modern("tools/call", {"name": "echo", "arguments": {"text": "hello"}}, identifier)
        body["params"]["_meta"] = meta
        sent = {"host": "localhost:8000", "content-type": "application/json", "authorization": f"Bearer {token}"}
        sent |= {"mcp-session-id": session, "accept": "application/json, text/event-stream"}
        raw = [(name.encode(), value.encode()) for name, value in sent.items()]
        scope = {"type": "http", "method": "POST", "path": "/mcp", "client": ("192.0.2.7", 1), "headers": raw}
        incoming = iter([{"type": "http.request", "body": orjson.dumps(body), "more_body": False}])

        async def receive() -> Any:
            return next(incoming)

        self.task = asyncio.create_task(gateway({**scope, **self.wire.scope}, receive, self.wire.send))

    @property
    def messages(self) -> list[Any]:
        lines = self.wire.text.splitlines()
        return [orjson.loads(line[6:]) for line in lines if line.startswith("data: ")]

    async def heard(self, method: str) -> Any:
        """The first message with this method."""
        await until(lambda: any(each.get("method") == method for each in self.messages))
        return next(each for each in self.messages if each.get("method") == method)

    async def say(self, message: dict[str, Any], gateway: Gateway | None = None, session: str = "") -> Reply:
        headers = {"mcp_session_id": session or self.session}
        return await post(gateway or self.gateway, {"jsonrpc": "2.0", **message}, self.token, **headers)


@pytest.fixture
async def session(gateway: Gateway, company: Company) -> str:
    return await begin(gateway, company.token, capabilities={"elicitation": {}})


async def asks(context: Context) -> None:
    """One question, whose answer is told."""
    assert context.client is not None
    try:
        answer = await context.client.ask("elicitation/create", FORM)
    except ClientError as error:
        answer = error.error
    context.client.tell("notifications/message", {"level": "info", "data": answer})


async def test_a_client_is_asked_on_its_stream_and_answers_at_any_worker(
    gateway: Gateway, other: Gateway, company: Company, outside: FakeConnector, session: str
) -> None:
    outside.during = asks
    caller = Caller(gateway, company.token, session)
    question = await caller.heard("elicitation/create")
    assert question["params"] == FORM
    stranger = await begin(gateway, company.token)
    answer = {"id": question["id"], "result": {"action": "accept", "content": {"name": "Ada"}}}
    await caller.say(answer, session=stranger)
    assert (await caller.say({**answer, "result": {"action": "decline"}}, other)).status == 202
    await caller.task
    assert caller.messages[-2]["params"]["data"] == {"action": "decline"}
    result = caller.messages[-1]["result"]
    assert (caller.messages[-1]["id"], result["content"][0]["text"]) == (5, "hello")
    found = await records(call_id=result["_meta"]["mcpsite/call"])
    assert [record.code for record in found] == ["input_required", "answered", "ok"]
    assert orjson.loads(found[-1].detail or "{}") == {"told": 1}
    assert outside.contexts[0].client.capabilities == {"elicitation": {}}


async def test_what_a_client_refuses_is_said_to_whoever_asked(
    gateway: Gateway, company: Company, outside: FakeConnector, session: str
) -> None:
    outside.during = asks
    caller = Caller(gateway, company.token, session)
    question = await caller.heard("elicitation/create")
    error = {"code": -1, "message": "User rejected"}
    await caller.say({"id": question["id"], "error": error})
    await caller.task
    assert caller.messages[-2]["params"]["data"] == error


async def test_a_client_that_takes_too_long_is_told_that_nobody_waits(
    gateway: Gateway, company: Company, outside: FakeConnector, session: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.clients._ANSWER_SECONDS", 0.05)
    outside.during = asks
    caller = Caller(gateway, company.token, session)
    await caller.task
    question, withdrawn, told, _ = [each for each in caller.messages if each]
    assert withdrawn["method"] == "notifications/cancelled"
    assert withdrawn["params"]["requestId"] == question["id"]
    assert "no answer" in told["params"]["data"]["message"]


@pytest.mark.parametrize(("level", "shown"), [(None, LEVELS[1:]), ("error", LEVELS[4:])])
async def test_in_a_session_its_level_decides_what_is_told(
    gateway: Gateway, company: Company, outside: FakeConnector, session: str, level: str | None, shown: tuple[str, ...]
) -> None:
    outside.during = talks
    caller = Caller(gateway, company.token, session, progressToken=3)
    await caller.task
    if level:
        await caller.say({"id": 9, "method": "logging/setLevel", "params": {"level": level}})
        caller = Caller(gateway, company.token, session, progressToken=3)
        await caller.task
    told = [each["params"].get("level", "") for each in caller.messages[:-1]]
    assert told == ["", "", "", *shown]


@pytest.mark.parametrize("is_open", [False, True])
async def test_a_client_withdraws_its_call_at_any_worker(
    gateway: Gateway, other: Gateway, company: Company, outside: FakeConnector, session: str, is_open: bool
) -> None:
    outside.gate = None if is_open else asyncio.Event()
    outside.during = asks
    before = len(await records(code="cancelled"))
    caller = Caller(gateway, company.token, session, identifier="five")
    await (caller.heard("elicitation/create") if is_open else until(lambda: outside.calls))
    await caller.say({"method": "notifications/cancelled", "params": {"requestId": 5}}, other)
    await caller.say({"method": "notifications/cancelled", "params": {"requestId": "five"}}, other)
    await caller.task
    assert "result" not in caller.wire.text
    assert caller.wire.sent[0]["status"] == (200 if is_open else 202)
    assert len(gateway.withdrawals) == 0
    await until(lambda: not gateway.ledger.queued)
    assert len(await records(code="cancelled")) == before + 1
