"""What an upstream says without a call is heard, over whichever line its era has."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

import orjson
import pytest
from aiohttp import web

from tools.connectors import limits, mcp_ears
from tools.connectors.base import ConnectorError, Context, Source
from tools.connectors.mcp import McpConnector, McpOptions
from tools.egress import Egress, Rule
from tools.tests.servers import make_server
from tools.tests.test_mcp_stdio import Connect, call, connect, failure, until

__all__ = ["connect"]

Era = Literal["modern", "legacy"]
ERAS: tuple[Era, ...] = ("modern", "legacy")
CAPABILITIES = {"tools": {"listChanged": True}, "resources": {"subscribe": True}}
NOTES = "notifications/"


class Talker:
    """A server that speaks first, over one line at a time."""

    def __init__(self, era: Era, capabilities: dict[str, Any]) -> None:
        self.era, self.capabilities = era, capabilities
        self.lines: list[web.StreamResponse] = []
        self.asked: list[tuple[str, Any]] = []
        self.subscribed: set[str] = set()
        self.responses = 0
        self._last: Any = None
        self._hung_up = asyncio.Event()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            assert request.headers["Mcp-Session-Id"] == "s1"
            return await self._line(request, None)
        if request.method == "DELETE":
            return web.Response()
        message = orjson.loads(await request.read())
        if "method" not in message:
            self.responses += 1
            return web.Response(status=202)
        method, params = message["method"], message.get("params", {})
        if self.era == "legacy" and "Mcp-Method" in request.headers:
            return web.Response(status=400)
        self.asked.append((method, params))
        if method == "subscriptions/listen":
            self.subscribed = set(params["notifications"].get("resourceSubscriptions", ())) - {"a://never"}
            return await self._line(request, message["id"], params["notifications"])
        if method.startswith(NOTES):
            return web.Response(status=202)
        answer = self._answer(method, params)
        return web.json_response({"jsonrpc": "2.0", "id": message["id"], **answer}, headers={"Mcp-Session-Id": "s1"})

    def _answer(self, method: str, params: Any) -> dict[str, Any]:
        if method == "server/discover":
            return {"result": {"supportedVersions": ["2026-07-28"], "capabilities": self.capabilities}}
        if method == "initialize":
            return {"result": {"protocolVersion": "2025-11-25", "capabilities": self.capabilities}}
        if params.get("uri") == "a://never":
            return {"error": {"code": -32602, "message": "no"}}
        (self.subscribed.add if method == "resources/subscribe" else self.subscribed.discard)(params["uri"])
        return {"result": {}}

    async def _line(self, request: web.Request, identifier: Any, wanted: Any = None) -> web.StreamResponse:
        line = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await line.prepare(request)
        self.lines.append(line)
        self._last, over = identifier, self._hung_up
        if identifier is not None:
            granted = {**wanted, "resourceSubscriptions": sorted(self.subscribed)}
            await self.say("subscriptions/acknowledged", notifications=granted)
        await over.wait()
        return line

    async def say(self, method: str, **params: Any) -> None:
        meta = {} if self._last is None else {"_meta": {"io.modelcontextprotocol/subscriptionId": self._last}}
        message = {"jsonrpc": "2.0", "method": NOTES + method, "params": params | meta}
        await self.lines[-1].write(b"data: " + orjson.dumps(message) + b"\n\n")

    def hang_up(self) -> None:
        self._hung_up.set()
        self._hung_up = asyncio.Event()


class Ear:
    """Notes what is heard."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.begun = 0

    def began(self) -> None:
        self.begun += 1

    def lists_changed(self) -> None:
        self.heard.append("lists")

    def resource_updated(self, uri: str) -> None:
        self.heard.append(uri)


def context() -> Context:
    return Context(uuid.uuid4(), 5.0, "ada")


