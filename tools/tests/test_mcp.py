from __future__ import annotations

import asyncio
import gzip
import json
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

import orjson
import pytest
import uvicorn
from aiohttp import web
from mcp.server.mcpserver import Context as ServerContext
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations
from pydantic import Field, ValidationError

from tools.connectors import limits
from tools.connectors.base import ConnectorError, Context, Source
from tools.connectors.mcp import McpConnector, McpOptions
from tools.connectors.mcp_headers import MirroringTool as McpTool
from tools.connectors.mcp_headers import header_value
from tools.definitions import named
from tools.egress import Egress, Rule
from tools.mirrored import dotted, undotted
from tools.tests.servers import Counter, make_server

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "modern-json": ("modern", {"json_response": True, "stateless_http": True}),
    "modern-sse": ("modern", {"json_response": False, "stateless_http": True}),
    "legacy-json": ("legacy", {"json_response": True}),
    "legacy-stateful": ("legacy", {"json_response": False}),
    "legacy-stateless": ("legacy", {"json_response": False, "stateless_http": True}),
}
REVISION = {"modern": "2026-07-28", "legacy": "2025-11-25"}


# --- The official server ----------------------------------------------------------------------------------------------


def make_sdk_server() -> MCPServer:
    server = MCPServer("sdk", version="1", log_level="ERROR")

    @server.tool(annotations=ToolAnnotations(read_only_hint=True))
    def echo(text: Annotated[str, Field(description="What comes back.")]) -> str:
        """Say it again."""
        return text

    @server.tool()
    def refuse() -> str:
        """Always fails."""
        raise ToolError("not today")

    @server.tool()
    async def chatty(ctx: ServerContext) -> str:
        """Reports before it answers."""
        for step in range(3):
            await ctx.report_progress(step, 3)
        return "done"

    @server.tool()
    def in_region(region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})]) -> str:
        """Is routed by a header."""
        return region

    @server.prompt()
    def welcome(name: str) -> str:
        """Greets."""
        return f"Welcome {name}"

    @server.resource("desk://open/{number}")
    def ticket(number: str) -> str:
        """One of many."""
        return f"ticket {number}"

    @server.resource("desk://opening-hours")
    def opening_hours() -> str:
        """When we are there."""
        return "nine to five"

    return server


class Recorder:
    """In front of an ASGI application: notes what arrives, and hides the modern era if it shall."""

    def __init__(self, app: Any, era: str) -> None:
        self.app, self.era = app, era
        self.headers: list[dict[str, str]] = []
        self.connections: set[Any] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = {name.decode(): value.decode() for name, value in scope["headers"]}
            self.headers.append(headers)
            self.connections.add(scope["client"])
            if self.era == "legacy" and "mcp-method" in headers:
                await receive()
                await send({"type": "http.response.start", "status": 400, "headers": [(b"content-length", b"0")]})
                await send({"type": "http.response.body", "body": b""})
                return
        await self.app(scope, receive, send)


@asynccontextmanager
async def serving(app: Any, port: int = 0) -> AsyncIterator[str]:
    """Serve an ASGI application in this event loop; gives its URL."""
    listener = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=1, ws="none")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve([listener]))
    while not server.started:
        assert not task.done(), "the server did not start"
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
    finally:
        server.should_exit = True
        await task
        listener.close()


def sdk_app(form: str) -> Recorder:
    era, options = FORMS[form]
    return Recorder(make_sdk_server().streamable_http_app(**options), era)


# --- Helpers ----------------------------------------------------------------------------------------------------------


def make_connector(url: str, *, timeout: int = 5, **options: Any) -> McpConnector:
    source = Source(uuid.uuid4(), "upstream", McpOptions.model_validate({"url": url, **options}), timeout)
    return McpConnector(source, Egress([Rule.parse("127.0.0.1/32", None)]))


@pytest.fixture
async def connect():
    """Makes connectors, and closes them."""
    made = []

    def connect(url: str | int, **options: Any) -> McpConnector:
        address = f"http://127.0.0.1:{url}/mcp" if isinstance(url, int) else url
        made.append(make_connector(address, **options))
        return made[-1]

    yield connect
    for connector in made:
        await connector.close()


def make_context(deadline_seconds: float = 5, traceparent: str | None = None) -> Context:
    return Context(uuid.uuid4(), deadline_seconds, "someone-canary", traceparent)


async def call(
    connector: McpConnector, tool: str | McpTool = "echo", deadline_seconds: float = 5, **arguments: Any
) -> Any:
    spec = McpTool(name=tool) if isinstance(tool, str) else tool
    return (await connector.call(spec, arguments, make_context(deadline_seconds))).content


async def failure(awaitable: Awaitable[Any]) -> ConnectorError:
    with pytest.raises(ConnectorError) as caught:
        await awaitable
    assert len(str(caught.value)) < 700
    assert "canary" not in str(caught.value)
    return caught.value


Answer = Callable[[web.Request, dict[str, Any]], Awaitable[web.StreamResponse]]


class Scripted:
    """An upstream that greets properly, and answers everything else with `answer`."""

    def __init__(self, answer: Answer, era: str = "modern", session: str | None = "s-1") -> None:
        self.answer, self.era, self.session = answer, era, session
        self.messages: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.peers: set[Any] = set()

    def count(self, method: str | None) -> int:
        return [message.get("method") for message in self.messages].count(method)

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        self.peers.add(request.transport.get_extra_info("peername"))
        if request.method != "POST":
            self.messages.append({"method": request.method})
            return web.Response(status=200)
        message = await request.json(loads=orjson.loads)
        self.messages.append(message)
        self.headers.append(dict(request.headers))
        match message.get("method"):
            case "server/discover" if self.era == "modern":
                return reply(message, {"supportedVersions": ["2026-07-28"]})
            case "server/discover":
                return web.Response(status=400)
            case "initialize":
                response = reply(message, {"protocolVersion": "2025-06-18", "serverInfo": {"name": "old"}})
                if self.session is not None:
                    response.headers["Mcp-Session-Id"] = self.session
                return response
            case "notifications/initialized" | None:
                return web.Response(status=202)
        return await self.answer(request, message)


