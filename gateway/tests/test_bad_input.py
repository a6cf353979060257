"""The answers that the specification names for what is not as it should be; and what was a call is on record."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any, NamedTuple

import orjson
import pytest

from gateway import http, wire
from gateway.app import Gateway
from gateway.http import Intake
from gateway.tests.conftest import META, Company, FakeConnector, modern, post, records, until
from gateway.wire import WireError

CALL = {"mcp_protocol_version": "2026-07-28", "mcp_method": "tools/call", "mcp_name": "echo"}
LIST = {"mcp_protocol_version": "2026-07-28", "mcp_method": "tools/list"}
NO_VERSION: dict[str, str] = {}


def of(revision: str) -> dict[str, str]:
    return {"mcp_protocol_version": revision}


def request(method: Any = "ping", **more: Any) -> bytes:
    return orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": method, **more})


def tool_call(meta: Any = META, **more: Any) -> dict[str, Any]:
    params = {"name": "echo", "arguments": {"text": "x"}, **more}
    return {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {**params, "_meta": meta}}


class Case(NamedTuple):
    """A body with its headers, and what comes back: status and code, and whether it is on record."""

    name: str
    body: Any
    headers: dict[str, str]
    status: int
    code: int | None
    # Of those that get an error with a 400 or 413, and of no others, unless it says otherwise.
    recorded: bool | None = None

    @property
    def is_recorded(self) -> bool:
        return self.status in (400, 413) if self.recorded is None else self.recorded


DEEP = b'{"jsonrpc":"2.0","id":1,"method":"ping","params":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001
TWICE = b'{"jsonrpc":"2.0","id":1,"method":"tools/list","method":"tools/call","params":{"name":"echo"}}'
RESPONSE = b'{"jsonrpc":"2.0","id":1,"result":{}}'
VERSION, CAPABILITIES = "io.modelcontextprotocol/protocolVersion", "io.modelcontextprotocol/clientCapabilities"

CASES = [
    # Not JSON, or JSON that does not read in one way only.
    Case("nothing", b"", NO_VERSION, 400, -32700),
    Case("half of it", b'{"jsonrpc":"2.0"', NO_VERSION, 400, -32700),
    Case("two values", b"{}{}", NO_VERSION, 400, -32700),
    Case("a byte order mark", b"\xef\xbb\xbf" + request(), NO_VERSION, 400, -32700),
    Case("UTF-16", request().decode().encode("utf-16"), NO_VERSION, 400, -32700),
    Case("a key twice", TWICE, NO_VERSION, 400, -32700),
    Case("a key twice, escaped", b'{"jsonrpc":"2.0","id":1,"method":"ping","\\u0069d":2}', NO_VERSION, 400, -32700),
    Case("a key twice, further down", request()[:-1] + b',"params":{"a":[{"b":1,"b":1}]}}', NO_VERSION, 400, -32700),
    Case("NaN", request()[:-1] + b',"params":{"a":NaN}}', NO_VERSION, 400, -32700),
    Case("Infinity", request()[:-1] + b',"params":{"a":-Infinity}}', NO_VERSION, 400, -32700),
    Case("more than a float holds", request()[:-1] + b',"params":{"a":1e999}}', NO_VERSION, 400, -32700),
    Case("a number of 5,000 digits", request()[:-1] + b',"params":{"a":' + b"9" * 5000 + b"}}",
         NO_VERSION, 400, -32700),
    Case("a lone surrogate", request()[:-1] + b',"params":{"a":"\\ud800"}}', NO_VERSION, 400, -32700),
    Case("surrogates as bytes", request()[:-1] + b',"params":{"a":"\xed\xa0\x80"}}', NO_VERSION, 400, -32700),
    Case("100,000 levels", DEEP, NO_VERSION, 400, -32700),
    Case("100,000 levels that never end", b"[" * 100_000, of("2025-06-18"), 400, -32700),
    # JSON, but no message.
    Case("a number", b"7", NO_VERSION, 400, -32600),
    Case("no version of JSON-RPC", b'{"id":1,"method":"ping"}', NO_VERSION, 400, -32600),
    Case("another version of JSON-RPC", b'{"jsonrpc":2.0,"id":1,"method":"ping"}', NO_VERSION, 400, -32600),
    Case("a null id", request(id=None), NO_VERSION, 400, -32600),
    Case("a broken id", request(id=1.5), NO_VERSION, 400, -32600),
    Case("an id that is true", request(id=True), NO_VERSION, 400, -32600),
    Case("an id that is a list", request(id=[1]), NO_VERSION, 400, -32600),
    Case("an id beyond 64 bits", request().replace(b":1,", b":18446744073709551616,"), NO_VERSION, 400, -32600),
    Case("an id of 300 characters", request(id="x" * 300), NO_VERSION, 400, -32600),
    Case("an empty method", request(""), NO_VERSION, 400, -32600),
    Case("a method that is an object", request({}), NO_VERSION, 400, -32600),
    Case("neither request nor response", b'{"jsonrpc":"2.0","id":1}', NO_VERSION, 400, -32600),
    Case("request and response", request(result={}), NO_VERSION, 400, -32600),
    Case("result and error", RESPONSE[:-1] + b',"error":{"code":1,"message":""}}', NO_VERSION, 400, -32600),
    Case("a result that is a text", RESPONSE.replace(b"{}", b'""'), NO_VERSION, 400, -32600),
    Case("a result that nobody waits for", RESPONSE, NO_VERSION, 400, -32600, recorded=False),
    Case("a result for nobody", b'{"jsonrpc":"2.0","result":{}}', NO_VERSION, 400, -32600),
    Case("an error without a code", b'{"jsonrpc":"2.0","id":1,"error":{"message":""}}', NO_VERSION, 400, -32600),
    Case("an error in words", b'{"jsonrpc":"2.0","id":1,"error":"no"}', NO_VERSION, 400, -32600),
    Case("params in a list", request(params=[1]), NO_VERSION, 400, -32602),
    Case("params that are null", request(params=None), NO_VERSION, 400, -32602),
    Case("_meta that is a text", request(params={"_meta": "x"}), NO_VERSION, 400, -32602),
    Case("a call that wants no answer", b'{"jsonrpc":"2.0","method":"tools/call","params":{}}',
         NO_VERSION, 400, -32600),
    # Batches.
    Case("a batch of 2025-06-18", b"[" + request() + b"]", of("2025-06-18"), 400, -32600),
    Case("a batch of 2025-11-25", b"[" + request() + b"]", of("2025-11-25"), 400, -32600),
    Case("a batch of 2024-11-05", b"[" + request() + b"]", of("2024-11-05"), 400, -32600),
    Case("a batch of 2026-07-28", orjson.dumps([tool_call()]), CALL, 400, -32600),
    Case("an empty batch", b"[]", NO_VERSION, 400, -32600),
    Case("a long batch", orjson.dumps([{}] * 21), NO_VERSION, 400, -32600),
    Case("a greeting in a batch", b"[" + request("initialize") + b"]", NO_VERSION, 400, -32600),
    # Headers that differ from the body, or are missing.
    Case("no version in the header", tool_call(), {**CALL, "mcp_protocol_version": "-"}, 400, -32020),
    Case("an older version in the header", tool_call(), {**CALL, **of("2025-11-25")}, 400, -32020),
    Case("another version in the header", tool_call(), {**CALL, **of("2099-01-01")}, 400, -32020),
    Case("no method in the header", tool_call(), {**CALL, "mcp_method": "-"}, 400, -32020),
    Case("another method in the header", tool_call(), {**CALL, "mcp_method": "tools/list"}, 400, -32020),
    Case("the method in capitals", tool_call(), {**CALL, "mcp_method": "Tools/Call"}, 400, -32020),
    Case("no name in the header", tool_call(), {**CALL, "mcp_name": "-"}, 400, -32020),
    Case("another name in the header", tool_call(), {**CALL, "mcp_name": "write"}, 400, -32020),
    Case("a name that is not ASCII", tool_call(name="é"), {**CALL, "mcp_name": "é"}, 400, -32020),
    Case("a name in broken base64", tool_call(), {**CALL, "mcp_name": "=?base64?ZWNo?bw==?="}, 400, -32020),
    Case("a name in base64 that is not ASCII", tool_call(), {**CALL, "mcp_name": "=?base64?é?="}, 400, -32020),
    Case("no name in the body", modern("tools/call", {}), CALL, 400, -32020),
    # What each request of 2026-07-28 carries.
    Case("no _meta", request("tools/call", params={"name": "echo"}), CALL, 400, -32602),
    Case("_meta that is a list", request("tools/call", params={"name": "echo", "_meta": []}), CALL, 400, -32602),
    Case("no version in _meta", tool_call(meta={CAPABILITIES: {}}), CALL, 400, -32602),
    Case("no capabilities in _meta", tool_call(meta={VERSION: "2026-07-28"}), CALL, 400, -32602),
    Case("capabilities in a list", tool_call(meta={**META, CAPABILITIES: []}), CALL, 400, -32602),
    Case("a version that is a number", tool_call(meta={**META, VERSION: 2026}), CALL, 400, -32602),
    Case("an unknown version of a call", tool_call(meta={**META, VERSION: "2099-01-01"}),
         {**CALL, **of("2099-01-01")}, 400, -32022),
    Case("an unknown version of a list", modern("tools/list") | {"params": {"_meta": {**META, VERSION: "2099-01-01"}}},
         {**LIST, **of("2099-01-01")}, 400, -32022, recorded=False),
    Case("a response of 2026-07-28", RESPONSE, of("2026-07-28"), 400, -32600),
    Case("a method of old", modern("ping"), {**LIST, "mcp_method": "ping"}, 404, -32601),
    # Calls without what they need.
    Case("a call without a name", request("tools/call", params={}), NO_VERSION, 400, -32602),
    Case("a call of a number", request("tools/call", params={"name": 7}), NO_VERSION, 400, -32602),
    Case("arguments in a list", request("tools/call", params={"name": "echo", "arguments": []}),
         NO_VERSION, 400, -32602),
    Case("a prompt without a name", request("prompts/get", params={}), NO_VERSION, 200, -32602, recorded=True),
    Case("a resource that is no URI", request("resources/read", params={"uri": "x y"}), NO_VERSION,
         200, -32602, recorded=True),
    Case("a completion of nothing", request("completion/complete", params={}), NO_VERSION, 200, -32602, recorded=True),
    # In a session that is none (any more).
    Case("a call in an unknown session", request("tools/call", params={"name": "echo", "arguments": {"text": "x"}}),
         {"mcp_session_id": "0" * 32}, 404, -32600, recorded=True),
    Case("a list in an unknown session", request("tools/list"), {"mcp_session_id": "0" * 32}, 404, -32600),
    # HTTP. Who sends it is looked at after the host, the origin and the types.
    Case("another host", tool_call(), {**CALL, "host": "evil.example"}, 403, -32600),
    Case("no host", tool_call(), {**CALL, "host": "-"}, 403, -32600),
    Case("another origin", tool_call(), {**CALL, "origin": "https://evil.example"}, 403, -32600),
    Case("an origin of many", tool_call(), {**CALL, "origin": "null"}, 403, -32600),
    Case("a form", b"a=1", {**CALL, "content_type": "application/form"}, 415, -32600),
    Case("no type", tool_call(), {**CALL, "content_type": "-"}, 415, -32600),
    Case("a compressed body", tool_call(), {**CALL, "content_encoding": "gzip"}, 415, -32600),
    Case("takes pages only", tool_call(), {**CALL, "accept": "text/html"}, 406, -32600),
    Case("takes streams only", tool_call(), {**CALL, "accept": "text/event-stream"}, 406, -32600),
    Case("takes no JSON", tool_call(), {**CALL, "accept": "application/json;q=0, text/html"}, 406, -32600),
    Case("another path", tool_call(), {**CALL, "path": "/mcp//x"}, 404, -32600),
    Case("said to be larger than 1 MB", tool_call(), {**CALL, "content_length": "9" * 30}, 413, -32600),
    # What looks odd, and is as it should be.
    Case("a charset and capitals", tool_call(), {**CALL, "content_type": "Application/JSON; charset=utf-8"},
         200, None),
    Case("takes JSON in capitals", tool_call(), {**CALL, "accept": "Application/Json;q=0.1"}, 200, None),
    Case("takes anything", tool_call(), {**CALL, "accept": "text/html, */*"}, 200, None),
    Case("takes what it does not say", tool_call(), {**CALL, "accept": "-"}, 200, None),
    Case("another host and a port", tool_call(), {**CALL, "host": "localhost:1"}, 200, None),
    Case("spaces and breaks", b' \r\n{ "jsonrpc" : "2.0",\t"id":1, "method":"ping"}\n', NO_VERSION, 200, None),
    Case("the greatest id", request(id=2**64 - 1), NO_VERSION, 200, None),
    Case("an empty id", request(id=""), NO_VERSION, 200, None),
    Case("something new to tell", b'{"jsonrpc":"2.0","method":"notifications/new"}', NO_VERSION, 202, None),
    Case("something new to tell, 2026-07-28", b'{"jsonrpc":"2.0","method":"notifications/new"}',
         of("2026-07-28"), 202, None),
]  # fmt: skip


def sent(case: Case) -> bytes:
    return case.body if isinstance(case.body, bytes) else orjson.dumps(case.body)


async def test_each_gets_the_answer_that_the_specification_names(
    gateway: Gateway, company: Company, outside: FakeConnector
) -> None:
    got, seen = {}, {}
    for case in CASES:
        reply = await post(gateway, case.body, company.token, **case.headers)
        answer = reply.json if reply.body else {}
        got[case.name] = (reply.status, answer.get("error", {}).get("code"))
        seen[reply.headers["x-request-id"]] = case.name
        assert answer.get("id", 1) in (1, "", 2**64 - 1), case.name
        assert "id" not in answer or b'"method"' in sent(case), case.name
    assert got == {case.name: (case.status, case.code) for case in CASES}
    found = await records(request_id__in=seen, code="malformed")
    assert {seen[record.request_id] for record in found} == {case.name for case in CASES if case.is_recorded}
    assert len(outside.calls) == 5


UNREAD = [each for each in CASES if each.status in (403, 406, 415) or "path" in each.headers]
OTHERS = [
    Case("another method", tool_call(), {"method": "PUT"}, 405, -32600),
    Case("no such toolset", tool_call(), {**CALL, "path": "/mcp/nowhere"}, 404, -32600),
    Case("a page that asks whether it may", b"", {"method": "OPTIONS", "origin": "https://evil.example"}, 403, -32600),
]


async def test_what_is_refused_unread_is_on_record_once_a_minute_for_each_address_and_is_told_its_id(
    gateway: Gateway, company: Company, settings: Any
) -> None:
    settings.TRUSTED_PROXIES = 1
    seen = {}
    for number, case in enumerate([*UNREAD, *OTHERS]):
        headers = {"x_forwarded_for": f"198.51.100.{number}", "content_length": str(len(sent(case))), **case.headers}
        for _ in range(2):
            reply = await post(gateway, case.body, company.token, **headers)
            assert (reply.status, reply.error["code"]) == (case.status, case.code), case.name
            is_read = b'"method"' in sent(case) and case.status != 405
            assert reply.json.get("id") == (1 if is_read else None), case.name
        seen[f"198.51.100.{number}"] = case
    for quiet in ({"method": "GET", "accept": "text/html"}, {"method": "HEAD"}):
        await post(gateway, b"", company.token, x_forwarded_for="198.51.100.250", **quiet)
    gateway.doorman._tell_counted(at_once=True)
    await until(lambda: not gateway.ledger._waiting and not gateway.ledger._in_flight)
    first: dict[str | None, Any] = {}
    counted: dict[str | None, Any] = {}
    for record in await records(code="refused_unread", address__startswith="198.51.100."):
        told = orjson.loads(record.detail or "")
        (counted if "unrecorded_before" in told else first)[record.address] = record.actor, told
    assert {address: (actor, told["status"]) for address, (actor, told) in first.items()} == {
        address: ("carla", case.status) for address, case in seen.items()
    }
    assert counted == dict.fromkeys(seen, (None, {"unrecorded_before": 1}))


async def test_refusals_beyond_the_budget_are_counted_and_told_with_the_next_record(
    gateway: Gateway, company: Company, settings: Any
) -> None:
    settings.CALLS_PER_MINUTE = 2
    replies = [await post(gateway, b"{", company.token) for _ in range(3)]
    assert [each.status for each in replies] == [400, 400, 429]
    assert replies[2].error["data"] == {"mcpsite/code": "too_many_refusals"}
    assert 1 <= int(replies[2].headers["retry-after"]) <= 30
    of_these = [each.headers["x-request-id"] for each in replies]
    assert len(await records(request_id__in=of_these)) == 2
    settings.CALLS_PER_MINUTE = 6_000  # another size is another bucket
    after = await post(gateway, b"{", company.token)
    (last,) = await records(request_id=after.headers["x-request-id"])
    assert orjson.loads(last.detail or "")["unrecorded_before"] == 1


async def test_a_body_that_never_begins_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_BODY_SECONDS", 0.02)
    monkeypatch.setattr(http, "_LOOK_SECONDS", 0.01)
    intake = Intake()

    async def never() -> Any:
        await asyncio.get_running_loop().create_future()

    async with asyncio.timeout(10):
        with pytest.raises(WireError, match="did not come") as caught:
            await intake.body_of(never, {b"content-length": b"5"})
        assert caught.value.status == 408
        # Whoever cancels it for another reason has it cancelled.
        waiting = asyncio.create_task(intake.body_of(never, {b"content-length": b"5"}))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until(lambda: intake._timer is None)


async def test_a_body_that_comes_in_crumbs_takes_little_more_than_its_size() -> None:
    crumbs = iter(range(20_000))

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"xx", "more_body": next(crumbs) < 19_999}

    tracemalloc.start()
    body = await Intake().body_of(receive, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert body == b"xx" * 20_000
    assert peak < 200_000


def test_what_has_one_value_is_refused_when_it_has_two() -> None:
    for name, code in (("host", -32600), ("origin", -32600), ("authorization", -32600), ("mcp-param-x", -32020)):
        with pytest.raises(WireError) as caught:
            wire.headers_of([(name.encode(), b"a"), (b"accept", b"text/html"), (name.encode(), b"a")])
        assert (caught.value.status, caught.value.code) == (400, code)
    lists = [(b"accept", b"application/json "), (b"x-forwarded-for", b"1"), (b"accept", b"text/html")]
    assert wire.headers_of(lists) == {b"accept": b"application/json, text/html", b"x-forwarded-for": b"1"}


@pytest.mark.parametrize("sent", ["42", "42.0", "4.2e1", "0042.00"])
def test_whole_numbers_are_compared_as_numbers(sent: str) -> None:
    wire.compare_parameters({b"mcp-param-n": sent.encode()}, {"mcp-param-n": ("n",)}, {"n": 42})


@pytest.mark.parametrize("sent", ["4_2", "43", "0x2a", "42.", "", "nan", "inf", "1e999999", "true", "9007199254740993"])
def test_what_is_no_number_or_another_one_differs_from_it(sent: str) -> None:
    for value in (42, 9007199254740992, True):
        if (sent, value) != ("true", True):
            with pytest.raises(WireError, match="differs"):
                wire.compare_parameters({b"mcp-param-n": sent.encode()}, {"mcp-param-n": ("n",)}, {"n": value})
