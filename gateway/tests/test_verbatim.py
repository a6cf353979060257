"""What an upstream says reaches the client as it was said: both eras on both sides, over HTTP and over stdio."""

from __future__ import annotations

import json
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from aiohttp import web
from django.db import connection

from access.models import Grant
from audit.opening import payload_of
from gateway import older
from gateway.app import Gateway
from gateway.tests.conftest import META, Company, Reply, in_thread, legacy_call, post, records, until
from gateway.tests.test_reads import ask
from mcpsite.postgres import conninfo
from tools.launchers import Launcher
from tools.models import DataSource, EgressRule, Toolset
from tools.sync import sync_source
from tools.tests.servers import make_server

# As another program might write it: spaces, escapes, numbers of every form, keys that nobody knows.
DEFINITION = r"""{
 "x-first": null, "name" : "odd", "title": "\u00c9trange \ud83d\ude00", "description": "tab\there \/ there",
 "inputSchema": {"$schema": "https://json-schema.org/draft/2020-12/schema", "type":"object", "$comment": "kept",
  "$defs": {"Wei": {"$anchor": "wei", "type": "integer", "minimum": 0,
            "maximum": 115792089237316195423570985008687907853269984665640564039457584007913129639935}},
  "properties": {"wei": {"$ref": "#wei", "x-unit": {"b": 1.0, "a": 1e2}}, "z": {"default": -0.0}, "a": true},
  "allOf": [{"if": {"required": ["z"]}, "then": {"required": ["a"]}, "else": {}}], "x-unknown": [[], {}]},
 "outputSchema": {"type": "object", "properties": {"n": {"$ref": "#/$defs/N"}}, "$defs": {"N": {"type": "number"}}},
 "annotations": {"readOnlyHint": true, "x-new": [1, 1.50, 10E-1]},
 "icons": [{"src": "data:image/png;base64,AA==", "sizes": ["48x48"], "theme": "dark"}],
 "execution": {"x": 1}, "_meta": {"ui": {"resourceUri": "ui://odd", "visibility": ["model", "app"]}, "ui/resourceUri": "ui://odd",
           "n": 18446744073709551616}
}"""
# What an MCP App shows of itself (extension io.modelcontextprotocol/ui).
APP = r"""{
 "uri": "ui://odd", "name": "view", "mimeType": "text/html;profile=mcp-app", "x-first": 1.0,
 "_meta": {"ui": {"csp": {"connectDomains": ["https://api.example.com"]}, "permissions": {"camera": {}}}}
}"""
PAGE = r"""{"contents": [{
 "uri": "ui://odd", "mimeType": "text/html;profile=mcp-app", "text": "<!doctype html>\u003cb>\u2028\ud83d\ude00</b>",
 "_meta": {"ui": {"csp": {"resourceDomains": []}, "prefersBorder": true, "domain": "a.example.com"}, "n": 1e2}
}], "com.example/later": 18446744073709551616}"""
RESULT = r"""{
 "content": [
  {"type": "text", "text": "\u0041\ud83d\ude00\u2028 \"q\" \\ \u0000",
   "annotations": {"priority": 0.10, "audience": []}},
  {"type": "image", "data": "AA==", "mimeType": "image/png", "_meta": {"z": 1, "a": 2}},
  {"type": "audio", "data": "AA==", "mimeType": "audio/wav"},
  {"type": "resource_link", "uri": "file:///a%20b", "name": "a", "icons": [{"src": "https://example.com/i.svg"}]},
  {"type": "resource", "resource": {"uri": "ui://odd", "text": "<b>\u003c/b>",
   "mimeType": "text/html;profile=mcp-app"}},
  {"type": "resource", "resource": {"uri": "test://blob", "blob": "AA=="}},
  {"type": "com.example/new", "b": {"y": [], "x": {}}, "a": null}],
 "structuredContent": {"z": 354224848179261915075, "y": -170141183460469231731687303715884105729, "x": 1e2, "w": 1.0,
                       "v": 0.1, "u": 5e-324, "t": 9007199254740993, "": [1E+2, -1, 0, true]},
 "isError": false, "com.example/later": {"n": 99999999999999999999},
 "_meta": {"com.example/n": 123456789012345678901234567890, "com.example/a": {"b": "\u00e9"}}
}"""
ARGUMENTS = (
    r'{"wei": 115792089237316195423570985008687907853269984665640564039457584007913129639935, "z": 1e2, "a": "\u00e9"}'
)
# What a client says besides, and what of it is about its own connection or is no trace.
EXTRA = r'"com.example/turn": {"b": 18446744073709551616, "a": "\u00e9"}, "tracestate": "a=1", "baggage": "k=v"'
OF_ITS_OWN = r'"io.modelcontextprotocol/later": 1, "mcpsite/record": "forged", "traceparent": "broken"'

