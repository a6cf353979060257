"""Calls that ask their client first: what comes out, what goes in again, and for whom a state is good."""

from __future__ import annotations

import hmac
import time
import uuid
from dataclasses import dataclass
from typing import Any

import orjson
import pytest

from access import tokens
from audit.opening import payload_of
from gateway import states
from gateway.app import Gateway
from gateway.states import State, opened, sealed
from gateway.tests.conftest import (
    META,
    Company,
    FakeConnector,
    Reply,
    in_thread,
    legacy_call,
    make_user,
    post,
    records,
    until,
)
from gateway.wire import WireError
from keyring import keys
from tools.connectors.base import ConnectorError, Context, Result, Spec
from tools.models import DataSource, Tool

QUESTIONS = {"who": {"method": "elicitation/create", "params": {"message": "Who?", "requestedSchema": {}}}}
ANSWERS = {"who": {"action": "accept", "content": {"name": "Zoë"}}}
NEEDS_SAMPLING = {"code": -32021, "message": "No.", "data": {"requiredCapabilities": {"sampling": {}}}}


@dataclass
class Asking(FakeConnector):
    """Asks in the first round, with a state of its own."""

    state: str | None = "theirs"

    async def call(self, spec: Spec, arguments: dict[str, Any], context: Context) -> Result:
        done = await super().call(spec, arguments, context)
        if context.continuation is not None:
            return done
        more = {} if self.state is None else {"requestState": self.state}
        return Result({"resultType": "input_required", "inputRequests": QUESTIONS, **more}, False)

    async def request(self, method: str, params: dict[str, Any], context: Context) -> Result:
        return await self.call(Spec(), params, context)


@pytest.fixture
def outside() -> FakeConnector:
    return Asking()


async def send(gateway: Gateway, token: str, name: str = "write", **more: Any) -> Reply:
    params = {"name": name, "arguments": {"text": "hello"}, **more}
    meta = {**META, "io.modelcontextprotocol/clientCapabilities": {"elicitation": {}}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {**params, "_meta": meta}}
    headers = {"mcp_protocol_version": "2026-07-28", "mcp_method": "tools/call", "mcp_name": name}
    return await post(gateway, body, token, **headers)


async def test_a_call_goes_on_with_the_answers_and_both_rounds_are_on_record(
    gateway: Gateway, company: Company, outside: FakeConnector
) -> None:
    first = await send(gateway, company.token)
    assert (first.result["resultType"], first.result["inputRequests"]) == ("input_required", QUESTIONS)
    assert "theirs" not in first.result["requestState"]
    second = await send(gateway, company.token, inputResponses=ANSWERS, requestState=first.result["requestState"])
    assert second.result["content"] == [{"type": "text", "text": "hello"}]
    assert outside.contexts[0].client is not None
    assert outside.contexts[0].client.capabilities == {"elicitation": {}}
    assert outside.contexts[1].continuation == {"inputResponses": ANSWERS, "requestState": "theirs"}
    asked, answered = await records(first), await records(second)
    assert [record.code for record in (*asked, *answered)] == ["intended", "input_required", "intended", "ok"]
    went_on = {"continues": first.result["_meta"]["mcpsite/call"]}
    assert [orjson.loads(record.detail or "{}") for record in answered] == [went_on, went_on]
    kept = await in_thread(lambda: [payload_of(asked[1]), payload_of(answered[0])])
    said = b"r" + orjson.dumps({"inputRequests": QUESTIONS})
    assert hmac.digest(kept[0].salt, said, "sha256") == bytes(asked[1].result_commit or b"")
    assert orjson.loads(kept[1].arguments or b"") == {"text": "hello", "mcpsite/inputResponses": ANSWERS}


async def test_without_a_state_of_theirs_there_is_none_of_ours(
    gateway: Gateway, company: Company, outside: Asking
) -> None:
    outside.state = None
    first = await send(gateway, company.token)
    assert "requestState" not in first.result
    second = await send(gateway, company.token, inputResponses=ANSWERS)
    assert second.result["resultType"] == "complete"
    assert outside.contexts[1].continuation == {"inputResponses": ANSWERS}


