"""What clients are told and asked while their call goes on."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from gateway.app import Gateway
from gateway.clients import LEVELS, is_at_least
from gateway.tests.conftest import META, Company, FakeConnector, Reply, modern, post, records
from tools.connectors.base import Context

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