def reply(message: dict[str, Any], result: Any, **more: Any) -> web.Response:
    body = {"jsonrpc": "2.0", "id": message.get("id"), "result": result, **more}
    return web.Response(body=orjson.dumps(body), content_type="application/json")


def ok(message: dict[str, Any], text: str = "ok") -> web.Response:
    return reply(message, {"content": [{"type": "text", "text": text}]})


async def answer_ok(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
    return ok(message)


def always(make: Callable[[dict[str, Any]], web.Response]) -> Answer:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        return make(message)

    return answer


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    return response


async def ask_scripted(connect: Any, answer: Answer, era: str = "modern", **options: Any) -> Any:
    async with make_server(Scripted(answer, era)) as port:
        return await call(connect(port, **options), deadline_seconds=options.pop("deadline", 5))


# --- The official server, in all its forms ----------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
async def test_the_official_server_is_understood(connect, form):
    app = sdk_app(form)
    async with serving(app) as url:
        connector = connect(url)
        assert await connector.check() == f"sdk answers with revision {REVISION[FORMS[form][0]]}."
        found = {offer.name: offer for offer in await connector.discover()}
        assert {name for name in found if found[name].kind == "tool"} == {"echo", "refuse", "chatty", "in_region"}
        assert [found[name].kind for name in ("welcome", "desk://opening-hours", "desk://open/{number}")] == [
            "prompt", "resource", "template",
        ]  # fmt: skip
        assert found["echo"].definition["description"] == "Say it again."
        assert (found["echo"].effect, found["refuse"].effect) == ("read", None)
        assert (await call(connector, text="grüße \U0001f600"))["content"][0]["text"] == "grüße \U0001f600"
        assert (await call(connector, "chatty"))["content"][0]["text"] == "done"
        refused = await connector.call(McpTool(name="refuse"), {}, make_context())
        assert refused.is_error is True
        assert "not today" in refused.content["content"][0]["text"]
        context = make_context()
        prompt = {"name": "welcome", "arguments": {"name": "Zoë"}}
        got = await connector.request("prompts/get", prompt, context)
        assert got.content["messages"][0]["content"]["text"] == "Welcome Zoë"
        read = await connector.request("resources/read", {"uri": "desk://open/7"}, context)
        assert read.content["contents"][0]["text"] == "ticket 7"
        missing = await failure(connector.request("resources/read", {"uri": "desk://closed"}, context))
        assert (missing.code, missing.refusal["code"]) == ("upstream_refused", -32602)
        ref = {"ref": {"type": "ref/prompt", "name": "welcome"}, "argument": {"name": "name", "value": "Z"}}
        completed = await connector.request("completion/complete", ref, context)
        assert completed.content["completion"]["values"] == []
        await connector.close()


@pytest.mark.parametrize("form", FORMS)
async def test_one_connection_serves_many_calls(connect, form):
    app = sdk_app(form)
    async with serving(app) as url:
        connector = connect(url)
        for number in range(20):
            assert (await call(connector, text=str(number)))["content"][0]["text"] == str(number)
        assert len(app.connections) <= 2
        await connector.close()


@pytest.mark.parametrize("form", ["modern-json", "legacy-stateful"])
async def test_concurrent_calls_get_their_own_answers_within_the_limit_of_connections(connect, form):
    app = sdk_app(form)
    async with serving(app) as url:
        connector = connect(url, max_connections=4)
        answers = await asyncio.gather(*(call(connector, text=f"t{n}", deadline_seconds=20) for n in range(100)))
        assert [answer["content"][0]["text"] for answer in answers] == [f"t{n}" for n in range(100)]
        await connector.close()
    assert sum("mcp-session-id" not in headers for headers in app.headers) <= 2 or form == "modern-json"


@pytest.mark.parametrize("form", ["modern-json", "modern-sse"])
async def test_mirrored_arguments_satisfy_the_official_server(connect, form):
    app = sdk_app(form)
    async with serving(app) as url:
        connector = connect(url)
        offer = next(offer for offer in await connector.discover() if offer.name == "in_region")
        assert offer.spec["headers"] == {"region": "Region"}
        spec = McpTool.model_validate(offer.spec)
        for region in ("eu-west-1", "Zürich", " padded ", "", "=?base64?eA==?="):
            assert (await call(connector, spec, region=region))["content"][0]["text"] == region
        await connector.close()


@pytest.mark.parametrize("form", ["modern-json", "legacy-stateful", "legacy-stateless"])
async def test_a_restarted_upstream_is_met_again_without_a_failed_call(connect, form):
    app = sdk_app(form)
    async with serving(app) as url:
        connector = connect(url)
        await call(connector, text="before")
        port = int(url.rpartition(":")[2].split("/")[0])
    async with serving(sdk_app(form), port):
        try:
            answer = await call(connector, text="after")
        except ConnectorError as error:  # The pipeline repeats what reads, or was not sent.
            if not error.retryable:
                raise
            answer = await call(connector, text="after")
        assert answer["content"][0]["text"] == "after"
        await connector.close()


# --- What leaves, and what does not -----------------------------------------------------------------------------------


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_only_our_own_headers_leave(connect, era):
    upstream = Scripted(answer_ok, era)
    async with make_server(upstream) as port:
        connector = connect(port, bearer_token="our-own-token")
        await connector.call(McpTool(name="echo"), {"a": 1}, make_context(traceparent=TRACE))
    names = {name.lower() for headers in upstream.headers for name in headers}
    allowed = {"host", "content-type", "accept", "content-length", "authorization", "mcp-protocol-version"}
    allowed |= {"traceparent"}
    assert [headers for headers in upstream.headers if headers.get("traceparent") == TRACE], "what reads HTTP only"
    assert names <= allowed | {"mcp-method", "mcp-name" if era == "modern" else "mcp-session-id"}
    assert {headers["Authorization"] for headers in upstream.headers} == {"Bearer our-own-token"}
    assert "canary" not in json.dumps(upstream.messages)
    sent = upstream.messages[-1]["params"]
    assert sent["_meta"]["traceparent"] == TRACE
    assert sent["arguments"] == {"a": 1}


async def test_the_modern_call_names_itself_in_headers_and_meta(connect):
    upstream = Scripted(answer_ok)
    async with make_server(upstream) as port:
        await call(connect(port), McpTool(name="größe"))
    headers, meta = upstream.headers[-1], upstream.messages[-1]["params"]["_meta"]
    assert headers["MCP-Protocol-Version"] == "2026-07-28"
    assert headers["Mcp-Method"] == "tools/call"
    assert headers["Mcp-Name"] == header_value("größe") == "=?base64?Z3LDtsOfZQ==?="
    assert meta["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", "plain"),
        ("two words", "two words"),
        (" edge", "=?base64?IGVkZ2U=?="),
        ("a\r\nX: 1", "=?base64?YQ0KWDogMQ==?="),
        ("=?base64?eA==?=", "=?base64?PT9iYXNlNjQ/ZUE9PT89?="),
        ("\x7f", "=?base64?fw==?="),
    ],
)
def test_header_values_are_plain_or_wrapped(value, expected):
    assert header_value(value) == expected


