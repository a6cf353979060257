from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.app import Gateway
from gateway.tests.conftest import Company, FakeConnector, post, records


def request(identifier: Any, method: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": identifier, "method": method, "params": params}


def call(identifier: Any, text: str, name: str = "echo") -> dict[str, Any]:
    return request(identifier, "tools/call", name=name, arguments={"text": text})


@pytest.mark.parametrize("headers", [{}, {"mcp_protocol_version": "2025-03-26"}])
async def test_each_message_of_a_batch_is_answered_and_recorded_as_if_it_were_alone(
    gateway: Gateway, company: Company, outside: FakeConnector, headers: dict[str, str]
) -> None:
    batch: list[Any] = [
        call("a", "one"),
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        call(2, "two", "hidden"),
        7,
        request(3, "nonsense"),
        call(4, "four", "write"),
        {"jsonrpc": "2.0", "id": 9, "result": {}},
    ]
    reply = await post(gateway, batch, company.token, **headers)
    one, hidden, broken, unknown, four = reply.json
    assert reply.status == 200
    assert [answer["result"]["content"][0]["text"] for answer in (one, four)] == ["one", "four"]
    assert [answer.get("id") for answer in reply.json] == ["a", 2, None, 3, 4]
    assert [answer["error"]["code"] for answer in (hidden, broken, unknown)] == [-32602, -32600, -32601]
    assert [given["text"] for given in outside.calls] == ["one", "four"]
    kept = await records(request_id=reply.headers["x-request-id"])
    assert [(record.kind, record.code) for record in kept] == [
        ("call", "ok"),
        ("denied", "not_granted"),
        ("invalid", "malformed"),
        ("intent", "intended"),
        ("outcome", "ok"),
    ]


async def test_a_batch_that_asks_for_nothing_is_accepted_without_a_body(gateway: Gateway, company: Company) -> None:
    told = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    reply = await post(gateway, [told, {"jsonrpc": "2.0", "id": 1, "result": {}}], company.token)
    assert (reply.status, reply.body) == (202, b"")


async def test_each_call_of_a_batch_counts(gateway: Gateway, company: Company, settings: Any) -> None:
    settings.CALLS_PER_MINUTE = 2
    reply = await post(gateway, [call(number, "x", "absent") for number in range(4)], company.token)
    assert ["error" in answer for answer in reply.json] == [True, True, False, False]
    assert reply.json[3]["result"]["_meta"]["mcpsite/code"] == "too_many_refusals"


async def test_a_batch_with_too_much_to_say_is_cut_off(
    gateway: Gateway, company: Company, outside: FakeConnector, settings: Any
) -> None:
    settings.MAX_RESULT_BYTES = 1_000
    reply = await post(gateway, [call(number, "x" * 600) for number in range(4)], company.token)
    assert ["result" in answer for answer in reply.json] == [True, True, False, False]
    assert [answer["id"] for answer in reply.json] == [0, 1, 2, 3]
    assert "send the rest on its own" in reply.json[2]["error"]["message"]
    assert len(outside.calls) == 2


async def test_a_failure_of_ours_takes_no_other_message_with_it(
    gateway: Gateway, company: Company, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> None:
        raise RuntimeError("test")

    monkeypatch.setitem(gateway.methods[False], "ping", fail)
    reply = await post(gateway, orjson.dumps([request(1, "ping"), call(2, "x")]), company.token)
    failed, called = reply.json
    assert (failed["id"], failed["error"]["code"]) == (1, -32603)
    assert called["result"]["content"][0]["text"] == "x"
