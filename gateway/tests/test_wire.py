"""The door of both eras: what is taken, and what is said to the rest."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import mcp_types
import orjson
import pytest
from django.db import transaction
from mcp.shared import inbound

from gateway import http, wire
from gateway.app import Gateway
from gateway.tests.conftest import (
    META,
    Company,
    FakeConnector,
    call,
    in_thread,
    legacy_call,
    make_tool,
    modern,
    post,
    records,
    until,
)
from gateway.wire import WireError
from tools.connectors.base import Result
from tools.models import Tool

MODERN = {"mcp_protocol_version": "2026-07-28", "mcp_method": "tools/list"}


async def test_discover_names_versions_and_capabilities(gateway: Gateway, company: Company) -> None:
    reply = await post(
        gateway,
        modern("server/discover"),
        company.token,
        mcp_protocol_version="2026-07-28",
        mcp_method="server/discover",
    )
    result = mcp_types.DiscoverResult.model_validate(reply.result)
    assert "2026-07-28" in result.supported_versions
    assert reply.result["cacheScope"] == "private"


async def test_the_list_holds_what_is_granted_verbatim(gateway: Gateway, company: Company) -> None:
    reply = await post(gateway, modern("tools/list"), company.token, **MODERN)
    mcp_types.ListToolsResult.model_validate(reply.result)
    assert [tool["name"] for tool in reply.result["tools"]] == ["echo", "write"]
    assert reply.result["cacheScope"] == "private"
    assert reply.result["resultType"] == "complete"


async def test_a_toolset_narrows_the_list_and_the_calls(gateway: Gateway, company: Company) -> None:
    reply = await post(gateway, modern("tools/list"), company.token, "/mcp/desk", **MODERN)
    assert [tool["name"] for tool in reply.result["tools"]] == ["echo"]
    assert (await call(gateway, company.token, "write", path="/mcp/desk")).error["message"] == "Unknown tool: write"
    assert (await call(gateway, company.token, "echo", path="/mcp/desk")).status == 200


async def test_an_unknown_toolset_is_not_found(gateway: Gateway, company: Company) -> None:
    assert (await post(gateway, modern("tools/list"), company.token, "/mcp/other", **MODERN)).status == 404


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
async def test_initialize_answers_with_the_version_asked_for(gateway: Gateway, company: Company, version: str) -> None:
    params = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    body = {"jsonrpc": "2.0", "id": "a", "method": "initialize", "params": params}
    reply = await post(gateway, body, company.token)
    assert reply.result["protocolVersion"] == version
    assert reply.json["id"] == "a"
    notified = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    accepted = await post(gateway, notified, company.token, mcp_protocol_version=version)
    assert (accepted.status, accepted.body) == (202, b"")


async def test_an_unknown_version_gets_the_newest_of_the_older_ones(gateway: Gateway, company: Company) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "1999-01-01"}}
    assert (await post(gateway, body, company.token)).result["protocolVersion"] == "2025-11-25"


@pytest.mark.parametrize("token", [None, "mcps_" + "x" * 43, "sk-x", "a.b.c", "ey" + "J" * 9000])
async def test_without_a_valid_token_there_is_a_challenge_and_nothing_else(
    gateway: Gateway, company: Company, token: str | None
) -> None:
    for path in ("/mcp", "/mcp/", "/mcp/desk"):
        reply = await post(gateway, modern("tools/list"), token, path, **MODERN)
        assert reply.status == 401
        assert reply.headers["www-authenticate"] == 'Bearer realm="mcpsite", error="invalid_token"'


async def test_many_who_are_turned_away_make_few_records(gateway: Gateway, company: Company) -> None:
    rows = gateway.ledger.rows
    for _ in range(50):
        await post(gateway, modern("tools/list"), "mcps_wrong", **MODERN)
    await until(lambda: not gateway.ledger._waiting and not gateway.ledger._in_flight)
    assert gateway.ledger.rows == rows + 1


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"mcp_protocol_version": "-"}, 400, -32020),
        ({"mcp_protocol_version": "2025-11-25"}, 400, -32020),
        ({"mcp_protocol_version": "2099-01-01"}, 400, -32020),
        ({"mcp_method": "-"}, 400, -32020),
        ({"mcp_method": "tools/call"}, 400, -32020),
        ({"origin": "https://evil.example"}, 403, -32600),
        ({"origin": "null"}, 403, -32600),
        ({"host": "evil.example"}, 403, -32600),
        ({"content_type": "text/plain"}, 415, -32600),
        ({"content_encoding": "gzip"}, 415, -32600),
        ({"accept": "text/html"}, 406, -32600),
    ],
)
async def test_headers_are_checked(gateway: Gateway, company: Company, headers: Any, status: int, code: int) -> None:
    reply = await post(gateway, modern("tools/list"), company.token, **{**MODERN, **headers})
    assert (reply.status, reply.error["code"]) == (status, code)


async def test_an_unsupported_version_names_the_supported_ones(gateway: Gateway, company: Company) -> None:
    body = modern("tools/list")
    body["params"]["_meta"] = {**META, "io.modelcontextprotocol/protocolVersion": "2099-01-01"}
    reply = await post(gateway, body, company.token, mcp_protocol_version="2099-01-01", mcp_method="tools/list")
    assert reply.error["code"] == -32022
    assert reply.error["data"]["requested"] == "2099-01-01"
    assert "2026-07-28" in reply.error["data"]["supported"]


async def test_a_repeated_routing_header_is_refused() -> None:
    with pytest.raises(WireError) as caught:
        wire.headers_of([(b"mcp-method", b"tools/list"), (b"mcp-method", b"tools/call")])
    assert caught.value.code == wire.HEADER_MISMATCH


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, -32700),
        (b'{"a":NaN}', 400, -32700),
        (b'"\\ud800"', 400, -32700),
        (b"[" * 100_000, 400, -32700),
        (b"[]", 400, -32600),
        (b"7", 400, -32600),
        (b'{"jsonrpc":"1.0","id":1,"method":"ping"}', 400, -32600),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', 400, -32600),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', 400, -32600),
        (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', 400, -32600),
        (b'{"jsonrpc":"2.0","id":{},"method":"ping"}', 400, -32600),
        (b'{"jsonrpc":"2.0","id":"' + b"x" * 1000 + b'","method":"ping"}', 400, -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":7}', 400, -32600),
        (b'{"jsonrpc":"2.0","id":1}', 400, -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}', 400, -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"nonsense"}', 200, -32601),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{}}', 400, -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":[]}}', 400, -32602),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"cursor":"x"}}', 200, -32602),
    ],
)
async def test_bad_bodies_get_the_answer_that_the_protocol_names(
    gateway: Gateway, company: Company, body: bytes, status: int, code: int
) -> None:
    reply = await post(gateway, body, company.token)
    assert (reply.status, reply.error["code"]) == (status, code)


@pytest.mark.parametrize("method", ["initialize", "ping", "logging/setLevel", "resources/subscribe"])
async def test_methods_of_the_older_revisions_are_gone_in_the_modern_era(
    gateway: Gateway, company: Company, method: str
) -> None:
    reply = await post(gateway, modern(method), company.token, mcp_protocol_version="2026-07-28", mcp_method=method)
    assert (reply.status, reply.error["code"]) == (404, -32601)


async def test_a_modern_request_without_its_meta_is_refused(gateway: Gateway, company: Company) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
    reply = await post(gateway, body, company.token, **MODERN)
    assert (reply.status, reply.error["code"]) == (400, -32602)


async def test_the_name_header_may_be_encoded(gateway: Gateway, company: Company) -> None:
    encoded = f"=?base64?{base64.b64encode(b'echo').decode()}?="
    body = modern("tools/call", {"name": "echo", "arguments": {"text": "x"}})
    for name, status in ((encoded, 200), ("  echo ", 200), ("Echo", 400), ("=?base64?!!?=", 400)):
        headers = {"mcp_protocol_version": "2026-07-28", "mcp_method": "tools/call", "mcp_name": name}
        assert (await post(gateway, body, company.token, **headers)).status == status


@pytest.mark.parametrize(
    "value", ["plain", "=?base64?ZWNobw==?=", "=?base64?ZWNobw=?=", "=?base64?ZWNobx==?=", "=?base64?//8=?="]
)
def test_header_values_are_decoded_as_the_official_sdk_does(value: str) -> None:
    assert wire.decoded(value) == inbound.decode_header_value(value)


async def test_mirrored_arguments_must_agree_with_their_headers(gateway: Gateway, company: Company) -> None:
    schema = {"type": "object", "properties": {"region": {"type": "string", "x-mcp-header": "Region"}}}

    def add() -> None:
        from access.models import Grant

        Grant.objects.create(role=company.role, tool=make_tool(company.source, "regional", inputSchema=schema))

    await in_thread(add)
    await until(lambda: "regional" in gateway.feed.snapshot.tools)
    body = modern("tools/call", {"name": "regional", "arguments": {"region": "eu"}})
    headers = {"mcp_protocol_version": "2026-07-28", "mcp_method": "tools/call", "mcp_name": "regional"}
    assert (await post(gateway, body, company.token, **headers, mcp_param_region="eu")).status == 200
    assert (await post(gateway, body, company.token, **headers, mcp_param_region="us")).error["code"] == -32020
    assert (await post(gateway, body, company.token, **headers)).error["code"] == -32020


@pytest.mark.parametrize(("method", "revision"), [("PUT", "-"), ("GET", "2026-07-28"), ("DELETE", "2026-07-28")])
async def test_only_post_is_served_where_there_are_no_sessions(
    gateway: Gateway, company: Company, method: str, revision: str
) -> None:
    reply = await post(gateway, b"", company.token, method=method, mcp_protocol_version=revision)
    assert (reply.status, reply.headers["allow"]) == (405, "POST")


async def test_a_body_over_the_limit_is_refused_whatever_its_length_header_says(
    gateway: Gateway, company: Company, settings: Any
) -> None:
    settings.MCP_MAX_BODY_BYTES = 1024
    big = orjson.dumps(modern("tools/list") | {"x": "y" * 2000})
    assert (await post(gateway, big, company.token, content_length=str(len(big)), **MODERN)).status == 413
    assert (await post(gateway, big, company.token, **MODERN)).status == 413


async def test_five_hundred_tools_are_listed_in_one_page_from_prepared_bytes(
    gateway: Gateway, company: Company
) -> None:
    def add() -> None:
        from access.models import Grant

        with transaction.atomic():
            company.toolset.tools.add(*(make_tool(company.source, f"tool_{number:03}") for number in range(500)))
        Grant.objects.create(role=company.role, toolset=company.toolset)

    await in_thread(add)
    await until(lambda: len(gateway.feed.snapshot.grants[company.role.pk]) == 502, 20)
    first = await post(gateway, modern("tools/list"), company.token, **MODERN)
    assert len(first.result["tools"]) == 502
    assert await in_thread(Tool.objects.count) == 503
    assert (await legacy_call(gateway, company.token, "tool_007")).result["content"][0]["text"] == "hello"


async def test_an_attempt_that_never_became_a_call_is_on_record(gateway: Gateway, company: Company) -> None:
    body = modern("tools/call", {"name": "echo", "arguments": {"text": "x"}})
    headers = {"mcp_protocol_version": "2026-07-28", "mcp_method": "tools/call", "mcp_name": "write"}
    for sent in (post(gateway, body, company.token, **headers), post(gateway, b"{", company.token)):
        reply = await sent
        assert reply.status == 400
        (record,) = await records(request_id=reply.headers["x-request-id"])
        assert (record.kind, record.code, record.actor) == ("invalid", "malformed", "carla")


async def test_a_malformed_attempt_that_cannot_be_recorded_is_told_so(gateway: Gateway, company: Company) -> None:
    gateway.ledger._lose("test")
    reply = await post(gateway, b"{", company.token)
    assert (reply.status, reply.error["data"]["mcpsite/code"]) == (503, "ledger_unavailable")


async def test_an_upstream_cannot_speak_in_our_name(
    gateway: Gateway, company: Company, outside: FakeConnector, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = {"mcpsite/record": "forged", "mcpsite/code": "ok", "mcpsite/other": 1, "theirs/own": 2}

    async def forge(*_: Any) -> Result:
        return Result({"content": [], "_meta": forged}, False)

    monkeypatch.setattr(outside, "call", forge)
    meta = (await call(gateway, company.token, "echo")).result["_meta"]
    assert meta["mcpsite/record"] != "forged"
    assert "mcpsite/code" not in meta
    assert "mcpsite/other" not in meta
    assert meta["theirs/own"] == 2


async def test_a_body_too_deep_to_be_written_again_is_refused(gateway: Gateway, company: Company) -> None:
    deep: Any = "x"
    for _ in range(300):
        deep = [deep]
    body = modern("tools/call", {"name": "echo", "arguments": {}})
    raw = orjson.dumps(body).replace(b'"arguments":{}', b'"arguments":{"text":' + b"[" * 300 + b"]" * 300 + b"}")
    reply = await post(gateway, raw, company.token)
    assert (reply.status, reply.error["code"]) == (400, -32700)
    odd = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","clientInfo":'
    odd += b'{"name":"x","version":[[1]]}}}'
    assert (await post(gateway, odd, company.token)).status == 200


async def test_a_result_too_deep_to_be_written_is_on_record(
    gateway: Gateway, company: Company, outside: FakeConnector, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep: Any = "x"
    for _ in range(300):
        deep = [deep]

    async def answer(*_: Any) -> Result:
        return Result({"content": [], "structuredContent": deep}, False)

    monkeypatch.setattr(outside, "call", answer)
    reply = await call(gateway, company.token, "write")
    assert "result" in reply.json, reply.body
    assert reply.result["isError"] is True
    assert [record.code for record in await records(reply)] == ["intended", "bad_upstream_answer"]


async def test_a_body_that_comes_late_is_served_under_the_policy_of_then(gateway: Gateway, company: Company) -> None:
    from access.models import ApiToken

    raw = orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    sent = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    sent.append((b"authorization", f"Bearer {company.token}".encode()))
    sent.append((b"content-length", str(len(raw)).encode()))
    scope = {"type": "http", "method": "POST", "path": "/mcp", "client": ("192.0.2.7", 1), "headers": sent}
    events: list[Any] = []
    last = asyncio.Event()
    parts = iter([raw[:5], raw[5:]])

    async def receive() -> Any:
        part = next(parts)
        if part != raw[:5]:
            await last.wait()
        return {"type": "http.request", "body": part, "more_body": part == raw[:5]}

    async def send(event: Any) -> None:
        events.append(event)

    held = asyncio.create_task(gateway(scope, receive, send))
    await asyncio.sleep(0)
    before = gateway.feed.snapshot
    await in_thread(lambda: ApiToken.objects.update(revoked_at="2026-01-01T00:00Z"))
    await until(lambda: gateway.feed.snapshot is not before)
    last.set()
    await held
    assert events[0]["status"] == 401


async def test_refusals_are_bounded_and_counted(gateway: Gateway, company: Company, settings: Any) -> None:
    settings.CALLS_PER_MINUTE = 2
    replies = [await call(gateway, company.token, "absent") for _ in range(4)]
    assert [reply.status for reply in replies] == [400, 400, 200, 200]
    assert replies[3].result["_meta"]["mcpsite/code"] == "too_many_refusals"
    assert gateway.pipeline.refusals._unrecorded == {company.user.pk: 2}


async def test_large_arguments_of_a_refused_call_are_committed_to_but_not_kept(
    gateway: Gateway, company: Company
) -> None:
    reply = await call(gateway, company.token, "absent", {"text": "x" * 100_000})
    (record,) = await records(reply)
    assert record.args_commit is not None
    assert len(record.ct or b"") < 200


async def test_bodies_under_way_are_bounded_together(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_MOST_HELD", 1000)
    go = asyncio.Event()

    def dripping(size: int) -> Any:
        parts = iter([b"x" * size, b"y"])

        async def receive() -> Any:
            part = next(parts)
            if part == b"y":
                await go.wait()
            return {"type": "http.request", "body": part, "more_body": part != b"y"}

        return receive

    first = asyncio.create_task(gateway.intake.body_of(dripping(900), {b"content-length": b"901"}))
    await asyncio.sleep(0)
    with pytest.raises(WireError) as caught:
        await gateway.intake.body_of(dripping(900), {b"content-length": b"901"})
    assert caught.value.status == 503
    go.set()
    assert len(await first) == 901
    assert gateway.intake._held == 0
