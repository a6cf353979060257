"""What a modern upstream is told of a client, and what it may ask of it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import pytest

from tools.connectors.base import Client, ConnectorError, Context
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
