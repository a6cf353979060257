"""The clients that people use, unmodified and from their own registries, against a whole installation.

What is tested by each: to begin, to list tools, to call one, arguments that do not fit, a tool that is not granted,
prompts, resources and completion, and a token that is none. `make test` installs the clients.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mcpsite.tests.clients.visits import (
    CLIENTS,
    HERE,
    LANGCHAIN,
    MCP_REMOTE,
    NODE,
    PYTHON_2,
    PYTHON_OF_1,
    PYTHON_OF_FASTMCP,
    READING,
    Client,
    run,
)
from mcpsite.tests.conftest import Site
from tools.clients import configurations

INSPECTOR = HERE / "node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js"
REGISTRY = "https://registry.npmjs.org/"

CALLS = [
    {"name": "get_current_time", "arguments": {"timezone": "Europe/Berlin"}},
    {"name": "get_current_time", "arguments": {"zone": "Europe/Berlin"}},
    {"name": "sales_by_month", "arguments": {}},
]


every_client = pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    for needed in (NODE, INSPECTOR, MCP_REMOTE, PYTHON_OF_1, PYTHON_OF_FASTMCP):
        assert needed.exists(), f"{needed} is missing: `make test` installs what these tests need"


def test_every_package_is_pinned_by_its_hash_and_comes_from_the_registry() -> None:
    packages = json.loads((HERE / "package-lock.json").read_text())["packages"]
    assert len(packages) > 100
    for name, package in packages.items():
        if name and not package.get("inBundle"):
            assert package["integrity"].startswith("sha512-"), name
            assert package.get("resolved", REGISTRY).startswith(REGISTRY), name


@every_client
def test_a_client_lists_and_calls_what_is_granted(demo_site: Site, client: Client) -> None:
    met = client.visit(demo_site, demo_site.tokens["support_agent"], CALLS, **READING)
    assert met["revision"] == client.revision
    assert_listed(met["tools"])
    answered, unfit, ungranted = met["calls"]
    assert_told_the_time(answered)
    record = demo_site.record(answered["_meta"]["mcpsite/record"])
    assert (record["kind"], record["tool"], record["code"]) == ("call", "get_current_time", "ok")
    assert record["token"] == demo_site.tokens["support_agent"][:12]
    assert unfit["isError"]
    assert "do not fit the schema" in unfit["content"][0]["text"]
    assert demo_site.record(unfit["_meta"]["mcpsite/record"])["kind"] == "invalid"
    assert ungranted["refused"]["code"] == -32602
    assert "Unknown tool: sales_by_month" in ungranted["refused"]["message"]
    assert_read(met)
    assert met["resources"] == ["office://shipping/rates"]
    assert met["templates"] == ["office://tickets/{ticket_id}/notes"]


@every_client
def test_a_client_with_a_wrong_token_is_turned_away(demo_site: Site, client: Client) -> None:
    assert client.visit(demo_site, "mcps_wrong", CALLS) == {"turned_away": 401}


def test_what_claude_desktop_is_told_to_start_passes_everything_on(demo_site: Site, settings) -> None:
    settings.PUBLIC_URL = demo_site.url
    token = demo_site.tokens["support_agent"]
    (snippet,) = (each for each in configurations(token=token) if each.title == "Claude Desktop")
    (server,) = json.loads(snippet.text)["mcpServers"].values()
    assert (server["command"], server["args"][:2]) == ("npx", ["-y", "mcp-remote"])
    started = {"command": str(NODE), "args": [str(MCP_REMOTE), *server["args"][2:]], "env": server["env"]}
    met = PYTHON_2.visit(demo_site, token, CALLS, server=started, **READING)
    assert_listed(met["tools"])
    assert_told_the_time(met["calls"][0])
    assert demo_site.record(met["calls"][0]["_meta"]["mcpsite/record"])["code"] == "ok"
    assert met["calls"][2]["refused"]["code"] == -32602
    assert_read(met)


def test_langchain_gives_an_agent_what_is_granted(demo_site: Site) -> None:
    met = LANGCHAIN.visit(demo_site, demo_site.tokens["support_agent"], CALLS, **READING)
    assert {"get_current_time", "search_tickets", "send_reply"} <= set(met["tools"])
    assert met["tools"]["get_current_time"]["required"] == ["timezone"]
    answered, unfit, ungranted = met["calls"]
    assert answered["artifact"]["structured_content"]["timezone"] == "Europe/Berlin"
    assert json.loads(answered["text"]) == answered["artifact"]["structured_content"]
    assert (unfit["status"], "do not fit the schema" in unfit["text"]) == ("error", True)
    assert ungranted is None, "a tool that is not listed is none that the model could choose"
    assert_read(met)
    assert LANGCHAIN.visit(demo_site, "mcps_wrong", CALLS) == {"turned_away": 401}


def assert_read(met: dict[str, Any]) -> None:
    assert met["prompts"] == ["answer_customer"]
    assert "ticket 7" in met["prompt"]
    assert "| europe | 9.90 € |" in met["text"]
    assert met["completed"] == ["friendly", "formal"]


def assert_listed(tools: list[dict[str, Any]]) -> None:
    by_name = {tool["name"]: tool for tool in tools}
    assert {"get_current_time", "search_tickets", "send_reply"} <= set(by_name)
    assert "sales_by_month" not in by_name, "it is not granted to them"
    assert by_name["get_current_time"]["inputSchema"]["required"] == ["timezone"]
    assert by_name["get_current_time"]["annotations"]["readOnlyHint"] is True


def assert_told_the_time(result: dict[str, Any]) -> None:
    assert not result["isError"]
    assert result["structuredContent"]["timezone"] == "Europe/Berlin"
    assert json.loads(result["content"][0]["text"]) == result["structuredContent"]


# --- The Inspector's command line -------------------------------------------------------------------------------------

every_era = pytest.mark.parametrize("era", ["legacy", "auto", "modern"])


@dataclass(frozen=True)
class Inspector:
    """The MCP Inspector without its window. What it keeps is kept in `home`."""

    url: str
    token: str
    home: Path

    def __call__(self, *options: str) -> subprocess.CompletedProcess[str]:
        header = f"Authorization: Bearer {self.token}"
        fixed = ("--cli", self.url, "--header", header, "--stored-auth-only", "--format", "json")
        return run(NODE, INSPECTOR, *fixed, *options, HOME=str(self.home))

    def result(self, *options: str) -> dict[str, Any]:
        done = self(*options)
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)["result"]
        return result


@pytest.fixture
def inspector(demo_site: Site, tmp_path: Path) -> Inspector:
    return Inspector(demo_site.mcp_url, demo_site.tokens["support_agent"], tmp_path)


@every_era
def test_the_inspector_lists_and_finds_no_fault_with_the_schemas(inspector: Inspector, era: str) -> None:
    done = inspector("--protocol-era", era, "--method", "tools/list", "--strict")
    assert done.returncode == 0, done.stderr
    assert_listed(json.loads(done.stdout)["result"]["tools"])


@every_era
def test_the_inspector_calls_and_its_call_is_on_record(demo_site: Site, inspector: Inspector, era: str) -> None:
    call = ("--protocol-era", era, "--method", "tools/call", "--tool-name")
    result = inspector.result(*call, "get_current_time", "--tool-arg", "timezone=Europe/Berlin")
    assert_told_the_time(result)
    assert demo_site.record(result["_meta"]["mcpsite/record"])["tool"] == "get_current_time"
    ungranted = inspector(*call, "sales_by_month")
    assert ungranted.returncode == 5
    assert json.loads(ungranted.stderr)["error"]["code"] == "tool_not_found"


def test_the_inspector_fetches_a_prompt_and_reads_a_resource(inspector: Inspector) -> None:
    prompt = inspector.result(
        "--method", "prompts/get", "--prompt-name", "answer_customer", "--prompt-args", "ticket_id=7"
    )
    assert "ticket 7" in prompt["messages"][0]["content"]["text"]
    read = inspector.result("--method", "resources/read", "--uri", "office://tickets/7/notes")
    assert json.loads(read["contents"][0]["text"])["ticket_id"] == 7


@every_era
def test_the_inspector_with_a_wrong_token_is_turned_away(demo_site: Site, tmp_path: Path, era: str) -> None:
    done = Inspector(demo_site.mcp_url, "mcps_wrong", tmp_path)("--protocol-era", era, "--method", "tools/list")
    assert done.returncode == 3
    assert json.loads(done.stderr)["error"]["code"] == "auth_required"