async def test_arguments_are_mirrored_by_type_and_path(connect):
    upstream = Scripted(answer_ok)
    headers = {"a": "A", "b.c": "B", "flag": "F", dotted(("x.y", "~")): "Dots", "none": "N", "list": "L", "gone": "G"}
    async with make_server(upstream) as port:
        arguments = {"a": 7, "b": {"c": "x\ny"}, "flag": True, "x.y": {"~": "deep"}, "none": None, "list": [1]}
        await call(connect(port), McpTool(name="t", headers=headers), **arguments)
    sent = {name[10:]: value for name, value in upstream.headers[-1].items() if name.startswith("Mcp-Param-")}
    assert sent == {"A": "7", "B": "=?base64?eAp5?=", "F": "true", "Dots": "deep"}


@pytest.mark.parametrize("path", [("a",), ("a", "b"), ("a.b", "c"), ("~1", "~0."), ("", ".")])
def test_a_path_of_any_names_survives_as_text(path):
    assert undotted(dotted(path)) == path


@pytest.mark.parametrize("name", ["X\r\nEvil", "Ü", "a b", "", "a:b", "x" * 200])
def test_a_header_name_that_is_none_is_refused(name):
    with pytest.raises(ValidationError, match="cannot be the name of a header"):
        McpTool(name="t", headers={"a": name})


def test_two_arguments_cannot_be_mirrored_as_one_header():
    with pytest.raises(ValidationError, match="mirrored as one header"):
        McpTool(name="t", headers={"a": "Region", "b": "REGION"})


def header_at(**schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": {"type": "string", "x-mcp-header": "A", **schema}}}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (header_at(), None),
        (header_at(type="integer"), None),
        ({"properties": {"x-mcp-header": {"type": "string"}}}, None),
        ({"properties": {"deep": header_at(type="boolean")}}, None),
        ({"properties": {"a": {"default": {"x-mcp-header": 7}}}}, None),
        (None, None),
        (header_at(**{"x-mcp-header": ""}), "cannot be the name of a header"),
        (header_at(**{"x-mcp-header": 7}), "cannot be the name of a header"),
        (header_at(**{"x-mcp-header": "R\u00e9gion"}), "cannot be the name of a header"),
        (header_at(type="number"), "of none of the types"),
        (header_at(type=["string", "null"]), "of none of the types"),
        ({"properties": {**header_at()["properties"], "b": header_at(**{"x-mcp-header": "a"})["properties"]["a"]}},
         "are mirrored as one header"),
        ({"x-mcp-header": "A"}, "only `properties` may lead to it"),
        ({"properties": {"l": {"type": "array", "items": header_at()}}}, "only `properties` may lead to it"),
        ({"anyOf": [header_at()]}, "only `properties` may lead to it"),
        ({"$defs": {"d": header_at()}}, "only `properties` may lead to it"),
        ({"not": header_at()}, "only `properties` may lead to it"),
    ],
)  # fmt: skip
async def test_a_tool_whose_headers_cannot_be_followed_is_offered_with_its_fault(connect, schema, said):
    tools = [{"name": "odd", "inputSchema": schema}, {"name": "sound", "inputSchema": {"type": "object"}}]
    async with make_server(Scripted(always(lambda m: reply(m, {"tools": tools})))) as port:
        odd, sound = await connect(port).discover()
    assert sound.fault is None
    assert odd.fault is None if said is None else said in odd.fault


@pytest.mark.parametrize(("number", "fits"), [(2**53 - 1, True), (-(2**53) + 1, True), (2**53, False)])
async def test_a_number_that_readers_of_headers_would_round_is_not_sent(connect, number, fits):
    spec = McpTool(name="t", headers={"a": "A"})
    async with make_server(Scripted(answer_ok)) as port:
        if fits:
            assert (await call(connect(port), spec, a=number))["content"]
        else:
            error = await failure(call(connect(port), spec, a=number))
            assert (error.code, error.sent) == ("invalid_arguments", False)


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "ümlaut", "a\tb", "a\0b"])
def test_a_bearer_token_that_fits_no_header_is_refused_without_repeating_it(token):
    with pytest.raises(ValidationError, match="visible ASCII") as caught:
        McpOptions.model_validate({"url": "https://example.com/mcp", "bearer_token": token})
    said = "; ".join(str(each["msg"]) for each in caught.value.errors(include_input=False))
    assert token not in said