async def test_a_state_is_good_for_its_request_user_and_token_only(
    gateway: Gateway, company: Company, outside: FakeConnector
) -> None:
    state = (await send(gateway, company.token)).result["requestState"]

    def others() -> tuple[str, str]:
        return tokens.issue(make_user("olga", company.role), name="o", scopes=["tools"])[1], tokens.issue(
            company.user, name="second", scopes=["tools"]
        )[1]

    before = gateway.feed.snapshot
    olga, second = await in_thread(others)
    await until(lambda: gateway.feed.snapshot is not before and len(gateway.feed.snapshot.tokens) == 3)
    changed = state[:40] + ("A" if state[40] != "A" else "B") + state[41:]
    calls = len(outside.calls)
    for reply in (
        await send(gateway, company.token, requestState=changed),
        await send(gateway, company.token, requestState=state + "-TAMPERED"),
        await send(gateway, company.token, requestState="é"),
        await send(gateway, company.token, requestState=""),
        await send(gateway, company.token, requestState=state, arguments={"text": "other"}),
        await send(gateway, company.token, "echo", requestState=state),
        await send(gateway, olga, requestState=state),
        await send(gateway, second, requestState=state),
    ):
        assert (reply.status, reply.error["code"]) == (400, -32602)
        assert "requestState" in reply.error["message"]
        assert [record.code for record in await records(request_id=reply.headers["x-request-id"])] == ["malformed"]
    assert len(outside.calls) == calls
    assert "content" in (await send(gateway, company.token, requestState=state)).result


async def test_a_state_does_not_follow_its_tool_to_another_source(
    gateway: Gateway, company: Company, outside: FakeConnector
) -> None:
    state = (await send(gateway, company.token)).result["requestState"]
    before = gateway.feed.snapshot

    def move() -> None:
        other = DataSource.objects.create(name="other", kind="mcp", options={"url": "http://127.0.0.1:9/mcp"})
        Tool.objects.filter(name="write").update(source=other)

    await in_thread(move)
    await until(lambda: gateway.feed.snapshot.tools["write"].source is not before.tools["write"].source)
    assert (await send(gateway, company.token, requestState=state)).error["code"] == -32602


@pytest.mark.parametrize(
    "more", [{"inputResponses": None}, {"inputResponses": {"who": 12345}}, {"inputResponses": []}, {"requestState": 7}]
)
async def test_answers_that_are_none_are_refused(
    gateway: Gateway, company: Company, outside: FakeConnector, more: dict[str, Any]
) -> None:
    assert (await send(gateway, company.token, **more)).error["code"] == -32602
    assert outside.calls == []


async def test_a_missing_capability_is_an_error_that_names_it(
    gateway: Gateway, company: Company, outside: FakeConnector
) -> None:
    outside.fails = [ConnectorError("capability_missing", "It needs one.", refusal=NEEDS_SAMPLING) for _ in range(2)]
    reply = await send(gateway, company.token)
    assert (reply.status, reply.error["code"]) == (400, -32021)
    assert reply.error["data"]["requiredCapabilities"] == {"sampling": {}}
    assert [record.code for record in await records(reply)] == ["intended", "capability_missing"]
    old = await legacy_call(gateway, company.token, "write")
    assert (old.status, old.result["isError"]) == (200, True)


def test_a_state_outlives_a_rotation_of_keys_and_not_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = (
        "a:" + "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        "b:" + "IAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    )
    state = State(uuid.uuid4(), "theirs", "worker", "7")
    monkeypatch.setattr(states, "ring", lambda: keys.parse(old))
    before = sealed(b"bound", state)
    monkeypatch.setattr(states, "ring", lambda: keys.parse(f"{new},{old}"))
    assert opened(b"bound", before) == state
    assert opened(b"bound", sealed(b"bound", state)) == state
    with pytest.raises(WireError, match="older than 10 minutes"):
        opened(b"bound", sealed(b"bound", state, time.time() - 602))
    monkeypatch.setattr(states, "ring", lambda: keys.parse(new))
    with pytest.raises(WireError, match="another request"):
        opened(b"bound", before)