@asynccontextmanager
async def listening(
    era: Era, capabilities: dict[str, Any] = CAPABILITIES, **options: Any
) -> AsyncIterator[tuple[McpConnector, Talker, Ear]]:
    talker, ear = Talker(era, capabilities), Ear()
    async with make_server(talker) as port:
        options = {"url": f"http://127.0.0.1:{port}/mcp", **options}
        source = Source(uuid.uuid4(), "talker", McpOptions(**options), 5)
        connector = McpConnector(source, Egress([Rule.parse("127.0.0.1/32", None)]))
        connector.listen(ear)
        try:
            yield connector, talker, ear
        finally:
            talker.hang_up()
            await connector.close()


@pytest.mark.parametrize("era", ERAS)
async def test_a_change_is_heard_and_a_lost_line_opened_again(era: Era, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_ears, "_FIRST_PAUSE_SECONDS", 0.01)
    async with listening(era) as (_, talker, ear):
        await until(lambda: talker.lines)
        await talker.say("prompts/list_changed")
        await talker.say("tools/list_changed")
        await until(lambda: len(ear.heard) == 2)
        talker.hang_up()
        await until(lambda: len(talker.lines) == 2)
        await until(lambda: len(ear.heard) == 3)  # nobody heard what was said meanwhile
        await talker.say("tools/list_changed")
        await until(lambda: ear.heard == ["lists"] * 4)
        assert ear.begun == 1


@pytest.mark.parametrize("era", ERAS)
async def test_a_resource_is_watched_as_long_as_somebody_does(era: Era, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_ears, "_FIRST_PAUSE_SECONDS", 0.01)
    async with listening(era) as (connector, talker, ear):
        await asyncio.gather(
            *(connector.request("resources/subscribe", {"uri": uri}, context()) for uri in ("a://1", "a://2"))
        )
        assert talker.subscribed == {"a://1", "a://2"}
        await connector.watch("a://1")
        await talker.say("resources/updated", uri="a://1")
        await until(lambda: ear.heard == ["a://1"])
        talker.subscribed.clear()
        talker.hang_up()
        await until(lambda: talker.subscribed == {"a://1", "a://2"})
        await until(lambda: ear.heard[1:] == ["lists", "a://1", "a://2"])
        connector.unwatch("a://2")
        await until(lambda: talker.subscribed == {"a://1"})
        with pytest.raises(ConnectorError, match="does not tell"):
            await connector.watch("a://never")
        connector.unwatch("a://never")
        assert talker.subscribed == {"a://1"}


@pytest.mark.parametrize("era", ERAS)
async def test_who_comes_while_another_one_goes_is_not_forgotten(era: Era) -> None:
    async with listening(era) as (connector, talker, ear):
        await connector.watch("a://1")
        await until(lambda: not connector._tasks and not connector._again)
        connector.unwatch("a://1")
        async with asyncio.timeout(5):
            while not connector._adjusting.locked():
                await asyncio.sleep(0)
        await connector.watch("a://1")
        await until(lambda: not connector._tasks and not connector._again)
        assert talker.subscribed == {"a://1"}
        await talker.say("resources/updated", uri="a://1")
        await until(lambda: ear.heard == ["a://1"])


@pytest.mark.parametrize(
    ("capabilities", "options"), [({"tools": {}, "resources": {}}, {}), (CAPABILITIES, {"hears_changes": False})]
)
@pytest.mark.parametrize("era", ERAS)
async def test_no_line_is_kept_without_use(era: Era, capabilities: Any, options: Any) -> None:
    async with listening(era, capabilities, **options) as (connector, talker, ear):
        await until(lambda: not connector._tasks and not connector._again)
        assert talker.lines == []
        assert bool(talker.asked) is not bool(options)
        assert ear.begun == 0
        if options:
            await connector.watch("a://1")
            await talker.say("tools/list_changed")
            await talker.say("resources/updated", uri="a://1")
            await until(lambda: ear.heard == ["a://1"])
        else:
            with pytest.raises(ConnectorError, match="does not tell"):
                await connector.watch("a://1")


# --- A process -------------------------------------------------------------------------------------------------------

