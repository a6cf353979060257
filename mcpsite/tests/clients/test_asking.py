"""Clients that are asked and told while their call goes on, through two gateways that take strict turns.

Whatever a client answers reaches another gateway than the one that asked. Each is asked by an upstream of its own era,
and by one of the other.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from bench.conformance.gateways import start_upstream
from bench.processes import Stage, free_port, python
from mcpsite import env
from mcpsite.tests.clients.bring_in import OLD
from mcpsite.tests.clients.visits import CLIENTS, Client
from mcpsite.tests.conftest import Site

ELICITS: dict[str, Any] = {"name": "test_elicitation", "arguments": {"message": "Who are you?"}}
SAMPLES: dict[str, Any] = {"name": "test_sampling", "arguments": {"prompt": "What is the capital of France?"}}
TELLS: dict[str, Any] = {"name": "test_tool_with_progress", "arguments": {}}
LOGS: dict[str, Any] = {"name": "test_tool_with_logging", "arguments": {}}
FILLED_IN = 'User response: action=accept, content={"username": "ada", "email": "ada@example.com"}'
THOUGHT = "LLM response: Paris"
ABLE = ("Python 1.x", "Python 2.x", "Python 2.x legacy", "FastMCP", "FastMCP legacy", "TypeScript 1.x")


@pytest.fixture(scope="module")
def turns(demo_site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The demo's installation with a second gateway, and the upstream of the conformance suite behind both."""
    gone = dict.fromkeys(("DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL", "SECRET_KEY", "ENCRYPTION_KEYS"), "")
    environment = env.for_child(MCPSITE_DATA=str(demo_site.up.data), **gone)
    with Stage(tmp_path_factory.mktemp("turns")) as stage:
        urls = [start_upstream(stage, "dual"), f"http://localhost:{(old := free_port())}/mcp"]
        stage.start("old", *python("bench.conformance.upstream", "--era", "legacy", "--port", str(old)))
        second, proxy = free_port(), free_port()
        stage.start("gateway", *python("mcpsite.web", "--port", str(second)), environment=environment)
        stage.wait("old", old, 30)
        command = python("mcpsite.tests.clients.bring_in", *urls)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        token = json.loads(done.stdout.splitlines()[-1])["token"]
        ports = ("--to", str(demo_site.up.port), str(second))
        stage.start("proxy", *python("bench.conformance.authorizing", "--port", str(proxy), "--token", token, *ports))
        stage.wait("gateway", second, 30)
        stage.wait("proxy", proxy, 30)
        yield dataclasses.replace(demo_site, mcp_url=f"http://localhost:{proxy}/mcp")


@pytest.mark.parametrize("client", [CLIENTS[name] for name in ABLE], ids=ABLE)
def test_a_client_is_asked_and_told_at_whichever_gateway(turns: Site, client: Client) -> None:
    own, other = ("", OLD) if client.revision == "2026-07-28" else (OLD, "")
    asking = [(own, ELICITS), (own, SAMPLES), (own, TELLS), (own, LOGS), (other, ELICITS), (other, SAMPLES)]
    met = client.visit(turns, "", [], asking=[{**each, "name": f"{prefix}{each['name']}"} for prefix, each in asking])
    assert met["revision"] == client.revision
    assert met["answers"] == [FILLED_IN, THOUGHT, "Done.", "Done.", FILLED_IN, THOUGHT]
    assert met["progress"] == [0, 50, 100]
    assert met["logged"] == ["Tool execution started", "Tool processing data", "Tool execution completed"]