def test_secrets_are_not_shown():
    connector = make_connector("https://example.com/mcp", bearer_token="bearer-canary")
    assert "canary" not in repr(connector.source)
    with pytest.raises(ValidationError, match="put no user name or password into the URL"):
        McpOptions.model_validate({"url": "https://user:pass@example.com/"})


@pytest.mark.parametrize("text", ["\ud800", {"deep": "\udfff"}])
async def test_arguments_that_are_not_unicode_are_refused_before_they_are_sent(connect, text):
    upstream = Scripted(answer_ok)
    async with make_server(upstream) as port:
        error = await failure(call(connect(port), McpTool(name="t", headers={"a": "A"}), a=text))
    assert (error.code, error.sent) == ("invalid_arguments", False)
    assert upstream.count("tools/call") == 0


# --- Definitions ------------------------------------------------------------------------------------------------------


DEFINITION = {
    "zeta": 1, "name": "odd", "title": "Größe \u202e", "description": "IMPORTANT <b>x</b> \u0000",
    "inputSchema": {
        "type": "object", "$schema": "https://json-schema.org/draft/2020-12/schema",
        "properties": {"b": {"$ref": "#/$defs/B"}, "a": {"$anchor": "x", "x-unknown": [1, 2.5, None, True]}},
        "$defs": {"B": {"type": "string", "default": "hidden"}}, "required": ["b"],
    },
    "annotations": {"readOnlyHint": False, "destructiveHint": True, "vendor": {"z": 1, "a": 2}},
    "outputSchema": {"type": "object"}, "_meta": {"x/y": 1}, "icons": [{"src": "data:,"}], "alpha": None,
}  # fmt: skip


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_a_definition_passes_verbatim_with_its_order(connect, era):
    async with make_server(Scripted(always(lambda m: reply(m, {"tools": [DEFINITION]})), era)) as port:
        (offer,) = await connect(port).discover()
    assert json.dumps(offer.definition) == json.dumps(DEFINITION)
    assert json.dumps(named(offer.definition, "odd")) == json.dumps(DEFINITION)
    assert list(named(offer.definition, "renamed")) == list(DEFINITION)
    assert offer.effect == "destructive"


@pytest.mark.parametrize(
    ("annotations", "effect"),
    [
        ({"readOnlyHint": True}, "read"),
        ({"destructiveHint": True}, "destructive"),
        ({}, None),
        (None, None),
        ("x", None),
        ({"readOnlyHint": "true"}, None),
        ({"readOnlyHint": True, "destructiveHint": True}, "read"),
        ([], None),
    ],
)
async def test_hints_only_prefill_the_effect(connect, annotations, effect):
    tool = {"name": "t", "inputSchema": {"type": "object"}, "annotations": annotations}
    async with make_server(Scripted(always(lambda m: reply(m, {"tools": [tool]})))) as port:
        assert [offer.effect for offer in await connect(port).discover()] == [effect]


async def test_all_pages_are_read(connect):
    def page(message: dict[str, Any]) -> web.Response:
        number = int(message["params"].get("cursor", 0))
        more = {"nextCursor": str(number + 1)} if number < 3 else {}
        return reply(message, {"tools": [{"name": f"t{number}"}], **more})

    async with make_server(Scripted(always(page))) as port:
        assert [offer.name for offer in await connect(port).discover()] == ["t0", "t1", "t2", "t3"]


@pytest.mark.parametrize(
    ("result", "code"),
    [
        ({"tools": [], "nextCursor": "same"}, "bad_upstream_answer"),
        ({"tools": [], "nextCursor": {"x": 1}}, "bad_upstream_answer"),
        ({"tools": [{"name": f"t{n}"} for n in range(10_000)]}, "too_many_tools"),
        ({"tools": None}, "bad_upstream_answer"),
        ({}, "bad_upstream_answer"),
        ({"tools": [{"name": 1}]}, "bad_upstream_answer"),
        ({"tools": ["x"]}, "bad_upstream_answer"),
    ],
)
async def test_a_list_of_tools_that_is_none_is_refused(connect, result, code):
    upstream = Scripted(always(lambda m: reply(m, result)))
    async with make_server(upstream) as port:
        assert (await failure(connect(port).discover())).code == code
    assert upstream.count("tools/list") <= 2


async def test_a_list_without_end_is_given_up(connect):
    upstream = Scripted(always(lambda m: reply(m, {"tools": [], "nextCursor": str(uuid.uuid4())})))
    async with make_server(upstream) as port:
        assert (await failure(connect(port).discover())).code == "too_many_tools"
    assert upstream.count("tools/list") == 100


async def test_a_refused_list_is_told(connect):
    answer = always(lambda m: reply(m, None, error={"code": -32601, "message": "no tools here"}))
    async with make_server(Scripted(answer)) as port:
        error = await failure(connect(port).discover())
    assert (error.code, "no tools here" in str(error)) == ("upstream_refused", True)


async def test_a_description_of_five_megabytes_comes_through_and_is_for_others_to_refuse(connect):
    tool = {"name": "t", "description": "x" * 5_000_000}
    async with make_server(Scripted(always(lambda m: reply(m, {"tools": [tool]})))) as port:
        (offer,) = await connect(port).discover()
    assert len(offer.definition["description"]) == 5_000_000


# --- Hostile answers --------------------------------------------------------------------------------------------------


