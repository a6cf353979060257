"""A client for the suite to test: our connector to upstream servers, which does once all that a server offers.

The suite appends its URL to the command, and names the scenario, and perhaps calls to make, in the environment.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from django.conf import settings

_SECONDS = 20
_ECHO, _SHOWN = "json_schema_echo", "json_schema_2020_12_tool"
_MADE_UP = {"integer": 2, "number": 2, "boolean": True, "string": "x", "array": [], "object": {}}
_MOST_ROUNDS = 4

if not settings.configured:
    # A site's settings would need an installation.
    settings.configure(MAX_RESULT_BYTES=16 * 1024 * 1024)

from tools.connectors.base import Client, ClientError, ConnectorError, Context, Offer, Result, Source  # noqa: E402
from tools.connectors.mcp import McpConnector, McpOptions  # noqa: E402
from tools.connectors.mcp_headers import MirroringTool  # noqa: E402
from tools.egress import Egress, Rule  # noqa: E402

# A request, anew with what a client adds that has been asked something.
Use = Callable[[dict[str, Any] | None], Awaitable[Result]]


class Person(Client):
    """Whoever is asked, and says yes to everything."""

    def __init__(self, *, answers_later: bool) -> None:
        self.capabilities = {"elicitation": {}, "sampling": {}, "roots": {}}
        # In the modern era questions are the result of a call; before, they come while it is under way.
        self.answers_later = answers_later

    def tell(self, method: str, params: dict[str, Any]) -> None:
        """Nobody listens."""

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """The form as it is prefilled; no roots; the shortest of messages."""
        match method:
            case "elicitation/create":
                return {"action": "accept", "content": _filled(params.get("requestedSchema", {}))}
            case "roots/list":
                return {"roots": []}
            case "sampling/createMessage":
                return {"role": "assistant", "model": "none", "content": {"type": "text", "text": "yes"}}
        raise ClientError({"code": -32601, "message": f"Nobody knows {method}."})


def _filled(schema: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, dict[str, Any]] = schema.get("properties", {})
    return {name: each.get("default", _MADE_UP.get(each.get("type", ""))) for name, each in properties.items()}


class Visit:
    """One visit to one server."""

    def __init__(self, connector: McpConnector, told: dict[str, list[dict[str, Any]]]) -> None:
        self._connector, self._told = connector, told
        self._person = Person(answers_later=os.environ.get("MCP_CONFORMANCE_PROTOCOL_VERSION", "") >= "2026-07-28")

    async def all(self) -> None:
        """Greet the server and use whatever it offers once. Raises ConnectorError."""
        print(await self._connector.check(), file=sys.stderr)
        offers = await self._connector.discover()
        for offer in offers:
            if offer.fault:
                print(f"{offer.name} is left out: {offer.fault}", file=sys.stderr)
            elif offer.kind == "tool":
                for arguments in self._arguments(offer, offers):
                    await self._tried(self._call(offer, arguments))
            elif offer.kind == "prompt":
                await self._tried(self._request("prompts/get", {"name": offer.name, "arguments": {}}))
            elif offer.kind == "resource":
                await self._tried(self._request("resources/read", {"uri": offer.name}))
        if not offers:  # So that there is a request that speaks for a client.
            await self._tried(self._call(Offer("anything", {}, {"name": "anything"}), {}))

    def _arguments(self, offer: Offer, offers: list[Offer]) -> list[dict[str, Any]]:
        told = [each["arguments"] for each in self._told.get("toolCalls", []) if each["name"] == offer.name]
        if offer.name == _ECHO:
            return [{"schema": each.definition["inputSchema"]} for each in offers if each.name == _SHOWN]
        return told or [_filled(offer.definition.get("inputSchema", {}))]

    async def _tried(self, use: Use) -> None:
        """Answer what is asked back. What the server refuses is said, and no more."""
        try:
            result = await use(None)
            for _ in range(_MOST_ROUNDS):
                if result.content.get("resultType") != "input_required":
                    return
                result = await use(await self._answers(result.content))
        except ConnectorError as error:
            print(f"{error.code}: {error}", file=sys.stderr)

    async def _answers(self, asked: dict[str, Any]) -> dict[str, Any]:
        answers = {
            key: await self._person.ask(each["method"], each.get("params", {}))
            for key, each in asked.get("inputRequests", {}).items()
        }
        state = {"requestState": asked["requestState"]} if "requestState" in asked else {}
        return {"inputResponses": answers, **state}

    def _call(self, offer: Offer, arguments: dict[str, Any]) -> Use:
        spec = MirroringTool.model_validate(offer.spec)
        return lambda more: self._connector.call(spec, arguments, self._context(more))

    def _request(self, method: str, params: dict[str, Any]) -> Use:
        return lambda more: self._connector.request(method, params, self._context(more))

    def _context(self, more: dict[str, Any] | None) -> Context:
        return Context(uuid.uuid4(), _SECONDS, "driver", client=self._person, continuation=more)


async def visit(url: str) -> None:
    """Connect, and use everything once. Raises ConnectorError."""
    context = orjson.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT", "{}"))
    source = Source(uuid.uuid4(), "suite", McpOptions.model_validate({"url": url}), _SECONDS)
    connector = McpConnector(source, Egress([Rule.parse("127.0.0.0/8", None), Rule.parse("::1/128", None)]))
    try:
        await Visit(connector, context).all()
    finally:
        await connector.close()


def main() -> int:
    """0 when the server could be greeted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    try:
        asyncio.run(visit(parser.parse_args().url))
    except ConnectorError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
