"""What is fuzzed: each target takes any bytes, and fails an assertion where something is not as it has to be.

The oracles know nothing of the code that they judge: strict JSON is what Python's own parser makes of it, an event
stream is parsed a second time and in one piece, headers are compared as texts.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from gateway import answers, http, older, states, wire
from gateway.wire import WireError
from tools import exact
from tools.connectors.base import ConnectorError
from tools.connectors.event_stream import Cursor, events
from tools.connectors.http1 import HttpClient
from tools.connectors.http1_connection import Connection, Stream
from tools.connectors.mcp_greeting import capabilities_of, name_of
from tools.connectors.mcp_input import asks, questions_of
from tools.connectors.mcp_lists import definitions
from tools.connectors.mcp_messages import RpcError, parsed, result_of
from tools.egress import Egress
from tools.mirrored import mirrored
from tools.schemas import SchemaRefused, compile_schema, problems

_LEVELS = 201


@dataclass(frozen=True)
class Target:
    """One thing to fuzz, with texts to begin with and words to put in."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    words: tuple[bytes, ...] = ()


# --- JSON -------------------------------------------------------------------------------------------------------------


def strictly(text: bytes) -> Any:
    """What Python's parser makes of it, by RFC 8259 and RFC 7493. Raises ValueError."""
    value = json.loads(text.decode(), object_pairs_hook=_without_doubles, parse_constant=_refuse, parse_float=_finite)
    json.dumps(value, ensure_ascii=False).encode()  # Raises for lone surrogates.
    return value


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _refuse(word: str) -> None:
    raise ValueError(word)


def _finite(text: str) -> float:
    if (value := float(text)) in (float("inf"), float("-inf")):
        raise ValueError(text)
    return value


def _depth(value: Any) -> int:
    deepest, stack = 0, [(value, 1)]
    while stack:
        node, depth = stack.pop()
        deepest = max(deepest, depth if isinstance(node, (dict, list)) else 0)
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        stack += [(child, depth + 1) for child in children]
    return deepest


def _same(one: Any, other: Any) -> bool:
    """Equal in value, type, and order of keys."""
    return repr(one) == repr(other)


def run_json(data: bytes) -> None:
    """`exact.read` takes what is strict JSON, as it is, and nothing else."""
    try:
        expected = strictly(data)
    except (ValueError, RecursionError):
        expected = Ellipsis
    try:
        found = exact.read(data)
    except ValueError:
        assert expected is Ellipsis or _depth(expected) > _LEVELS, "strict JSON is refused"
        return
    assert expected is not Ellipsis, "what is no strict JSON is taken"
    assert _same(found, expected), "a value has changed"
    assert _same(exact.taken(data), expected)
    assert _same(strictly(exact.written(found)), expected), "a value changes when it is written"


# --- Messages of clients ----------------------------------------------------------------------------------------------

_VERSIONS = (None, wire.MODERN, *wire.LEGACY, "2099-01-01")


def run_wire(data: bytes) -> None:
    """The first byte chooses the revision in the header, what follows up to a line break is another header."""
    head, _, body = data[1:].partition(b"\n")
    name, _, value = head.partition(b":")
    raw = [(b"host", b"localhost"), (name.lower(), value)] if name else []
    if version := _VERSIONS[data[0] % len(_VERSIONS)] if data else None:
        raw.append((b"mcp-protocol-version", version.encode()))
    try:
        headers = wire.headers_of(raw)
        content = wire.read(body, headers)
        batched = content if isinstance(content, list) else [content]
        messages = [wire.message_of(each, headers) for each in batched]
    except WireError as error:
        _check_error(error)
        return
    assert _same(strictly(body), content)
    for message, given in zip(messages, batched, strict=True):
        _check_message(message, given, headers)
    if isinstance(content, list):
        assert version in (None, wire.BATCHING)


def _check_error(error: WireError) -> None:
    assert 400 <= error.status < 500, "bad input is no failure of ours"
    answer = json.loads(wire.error_body(error))
    assert answer["error"]["code"] == error.code
    assert not -32099 <= error.code <= -32023, "a code that the specification does not define"
    assert answer.get("id", "") is not None


