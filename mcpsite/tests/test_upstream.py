"""The demo's upstream server, as a process of its own, asked by the official client."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import PromptReference

from mcpsite import env
from mcpsite.demo import kept, office, upstream
from mcpsite.supervisor import dying_with_us

MODES = ("auto", "legacy", "2026-07-28")


@dataclass(frozen=True)
class Running:
    url: str
    token: str
    folder: Path

    @asynccontextmanager
    async def client(self, mode: str = "auto") -> AsyncIterator[Client]:
        headers = {"Authorization": f"Bearer {self.token}"}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=30) as http,
            Client(streamable_http_client(self.url, http_client=http), mode=mode) as client,
        ):
            yield client

    def status(self, path: str, *, token: str | None = None) -> int:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(self.url.replace("/mcp", path), headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code


@contextmanager
def running_upstream(data_dir: Path) -> Iterator[Running]:
    """The server on a socket that listens already, so that the first request waits until it is up."""
    variables = kept.upstream_environment(data_dir)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        process = subprocess.Popen(
            [sys.executable, "-m", "mcpsite.demo.upstream", "--fd", str(listening.fileno())],
            env=env.for_child(**variables),
            pass_fds=(listening.fileno(),),
            cwd=Path(__file__).resolve().parents[2],
            preexec_fn=dying_with_us(),
        )
        port = listening.getsockname()[1]
    try:
        yield Running(f"http://127.0.0.1:{port}/mcp", variables[kept.TOKEN_VARIABLE], data_dir / "demo")
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_upstream(tmp_path_factory.mktemp("upstream")) as running:
        yield running


def structured(result: Any) -> dict[str, Any]:
    assert not result.is_error, result
    assert json.loads(result.content[0].text) == result.structured_content
    return dict(result.structured_content)


def error_text(result: Any) -> str:
    assert result.is_error
    return str(result.content[0].text)


@pytest.mark.parametrize("mode", MODES)
async def test_every_era_of_the_protocol_is_answered(server: Running, mode: str):
    async with server.client(mode) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        answer = structured(await client.call_tool("get_current_time", {"timezone": "Europe/Berlin"}))
    assert names[0] == "get_current_time"
    assert len(names) == 6
    assert answer["timezone"] == "Europe/Berlin"
    assert datetime.fromisoformat(answer["datetime"]).utcoffset() in (timedelta(hours=1), timedelta(hours=2))
    assert answer["is_dst"] == (answer["utc_offset"] == "+02:00")


async def test_it_has_a_prompt_papers_to_read_and_completes_the_tone(server: Running):
    async with server.client() as client:
        prompt = await client.get_prompt("answer_customer", {"ticket_id": "7", "tone": "sorry"})
        with pytest.raises(MCPError, match=r"Unknown tone 'rude'\. Known: friendly, formal, sorry"):
            await client.get_prompt("answer_customer", {"ticket_id": "7", "tone": "rude"})
        rates = (await client.read_resource("office://shipping/rates")).contents[0]
        await client.call_tool("create_note", {"ticket_id": 71, "text": "Rang twice."})
        notes = (await client.read_resource("office://tickets/71/notes")).contents[0]
        ref = PromptReference(type="ref/prompt", name="answer_customer")
        tones = (await client.complete(ref, {"name": "tone", "value": "f"})).completion.values
    assert "ticket 7" in prompt.messages[0].content.text
    assert (rates.mime_type, notes.mime_type) == ("text/markdown", "application/json")
    assert "| europe | 9.90 € | 1.10 € | 2 to 5 |" in rates.text
    assert [note["text"] for note in json.loads(notes.text)["notes"]] == ["Rang twice."]
    assert tones == ["friendly", "formal"]


async def test_the_newest_revision_is_agreed_on(server: Running):
    async with server.client() as client:
        assert client.protocol_version == "2026-07-28"


async def test_an_unknown_time_zone_is_told_with_a_hint(server: Running):
    async with server.client() as client:
        near = await client.call_tool("get_current_time", {"timezone": "Europe/Berln"})
        far = await client.call_tool("get_current_time", {"timezone": "../../etc/passwd"})
        folder = await client.call_tool("get_current_time", {"timezone": "Europe"})
    assert "Did you mean 'Europe/Berlin'?" in error_text(near)
    assert "Unknown time zone" in error_text(far)
    assert "Unknown time zone" in error_text(folder)


async def test_currencies_are_converted_by_a_table_that_says_so(server: Running):
    async with server.client() as client:
        answer = structured(await client.call_tool("convert_currency", {"amount": 100, "from": "eur", "to": "JPY"}))
        unknown = await client.call_tool("convert_currency", {"amount": 1, "from": "EUR", "to": "XXX"})
    assert answer["result"] == round(100 * office.RATES["JPY"])
    assert "not for real payments" in answer["rates"]
    assert "Unknown currency 'XXX'" in error_text(unknown)


async def test_a_shipping_quote_depends_on_place_and_weight(server: Running):
    async with server.client() as client:
        near = structured(await client.call_tool("shipping_quote", {"country": "de", "weight_kg": 2}))
        far = structured(await client.call_tool("shipping_quote", {"country": "JP", "weight_kg": 2}))
        nowhere = await client.call_tool("shipping_quote", {"country": "AQ", "weight_kg": 2})
    assert near["zone"] == "domestic"
    assert far["price_eur"] > near["price_eur"]
    assert "We do not ship to 'AQ'" in error_text(nowhere)


async def test_notes_can_be_read_again(server: Running):
    async with server.client() as client:
        note = structured(await client.call_tool("create_note", {"ticket_id": 7, "text": "Called back.\nÄ"}))
        await client.call_tool("create_note", {"ticket_id": 8, "text": "Another ticket."})
        notes = structured(await client.call_tool("list_notes", {"ticket_id": 7}))["notes"]
    assert notes == [note]


async def test_a_reply_stays_in_the_outbox(server: Running):
    async with server.client() as client:
        reply = structured(await client.call_tool("send_reply", {"ticket_id": 9, "text": "It is on its way."}))
    assert reply["status"] == "queued"
    last = (server.folder / "outbox.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    assert json.loads(last) == reply


async def test_definitions_have_titles_schemas_and_hints(server: Running):
    async with server.client() as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    for tool in tools.values():
        assert tool.title
        assert tool.description
        assert tool.output_schema is not None
        assert tool.annotations is not None
    assert tools["convert_currency"].input_schema["required"] == ["amount", "from", "to"]
    hints = {name: (tool.annotations.read_only_hint, tool.annotations.destructive_hint) for name, tool in tools.items()}
    assert hints["get_current_time"][0] is True
    assert hints["create_note"] == hints["send_reply"] == (False, False)


def test_nothing_but_health_is_told_without_the_token(server: Running):
    assert server.status("/healthz") == 200
    assert server.status("/mcp") == 401
    assert server.status("/mcp", token="x" * 43) == 401
    assert server.status("/anything") == 401


def test_without_a_token_it_does_not_start(tmp_path: Path):
    variables = {name: value for name, value in env.for_child().items() if not name.startswith("DEMO_")}
    command = [sys.executable, "-m", "mcpsite.demo.upstream", "--port", "0"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "DEMO_UPSTREAM_TOKEN must be set" in done.stderr


def test_it_listens_on_loopback_only():
    with socket.create_server(("0.0.0.0", 0)) as everywhere:
        number = os.dup(everywhere.fileno())
    with pytest.raises(SystemExit, match="loopback only"):
        upstream._listening_socket(argparse.Namespace(fd=number, port=None))
    with upstream._listening_socket(argparse.Namespace(fd=None, port=0)) as made:
        assert made.getsockname()[0] == "127.0.0.1"


def test_what_is_kept_stays_the_same_and_private(tmp_path: Path):
    first = kept.upstream_environment(tmp_path)
    assert kept.upstream_environment(tmp_path) == first
    path = tmp_path / "secrets/demo_upstream_token"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == first[kept.TOKEN_VARIABLE]


# --- The first call, straight to this server -------------------------------------------------------------------------


def first_call(url: str, token_file: Path, *options: str, said: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mcpsite.first_call", "--url", url, "--token-file", str(token_file), *options]
    return subprocess.run(command, input=said, capture_output=True, text=True, timeout=60)


def test_the_first_call_prints_one_line_of_json(server: Running, tmp_path: Path):
    token_file = tmp_path / "token"
    token_file.write_text(server.token + "\n")
    done = first_call(server.url, token_file, "--when-ready", said="\n")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert set(told) == {"tool", "arguments", "answer", "record_id", "call_id", "protocol", "milliseconds"}
    assert told["arguments"] == {"timezone": "Europe/Berlin"}
    assert told["answer"]["timezone"] == "Europe/Berlin"
    assert told["record_id"] is None


def test_the_first_call_says_in_one_line_why_it_failed(server: Running, tmp_path: Path):
    token_file = tmp_path / "token"
    token_file.write_text("wrong")
    refused = first_call(server.url, token_file)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == f"The first call failed: {server.url} answered with HTTP status 401.\n"
    missing = first_call(server.url, tmp_path / "nothing")
    assert missing.returncode == 1
    assert "nothing" in missing.stderr


def test_the_first_call_is_not_made_when_nobody_asks(tmp_path: Path):
    done = first_call("http://127.0.0.1:1/mcp", tmp_path / "nothing", "--when-ready")
    assert done.returncode == 1
    assert "was not asked for" in done.stderr