def text_response(
    body: str | bytes, content_type: str = "application/json", status: int = 200, **headers: str
) -> Answer:
    raw = body if isinstance(body, bytes) else body.encode()
    return always(lambda m: web.Response(body=raw, content_type=content_type, status=status, headers=headers))


def zipped(body: bytes) -> Answer:
    raw = gzip.compress(body)
    return always(
        lambda m: web.Response(body=raw, headers={"Content-Encoding": "gzip"}, content_type="application/json")
    )


def result_with(result: Any, **more: Any) -> Answer:
    return always(lambda m: reply(m, result, **more))


GOOD_RESULT = {"content": [{"type": "text", "text": "x"}]}
ANSWERS: dict[str, tuple[Answer, str]] = {
    "html": (text_response("<html>sign in</html>", "text/html"), "bad_upstream_answer"),
    "html-500": (text_response("<html>oops canary</html>", "text/html", 500), "upstream_http_error"),
    "json-500": (text_response('{"detail": "canary"}', status=500), "upstream_http_error"),
    "401": (text_response("", status=401), "upstream_http_error"),
    "403": (text_response("{}", status=403), "upstream_http_error"),
    "204": (text_response("", status=204), "bad_upstream_answer"),
    "empty": (text_response(""), "bad_upstream_answer"),
    "not json": (text_response("{"), "bad_upstream_answer"),
    "deep json": (text_response("[" * 100_000), "bad_upstream_answer"),
    "nan": (text_response('{"jsonrpc":"2.0","id":2,"result":NaN}'), "bad_upstream_answer"),
    "not utf-8": (text_response(b'{"id":2,"result":{"content":["\xff"]}}'), "bad_upstream_answer"),
    "surrogate": (text_response(b'{"id":2,"result":{"content":["\\ud800"]}}'), "bad_upstream_answer"),
    "batch": (always(lambda m: web.json_response([{"jsonrpc": "2.0", "id": m["id"], "result": GOOD_RESULT}])),
              "bad_upstream_answer"),
    "wrong id": (always(lambda m: reply({"id": m["id"] + 1}, GOOD_RESULT)), "bad_upstream_answer"),
    "text id": (always(lambda m: reply({"id": str(m["id"])}, GOOD_RESULT)), "bad_upstream_answer"),
    "true id": (always(lambda m: reply({"id": True}, GOOD_RESULT)), "bad_upstream_answer"),
    "no id": (always(lambda m: reply({}, GOOD_RESULT)), "bad_upstream_answer"),
    "a request": (always(lambda m: web.json_response({"jsonrpc": "2.0", "id": 99, "method": "ping"})),
                  "bad_upstream_answer"),
    "no result": (always(lambda m: web.json_response({"jsonrpc": "2.0", "id": m["id"]})), "bad_upstream_answer"),
    "result is a list": (result_with([]), "bad_upstream_answer"),
    "no content": (result_with({}), "bad_upstream_answer"),
    "content is a text": (result_with({"content": "x"}), "bad_upstream_answer"),
    "isError is a text": (result_with({"content": [], "isError": "yes"}), "bad_upstream_answer"),
    "isError is a number": (result_with({"content": [], "isError": 1}), "bad_upstream_answer"),
    "isError is null": (result_with({"content": [], "isError": None}), "bad_upstream_answer"),
    "asks for nothing": (result_with({"resultType": "input_required", "content": []}), "bad_upstream_answer"),
    "wants another try": (result_with({"resultType": "input_required", "requestState": "s"}), "bad_upstream_answer"),
    "is a task": (result_with({"resultType": "task", "content": []}), "unsupported_result"),
    "text/plain": (always(lambda m: web.Response(text=json.dumps({"id": m["id"], "result": GOOD_RESULT}))),
                   "bad_upstream_answer"),
    "error": (result_with(None, error={"code": -32000, "message": "x" * 100_000}), "upstream_refused"),
    "odd error": (result_with(None, error={"code": "y" * 100_000, "message": {"a": [1]}}), "upstream_refused"),
    "gzip": (zipped(b"{}"), "bad_upstream_answer"),
}  # fmt: skip


@pytest.mark.parametrize("era", ["modern", "legacy"])
@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_that_is_none_becomes_one_sentence(connect, name, era):
    answer, code = ANSWERS[name]
    assert (await failure(ask_scripted(connect, answer, era))).code == code


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_told_and_not_followed(connect, status):
    target = Counter()
    async with make_server(target) as inner:
        location = f"http://127.0.0.1:{inner}/mcp"
        error = await failure(ask_scripted(connect, text_response("", status=status, Location=location)))
    assert f"redirect (HTTP status {status}), which is not followed" in str(error)
    assert target.count == 0


async def test_a_bomb_is_not_unpacked(connect):
    bomb = zipped(b"[" * 50_000_000)
    started = time.process_time()
    error = await failure(ask_scripted(connect, bomb))
    assert error.code == "bad_upstream_answer"
    assert time.process_time() - started < 1


