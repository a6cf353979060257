"""What upstreams tell and ask while a call goes on, and the sessions in which they ask."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from aiohttp import web

from tools.connectors import limits
from tools.connectors.base import Client, ClientError, ConnectorError, Context, Source
from tools.connectors.mcp import McpConnector
from tools.connectors.mcp_headers import MirroringTool as McpTool
from tools.connectors.mcp_input import questions_of
from tools.connectors.mcp_stdio import McpStdioConnector, McpStdioOptions
from tools.connectors.mcp_turn import Turn
from tools.egress import Egress
from tools.tests.servers import make_server
from tools.tests.test_mcp import (
    GOOD_RESULT,
    Answer,
    Scripted,
    events,
    good_event,
    make_connector,
    reply,
    stream,
    streaming,
)
from tools.tests.test_mcp_stdio import LEGACY, Connect, connect, failure, little, until

__all__ = ["connect"]

ACCEPTED = {"action": "accept", "content": {"name": "Ada"}}
FORM = {"message": "Who?", "requestedSchema": {"type": "object"}}


class Listener(Client):
    """A client that hears and answers everything."""

    def __init__(self, capabilities: Mapping[str, Any] | None = None, **wants: Any) -> None:
        self.capabilities = capabilities or {}
        for name, value in wants.items():
            setattr(self, name, value)
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.questions: list[tuple[str, dict[str, Any]]] = []
        self.waits = asyncio.Event()
        self.waits.set()

    def tell(self, method: str, params: dict[str, Any]) -> None:
        self.heard.append((method, params))

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self.questions.append((method, params))
        await self.waits.wait()
        if method != "elicitation/create":
            raise ClientError({"code": -1, "message": "User rejected"})
        return ACCEPTED


def make_context(client: Client | None, seconds: float = 5, actor: str = "someone") -> Context:
    return Context(uuid.uuid4(), seconds, actor, client=client)


def told(token: Any, progress: float) -> dict[str, Any]:
    return {"method": "notifications/progress", "params": {"progressToken": token, "progress": progress}}


def question(method: str = "elicitation/create", identifier: Any = "q") -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": identifier, "method": method, "params": FORM}


class Asking:
    """A legacy upstream that asks during its calls, and answers when it has been answered."""

    def __init__(self, method: str = "elicitation/create") -> None:
        self.upstream = Scripted(self.answer, "legacy")
        self.method = method
        self.answered: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sessions = 0

    async def answer(self, request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        response = await stream(request)
        await response.write(events(question(self.method)))
        await self.answered.get()
        await response.write(good_event(message))
        return response

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        message = await request.json() if request.can_read_body else {"method": request.method}
        if message.get("method") == "initialize":
            self.sessions += 1
            self.upstream.session = f"s-{self.sessions}"
        if "method" not in message:
            self.answered.put_nowait(message)
        return await self.upstream(request)

    def of(self, method: str | None) -> list[dict[str, Any]]:
        return [message for message in self.upstream.messages if message.get("method") == method]


# --- Over HTTP --------------------------------------------------------------------------------------------------------


def chatting() -> Answer:
    def said(message: dict[str, Any]) -> bytes:
        token = message["params"]["_meta"]["progressToken"]
        log = {"method": "notifications/message", "params": {"level": "info", "data": "now"}}
        return events(told(token, 1), told("another", 2), log, {"method": "notifications/tools/list_changed"})

    return streaming(said, good_event)


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_what_is_told_on_the_stream_of_a_call_reaches_its_client(era: str) -> None:
    upstream = Scripted(chatting(), era)
    client = Listener(wants_progress=True, log_level="info")
    async with make_server(upstream) as port:
        connector = make_connector(f"http://127.0.0.1:{port}/mcp")
        assert (await connector.call(McpTool(name="t"), {}, make_context(client))).content == GOOD_RESULT
        await connector.close()
    log = ("notifications/message", {"level": "info", "data": "now"})
    assert client.heard == [("notifications/progress", {"progress": 1}), log]
    meta = next(each["params"]["_meta"] for each in upstream.messages if each.get("method") == "tools/call")
    assert meta.get("io.modelcontextprotocol/logLevel") == ("info" if era == "modern" else None)


@pytest.fixture
async def asking() -> AsyncIterator[tuple[Asking, McpConnector]]:
    asking = Asking()
    async with make_server(asking) as port:
        connector = make_connector(f"http://127.0.0.1:{port}/mcp")
        yield asking, connector
        await connector.close()


async def test_a_client_is_asked_in_a_session_that_declares_what_it_can(asking: tuple[Asking, McpConnector]) -> None:
    upstream, connector = asking
    client = Listener({"elicitation": {"form": {}}, "roots": {"listChanged": True}, "tasks": {}})
    for _ in range(2):
        assert (await connector.call(McpTool(name="t"), {}, make_context(client))).content == GOOD_RESULT
    assert client.questions == [("elicitation/create", FORM)] * 2
    assert [each["result"] for each in upstream.of(None)] == [ACCEPTED] * 2
    declared = [each["params"]["capabilities"] for each in upstream.of("initialize")]
    assert declared == [{}, {"elicitation": {"form": {}}, "roots": {}}]


@pytest.mark.parametrize("client", [None, Listener(wants_progress=True), Listener({"sampling": {}})])
async def test_a_client_that_did_not_declare_it_is_not_asked(
    asking: tuple[Asking, McpConnector], client: Listener | None
) -> None:
    upstream, connector = asking
    await connector.call(McpTool(name="t"), {}, make_context(client))
    assert client is None or client.questions == []
    assert [each["error"]["code"] for each in upstream.of(None)] == [-32601]


async def test_a_refusal_of_the_client_goes_back_as_it_is(asking: tuple[Asking, McpConnector]) -> None:
    upstream, connector = asking
    upstream.method = "sampling/createMessage"
    await connector.call(McpTool(name="t"), {}, make_context(Listener({"sampling": {}})))
    assert [each["error"] for each in upstream.of(None)] == [{"code": -1, "message": "User rejected"}]


async def test_while_the_client_is_asked_the_deadline_of_the_upstream_stands_still(
    asking: tuple[Asking, McpConnector],
) -> None:
    _, connector = asking
    client = Listener({"elicitation": {}})
    await connector.call(McpTool(name="t"), {}, make_context(client))
    client.waits.clear()
    called = asyncio.create_task(connector.call(McpTool(name="t"), {}, make_context(client, seconds=0.5)))
    asyncio.get_running_loop().call_later(0.7, client.waits.set)
    assert (await called).content == GOOD_RESULT


async def test_what_a_server_says_of_its_own_accord_in_such_a_session_is_about_the_call() -> None:
    listening: asyncio.Queue[web.StreamResponse] = asyncio.Queue()
    answered = asyncio.Event()

    async def answer(request: web.Request, message: dict[str, Any]) -> web.StreamResponse:
        log = {"method": "notifications/message", "params": {"level": "info", "data": "now"}}
        await listening.get_nowait().write(events(log, question()))
        await answered.wait()
        return reply(message, GOOD_RESULT)

    upstream = Scripted(answer, "legacy")

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.method == "GET":
            response = await stream(request)
            listening.put_nowait(response)
            await answered.wait()
            return response
        if "result" in await request.json():
            answered.set()
        return await upstream(request)

    client = Listener({"elicitation": {}}, log_level="info")
    async with make_server(handler) as port:
        connector = make_connector(f"http://127.0.0.1:{port}/mcp")
        assert (await connector.call(McpTool(name="t"), {}, make_context(client))).content == GOOD_RESULT
        await connector.close()
    assert client.questions == [("elicitation/create", FORM)]
    assert client.heard == [("notifications/message", {"level": "info", "data": "now"})]


async def test_users_share_no_session_and_a_call_that_broke_off_leaves_none(
    asking: tuple[Asking, McpConnector],
) -> None:
    upstream, connector = asking
    client = Listener({"elicitation": {}})
    for actor in ("ada", "bob", "ada"):
        await connector.call(McpTool(name="t"), {}, make_context(client, actor=actor))
    assert len(upstream.of("initialize")) == 3  # the shared one, and one each
    client.waits.clear()
    asked = len(client.questions)
    called = asyncio.create_task(connector.call(McpTool(name="t"), {}, make_context(client, actor="ada")))
    async with asyncio.timeout(5):
        while len(client.questions) == asked:
            await asyncio.sleep(0.005)
        called.cancel()
        while not (upstream.of("DELETE") and upstream.of("notifications/cancelled")):
            await asyncio.sleep(0.005)
    number = upstream.of("tools/call")[-1]["id"]
    assert upstream.of("notifications/cancelled")[0]["params"]["requestId"] == number


async def test_of_the_sessions_for_clients_there_are_only_so_many(
    asking: tuple[Asking, McpConnector], monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream, connector = asking
    connector._leases._most = 1
    connector._leases._places = asyncio.Semaphore(1)
    client = Listener({"elicitation": {}})
    for actor in ("ada", "bob"):
        await connector.call(McpTool(name="t"), {}, make_context(client, actor=actor))
    await asyncio.gather(*connector._leases._closing)
    assert len(upstream.of("DELETE")) == 1
    client.waits.clear()
    called = asyncio.create_task(connector.call(McpTool(name="t"), {}, make_context(client)))
    async with asyncio.timeout(5):
        while len(client.questions) < 3:
            await asyncio.sleep(0.005)
    with pytest.raises(ConnectorError) as caught:
        await connector.call(McpTool(name="t"), {}, make_context(client, seconds=0.05))
    assert caught.value.code == "upstream_busy"
    client.waits.set()
    await called


async def test_a_level_that_was_chosen_is_set_at_an_older_upstream(monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = Scripted(streaming(good_event), "legacy")
    monkeypatch.setattr("tools.connectors.mcp_core.capabilities_of", lambda answer: frozenset({"logging"}))
    async with make_server(upstream) as port:
        connector = make_connector(f"http://127.0.0.1:{port}/mcp")
        for level in ("debug", "debug", "error"):
            await connector.call(McpTool(name="t"), {}, make_context(Listener(log_level=level, chose_level=True)))
        await connector.close()
    assert [m["params"]["level"] for m in upstream.messages if m.get("method") == "logging/setLevel"] == [
        "debug",
        "error",
    ]


# --- Over stdin and stdout --------------------------------------------------------------------------------------------

TALKATIVE = """
for message in messages():
    if message.get("method") == "tools/call":
        token = message["params"].get("_meta", {}).get("progressToken")
        send({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": token, "progress": 1}})
        send({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": os.getpid()}})
        send({"jsonrpc": "2.0", "id": "q", "method": "elicitation/create", "params": {"message": "Who?"}})
        answer = next(each for each in messages() if each.get("id") == "q")
        say(message, json.dumps([os.getpid(), answer.get("result", answer.get("error", {}).get("code"))]))
"""


@pytest.fixture
async def local(settings: Any) -> AsyncIterator[McpStdioConnector]:
    settings.MCP_LAUNCHERS = {"test": little(LEGACY + TALKATIVE)}
    connector = McpStdioConnector(Source(uuid.uuid4(), "local", McpStdioOptions(launcher="test"), 10), Egress())
    yield connector
    await connector.close()


async def test_over_one_pipe_only_progress_says_whose_it_is(local: McpStdioConnector) -> None:
    client = Listener(wants_progress=True, log_level="info")
    result = await local.call(McpTool(name="t"), {}, make_context(client, 10))
    assert json.loads(result.content["content"][0]["text"])[1] == -32601
    assert client.heard == [("notifications/progress", {"progress": 1})]


async def test_who_can_be_asked_has_a_process_for_himself(local: McpStdioConnector) -> None:
    client = Listener({"elicitation": {}}, log_level="info")
    shared = await local.call(McpTool(name="t"), {}, make_context(None, 10))
    own = await local.call(McpTool(name="t"), {}, make_context(client, 10))
    (first, declined), (second, answer) = (json.loads(each.content["content"][0]["text"]) for each in (shared, own))
    assert first != second
    assert (declined, answer) == (-32601, ACCEPTED)
    assert client.questions == [("elicitation/create", {"message": "Who?"})]
    assert client.heard == [("notifications/message", {"level": "info", "data": second})]


# --- Servers that mean no good ----------------------------------------------------------------------------------------


class Answers:
    """What a server is answered."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    async def __call__(self, message: dict[str, Any]) -> None:
        self.sent.append(message)


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"properties": value}
    return value


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"message": "Who?", "requestedSchema": nested(300)}, "nested too deeply"),
        ({"mode": "url", "message": "Look", "url": "javascript:alert(1)"}, "not one of http or https"),
        ({"mode": "url", "message": "Look"}, "not one of http or https"),
    ],
)
async def test_what_no_client_should_be_asked_is_refused(params: dict[str, Any], said: str) -> None:
    client, answers = Listener({"elicitation": {"form": {}, "url": {}}}), Answers()
    Turn(client).answer({**question(), "params": params}, answers)
    await until(lambda: answers.sent)
    assert said in answers.sent[0]["error"]["message"]
    assert not client.questions
    asked = {"inputRequests": {"k": {"method": "elicitation/create", "params": params}}}
    with pytest.raises(ConnectorError, match=said):
        questions_of(asked, client)


