from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from tools.connectors import event_stream
from tools.connectors.event_stream import Cursor, events
from tools.connectors.mcp import McpConnector
from tools.tests.servers import make_server
from tools.tests.test_mcp import GOOD_RESULT, Scripted, call, failure, make_connector
from tools.tests.test_mcp import events as written

Rest = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def read(*chunks: bytes, cursor: Cursor) -> list[bytes]:
    async def arriving() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    return [data async for data in events(arriving(), cursor)]


@pytest.mark.parametrize(
    ("text", "identifier", "pause"),
    [
        (b"id: 7\ndata: x\n\n", "7", 1.0),
        (b"id: 7\nretry: 250\ndata:\n\n", "7", 0.25),
        (b"id: 7\n\n", "7", 1.0),
        (b"id: 7\ndata: x\n\ndata: y\n\n", "7", 1.0),
        (b"id: 7\ndata: x\n\nid: 8\ndata: never ended", "7", 1.0),
        (b"id: 7\ndata: x\n\nid\ndata: y\n\n", None, 1.0),
        (b"id: \xc3\xbc\ndata: x\n\n", None, 1.0),
        (b"id: a b\ndata: x\n\n", None, 1.0),
        (b"retry: soon\ndata: x\n\n", None, 1.0),
        (b"retry: 0\ndata: x\n\n", None, 0.05),
    ],
)
async def test_a_cursor_knows_where_and_when_to_go_on(text, identifier, pause):
    cursor = Cursor()
    await read(text, cursor=cursor)
    assert (cursor.id, cursor.pause_seconds) == (identifier, pause)


async def test_an_event_has_its_own_kind_and_the_id_outlasts_a_connection():
    cursor = Cursor()
    assert await read(b"event: endpoint\nid: 1\ndata: /there\n\n", cursor=cursor) == [b"/there"]
    assert cursor.kind == "endpoint"
    assert await read(b"data: x\n\n", cursor=cursor) == [b"x"]
    assert (cursor.kind, cursor.id) == ("message", "1")


# --- A stream that breaks off -----------------------------------------------------------------------------------------


class Broken(Scripted):
    """Answers a call with the beginning of a stream, and a GET with what `rest` makes of it."""

    def __init__(self, rest: Rest, era: str = "legacy", *, cut: bool = False, first: bytes = b"id: e-1\n") -> None:
        super().__init__(self._begin, era)
        self._rest, self._cut, self._first = rest, cut, first
        self.waiting: Any = None
        self.ended_at = 0.0
        self.asked: list[tuple[float, str | None]] = []

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if request.method != "GET":
            return await super().__call__(request)
        self.asked.append((time.monotonic() - self.ended_at, request.headers.get("Last-Event-ID")))
        assert request.headers["Mcp-Session-Id"] == "s-1"
        return await self._rest(request)

    async def _begin(self, request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        self.waiting = message["id"]
        response = await begun(request, self._first + b"retry: 60\ndata:\n\n")
        self.ended_at = time.monotonic()
        if self._cut:
            request.transport.abort()
        return response

    async def finish(self, request: web.Request) -> web.StreamResponse:
        return await begun(request, written({"jsonrpc": "2.0", "id": self.waiting, "result": GOOD_RESULT}))


async def begun(request: web.Request, text: bytes) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(text)
    return response


@asynccontextmanager
async def met(upstream: Broken) -> AsyncIterator[McpConnector]:
    async with make_server(upstream) as port:
        connector = make_connector(f"http://127.0.0.1:{port}/mcp", max_connections=1)
        yield connector
        await connector.close()


@pytest.mark.parametrize("cut", [False, True], ids=["closed", "cut"])
async def test_a_stream_that_ends_before_its_answer_is_taken_up_again_when_the_server_said(cut):
    upstream = Broken(lambda request: upstream.finish(request), cut=cut)
    async with met(upstream) as connector:
        assert await call(connector) == GOOD_RESULT
        assert await call(connector) == GOOD_RESULT
    assert [place for _, place in upstream.asked] == ["e-1", "e-1"]
    assert all(seconds >= 0.05 for seconds, _ in upstream.asked)
    assert upstream.count("tools/call") == 2


async def test_a_server_may_let_its_client_come_back_as_often_as_it_brings_something_new():
    async def rest(request: web.Request) -> web.StreamResponse:
        if len(upstream.asked) == 6:
            return await upstream.finish(request)
        return await begun(request, b"id: e-%d\nretry: 1\ndata:\n\n" % (len(upstream.asked) + 1))

    upstream = Broken(rest)
    async with met(upstream) as connector:
        assert await call(connector) == GOOD_RESULT
    assert [place for _, place in upstream.asked] == [f"e-{number}" for number in range(1, 7)]


async def nothing_new(request: web.Request) -> web.StreamResponse:
    return await begun(request, b": here\n\n")


async def not_known(request: web.Request) -> web.StreamResponse:
    return web.Response(status=404)


@pytest.mark.parametrize(("rest", "times"), [(nothing_new, 3), (not_known, 1)])
async def test_a_server_that_does_not_go_on_is_left_and_the_call_is_not_sent_again(rest, times):
    upstream = Broken(rest)
    async with met(upstream) as connector:
        error = await failure(call(connector))
    assert (error.code, error.sent) == ("bad_upstream_answer", True)
    assert str(error) == "The upstream's stream ended without an answer."
    assert (len(upstream.asked), upstream.count("tools/call")) == (times, 1)


async def test_a_server_that_is_gone_meanwhile_is_not_mistaken_for_one_that_was_not_asked(monkeypatch):
    monkeypatch.setattr(event_stream, "_LEAST_PAUSE_SECONDS", 0.0)

    async def hang_up(request: web.Request) -> web.StreamResponse:
        request.transport.abort()
        return web.Response()

    upstream = Broken(hang_up)
    async with met(upstream) as connector:
        error = await failure(call(connector))
    assert (error.code, error.retryable, error.sent) == ("upstream_unavailable", True, True)
    assert len(upstream.asked) == 3


@pytest.mark.parametrize(("era", "first"), [("modern", b"id: e-1\n"), ("legacy", b"")])
async def test_a_stream_that_cannot_be_taken_up_is_not_asked_for(era, first):
    upstream = Broken(not_known, era, first=first)
    async with met(upstream) as connector:
        assert (await failure(call(connector))).code == "bad_upstream_answer"
    assert upstream.asked == []


async def test_a_call_whose_deadline_passes_while_it_waits_leaves_the_connection_to_others():
    upstream = Broken(nothing_new, first=b"id: e-1\nretry: 60000\n: not ")
    async with met(upstream) as connector:
        assert (await failure(call(connector, deadline_seconds=0.2))).code == "upstream_timeout"
        upstream._rest, upstream._first = upstream.finish, b"id: e-1\n"
        assert await call(connector) == GOOD_RESULT