SPEAKING = """
KEY = "io.modelcontextprotocol/subscriptionId"
ERA, meta, subscribed = "%s", {}, []
def greet(message):
    method, can = message.get("method"), {"tools": {"listChanged": True}, "resources": {"subscribe": True}}
    if method == "server/discover" and ERA == "modern":
        reply(message, {"supportedVersions": ["2026-07-28"], "capabilities": can})
    elif method == "server/discover":
        refuse(message, -32601, "what?")
    elif method == "initialize":
        reply(message, {"protocolVersion": "2025-06-18", "capabilities": can})
    return method in ("server/discover", "initialize", "notifications/initialized")
def tell(method, **params):
    send({"jsonrpc": "2.0", "method": "notifications/" + method, "params": dict(params, _meta=meta)})
for message in messages():
    method, params = message["method"], message.get("params", {})
    if method == "subscriptions/listen":
        meta[KEY] = message["id"]
        tell("subscriptions/acknowledged", notifications=params["notifications"])
    elif method == "notifications/cancelled":
        send({"jsonrpc": "2.0", "id": params["requestId"], "result": {}})
    elif method in ("resources/subscribe", "resources/unsubscribe"):
        reply(message, {})
    elif method == "tools/call" and params["name"] == "die":
        os._exit(1)
    elif method == "tools/call":
        tell("tools/list_changed")
        tell("resources/updated", uri="a://1")
        say(message, "told")
"""


@pytest.mark.parametrize("era", ERAS)
async def test_a_process_is_heard_while_it_runs_and_runs_while_it_is_watched(era: Era, connect: Connect) -> None:
    connector, ear = connect(SPEAKING % era), Ear()
    connector.listen(ear)
    connector.watch_along(frozenset({"a://2"}))
    before = connector._server.pid
    assert before is None
    await call(connector, "tell")
    await until(lambda: connector._line is not None and not connector._tasks)
    assert "a://2" in connector._heard
    is_kept = connector._server.is_listened_to
    assert not is_kept
    connector.watch_along(frozenset())
    await until(lambda: "a://2" not in connector._heard)
    ear.heard.clear()
    assert await call(connector, "tell") == "told"
    assert ear.heard == ["lists", "a://1"]
    await connector.watch("a://1")
    assert connector._server.is_listened_to
    before, ear.heard = connector._server.pid, []
    await failure(call(connector, "die"))
    await until(lambda: ear.heard == ["lists", "a://1"])  # it was started again, and may have changed meanwhile
    assert connector._server.pid not in (None, before)
    connector.unwatch("a://1")
    assert not connector._server.is_listened_to


async def test_a_server_that_speaks_without_end_is_heard_no_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(limits, "_MOST_NOISE_BYTES", 10_000)
    monkeypatch.setattr(mcp_ears, "_FIRST_PAUSE_SECONDS", 0.01)
    async with listening("legacy") as (_, talker, ear):
        await until(lambda: talker.lines)
        with suppress(ConnectionError):
            for _ in range(10_000):
                await talker.say("tools/list_changed")
        await until(lambda: len(talker.lines) > 1)  # after a pause, like any line that was lost
        assert 0 < len(ear.heard) < 200
        assert "talker says without end that something changed" in caplog.text


async def test_what_is_asked_on_a_line_without_end_is_declined_as_far_as_that_goes() -> None:
    async with listening("legacy") as (connector, talker, _):
        await until(lambda: talker.lines)
        asked = b"".join(b'data: {"jsonrpc":"2.0","id":%d,"method":"roots/list"}\n\n' % n for n in range(1_000))
        await talker.lines[-1].write(asked)
        await talker.say("tools/list_changed")
        await until(lambda: talker.responses)
        assert len(connector._http._aside) <= 64


async def test_a_method_that_is_no_text_is_passed_over() -> None:
    async with listening("legacy") as (_, talker, ear):
        await until(lambda: talker.lines)
        for method in (["x"], {"x": 1}, 5):
            await talker.lines[-1].write(b"data: " + orjson.dumps({"jsonrpc": "2.0", "method": method}) + b"\n\n")
        await talker.say("tools/list_changed")
        await until(lambda: ear.heard)
        assert len(talker.lines) == 1