# What answers, as one text for this process and for one of its own.
ANSWERING = """
import json
CAPABILITIES = '"capabilities":{"tools":{},"resources":{}}'
def answer(message, era, definition, result, app, page):
    method = message.get("method")
    if method == "server/discover" and era == "modern":
        said = '{"supportedVersions":["2026-07-28"],"resultType":"complete",' + CAPABILITIES + "}"
    elif method == "initialize" and era == "legacy":
        said = '{"protocolVersion":"2025-11-25","serverInfo":{"name":"o","version":"1"},' + CAPABILITIES + "}"
    elif method == "tools/list":
        said = '{"tools":[' + definition + ']}'
    elif method == "resources/list":
        said = '{"resources":[' + app + ']}'
    elif method == "resources/read":
        said = page
    elif method == "tools/call" and message["params"]["name"] == "odd":
        got = [("got", message["params"]["arguments"]), ("besides", message["params"].get("_meta", {}))]
        more = "".join('"%s": %s, ' % (name, json.dumps(value)) for name, value in got)
        said = result.replace('"com.example/later"', more + '"com.example/later"')
    else:
        return '{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no"}}' % json.dumps(message["id"])
    return '{"jsonrpc":"2.0", "id":%s, "result":%s}' % (json.dumps(message["id"]), said.replace("\\n", " "))
"""
PROGRAM = """
import sys
for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:
        sys.stdout.write(answer(message, {era!r}, {definition!r}, {result!r}, {app!r}, {page!r}) + "\\n")
        sys.stdout.flush()
"""


def exactly(text: str | bytes) -> Any:
    """The JSON with the order of its keys and the value of its numbers."""
    return json.loads(text, parse_int=Decimal, parse_float=Decimal, object_pairs_hook=lambda pairs: ("{}", *pairs))


def member(found: Any, *names: str) -> Any:
    for name in names:
        (found,) = (value for key, value in found[1:] if key == name)
    return found


@asynccontextmanager
async def upstream(kind: str, era: str, settings: Any, definition: str, result: str) -> AsyncIterator[dict[str, Any]]:
    """The options of a source of that kind whose server is of that era."""
    told = {"era": era, "definition": definition, "result": result, "app": APP, "page": PAGE}
    if kind == "mcp-stdio":
        program = textwrap.dedent(ANSWERING) + PROGRAM.format(**told)
        settings.MCP_LAUNCHERS = {"odd": Launcher(("python", "-S", "-c", program))}
        yield {"launcher": "odd"}
        return
    space: dict[str, Any] = {}
    exec(ANSWERING, space)

    async def handle(request: web.Request) -> web.Response:
        message = json.loads(await request.read())
        if "id" not in message:
            return web.Response(status=202)
        return web.Response(text=space["answer"](message, *told.values()), content_type="application/json")

    async with make_server(handle) as port:
        await in_thread(lambda: EgressRule.objects.create(network="127.0.0.1/32", port=port, note="test"))
        yield {"url": f"http://127.0.0.1:{port}/mcp"}


@asynccontextmanager
async def serving(
    company: Company, settings: Any, kind: str, era: str, definition: str = DEFINITION, result: str = RESULT
) -> AsyncIterator[Gateway]:
    """A gateway that has synchronised with that upstream, and whose clerk may call its tool."""
    async with upstream(kind, era, settings, definition, result) as options:

        def prepare() -> None:
            source = DataSource.objects.create(name="odd", kind=kind, options=options)
            assert sync_source(source).created == ["odd", "resource ui://odd"]
            toolset = Toolset.objects.create(name="apps")
            toolset.tools.set(source.tools.all())
            toolset.resources.set(source.resources.all())
            Grant.objects.create(role=company.role, toolset=toolset)

        await in_thread(prepare)
        gateway = Gateway(conninfo(connection.settings_dict))
        await gateway.start()
        await until(gateway.ready)
        try:
            yield gateway
        finally:
            await gateway.stop()


async def listed(gateway: Gateway, token: str, method: str = "tools/list") -> list[bytes]:
    return [(await ask(gateway, token, method, {}, era)).body for era in ("modern", "legacy")]


