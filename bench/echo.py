"""The upstream of every measurement: an MCP server with one tool or many, so cheap that what stands before it shows."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import orjson
import uvicorn
from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

MODERN = "2026-07-28"
LEGACY = "2025-11-25"

_TOOL = (
    b'{"name":"%b","description":"Returns the text that it is given.","inputSchema":{"type":"object",'
    b'"properties":{"text":{"type":"string"}},"required":["text"]},"annotations":{"readOnlyHint":true}}'
)
_SERVER_INFO = b'{"name":"echo","version":"1"}'
_META = b'"_meta":{"io.modelcontextprotocol/serverInfo":' + _SERVER_INFO + b"}"
_MODERN_LIST = b',"ttlMs":60000,"cacheScope":"public","resultType":"complete",' + _META + b"}"
_DISCOVERED = (
    b'{"supportedVersions":["2026-07-28","2025-11-25"],"capabilities":{"tools":{}},"instructions":"Echo."'
    + _MODERN_LIST
)
_INITIALIZED = (
    b'{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":'
    + _SERVER_INFO
    + b',"instructions":"Echo."}'
)
_MODERN_END = b',"isError":false,"resultType":"complete",' + _META + b"}"
_JSON = (b"content-type", b"application/json")
# What the tool `long` adds to what it was given: answers of a megabyte.
_LONG = b" " + b"All work and no play. " * 47_662


async def app(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """Answer one MCP message: both eras (basic/transports of 2026-07-28 and of 2025-11-25), no sessions.

    The path is any; it may end with how many tools there are, and with 0 for the one that answers at length.
    """
    assert scope["type"] == "http"
    if scope["method"] != "POST":
        return await _respond(send, 405, b"")
    count = scope["path"].rpartition("/")[2]
    tools = int(count) if count.isdecimal() else 1
    status, body = answer(await read_body(receive), _is_modern(scope["headers"]), tools)
    return await _respond(send, status, body)


def _is_modern(headers: Any) -> bool:
    return any(name == b"mcp-protocol-version" and value.strip() == MODERN.encode() for name, value in headers)


async def read_body(receive: ASGIReceiveCallable) -> bytes:
    """The whole request body; ConnectionError when the client went away before its end."""
    chunks: list[bytes] = []
    while True:
        event = await receive()
        if event["type"] != "http.request":
            raise ConnectionError("The client went away.")
        chunks.append(event.get("body", b""))
        if not event.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def answer(body: bytes, modern: bool, tools: int = 1) -> tuple[int, bytes]:
    """HTTP status and JSON-RPC answer (empty for a notification) to the message in `body`."""
    message = orjson.loads(body)
    if "id" not in message:
        return 202, b""
    status, member = _member(message.get("method"), message.get("params") or {}, modern, tools)
    return status, b'{"jsonrpc":"2.0","id":' + orjson.dumps(message["id"]) + b"," + member + b"}"


def _member(method: object, params: dict[str, Any], modern: bool, tools: int) -> tuple[int, bytes]:
    if method == "tools/call":
        return _called(params, modern)
    if method == "tools/list":
        names = (b"echo", *(b"other_%03d" % number for number in range(1, tools))) if tools else (b"long",)
        listed = b",".join(_TOOL % name for name in names)
        return 200, b'"result":{"tools":[' + listed + b"]" + (_MODERN_LIST if modern else b"}")
    if method == "server/discover" and modern:
        return 200, b'"result":' + _DISCOVERED
    if method == "initialize" and not modern:
        return 200, b'"result":' + _INITIALIZED
    if method == "ping" and not modern:
        return 200, b'"result":{}'
    return 404 if modern else 200, b'"error":{"code":-32601,"message":"Method not found"}'


def _called(params: dict[str, Any], modern: bool) -> tuple[int, bytes]:
    text, name = (params.get("arguments") or {}).get("text"), params.get("name")
    if name not in ("echo", "long"):
        return 200, b'"error":{"code":-32602,"message":"Unknown tool"}'
    if not isinstance(text, str):
        return 200, b'"result":{"content":[{"type":"text","text":"text must be a string"}],"isError":true' + (
            b',"resultType":"complete"}' if modern else b"}"
        )
    more = _LONG if name == "long" else b""
    content = b'"result":{"content":[{"type":"text","text":' + orjson.dumps(text)[:-1] + more + b'"}]'
    return 200, content + (_MODERN_END if modern else b',"isError":false}')


async def _respond(send: ASGISendCallable, status: int, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    if body:
        headers.append(_JSON)
    await send({"type": "http.response.start", "status": status, "headers": headers, "trailers": False})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def serve(application: Any, port: int) -> None:
    """Run `application` on loopback as the site's web workers run: uvicorn, uvloop, httptools, no access log.

    Idle connections stay open: each target idles while the others are measured, and a request that crosses the closing
    of its connection would fail without a fault of the target.
    """
    uvicorn.run(
        application,
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        log_level="warning",
        timeout_keep_alive=600,
        timeout_graceful_shutdown=2,
    )


def serve_lines() -> None:
    """Answer each line of standard input with one of standard output (transport stdio), in the era that it names."""
    for line in sys.stdin.buffer:
        body = answer(line, MODERN.encode() in line)[1]
        if body:
            sys.stdout.buffer.write(body + b"\n")
            sys.stdout.buffer.flush()


def main() -> None:
    """Serve the echo tool on loopback, or on standard input and output."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--port", type=int)
    where.add_argument("--stdio", action="store_true")
    options = parser.parse_args()
    if options.stdio:
        serve_lines()
    else:
        serve(app, options.port)


if __name__ == "__main__":
    main()
