"""What a modern upstream is told of a client, and what it may ask of it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import pytest

from tools.connectors.base import Client, ClientError, ConnectorError, Context
from tools.connectors.mcp_headers import MirroringTool as McpTool
from tools.connectors.mcp_input import questions_of
from tools.tests.servers import make_server
from tools.tests.test_mcp import Scripted, always, make_connector, reply

FORM = {"method": "elicitation/create", "params": {"message": "Who?", "requestedSchema": {"type": "object"}}}
URL = {"method": "elicitation/create", "params": {"mode": "url", "message": "There", "url": "https://example.com"}}
SAMPLE = {"method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 1}}
WITH_TOOLS = {"method": "sampling/createMessage", "params": {"messages": [], "maxTokens": 1, "tools": []}}
ROOTS = {"method": "roots/list"}
KEY = "io.modelcontextprotocol/clientCapabilities"


class Later(Client):
    answers_later = True

    def __init__(self, capabilities: Mapping[str, Any]) -> None:
        self.capabilities = capabilities

    def tell(self, method: str, params: dict[str, Any]) -> None:
        raise AssertionError

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError


def make_context(client: Client | None = None, continuation: Mapping[str, Any] | None = None) -> Context:
    return Context(uuid.uuid4(), 5, "someone", client=client, continuation=continuation)


async def test_an_upstream_is_told_the_clients_capabilities_and_no_others() -> None:
    upstream = Scripted(always(lambda m: reply(m, {"content": []})))
    declared = {"sampling": {"tools": {}}, "extensions": {"io.modelcontextprotocol/tasks": {}, "x/ui": {"a": 1}}}
    async with make_server(upstream) as port:
        connector = make_connector(f"http://127.0.0.1:{port}/mcp")
        for client in (Later(declared), None):
            await connector.call(McpTool(name="t"), {}, make_context(client))
        await connector.close()
    told = [message["params"]["_meta"][KEY] for message in upstream.messages if message.get("method") == "tools/call"]
    assert told == [{"sampling": {"tools": {}}, "extensions": {"x/ui": {"a": 1}}}, {}]


async def test_questions_come_out_and_answers_go_in() -> None:
    asked = {"resultType": "input_required", "inputRequests": {"who": FORM}, "requestState": "s"}
    upstream = Scripted(always(lambda m: reply(m, asked)))
    answers = {"inputResponses": {"who": {"action": "accept"}}, "requestState": "before"}
    async with make_server(upstream) as port:
        connector = make_connector(f"http://127.0.0.1:{port}/mcp")
        result = await connector.call(McpTool(name="t"), {"a": 1}, make_context(Later({"elicitation": {}}), answers))
        await connector.close()
    sent = upstream.messages[-1]["params"]
    assert result.content == asked
    assert {name: value for name, value in sent.items() if name != "_meta"} == {
        "name": "t",
        "arguments": {"a": 1},
        **answers,
    }


DECLARED: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    (FORM, {"elicitation": {}}, True),
    (FORM, {"elicitation": {"form": {}}}, True),
    (FORM, {"elicitation": {"url": {}}}, False),
    (FORM, {"sampling": {}}, False),
    (FORM, {"elicitation": None}, False),
    (URL, {"elicitation": {}}, False),
    (URL, {"elicitation": {"url": {}}}, True),
    (SAMPLE, {"sampling": {}}, True),
    (WITH_TOOLS, {"sampling": {}}, False),
    (WITH_TOOLS, {"sampling": {"tools": {}}}, True),
    (ROOTS, {"roots": {}}, True),
    (ROOTS, {}, False),
    ({"method": "ping"}, {"ping": {}}, False),
    ({"method": ["roots/list"]}, {"roots": {}}, False),
    ({"method": "roots/list", "params": 1}, {"roots": {}}, False),
]


@pytest.mark.parametrize(("question", "capabilities", "may"), DECLARED)
def test_only_what_the_client_declared_is_asked(
    question: dict[str, Any], capabilities: dict[str, Any], may: bool
) -> None:
    result = {"inputRequests": {"q": question}}
    if may:
        assert questions_of(result, Later(capabilities)) == {"q": question}
        return
    with pytest.raises(ConnectorError) as caught:
        questions_of(result, Later(capabilities))
    assert caught.value.code == "bad_upstream_answer"


@pytest.mark.parametrize(
    "result",
    [{}, {"inputRequests": {}}, {"inputRequests": [FORM]}, {"inputRequests": {"q": 1}}, {"requestState": 7}],
)
def test_a_question_that_is_none_is_a_bad_answer(result: dict[str, Any]) -> None:
    with pytest.raises(ConnectorError):
        questions_of(result, Later({"elicitation": {}}))


class Now(Later):
    """A client that is asked while the call goes on."""

    answers_later = False

    def __init__(self, capabilities: Mapping[str, Any], error: dict[str, Any] | None = None) -> None:
        super().__init__(capabilities)
        self.error = error

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if self.error is not None:
            raise ClientError(self.error)
        return {"asked": method}


async def call_of(result: dict[str, Any], client: Client | None) -> tuple[Any, list[dict[str, Any]]]:
    """What a call comes to whose first answers are `result`, and what the upstream was sent."""

    def answer(message: dict[str, Any]) -> Any:
        done = upstream.count("tools/call") > 2
        return reply(message, {"content": []} if done else result)

    upstream = Scripted(always(answer))
    async with make_server(upstream) as port:
        connector = make_connector(f"http://127.0.0.1:{port}/mcp")
        came: Any
        try:
            came = (await connector.call(McpTool(name="t"), {}, make_context(client))).content
        except ConnectorError as error:
            came = error.code
        await connector.close()
    sent = [message["params"] for message in upstream.messages if message.get("method") == "tools/call"]
    return came, [{name: each[name] for name in ("inputResponses", "requestState") if name in each} for each in sent]


async def test_a_client_that_can_be_asked_meanwhile_is_asked_until_the_upstream_has_all() -> None:
    questions = {"resultType": "input_required", "inputRequests": {"a": FORM, "b": ROOTS}, "requestState": "s"}
    came, sent = await call_of(questions, Now({"elicitation": {}, "roots": {}}))
    given = {"a": {"asked": "elicitation/create"}, "b": {"asked": "roots/list"}}
    assert came == {"content": []}
    assert sent == [{}, *[{"inputResponses": given, "requestState": "s"}] * 2]


@pytest.mark.parametrize(
    ("client", "code"),
    [
        (Now({"elicitation": {}}, {"code": -1, "message": "no"}), "client_refused"),
        (Now({"roots": {}}), "bad_upstream_answer"),
        (None, "bad_upstream_answer"),
    ],
)
async def test_a_question_that_nobody_answers_ends_the_call(client: Client | None, code: str) -> None:
    assert await call_of({"resultType": "input_required", "inputRequests": {"a": FORM}}, client) == (code, [{}])


async def test_an_upstream_that_only_wants_to_be_asked_again_needs_no_client() -> None:
    came, sent = await call_of({"resultType": "input_required", "requestState": "s"}, None)
    assert (came, sent) == ({"content": []}, [{}, *[{"requestState": "s"}] * 2])


async def test_an_upstream_that_asks_without_end_is_given_up() -> None:
    upstream = Scripted(always(lambda m: reply(m, {"resultType": "input_required", "requestState": "s"})))
    async with make_server(upstream) as port:
        connector = make_connector(f"http://127.0.0.1:{port}/mcp")
        with pytest.raises(ConnectorError, match="more than 8 times"):
            await connector.call(McpTool(name="t"), {}, make_context())
        await connector.close()
    assert upstream.count("tools/call") == 9
