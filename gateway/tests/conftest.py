"""A gateway on a real database, with a small company around it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson
import pytest
from django.db import connection

from access import tokens
from access.models import Grant, Role, User
from audit.models import Record
from gateway.app import Gateway
from mcpsite.postgres import conninfo
from tools.connectors.base import Connector, Context, Result, Spec
from tools.definitions import publish
from tools.models import DataSource, Tool, Toolset

T = TypeVar("T")

META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "tests", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


def make_tool(source: DataSource, name: str, effect: str = "read", **definition: Any) -> Tool:
    tool = Tool.objects.create(source=source, name=name, effect=effect, spec={"name": name})
    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    publish(tool, {"name": name, "description": f"The tool {name}.", "inputSchema": schema, **definition})
    return tool


def make_user(name: str, *roles: Role, **fields: Any) -> User:
    user = User.objects.create(username=name, **fields)
    user.groups.set(roles)
    return user


@dataclass
class Company:
    """Who and what there is."""

    role: Role
    user: User
    token: str
    source: DataSource
    tools: dict[str, Tool]
    toolset: Toolset


@pytest.fixture
def company(committed_db: None) -> Company:
    source = DataSource.objects.create(name="office", kind="mcp", options={"url": "http://127.0.0.1:9/mcp"})
    tools = {
        "echo": make_tool(source, "echo"),
        "write": make_tool(source, "write", effect="write"),
        "hidden": make_tool(source, "hidden"),
    }
    toolset = Toolset.objects.create(name="desk")
    toolset.tools.add(tools["echo"])
    role = Role.objects.create(name="clerk")
    for name in ("echo", "write"):
        Grant.objects.create(role=role, tool=tools[name])
    user = make_user("carla", role)
    _, raw = tokens.issue(user, name="test", scopes=["tools"])
    return Company(role, user, raw, source, tools, toolset)


@dataclass
class FakeConnector(Connector):
    """The one seam: what is outside. It answers with its arguments unless it is told otherwise."""

    fails: list[Exception] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    contexts: list[Context] = field(default_factory=list)
    gate: asyncio.Event | None = None
    # What the outside does in the course of a call.
    during: Callable[[Context], Awaitable[None]] | None = None

    async def check(self) -> str:
        return "here"

    async def call(self, spec: Spec, arguments: dict[str, Any], context: Context) -> Result:
        self.calls.append(arguments)
        self.contexts.append(context)
        if self.gate is not None:
            await self.gate.wait()
        if self.during is not None:
            await self.during(context)
        if self.fails:
            raise self.fails.pop(0)
        return Result({"content": [{"type": "text", "text": arguments.get("text", "")}]}, False)


@pytest.fixture
def outside() -> FakeConnector:
    return FakeConnector()


async def until(condition: Any, seconds: float = 5.0) -> None:
    """Wait until the condition holds, or fail."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
async def gateway(company: Company, outside: FakeConnector) -> AsyncIterator[Gateway]:
    gateway = Gateway(conninfo(connection.settings_dict))
    gateway.connectors.of = lambda tool: outside  # type: ignore[method-assign]
    gateway.pipeline._connector = gateway.connectors.of
    await gateway.start()
    await until(gateway.ready)
    yield gateway
    await gateway.stop()


@pytest.fixture
async def other(gateway: Gateway, outside: FakeConnector) -> AsyncIterator[Gateway]:
    """A second worker."""
    other = Gateway(conninfo(connection.settings_dict))
    other.connectors.of = lambda tool: outside  # type: ignore[method-assign]
    other.pipeline._connector = other.connectors.of
    await other.start()
    await until(lambda: other.ready() and other.mail.is_listening and gateway.mail.is_listening)
    yield other
    await other.stop()


@dataclass
class Reply:
    """What came back over ASGI."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The messages of an event stream, without priming events and comments."""
        assert self.headers["content-type"] == "text/event-stream"
        lines = self.body.decode().splitlines()
        return [orjson.loads(line[6:]) for line in lines if line.startswith("data: ")]

    @property
    def result(self) -> Any:
        return self.json["result"]

    @property
    def error(self) -> Any:
        return self.json["error"]


async def post(
    gateway: Gateway,
    body: Any,
    token: str | None = None,
    path: str = "/mcp",
    method: str = "POST",
    **headers: str,
) -> Reply:
    """One HTTP request, straight into the application. Underscores in header names stand for hyphens."""
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    sent = {
        "host": "localhost:8000",
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
    }
    if token:
        sent["authorization"] = f"Bearer {token}"
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "client": ("192.0.2.7", 1),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in sent.items() if value != "-"],
    }
    events: list[Any] = []
    incoming = iter([{"type": "http.request", "body": raw, "more_body": False}])

    async def receive() -> Any:
        return next(incoming)

    async def send(event: Any) -> None:
        events.append(event)

    await gateway(scope, receive, send)
    head = {name.decode(): value.decode() for name, value in events[0]["headers"]}
    return Reply(events[0]["status"], head, b"".join(event.get("body", b"") for event in events[1:]))


def modern(method: str, params: dict[str, Any] | None = None, identifier: Any = 1) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": identifier, "method": method, "params": {**(params or {}), "_meta": META}}


async def call(gateway: Gateway, token: str | None, name: str, arguments: Any = None, path: str = "/mcp") -> Reply:
    """A modern tools/call."""
    arguments = {"text": "hello"} if arguments is None else arguments
    return await post(
        gateway,
        modern("tools/call", {"name": name, "arguments": arguments}),
        token,
        path,
        mcp_protocol_version="2026-07-28",
        mcp_method="tools/call",
        mcp_name=name,
    )


async def legacy_call(gateway: Gateway, token: str, name: str, arguments: Any = None) -> Reply:
    params = {"name": name, "arguments": {"text": "hello"} if arguments is None else arguments}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    return await post(gateway, body, token, mcp_protocol_version="2025-11-25")


async def records(reply: Reply | None = None, **filters: Any) -> list[Record]:
    """The records of a reply's call, or those that match, oldest first."""
    if reply is not None:
        answer = reply.json
        ids = answer["result"]["_meta"] if "result" in answer else answer["error"]["data"]
        filters["call_id"] = ids["mcpsite/call"]
    return await in_thread(lambda: list(Record.objects.filter(**filters).order_by("id")))


async def in_thread(work: Callable[[], T]) -> T:
    """Database work beside the event loop; its thread gives its connection back to the pool."""

    def run() -> T:
        try:
            return work()
        finally:
            connection.close()

    return await asyncio.to_thread(run)
