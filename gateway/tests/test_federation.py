"""Many upstreams behind one endpoint: a dead or slow one is still listed, marked, and takes nothing from the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.db import connection

from access.models import Grant
from gateway.app import Gateway
from gateway.tests.conftest import Company, FakeConnector, Reply, call, in_thread, make_tool, records, until
from gateway.tests.test_reads import SHELVES, Shelf, ask
from mcpsite.postgres import conninfo
from tools.connectors.base import Connector
from tools.models import DataSource, EgressRule, Prompt, Resource, Tool
from tools.sync import check_source

NOBODY_LISTENS = 9
LISTS = ("tools/list", *SHELVES)


@pytest.fixture
def outside() -> FakeConnector:
    return Shelf()


@dataclass
class Silence:
    """A server that takes connections and says nothing."""

    port: int
    visits: list[asyncio.StreamWriter] = field(default_factory=list)


@pytest.fixture
async def silence() -> AsyncIterator[Silence]:
    found = Silence(0)

    async def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.visits.append(writer)
        await reader.read()

    async with await asyncio.start_server(taken, "127.0.0.1", 0) as server:
        found.port = server.sockets[0].getsockname()[1]
        yield found
        for writer in found.visits:
            writer.close()


def add_upstream(name: str, port: int, seconds: int) -> DataSource:
    """A source with a tool, a prompt, a resource and a template, as a synchronisation left them."""
    # Nobody but calls is to visit it.
    options = {"url": f"http://127.0.0.1:{port}/mcp", "hears_changes": False}
    source = DataSource.objects.create(name=name, kind="mcp", options=options, timeout_seconds=seconds)
    make_tool(source, f"{name}_echo")
    kept = {"source": source, "fingerprint": "00" * 32, "tags": ["all"]}
    Prompt.objects.create(
        name=f"{name}_welcome", source_name="welcome", definition=f'{{"name":"{name}_welcome"}}', **kept
    )
    Resource.objects.create(uri=f"{name}://hours", definition=f'{{"uri":"{name}://hours"}}', **kept)
    template = f"{name}://page/{{number}}"
    Resource.objects.create(uri=template, is_template=True, definition=f'{{"uriTemplate":"{template}"}}', **kept)
    return source


@dataclass
class Federation:
    """Three sources: `office` answers, `dead` and `slow` do not."""

    gateway: Gateway
    token: str
    sources: dict[str, DataSource]

    async def listed(self, era: str = "modern") -> list[Reply]:
        """The four lists."""
        return [await ask(self.gateway, self.token, method, {}, era) for method in LISTS]


@pytest.fixture
async def federation(company: Company, outside: FakeConnector, silence: Silence) -> AsyncIterator[Federation]:
    def prepare() -> dict[str, DataSource]:
        for port in (NOBODY_LISTENS, silence.port):
            EgressRule.objects.create(network="127.0.0.1/32", port=port, note="test")
        sources = {"dead": add_upstream("dead", NOBODY_LISTENS, 5), "slow": add_upstream("slow", silence.port, 1)}
        Tool.objects.update(tags=["all"])
        Grant.objects.create(role=company.role, tag="all")
        return sources

    sources = await in_thread(prepare)
    gateway = Gateway(conninfo(connection.settings_dict))
    real: Callable[[Any], Connector] = gateway.connectors.of

    def of(tool: Any) -> Connector:
        return outside if tool.source.source.name == "office" else real(tool)

    gateway.connectors.of = of  # type: ignore[method-assign]
    gateway.pipeline._connector = of
    await gateway.start()
    await until(gateway.ready)
    yield Federation(gateway, company.token, sources)
    await gateway.stop()


async def test_a_dead_and_a_slow_upstream_neither_empty_a_list_nor_delay_another(
    federation: Federation, silence: Silence
) -> None:
    gateway, token = federation.gateway, federation.token
    waiting = asyncio.create_task(call(gateway, token, "slow_echo"))
    await until(lambda: silence.visits)
    tools, prompts, resources, templates = await federation.listed()
    names = [each["name"] for each in tools.result["tools"]]
    assert names == ["dead_echo", "echo", "hidden", "slow_echo", "write"]
    assert [each["name"] for each in prompts.result["prompts"]] == ["dead_welcome", "slow_welcome"]
    assert [each["uri"] for each in resources.result["resources"]] == ["dead://hours", "slow://hours"]
    assert len(templates.result["resourceTemplates"]) == 2
    assert (await call(gateway, token, "echo")).result["content"][0]["text"] == "hello"
    dead = await call(gateway, token, "dead_echo")
    assert dead.result["isError"]
    assert not waiting.done(), "none of them waited for the slow one"
    slow = await waiting
    codes = [record.code for reply in (dead, slow) for record in await records(reply)]
    assert codes == ["upstream_unavailable", "upstream_timeout"]
    assert (await call(gateway, token, "echo")).result["content"][0]["text"] == "hello"


@pytest.mark.parametrize("era", ["modern", "legacy"])
async def test_lists_say_what_is_only_the_last_that_is_known(federation: Federation, era: str) -> None:
    def marks(replies: list[Reply]) -> list[Any]:
        return [reply.result.get("_meta", {}).get("mcpsite/last_known") for reply in replies]

    gateway, dead = federation.gateway, federation.sources["dead"]
    assert marks(await federation.listed(era)) == [None] * 4
    version = gateway.feed.current.version
    assert not (await in_thread(lambda: check_source(dead))).ok
    await until(lambda: gateway.feed.current.version > version)
    listed = await federation.listed(era)
    assert marks(listed) == [["dead_echo"], ["dead_welcome"], ["dead://hours"], ["dead://page/{number}"]]
    assert b'{"name":"dead_welcome"}' in listed[1].body, "definitions stay as they came"
    version = gateway.feed.current.version
    await in_thread(lambda: check_source(dead))
    await in_thread(lambda: DataSource.objects.filter(pk=dead.pk).update(check_ok=True))
    await until(lambda: gateway.feed.current.version > version)
    assert gateway.feed.current.version == version + 1, "a check that finds the same is no news"
    assert marks(await federation.listed(era)) == [None] * 4


async def test_each_name_and_uri_leads_to_its_own_upstream(
    federation: Federation, outside: FakeConnector, silence: Silence
) -> None:
    def settle() -> None:
        source = DataSource.objects.get(name="office")
        kept = {"source": source, "definition": "{}", "fingerprint": "00" * 32, "tags": ["all"]}
        Resource.objects.create(uri="dead://page/7", **kept)

    gateway, token = federation.gateway, federation.token
    await in_thread(settle)
    await until(lambda: ("resource", "dead://page/7") in gateway.feed.current.offered.entries)
    asked: list[tuple[str, dict[str, Any], str]] = [
        ("prompts/get", {"name": "dead_welcome"}, "dead"),
        ("resources/read", {"uri": "dead://hours"}, "dead"),
        ("resources/read", {"uri": "dead://page/8"}, "dead"),
        # What is listed leads closer than a template, whoever offers that.
        ("resources/read", {"uri": "dead://page/7"}, "office"),
        (
            "completion/complete",
            {"ref": {"type": "ref/prompt", "name": "dead_welcome"}, "argument": {"name": "a", "value": ""}},
            "dead",
        ),
    ]
    for method, params, source in asked:
        (record,) = await records(await ask(gateway, token, method, params))
        assert record.connector == source, params
    assert not silence.visits
    assert outside.calls == [{"method": "resources/read", "uri": "dead://page/7"}]