async def called(gateway: Gateway, token: str) -> list[Reply]:
    begun = '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"odd","arguments":' + ARGUMENTS
    old = begun + ',"_meta":{' + EXTRA + "," + OF_ITS_OWN + "}}}"
    new = begun + ',"_meta":' + json.dumps(META)[:-1] + "," + EXTRA + "," + OF_ITS_OWN + "}}}"
    headers = {"mcp_protocol_version": "2026-07-28", "mcp_method": "tools/call", "mcp_name": "odd"}
    return [await post(gateway, new.encode(), token, **headers), await post(gateway, old.encode(), token)]


@pytest.mark.parametrize(
    ("kind", "era"), [("mcp", "modern"), ("mcp", "legacy"), ("mcp-stdio", "modern"), ("mcp-stdio", "legacy")]
)
async def test_definitions_arguments_and_results_pass_through_as_they_were_said(
    company: Company, settings: Any, kind: str, era: str
) -> None:
    async with serving(company, settings, kind, era) as gateway:
        for body in await listed(gateway, company.token):
            tools = member(exactly(body), "result", "tools")
            assert exactly(DEFINITION) in tools
        for reply in await called(gateway, company.token):
            result = member(exactly(reply.body), "result")
            assert member(result, "got") == exactly(ARGUMENTS)
            besides = [pair for pair in member(result, "besides")[1:] if pair[0] not in META]
            assert besides == list(exactly("{" + EXTRA + "}")[1:])
            kept = [pair for pair in result[1:] if pair[0] not in ("_meta", "got", "besides", "resultType")]
            assert kept == [pair for pair in exactly(RESULT)[1:] if pair[0] != "_meta"]
            meta = member(result, "_meta")
            assert set(member(exactly(RESULT), "_meta")) <= set(meta)
            (record,) = await records(call_id=member(meta, "mcpsite/call"))
            assert record.code == "ok"
            arguments = exactly((await in_thread(partial(payload_of, record))).arguments or b"")
            assert member(arguments, "mcpsite/_meta") == exactly("{" + EXTRA + "}")
            assert arguments[:-1] == exactly(ARGUMENTS)
        for body in await listed(gateway, company.token, "resources/list"):
            assert member(exactly(body), "result", "resources") == [exactly(APP)]
        for version in ("modern", "legacy"):
            read = await ask(gateway, company.token, "resources/read", {"uri": "ui://odd"}, version)
            assert exactly(PAGE)[1:] == member(exactly(read.body), "result")[1:3]


ODD_OUTPUT = '{"name":"odd","inputSchema":{"type":"object"},"outputSchema":{"type":"array"},"title":"t"}'


async def test_older_clients_get_no_structured_content_that_they_cannot_read(company: Company, settings: Any) -> None:
    result = '{"content":[],"structuredContent":[1,{"a":99999999999999999999}]}'
    async with serving(company, settings, "mcp", "modern", ODD_OUTPUT, result) as gateway:
        new, old = await listed(gateway, company.token)
        assert ODD_OUTPUT.encode() in new
        assert b'{"name":"odd","inputSchema":{"type":"object"},"title":"t"}' in old
        reply, _ = await called(gateway, company.token)
        assert b'"structuredContent":[1,{"a":99999999999999999999}]' in reply.body
        content = (await legacy_call(gateway, company.token, "odd", {})).result
        assert "structuredContent" not in content
        assert content["content"] == [{"type": "text", "text": '[1,{"a":99999999999999999999}]'}]


@pytest.mark.parametrize(
    "text",
    [
        b'{"content":[{"type":"text","text":"\\"structuredContent\\":[]"}]}',
        b'{"content":[],"structuredContent":{"structuredContent":[1]}}',
        b'{"content":[],"structuredContent":{}}',
        b'{"content":[]}',
    ],
)
def test_results_that_older_clients_can_read_are_left_alone(text: bytes) -> None:
    assert older.result(text) is text


def test_what_is_structured_is_not_said_twice() -> None:
    text = b'{"content":[{"type":"text","text":"7"}],"structuredContent":7}'
    assert older.result(text) == b'{"content":[{"type":"text","text":"7"}]}'


@pytest.mark.parametrize("schema", [b"", b',"outputSchema":{"type":"object","x":1}'])
def test_definitions_that_older_clients_can_read_are_left_alone(schema: bytes) -> None:
    text = b'{"name":"a","description":"\\"outputSchema\\"","inputSchema":{"type":"object"}' + schema + b"}"
    assert older.definition(text) is text