def _check_message(message: wire.Message, given: Any, headers: wire.Headers) -> None:
    assert given["jsonrpc"] == "2.0"
    assert type(given.get("id", "")) in (str, int)
    assert message.identifier == given.get("id")
    if not message.method:
        assert ("result" in given) is not ("error" in given)
        assert not message.modern
        return
    assert message.method == given["method"]
    assert isinstance(message.params, dict)
    assert "result" not in given
    meta = message.params.get("_meta", {})
    if message.modern and message.identifier is not None:
        assert headers[b"mcp-protocol-version"].decode() == meta["io.modelcontextprotocol/protocolVersion"]
        assert isinstance(message.capabilities, dict)
        assert wire.decoded(headers[b"mcp-method"].decode("latin-1")) == message.method
    for each in (message.progress_token, message.log_level, message.traceparent, message.client):
        assert each is None or isinstance(each, (str, int))


def run_headers(data: bytes) -> None:
    """Mirrored arguments: what is taken for equal is equal."""
    head, _, argument = data.partition(b"\n")
    http._takes.__wrapped__(head, http._KINDS_OF_JSON)
    text = head.strip().decode("latin-1")
    decoded = wire.decoded(text)
    assert decoded is None or decoded == text or text.startswith("=?base64?")
    try:
        value = strictly(argument)
    except (ValueError, RecursionError):
        return
    try:
        wire.compare_parameters({b"mcp-param-x": head.strip()}, {"mcp-param-x": ("a",)}, {"a": value})
    except WireError as error:
        assert error.code == wire.HEADER_MISMATCH
        return
    if isinstance(value, str):
        assert value == decoded
    elif isinstance(value, bool):
        assert decoded == json.dumps(value)
    else:
        assert isinstance(value, (int, float)), "only texts, numbers and booleans are mirrored"
        assert decoded is not None
        assert re.fullmatch(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", decoded), "this is no number"
        if isinstance(value, int) and decoded.lstrip("-").isdigit():
            assert int(decoded) == value


def run_cursor(data: bytes) -> None:
    """A cursor is one of ours, or refused."""
    text = data.decode("utf-8", "surrogateescape")
    for value in (text, data, len(data), [text], None):
        try:
            page = answers._cursor(value, 5)
        except WireError as error:
            assert error.code == wire.INVALID_PARAMS
            continue
        assert 0 <= page < 5
        assert page == (int(text) if value else 0)


def run_state(data: bytes) -> None:
    """No text opens a state but the one that was sealed, for what it was sealed for."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        opened = states.opened(b"bound", text)
    except WireError as error:
        assert error.code == wire.INVALID_PARAMS
        return
    raise AssertionError(f"{opened} was never sealed")


# --- Answers of upstreams ---------------------------------------------------------------------------------------------


def run_upstream(data: bytes) -> None:
    """Whatever an upstream says is understood, or a ConnectorError."""
    message = parsed(data)
    if message is None:
        return
    try:
        result = result_of(message)
    except (RpcError, ConnectorError) as error:
        assert len(str(error)) < 600
        return
    name_of(result.get("serverInfo"))
    capabilities_of(result)
    for key, name in (("tools", "name"), ("resources", "uri")):
        try:
            found = definitions(result, "tool", key, name)
        except ConnectorError:
            continue
        assert all(isinstance(each[name], str) for each in found)
        for each in found:
            mirrored(each.get("inputSchema"))
    try:
        if asks(result, "tools/call"):
            questions_of(result, None)
    except ConnectorError:
        return
    try:
        body = exact.written(result)
    except orjson.JSONEncodeError:  # Too deep: the pipeline says so.
        return
    older.definition(body)
    assert _same(exact.taken(older.result(body)).get("isError"), result.get("isError"))


def _chunks(data: bytes) -> Iterator[bytes]:
    """The data in pieces, of which its own bytes choose the lengths."""
    at = 0
    while at < len(data):
        size = 1 + data[at] % 7
        yield data[at : at + size]
        at += size


def run_events(data: bytes) -> None:
    """An event stream is the same in whatever pieces it comes, and what the HTML standard makes of it."""

    async def read(pieces: list[bytes]) -> tuple[list[bytes], str | None, str]:
        async def chunks() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        cursor = Cursor()
        found = [event async for event in events(chunks(), cursor)]
        assert cursor.pause_seconds > 0
        return found, cursor.id, cursor.kind

    whole, pieces = _now(read([data])), _now(read(list(_chunks(data))))
    assert whole == pieces
    if b"\xef\xbb\xbf" not in data:
        assert whole[0] == _events_by_the_standard(data)


def _now(verb: Any) -> Any:
    """What a coroutine gives that waits for nothing."""
    try:
        verb.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


def _events_by_the_standard(data: bytes) -> list[bytes]:
    lines = re.split(rb"\r\n|\n|\r", data)[:-1]  # Without a line's end it is not one yet.
    found, fields = [], []
    for line in lines:
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                fields.append(value[1:] if value[:1] == b" " else value)
        elif fields:
            found.append(b"\n".join(fields))
            fields = []
    return found


class _Transport(asyncio.Transport):
    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Nobody reads it."""

    def abort(self) -> None:
        """Nothing is open."""


def run_http(data: bytes) -> None:
    """Whatever comes over a connection, the exchange has an end, and what it gives is bounded."""
    loop = asyncio.new_event_loop()
    problems_of_loop: list[Any] = []
    loop.set_exception_handler(lambda _, context: problems_of_loop.append(context))
    try:
        loop.run_until_complete(_exchange(data))
    finally:
        loop.close()
    assert not problems_of_loop, problems_of_loop


async def _exchange(data: bytes) -> None:
    client = HttpClient("http://127.0.0.1/", {}, Egress(), 1)
    await client._places.acquire()
    connection = Connection(client._released)
    connection.connection_made(_Transport())
    client._used.add(connection)
    exchange = asyncio.ensure_future(connection.exchange(b""))
    await asyncio.sleep(0)
    for chunk in _chunks(data):
        connection.data_received(chunk)
    connection.eof_received()
    connection.connection_lost(None)
    try:
        response = await asyncio.wait_for(exchange, 1)
        assert 200 <= response.status <= 999
        assert len(response.body) <= len(data)
        if response.stream is not None:
            await _read_to_the_end(response.stream)
    except ConnectorError:
        pass
    assert not client._used, "a place is lost"
    await client.close()


async def _read_to_the_end(stream: Stream) -> None:
    try:
        async for _ in events(stream.chunks()):
            pass
    finally:
        stream.close()


# --- Schemas ----------------------------------------------------------------------------------------------------------


def run_schema(data: bytes) -> None:
    """A schema is refused with a sentence, or checks any arguments; the fuzzer itself watches the time."""
    head, _, rest = data.partition(b"\n")
    try:
        schema, arguments = strictly(head), strictly(rest or b"{}")
        validator = compile_schema(schema)
    except SchemaRefused as error:
        assert 0 < len(str(error)) < 500
        return
    except (ValueError, RecursionError):
        return
    assert all(0 < len(each) <= 300 for each in problems(validator, arguments))


_CALL = (
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","arguments":{"n":1.0},"_meta":'
    b'{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},'
    b'"progressToken":1,"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}}'
)
_JSON_WORDS = (
    *(b'"', b"{", b"}", b"[", b"]", b":", b",", b"null", b"true", b"NaN", b"1e400", b"-0", b"18446744073709551616"),
    *(b"1e2", b"1.0", b"\\u0061", b"\\ud800", b"\\udc00", b"\xed\xa0\x80", b"\xff", b"\xef\xbb\xbf", b"9" * 30, b"0.1"),
)
_MESSAGE_WORDS = (
    *(b'"id":', b'"method":', b'"params":{', b'"_meta":{', b'"result":{}', b'"error":{"code":1,"message":""}'),
    *(b'"jsonrpc":"2.0",', b"mcp-method:", b"mcp-name:", b"2025-03-26", b"[{", b"}]"),
)
_HTTP = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
_STREAMED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"9\r\ndata: 1\n\n\r\n0\r\n\r\n"
)
TARGETS: dict[str, Target] = {
    "json": Target(
        run_json, (_CALL, b' [1e2, "\\ud83d\\ude00", 340282366920938463463374607431768211456]'), _JSON_WORDS
    ),
    "wire": Target(
        run_wire,
        (
            b"\x01mcp-method:tools/list\n" + _CALL.replace(b"tools/call", b"tools/list"),
            b"\x02\n" + b'{"jsonrpc":"2.0","id":"a","result":{}}',
            b"\x00\n" + b'[{"jsonrpc":"2.0","method":"notifications/initialized"}]',
        ),
        (*_JSON_WORDS, *_MESSAGE_WORDS),
    ),
    "headers": Target(
        run_headers,
        (b'=?base64?ZWNobw==?=\n"echo"', b"42.0\n42", b"true\ntrue", b'application/json;q=0.0, */*\n"x"'),
        (*_JSON_WORDS, b"=?base64?", b"?=", b"q=0", b"e+1", b"_"),
    ),
    "cursor": Target(run_cursor, (b"", b"1", b"4", b"5", b"000001", b"\xef\xbc\x91"), (b"-", b"+", b" ")),
    "state": Target(run_state, (b"", b"AAAA", b"A" * 200 + b"=="), (b"_", b"-", b"=", b"+", b"/")),
    "upstream": Target(
        run_upstream,
        (
            b'{"jsonrpc":"2.0","id":1,"result":{"content":[],"structuredContent":[1],"isError":false}}',
            b'{"id":1,"result":{"resultType":"input_required","requestState":"s","inputRequests":{"a":{"method":'
            b'"elicitation/create","params":{"mode":"form"}}}}}',
            b'{"id":1,"result":{"tools":[{"name":"a","inputSchema":{"type":"object","properties":{"a":{"x-mcp-header":'
            b'"A"}}}}],"capabilities":{"tools":{"listChanged":true}},"serverInfo":{"name":"a"}}}',
            b'{"id":1,"error":{"code":-32601,"message":"no","data":{"supported":["2025-11-25"]}}}',
        ),
        (*_JSON_WORDS, b'"outputSchema":', b'"structuredContent":', b'"result":{}', b'"mode":[]'),
    ),
    "events": Target(
        run_events,
        (b"event: message\r\nid: 1\r\ndata: {}\r\n\r\n", b": hello\n\ndata: a\rdata: b\r\rretry: 10\n\n", b"data\n\n"),
        (b"\r\n", b"\r", b"\n\n", b"data: ", b"id: ", b"retry: ", b"event: ", b"\xef\xbb\xbf", b"\x0b", b"\x85"),
    ),
    "http": Target(
        run_http,
        (_HTTP, _STREAMED, b"HTTP/1.1 100 Continue\r\n\r\n" + _HTTP, b"HTTP/1.1 200 OK\r\n\r\nuntil the end"),
        (b"\r\n", b"Content-Length: ", b"Transfer-Encoding: chunked", b"HTTP/1.1 ", b"0\r\n\r\n", b"Connection: close"),
    ),
    "schema": Target(
        run_schema,
        (
            b'{"type":"object","properties":{"a":{"type":"string","pattern":"^a+$"}},"required":["a"]}\n{"a":"aa"}',
            b'{"type":"object","$defs":{"n":{"anyOf":[{"$ref":"#/$defs/n"},{"type":"null"}]}},"$ref":"#/$defs/n"}\n{}',
            b'{"$schema":"http://json-schema.org/draft-07/schema#","type":"object","dependencies":{"a":["b"]}}\n{"a":1}',
        ),
        (
            *(_JSON_WORDS),
            *(b'"$ref":"#"', b'"$dynamicRef":"#a"', b'"$anchor":"a"', b'"allOf":[', b'"not":{', b'"enum":['),
            *(b'"patternProperties":{', b'"format":"', b'"multipleOf":', b'"unevaluatedProperties":', b'"$id":"'),
        ),
    ),
}