async def test_a_server_that_asks_without_end_asks_nobody() -> None:
    client, answers = Listener({"elicitation": {}}), Answers()
    client.waits.clear()
    turn = Turn(client)
    for number in range(1_000):
        for identifier in (number, 0, None, [number]):
            turn.answer(question(identifier=identifier), answers)
    assert len(turn._answering) == 64
    client.waits.set()
    await until(lambda: len(answers.sent) == 64)
    for number in range(300):
        turn.answer(question(identifier=number), answers)
        await asyncio.gather(*turn._answering.values())
        await asyncio.sleep(0)
    assert len(client.questions) == 256
    assert answers.sent[-1]["error"]["code"] == -32601


def test_a_state_that_cannot_come_back_is_refused() -> None:
    asked = {"inputRequests": {}, "requestState": "x" * 300_000}
    with pytest.raises(ConnectorError, match="requestState of more than"):
        questions_of(asked, None)


async def test_progress_without_end_ends_the_server(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_RESULT_BYTES", 100_000)
    connector = connect("""
        for message in messages():
            for number in range(10 ** 9):
                send({"method": "notifications/progress", "params": {"progressToken": 2, "progress": number}})
    """)
    client = Listener(wants_progress=True)
    error = await failure(connector.call(McpTool(name="t"), {}, make_context(client, 10)))
    assert "writes without end" in str(error)
    assert 0 < len(client.heard) < 2_000


async def test_a_server_that_dies_of_each_call_is_not_started_for_each(connect: Connect) -> None:
    connector = connect(LEGACY + "\nfor message in messages(): os._exit(3)")
    client = Listener({"elicitation": {}})
    errors = [await failure(connector.call(McpTool(name="t"), {}, make_context(client, 10))) for _ in range(3)]
    assert "started again in" in str(errors[-1])
