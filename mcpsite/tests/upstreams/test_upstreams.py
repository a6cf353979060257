"""The servers that people run, behind a gateway: listed, called, and on record.

`make test` installs them. Each is asked in the era of today, whatever it speaks itself.
"""

from __future__ import annotations

import asyncio
import json
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from access import tokens
from access.models import Grant, Role, User
from bench.conformance.driver import Person
from gateway.app import Gateway
from gateway.tests.conftest import in_thread, records, until
from gateway.tests.test_reads import ask
from mcpsite.postgres import conninfo
from mcpsite.tests.upstreams.servers import (
    EVERYTHING,
    EVERYTHING_ASKED,
    EVERYTHING_OFFERS,
    HERE,
    NODE,
    PROGRAMS,
    Asked,
    everything,
    local_servers,
)
from tools.connectors.base import Context, Source
from tools.connectors.mcp import McpConnector
from tools.connectors.mcp_headers import MirroringTool as McpTool
from tools.connectors.registry import source_of
from tools.egress import Egress, Rule
from tools.launchers import read
from tools.models import DataSource, EgressRule, Prompt, Resource, Tool, Toolset
from tools.sync import sync_source
from tools.tests.servers import Counter, make_server

REGISTRY = "https://registry.npmjs.org/"


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    for needed in (NODE, EVERYTHING, PROGRAMS / "mcp-server-time"):
        assert needed.exists(), f"{needed} is missing: `make test` installs what these tests need"


def test_every_package_is_pinned_by_its_hash_and_comes_from_the_registry() -> None:
    packages = json.loads((HERE / "package-lock.json").read_text())["packages"]
    assert len(packages) > 50
    for name, package in packages.items():
        if name:
            assert package["integrity"].startswith("sha512-"), name
            assert package.get("resolved", REGISTRY).startswith(REGISTRY), name


# --- A site around them -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Behind:
    """A data source that is synchronised: what it offers, and what was refused."""

    offers: set[str]
    refused: dict[str, str]


def bring_in(name: str, kind: str, options: dict[str, Any]) -> Behind:
    """Synchronise a new source."""
    source = DataSource.objects.create(name=name, kind=kind, options=options, prefix=f"{name}_")
    outcome = sync_source(source)
    names = [each.name for each in source.tools.all()] + [each.name for each in Prompt.objects.filter(source=source)]
    offered = {name.removeprefix(source.prefix) for name in names}
    return Behind(offered | {each.uri for each in Resource.objects.filter(source=source)}, outcome.refused)


def let_in() -> str:
    """A token that may use all there is."""
    toolset = Toolset.objects.create(name="everything")
    toolset.tools.set(Tool.objects.all())
    toolset.prompts.set(Prompt.objects.all())
    toolset.resources.set(Resource.objects.all())
    role = Role.objects.create(name="all")
    Grant.objects.create(role=role, toolset=toolset)
    user = User.objects.create(username="zoe")
    user.groups.add(role)
    return tokens.issue(user, name="test", scopes=["tools"])[1]


@asynccontextmanager
async def gateway() -> AsyncIterator[Gateway]:
    made = Gateway(conninfo(connection.settings_dict))
    await made.start()
    try:
        await until(made.ready, 30)
        yield made
    finally:
        await made.stop()


async def ask_all(made: Gateway, token: str, name: str, asked: tuple[Asked, ...]) -> None:
    """Ask one after the other; each must be answered as expected, and be on record as that."""
    for method, params, expected in asked:
        reply = await ask(made, token, method, under_prefix(params, f"{name}_"))
        assert reply.status == 200, f"{name}: {reply.body.decode()}"
        assert "result" in reply.json, f"{name} {params}: {reply.body.decode()}"
        assert expected(reply.result), f"{name} {params}: {reply.body.decode()}"
        (*_, record) = await records(reply)
        assert (record.connector, record.kind in ("call", "outcome")) == (name, True), f"{name} {params}"
        assert record.code == ("tool_error" if reply.result.get("isError") else "ok"), f"{name} {params}"


def under_prefix(params: dict[str, Any], prefix: str) -> dict[str, Any]:
    if "ref" in params:
        return {**params, "ref": {**params["ref"], "name": prefix + params["ref"]["name"]}}
    return params if "uri" in params else {**params, "name": prefix + params["name"]}


# --- What they are for ------------------------------------------------------------------------------------------------


async def test_servers_on_this_machine_are_used_side_by_side(committed_db: None, settings: Any, tmp_path: Path) -> None:
    async with make_server(Counter()) as port:
        servers = local_servers(tmp_path, f"http://127.0.0.1:{port}/page")
        settings.MCP_LAUNCHERS = read({name: each.launcher for name, each in servers.items()})
        behind = dict(zip(servers, await asyncio.gather(*(brought_in(name) for name in servers)), strict=True))
        for name, server in servers.items():
            assert behind[name].offers >= server.offers, name
            assert behind[name].refused == {}, name
        token = await in_thread(let_in)
        async with gateway() as made:
            await asyncio.gather(*(ask_all(made, token, name, each.asked) for name, each in servers.items()))


async def brought_in(name: str) -> Behind:
    return await in_thread(lambda: bring_in(name, "mcp-stdio", {"launcher": name}))


@pytest.mark.parametrize(("transport", "path"), [("streamableHttp", "mcp"), ("sse", "sse")])
async def test_the_server_that_has_everything_is_used_over_the_network(
    committed_db: None, transport: str, path: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    options = {"url": f"http://127.0.0.1:{port}/{path}"}
    await in_thread(lambda: EgressRule.objects.create(network="127.0.0.1/32", note="The server under test."))
    async with everything(transport, port):
        behind = await in_thread(lambda: bring_in("everything", "mcp", options))
        assert behind.offers >= EVERYTHING_OFFERS
        assert behind.refused == {}
        token = await in_thread(let_in)
        async with gateway() as made:
            await ask_all(made, token, "everything", EVERYTHING_ASKED)
        connector = McpConnector(await in_thread(source_of_everything), Egress([Rule.parse("127.0.0.1/32", None)]))
        asked = Context(uuid.uuid4(), 20, "zoe", client=Person(answers_later=False))
        filled_in = await connector.call(McpTool(name="trigger-elicitation-request"), {}, asked)
        sampling = {"prompt": "Will it rain?", "maxTokens": 10}
        sampled = await connector.call(McpTool(name="trigger-sampling-request"), sampling, asked)
        await connector.close()
    assert "User provided the requested information" in filled_in.content["content"][0]["text"]
    assert '"text": "yes"' in sampled.content["content"][0]["text"]


def source_of_everything() -> Source:
    return source_of(DataSource.objects.get())
