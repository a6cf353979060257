"""HTTP with SSE: the official server of that transport, and little ones that mean no good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from aiohttp import web

from tools.connectors import limits
from tools.connectors.base import Client
from tools.connectors.mcp import McpConnector
from tools.connectors.mcp_headers import MirroringTool as McpTool
from tools.tests.servers import Counter, make_server
from tools.tests.test_mcp import (
    GOOD_RESULT,
    TRACE,
    Recorder,
    Scripted,
    answer_ok,
    call,
    failure,
    make_connector,
    make_context,
    make_sdk_server,
    serving,
)
from tools.tests.test_mcp import events as written

Act = Callable[["Old", dict[str, Any]], Awaitable[None]]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


# --- The official server ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def official(**options: Any) -> AsyncIterator[tuple[McpConnector, Recorder]]:
    app = Recorder(make_sdk_server().sse_app(), "modern")
    async with serving(app) as url:
        connector = make_connector(url.replace("/mcp", "/sse"), **options)
        try:
            yield connector, app
        finally:
            await connector.close()


@pytest.mark.parametrize("transport", ["auto", "sse"])
async def test_the_official_server_is_understood(transport):
    async with official(transport=transport, max_connections=1) as (connector, app):
        said = "sdk answers with revision 2025-11-25. It speaks HTTP with SSE, which is deprecated."
        assert await connector.check() == said
        kinds = {offer.name: offer.kind for offer in await connector.discover()}
        assert kinds["echo"] == "tool"
        assert (kinds["welcome"], kinds["desk://open/{number}"]) == ("prompt", "template")
        answers = await asyncio.gather(*(call(connector, text=f"grüße {n}") for n in range(20)))
        assert [answer["content"][0]["text"] for answer in answers] == [f"grüße {n}" for n in range(20)]
        refused = await connector.call(McpTool(name="refuse"), {}, make_context())
        assert refused.is_error is True
        read = await connector.request("resources/read", {"uri": "desk://open/7"}, make_context())
        assert read.content["contents"][0]["text"] == "ticket 7"
        missing = await failure(connector.request("resources/read", {"uri": "desk://closed"}, make_context()))
        assert missing.code == "upstream_refused"
        # What was tried first: discovery and initialisation over streamable HTTP.
        assert sum("mcp-method" in headers for headers in app.headers) == (transport == "auto")


async def test_progress_of_a_call_reaches_its_own_caller():
    class Watcher(Client):
        capabilities: dict[str, Any] = {}
        wants_progress = True

        def __init__(self) -> None:
            self.heard: list[Any] = []

        def tell(self, method: str, params: dict[str, Any]) -> None:
            self.heard.append((method, params.get("progress")))

        async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
            raise AssertionError("nothing can be asked")

    watcher = Watcher()
    async with official() as (connector, _):
        context = make_context()._replace(client=watcher)
        result, other = await asyncio.gather(
            connector.call(McpTool(name="chatty"), {}, context), call(connector, "chatty")
        )
    assert result.content["content"] == other["content"]
    assert watcher.heard == [("notifications/progress", step) for step in range(3)]


# --- Servers by hand --------------------------------------------------------------------------------------------------


class Old:
    """Greets over HTTP with SSE, and does with everything else what `act` says."""

    def __init__(self, act: Act, *, first: str = "event: endpoint\ndata: /there?session={number}\n\n") -> None:
        self.act, self.first = act, first
        self.refuses_post_with = 405
        self.stream: web.StreamResponse | None = None
        self.opened = 0
        self.messages: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.status = 202

    def count(self, method: str) -> int:
        return [message.get("method") for message in self.messages].count(method)

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            return await self._open(request)
        if request.path != "/there":
            return web.Response(status=self.refuses_post_with)
        self.paths.append(request.path_qs)
        message = await request.json()
        self.messages.append(message)
        self.headers.append(dict(request.headers))
        match message.get("method"):
            case "initialize":
                await self.say(
                    id=message["id"], result={"protocolVersion": "2024-11-05", "serverInfo": {"name": "old"}}
                )
            case "notifications/initialized":
                pass
            case _:
                await self.act(self, message)
        return web.Response(status=self.status if message.get("method") == "tools/call" else 202)

    async def _open(self, request: web.Request) -> web.StreamResponse:
        self.opened += 1
        self.stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await self.stream.prepare(request)
        await self.stream.write(self.first.format(number=self.opened).encode())
        self.is_over = asyncio.Event()
        await self.is_over.wait()
        return self.stream

    async def say(self, **message: Any) -> None:
        assert self.stream is not None
        await self.stream.write(written({"jsonrpc": "2.0", **message}))


async def answer_all(old: Old, message: dict[str, Any]) -> None:
    if "id" in message:
        await old.say(id=message["id"], result=GOOD_RESULT)


async def answer_nothing(old: Old, message: dict[str, Any]) -> None:
    return None


@asynccontextmanager
async def met(
    old: Callable[[web.Request], Awaitable[web.StreamResponse]], **options: Any
) -> AsyncIterator[McpConnector]:
    async with make_server(old) as port:
        connector = make_connector(f"http://127.0.0.1:{port}/sse", **options)
        yield connector
        await connector.close()


@pytest.mark.parametrize("status", [400, 404, 405])
async def test_a_server_that_refuses_the_newer_transport_is_spoken_to_over_the_old_one(status):
    old = Old(answer_all)
    old.refuses_post_with = status
    async with met(old, bearer_token="our-own-token") as connector:
        await connector.call(McpTool(name="echo"), {}, make_context(traceparent=TRACE))
        assert await connector.check() == (
            "old answers with revision 2024-11-05. It speaks HTTP with SSE, which is deprecated."
        )
    assert set(old.paths) == {"/there?session=1", "/there?session=2"}
    assert {headers["Authorization"] for headers in old.headers} == {"Bearer our-own-token"}
    assert [headers.get("traceparent") for headers in old.headers].count(TRACE) == 1


@pytest.mark.parametrize("status", [401, 403, 500])
async def test_another_refusal_is_told_and_nothing_else_is_tried(status):
    old = Old(answer_all)
    old.refuses_post_with = status
    async with met(old) as connector:
        assert f"HTTP status {status}" in str(await failure(call(connector)))
    assert old.opened == 0


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ("event: endpoint\ndata: http://127.0.0.1:1/there\n\n", "another origin"),
        ("event: endpoint\ndata: https://127.0.0.1/there\n\n", "another origin"),
        ("event: endpoint\ndata: //evil.example/there\n\n", "another origin"),
        ("event: endpoint\ndata: http://user@127.0.0.1/there\n\n", "another origin"),
        ("event: endpoint\ndata: /the re\n\n", "no URL"),
        ("event: endpoint\ndata: /th\u00e9re\n\n", "no URL"),
        ("event: endpoint\ndata: http://[there\n\n", "no URL"),
        ("data: /there\n\n", "HTTP status 405"),
        ("event: message\ndata: /there\n\n", "HTTP status 405"),
    ],
)
async def test_nothing_is_sent_elsewhere_than_to_the_origin_of_the_url(first, said):
    old, target = Old(answer_all, first=first), Counter()
    async with make_server(target), met(old, bearer_token="token-canary") as connector:
        assert said in str(await failure(call(connector)))
    assert (old.messages, target.count) == ([], 0)


@pytest.mark.parametrize("path", ["/there?session=1", "there?session=1", "{url}/there?session=1"])
async def test_what_is_named_to_send_to_may_be_relative_or_whole(path):
    async with make_server(lambda request: old(request)) as port:
        old = Old(answer_all, first=f"event: endpoint\ndata: {path.format(url=f'http://127.0.0.1:{port}')}\n\n")
        connector = make_connector(f"http://127.0.0.1:{port}/sse")
        assert await call(connector) == GOOD_RESULT
        await connector.close()
    assert set(old.paths) == {"/there?session=1"}


async def test_a_stream_that_ends_fails_the_calls_under_way_and_the_next_one_opens_another():
    async def act(old: Old, message: dict[str, Any]) -> None:
        if old.opened > 1:
            await answer_all(old, message)
        else:
            old.is_over.set()

    old = Old(act)
    async with met(old) as connector:
        error = await failure(call(connector))
        assert (error.code, error.retryable, error.sent) == ("upstream_unavailable", True, True)
        assert await call(connector) == GOOD_RESULT
        assert await call(connector) == GOOD_RESULT
    assert (old.opened, old.count("initialize")) == (2, 2)


async def test_a_session_that_the_server_does_not_know_is_begun_anew_within_the_call():
    async def act(old: Old, message: dict[str, Any]) -> None:
        old.status = 404 if old.opened == 1 else 202
        if old.opened > 1:
            await answer_all(old, message)

    old = Old(act)
    async with met(old) as connector:
        assert await call(connector) == GOOD_RESULT
    assert (old.opened, old.count("tools/call")) == (2, 2)


async def test_a_refused_message_is_told_and_leaves_the_stream_to_others():
    async def act(old: Old, message: dict[str, Any]) -> None:
        old.status = 500 if message["params"]["name"] == "bad" else 202
        await answer_all(old, message)

    async with met(Old(act)) as connector:
        assert "HTTP status 500" in str(await failure(call(connector, "bad")))
        assert await call(connector) == GOOD_RESULT


async def test_a_call_whose_deadline_passes_is_cancelled_at_the_server_and_its_late_answer_is_no_offence(monkeypatch):
    monkeypatch.setattr(limits, "_MOST_NOISE_BYTES", 1_000)

    async def act(old: Old, message: dict[str, Any]) -> None:
        if message["method"] == "notifications/cancelled":
            await old.say(id=message["params"]["requestId"], result={"content": [], "much": "x" * 5_000})
            told.set()
        elif message["params"]["name"] == "echo":
            await answer_all(old, message)

    old, told = Old(act), asyncio.Event()
    async with met(old) as connector:
        await call(connector)
        assert (await failure(call(connector, "slow", 0.1))).code == "upstream_timeout"
        await asyncio.wait_for(told.wait(), 5)
        assert await call(connector) == GOOD_RESULT
    assert old.opened == 1


async def test_no_more_calls_are_under_way_than_there_may_be_connections():
    async def act(old: Old, message: dict[str, Any]) -> None:
        waiting.append(message["id"])
        most.append(len(waiting))
        if len(waiting) == 2:
            for _ in range(2):
                await old.say(id=waiting.pop(), result=GOOD_RESULT)

    waiting: list[Any] = []
    most: list[int] = []
    async with met(Old(act), max_connections=2) as connector:
        await asyncio.gather(*(call(connector) for _ in range(6)))
    assert (len(most), max(most)) == (6, 2)


async def test_what_the_server_asks_of_a_client_is_declined():
    async def act(old: Old, message: dict[str, Any]) -> None:
        if "method" in message:
            calls.append(message["id"])
            await old.say(id="s-1", method="sampling/createMessage", params={})
        else:
            assert message["error"]["code"] == -32601
            await old.say(id=calls[-1], result=GOOD_RESULT)

    calls: list[Any] = []
    async with met(Old(act)) as connector:
        assert await call(connector) == GOOD_RESULT


@pytest.mark.parametrize("much", [b": " + b"x" * 99_000 + b"\n", b"data: " + b"x" * 99_000 + b"\n"])
async def test_an_event_without_end_is_cut(monkeypatch, much):
    monkeypatch.setattr(limits, "MAX_RESULT_BYTES", 500_000)

    async def act(old: Old, message: dict[str, Any]) -> None:
        assert old.stream is not None
        with suppress(ConnectionError):
            for _ in range(1_000):
                await old.stream.write(much)

    async with met(Old(act)) as connector:
        assert (await failure(call(connector))).code == "result_too_large"


async def test_a_stream_may_carry_more_in_its_life_than_one_answer_may_have(monkeypatch):
    monkeypatch.setattr(limits, "MAX_RESULT_BYTES", 100_000)

    async def act(old: Old, message: dict[str, Any]) -> None:
        await old.say(id=message["id"], result={"content": [{"type": "text", "text": "x" * 60_000}]})

    old = Old(act)
    async with met(old) as connector:
        for _ in range(4):
            await call(connector)
    assert old.opened == 1


async def test_a_server_that_says_without_end_what_nobody_asked_for_is_left(monkeypatch):
    monkeypatch.setattr(limits, "_MOST_NOISE_BYTES", 10_000)

    async def act(old: Old, message: dict[str, Any]) -> None:
        with suppress(ConnectionError):
            for _ in range(200):
                await old.say(method="notifications/message", params={"level": "info", "data": "noise"})

    async with met(Old(act)) as connector:
        error = await failure(call(connector))
    assert str(error) == "The upstream says without end what it was not asked for."


async def test_a_server_that_has_learnt_the_newer_transport_is_met_over_it():
    old, new = Old(answer_all), Scripted(answer_ok)
    knows = old

    async def handler(request: web.Request) -> web.StreamResponse:
        if knows is new and request.method == "GET":
            return web.Response(status=405)
        return await knows(request)

    async with met(handler) as connector:
        assert await call(connector) == GOOD_RESULT
        knows = new
        old.is_over.set()
        while connector._greeting is not None:
            await asyncio.sleep(0.005)
        assert await connector.check() == "unnamed server answers with revision 2026-07-28."


async def test_a_server_that_speaks_neither_transport_is_told_by_its_refusal():
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=405 if request.method == "POST" else 404)

    async with met(handler) as connector:
        assert "HTTP status 405" in str(await failure(call(connector)))
    async with met(handler, transport="sse") as connector:
        said = str(await failure(call(connector)))
    assert said == "The upstream does not speak HTTP with SSE: The upstream answered with HTTP status 404."


@pytest.mark.parametrize("address", ["127.0.0.2", "10.0.0.1", "169.254.169.254", "[::1]"])
async def test_the_gate_stands_before_the_stream_too(address):
    connector = make_connector(f"http://{address}:9/sse", transport="sse")
    error = await failure(call(connector))
    await connector.close()
    assert (error.code, error.sent) == ("egress_denied", False)


async def test_a_closed_connector_leaves_no_stream_behind():
    old = Old(answer_nothing)
    async with met(old) as connector:
        waiting = asyncio.create_task(call(connector))
        while not old.count("tools/call"):
            await asyncio.sleep(0.005)
        await connector.close()
        assert (await failure(waiting)).code == "upstream_unavailable"
        assert (await failure(call(connector))).code == "upstream_unavailable"