async def test_five_announced_gigabytes_are_refused_at_once(connect):
    async def answer(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "5000000000", "Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b"[")
        await asyncio.sleep(30)
        return response

    started = time.monotonic()
    assert (await failure(ask_scripted(connect, answer))).code == "result_too_large"
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream"])
async def test_an_endless_body_is_cut(connect, monkeypatch, content_type):
    monkeypatch.setattr(limits, "MAX_RESULT_BYTES", 2_000_000)
    written = 0

    async def answer(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse(headers={"Content-Type": content_type})
        await response.prepare(request)
        while True:
            await response.write(b"data: x\n" * 8192)
            written += 65536

    error = await failure(ask_scripted(connect, answer))
    assert (error.code, str(error)) == ("result_too_large", "The upstream's answer is larger than 2000000 bytes.")
    assert written < 50_000_000


@pytest.mark.parametrize("how", ["no answer", "drip", "drip of events"])
async def test_a_slow_upstream_is_given_up_at_the_deadline(connect, how):
    async def answer(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream" if "events" in how else "application/json"}
        )
        if how == "no answer":
            await asyncio.sleep(30)
        await response.prepare(request)
        for _ in range(3000):
            await response.write(b" " if how == "drip" else b": ping\n\n")
            await asyncio.sleep(0.01)
        return response

    async with make_server(Scripted(answer)) as port:
        connector = connect(port)
        started = time.monotonic()
        error = await failure(call(connector, deadline_seconds=0.3))
        assert time.monotonic() - started < 0.6
    assert (error.code, error.sent) == ("upstream_timeout", True)


async def test_the_deadline_covers_greeting_and_call_together(connect):
    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.2)
        message = await request.json()
        return reply(message, {**GOOD_RESULT, "protocolVersion": "2025-06-18", "supportedVersions": []})

    async with make_server(answer) as port:
        connector = connect(port)
        started = time.monotonic()
        assert (await failure(call(connector, deadline_seconds=0.5))).code == "upstream_timeout"
        assert time.monotonic() - started < 0.7


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_a_connection_that_breaks_in_the_middle_is_told(connect, era):
    async def answer(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": "1000", "Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b"{")
        request.transport.abort()
        return response

    error = await failure(ask_scripted(connect, answer, era))
    assert (error.code, error.retryable, error.sent) == ("upstream_unavailable", True, True)


async def test_an_upstream_that_is_not_there_is_told_as_not_sent(connect):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    error = await failure(call(connect(port)))
    assert (error.code, error.retryable, error.sent) == ("upstream_unavailable", True, False)


@pytest.mark.parametrize("host", ["127.0.0.2", "10.0.0.1", "169.254.169.254", "[::1]", "localhost", "2130706433"])
async def test_the_gate_stands_before_the_upstream(host):
    source = Source(uuid.uuid4(), "u", McpOptions.model_validate({"url": f"http://{host}:9/mcp"}), 5)
    connector = McpConnector(source, Egress())
    error = await failure(call(connector))
    await connector.close()
    assert (error.code, error.sent, error.retryable) == ("egress_denied", False, False)


async def test_a_certificate_that_nobody_signed_is_told(connect, tmp_path):
    async with tls_server(tmp_path) as port:
        error = await failure(call(connect(f"https://127.0.0.1:{port}/mcp")))
    assert str(error) == "The upstream's TLS certificate cannot be trusted."
    assert error.sent is False


async def test_plain_http_is_not_mistaken_for_tls(connect):
    async with make_server(Scripted(answer_ok)) as port:
        assert (await failure(call(connect(f"https://127.0.0.1:{port}/mcp")))).code == "upstream_unavailable"


# --- Streams ----------------------------------------------------------------------------------------------------------


def events(*messages: Any, end: bytes = b"\n\n") -> bytes:
    return b"".join(b"event: message\nid: 1\ndata: " + orjson.dumps(message) + end for message in messages)


def streaming(*chunks: bytes | Callable[[dict[str, Any]], bytes], pause: float = 0) -> Answer:
    async def answer(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        response = await stream(request)
        for chunk in chunks:
            await response.write(chunk if isinstance(chunk, bytes) else chunk(message))
            await asyncio.sleep(pause)
        return response

    return answer


def good_event(message: dict[str, Any], end: bytes = b"\n\n") -> bytes:
    return events({"jsonrpc": "2.0", "id": message["id"], "result": GOOD_RESULT}, end=end)


@pytest.mark.parametrize(
    "chunks",
    [
        (good_event,),
        (b": comment\n\nretry: 10\n\nid: 7\ndata:\n\n", good_event),
        (b"\xef\xbb\xbf", good_event),
        (events({"jsonrpc": "2.0", "method": "notifications/progress", "params": {}}), good_event),
        (b"data: not json\n\ndata: [1]\n\n", good_event),
        (events({"jsonrpc": "2.0", "id": 99, "result": {"content": "not yours"}}), good_event),
        (lambda m: good_event(m, b"\r\n\r\n"),),
        (lambda m: good_event(m, b"\r\r"),),
        (lambda m: good_event(m, b"\r"), b"\n\r", b"\n"),
        (lambda m: good_event(m)[:30], lambda m: good_event(m)[30:]),
        (lambda m: good_event(m).replace(b'"result"', b'\ndata: "result"'),),
    ],
)
async def test_a_stream_is_read_as_the_standard_says(connect, chunks):
    assert await ask_scripted(connect, streaming(*chunks, pause=0.01)) == GOOD_RESULT


async def test_a_stream_with_a_huge_line_is_read_in_linear_time(connect):
    big = {"content": [{"type": "text", "text": "x" * 12_000_000}]}
    started = time.process_time()
    found = await ask_scripted(connect, streaming(lambda m: events({"id": m["id"], "result": big})))
    assert len(found["content"][0]["text"]) == 12_000_000
    assert time.process_time() - started < 2


@pytest.mark.parametrize("chunks", [(), (b"data: {}",), (b"data: {}\n\n",), (b"\n" * 1000,)])
async def test_a_stream_without_an_answer_is_told(connect, chunks):
    error = await failure(ask_scripted(connect, streaming(*chunks)))
    assert str(error) == "The upstream's stream ended without an answer."


async def test_connections_of_streams_are_kept_although_they_end_after_the_answer(connect):
    upstream = Scripted(streaming(good_event, pause=0.02))
    async with make_server(upstream) as port:
        connector = connect(port)
        for _ in range(5):
            assert await call(connector) == GOOD_RESULT
            await asyncio.gather(*connector._upstream._aside)
        await connector.close()
    assert len(upstream.peers) == 1


async def test_a_stream_that_never_ends_does_not_hold_up_its_answer(connect):
    started = time.monotonic()
    assert await ask_scripted(connect, streaming(good_event, b": more\n\n", pause=20)) == GOOD_RESULT
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("max_connections", [1, 4])
@pytest.mark.parametrize("method", ["sampling/createMessage", "roots/list", "elicitation/create", "ping"])
async def test_what_the_server_asks_of_a_client_is_declined_without_a_halt(connect, method, max_connections):
    asked = events({"jsonrpc": "2.0", "id": "q", "method": method, "params": {}})
    upstream = Scripted(streaming(asked, good_event, pause=0.05), "legacy")
    async with make_server(upstream) as port:
        connector = connect(port, max_connections=max_connections)
        started = time.monotonic()
        assert await call(connector) == GOOD_RESULT
        assert time.monotonic() - started < 1
        await asyncio.gather(*connector._upstream._aside)
    (sent,) = [message for message in upstream.messages if message.get("id") == "q"]
    assert sent == {"jsonrpc": "2.0", "id": "q", "result": {}} if method == "ping" else sent["error"]["code"] == -32601


async def test_a_server_that_waits_for_the_refusal_gets_it_before_it_answers(connect):
    declined = asyncio.Event()

    async def answer(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        response = await stream(request)
        await response.write(events({"jsonrpc": "2.0", "id": "q", "method": "sampling/createMessage"}))
        await declined.wait()
        await response.write(good_event(message))
        return response

    upstream = Scripted(answer, "legacy")

    async def handler(request: web.Request) -> web.StreamResponse:
        response = await upstream(request)
        if any("error" in message for message in upstream.messages):
            declined.set()
        return response

    async with make_server(handler) as port:
        assert await call(connect(port)) == GOOD_RESULT


async def test_a_server_that_only_asks_is_left(connect):
    asked = events(*({"jsonrpc": "2.0", "id": n, "method": "roots/list"} for n in range(100)))
    error = await failure(ask_scripted(connect, streaming(asked, good_event), "legacy"))
    assert str(error) == "The upstream asks instead of answering."


# --- Greetings and sessions -------------------------------------------------------------------------------------------


async def test_an_ended_session_is_greeted_anew_within_the_call(connect):
    upstream = Scripted(answer_ok, "legacy")
    ended: set[str] = set()

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.headers.get("Mcp-Session-Id") in ended:
            return web.Response(status=404, text="Session not found")
        return await upstream(request)

    async with make_server(handler) as port:
        connector = connect(port)
        await call(connector)
        ended.add("s-1")
        upstream.session = "s-2"
        assert (await asyncio.gather(*(call(connector) for _ in range(10))))[9]["content"][0]["text"] == "ok"
        await connector.close()
    assert upstream.count("initialize") == 2
    assert upstream.headers[-1].get("Mcp-Session-Id") == "s-2"


async def test_a_server_that_ends_every_session_is_told_and_not_asked_for_ever(connect):
    upstream = Scripted(text_response("", status=404), "legacy")
    async with make_server(upstream) as port:
        error = await failure(call(connect(port)))
    assert (error.code, error.sent) == ("upstream_unavailable", False)
    assert upstream.count("tools/call") == 2


async def test_a_session_is_ended_when_the_connector_closes(connect):
    upstream = Scripted(answer_ok, "legacy")
    async with make_server(upstream) as port:
        connector = connect(port)
        await call(connector)
        await connector.close()
    assert upstream.count("DELETE") == 1


async def test_closing_follows_no_redirect_and_waits_for_nobody(connect):
    target = Counter()
    async with make_server(target) as inner:
        upstream = Scripted(answer_ok, "legacy")

        async def handler(request: web.Request) -> web.StreamResponse:
            if request.method == "DELETE":
                return web.Response(status=307, headers={"Location": f"http://127.0.0.1:{inner}/x"})
            return await upstream(request)

        async with make_server(handler) as port:
            connector = connect(port)
            await call(connector)
            await connector.close()
    assert target.count == 0


async def test_a_closed_connector_stays_closed(connect):
    async with make_server(Scripted(answer_ok)) as port:
        connector = connect(port)
        await call(connector)
        await connector.close()
        for use in (call(connector), connector.check(), connector.discover()):
            error = await failure(use)
            assert (str(error), error.sent) == ("The connector is closed.", False)


async def test_calls_that_come_during_the_greeting_wait_for_it(connect):
    upstream = Scripted(answer_ok, "legacy")

    async def handler(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.02)
        return await upstream(request)

    async with make_server(handler) as port:
        connector = connect(port)
        await asyncio.gather(*(call(connector) for _ in range(10)))
    assert upstream.count("server/discover") == upstream.count("initialize") == 1
    assert upstream.count("tools/call") == 10


async def test_a_greeting_that_is_cancelled_leaves_nothing_behind(connect):
    upstream, slow = Scripted(answer_ok, "legacy"), asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        if not slow.is_set():
            slow.set()
            await asyncio.sleep(30)
        return await upstream(request)

    async with make_server(handler) as port:
        connector = connect(port)
        first = asyncio.create_task(call(connector))
        await slow.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await call(connector))["content"][0]["text"] == "ok"
    assert upstream.count("initialize") == 1


@pytest.mark.parametrize(
    ("discovered", "revision"),
    [
        ({"supportedVersions": ["2026-07-28"], "_meta": None}, "2026-07-28"),
        ({"supportedVersions": ["2026-07-28"], "_meta": []}, "2026-07-28"),
        ({"supportedVersions": ["2026-07-28"], "serverInfo": [1]}, "2026-07-28"),
        ({"supportedVersions": None}, "2024-11-05"),
        ({"supportedVersions": 7}, "2024-11-05"),
        ({}, "2024-11-05"),
    ],
)
async def test_an_odd_greeting_is_taken_for_what_it_is(connect, discovered, revision):
    async def handler(request: web.Request) -> web.StreamResponse:
        message = await request.json()
        old = {**GOOD_RESULT, "protocolVersion": "2024-11-05"}
        return reply(message, discovered if message["method"] == "server/discover" else old)

    async with make_server(handler) as port:
        assert await connect(port).check() == f"unnamed server answers with revision {revision}."
        assert (await call(connect(port)))["content"] == GOOD_RESULT["content"]


@pytest.mark.parametrize("version", ["1999-01-01", None, ["2025-06-18"], {"a": 1}, "x" * 100_000])
async def test_a_revision_that_nobody_knows_is_refused(connect, version):
    async def handler(request: web.Request) -> web.StreamResponse:
        message = await request.json()
        if message["method"] == "server/discover":
            return web.Response(status=404)
        return reply(message, {"protocolVersion": version})

    async with make_server(handler) as port:
        assert (await failure(connect(port).check())).code == "unsupported_version"


@pytest.mark.parametrize("session", ["ümlaut", "a b", "x" * 2000])
async def test_a_session_id_that_is_none_is_refused(connect, session):
    async with make_server(Scripted(answer_ok, "legacy", session)) as port:
        assert (await failure(call(connect(port)))).code in ("bad_upstream_answer", "upstream_unavailable")


async def test_a_refused_greeting_is_told(connect):
    async def handler(request: web.Request) -> web.StreamResponse:
        message = await request.json()
        return reply(message, None, error={"code": -32603, "message": "not open yet"})

    async with make_server(handler) as port:
        error = await failure(connect(port).check())
    assert (error.code, "not open yet" in str(error)) == ("upstream_refused", True)


async def test_a_server_of_another_era_in_the_same_place_is_met_at_the_next_call(connect):
    upstream = Scripted(answer_ok, "modern")
    async with make_server(upstream) as port:
        connector = connect(port)
        await call(connector)
        upstream.era = "legacy"
        upstream.answer = lambda request, message: (
            answer_ok(request, message)
            if "Mcp-Session-Id" in request.headers
            else text_response("no session", "text/plain", 400)(request, message)
        )
        assert (await failure(call(connector))).code == "upstream_http_error"
        assert (await call(connector))["content"][0]["text"] == "ok"


UNSUPPORTED = {"code": -32022, "message": "unsupported version"}


async def test_a_version_that_is_no_longer_spoken_is_greeted_anew_within_the_call(connect):
    async def answer(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        return ok(message) if upstream.count("server/discover") % 2 else reply(message, None, error=UNSUPPORTED)

    upstream = Scripted(answer)
    async with make_server(upstream) as port:
        connector = connect(port)
        await call(connector)
        upstream.messages.append({"method": "server/discover"})
        await call(connector)
        assert upstream.count("tools/call") == 3
        upstream.answer = result_with(None, error=UNSUPPORTED)
        assert (await failure(call(connector))).code == "upstream_refused"
    assert upstream.count("tools/call") == 5


@pytest.mark.parametrize(
    ("refusal", "outcome"),
    [
        ({**UNSUPPORTED, "data": {"supported": ["2026-07-28"]}}, "sdk answers with revision 2026-07-28."),
        ({**UNSUPPORTED, "data": {"supported": ["2025-06-18"]}}, "old answers with revision 2025-06-18."),
        ({**UNSUPPORTED, "data": {"supported": ["2031-01-01"]}}, "unsupported_version"),
        ({**UNSUPPORTED, "data": {"supported": [7]}}, "old answers with revision 2025-06-18."),
        ({"code": -32020, "message": "header mismatch"}, "upstream_refused"),
        ({"code": -32000, "message": "no session"}, "old answers with revision 2025-06-18."),
    ],
)
async def test_a_refused_first_question_tells_the_era(connect, refusal, outcome):
    async def handler(request: web.Request) -> web.StreamResponse:
        message = await request.json()
        asked.append(message["method"])
        match message["method"]:
            case "server/discover" if len(asked) == 1:
                body = {"jsonrpc": "2.0", "id": message["id"], "error": refusal}
                return web.json_response(body, status=400)
            case "server/discover":
                return reply(message, {"supportedVersions": ["2026-07-28"], "serverInfo": {"name": "sdk"}})
        return reply(message, {"protocolVersion": "2025-06-18", "serverInfo": {"name": "old"}})

    asked: list[str] = []
    async with make_server(handler) as port:
        if " " in outcome:
            assert await connect(port).check() == outcome
        else:
            assert (await failure(connect(port).check())).code == outcome


async def test_a_server_that_answers_once_too_often_does_not_stay_one_answer_behind(connect):
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        due: list[bytes] = []
        tasks.append(asyncio.current_task())
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].split()[0])
                message = orjson.loads(await reader.readexactly(length))
                found = {"supportedVersions": ["2026-07-28"], "content": []}
                body = orjson.dumps({"jsonrpc": "2.0", "id": message["id"], "result": found})
                answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n" + (
                    b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
                )
                # The first answer comes again in the place of the second one, and so on.
                due += [answer] if due or seen else [answer, answer]
                seen.append(answer)
                writer.write(due.pop(0))
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    seen: list[bytes] = []
    tasks: list[Any] = []
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        connector = connect(server.sockets[0].getsockname()[1])
        assert (await failure(call(connector))).code == "bad_upstream_answer"
        assert [(await call(connector))["content"] for _ in range(3)] == [[]] * 3
        await connector.close()
        await asyncio.gather(*tasks)


@asynccontextmanager
async def tls_server(folder: Any) -> AsyncIterator[int]:
    import ssl

    certificate, key = make_certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(ignore, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


def make_certificate(folder: Any) -> tuple[Any, Any]:
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    (folder / "cert.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"
