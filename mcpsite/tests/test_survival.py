"""Kill -9 under load: every acknowledged call is in the ledger, no effect lacks its intent, and the site comes back."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psycopg
import pytest
from aiohttp import web

from keyring.keys import parse
from mcpsite import env
from mcpsite.datadir import OWNER_ROLE, DataDir
from mcpsite.tests.test_up import MANAGE, Up

CLIENTS = 16
META = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}
CONFIGURE = """
from access import tokens
from access.models import Grant, Role, User
from tools.models import DataSource, EgressRule, Tool
from tools.sync import sync_source
EgressRule.objects.create(network="127.0.0.1/32", note="test")
source = DataSource.objects.create(name="outside", kind="mcp", options={{"url": "{url}"}})
sync_source(source)
role = Role.objects.create(name="load")
Grant.objects.create(role=role, tool=Tool.objects.get(name="effect"), calls_per_minute=10_000_000)
user = User.objects.create(username="load", is_service=True)
user.groups.add(role)
print("TOKEN", tokens.issue(user, name="load", scopes=["tools"])[1])
"""


@dataclass
class Outside:
    """An upstream server that has an effect and remembers every one."""

    effects: set[str] = field(default_factory=set)

    async def answer(self, request: web.Request) -> web.Response:
        message = await request.json()
        if message["method"] == "server/discover":
            result: dict[str, Any] = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}}
        elif message["method"] == "tools/list":
            schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
            result = {"tools": [{"name": "effect", "description": "Has an effect.", "inputSchema": schema}]}
        else:
            text = message["params"]["arguments"]["text"]
            self.effects.add(text)
            result = {"content": [{"type": "text", "text": text}]}
        return web.json_response(
            {"jsonrpc": "2.0", "id": message["id"], "result": {"resultType": "complete", **result}}
        )


@dataclass
class Load:
    """Clients that call without pause, and what they were told."""

    url: str
    token: str
    acknowledged: dict[str, str] = field(default_factory=dict)
    refused: int = 0
    broken: int = 0
    stop: bool = False

    async def client(self, number: int, session: aiohttp.ClientSession) -> None:
        count = 0
        while not self.stop:
            count += 1
            await self.call(f"{number}-{count}", session)

    async def call(self, text: str, session: aiohttp.ClientSession) -> None:
        params = {"name": "effect", "arguments": {"text": text}, "_meta": META}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        headers = {
            "Authorization": f"Bearer {self.token}",
            "MCP-Protocol-Version": "2026-07-28",
            "Mcp-Method": "tools/call",
            "Mcp-Name": "effect",
        }
        try:
            async with session.post(self.url, json=body, headers=headers) as response:
                answer = await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            self.broken += 1
            await asyncio.sleep(0.05)
            return
        if response.status == 200 and not answer["result"].get("isError"):
            assert answer["result"]["content"][0]["text"] == text
            self.acknowledged[answer["result"]["_meta"]["mcpsite/record"]] = text
        else:
            self.refused += 1
            await asyncio.sleep(0.05)

    async def until_served(self, more: int = 50, seconds: float = 10.0) -> float:
        """Seconds until so many more calls were acknowledged; fails after `seconds`."""
        wanted, started = len(self.acknowledged) + more, time.monotonic()
        async with asyncio.timeout(seconds):
            while len(self.acknowledged) < wanted:
                await asyncio.sleep(0.01)
        return time.monotonic() - started


@pytest.fixture
async def outside() -> AsyncIterator[tuple[Outside, str]]:
    upstream = Outside()
    application = web.Application()
    application.router.add_post("/mcp", upstream.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    yield upstream, f"http://127.0.0.1:{port}/mcp"
    await runner.cleanup()


def configure(up: Up, url: str) -> str:
    command = [sys.executable, MANAGE, "shell", "-v", "0", "-c", CONFIGURE.format(url=url)]
    environment = env.for_child(MCPSITE_DATA=str(up.data))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    found = re.search(r"TOKEN (\S+)", done.stdout)
    assert found, done.stderr
    return found[1]


def kill(up: Up, pattern: str) -> None:
    """SIGKILL to the first process of the installation whose command line matches."""
    matches = sorted(pid for pid, command in up.processes().items() if re.search(pattern, command))
    assert matches, up.processes()
    os.kill(matches[0], signal.SIGKILL)


def stored(data: Path) -> list[tuple[str, str, str, str]]:
    """rid, call id, kind and decrypted text of every record of the load's calls."""
    folder = DataDir(data)
    ring = parse(folder.secret("encryption_keys"))
    with psycopg.connect(folder.database_url(OWNER_ROLE)) as connection:
        rows = connection.execute(
            "SELECT rid, call_id, kind, ct FROM audit_record WHERE actor = 'load' AND tool = 'effect'"
        ).fetchall()
    return [(str(rid), str(call), kind, _text(ring, rid, kind, ct)) for rid, call, kind, ct in rows]


def _text(ring: Any, rid: Any, kind: str, ct: bytes | None) -> str:
    if kind != "intent" or ct is None:
        return ""
    return str(json.loads(ring.decrypt(ct, purpose="ledger", context=rid.bytes)[32:])["text"])


async def test_nothing_acknowledged_is_lost_and_nothing_happens_unannounced(outside: tuple[Outside, str]) -> None:
    upstream, url = outside
    with tempfile.TemporaryDirectory(prefix="mcpsite-survival-") as folder:
        up = Up(Path(folder), "--no-demo", "--workers", "2")
        try:
            await asyncio.to_thread(up.start)
            load = Load(f"http://localhost:{up.port}/mcp", await asyncio.to_thread(configure, up, url))
            timeout = aiohttp.ClientTimeout(total=10)
            async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
                clients = [asyncio.create_task(load.client(number, session)) for number in range(CLIENTS)]
                await load.until_served(500)
                for victim in (
                    r"mcpsite\.web",
                    r"bin/postgres -",
                    r"valkey-server",
                    r"mcpsite\.web",
                    r"bin/postgres -",
                ):
                    await asyncio.to_thread(kill, up, victim)
                    await asyncio.sleep(0.2)
                    await load.until_served(200)
                load.stop = True
                await asyncio.gather(*clients)
            records = await asyncio.to_thread(stored, up.data)
        finally:
            if not up.ended:
                await asyncio.to_thread(up.stop)
    known = {rid for rid, _, _, _ in records}
    assert len(load.acknowledged) >= 1500
    assert set(load.acknowledged) <= known
    intended = {text for _, _, kind, text in records if kind == "intent"}
    assert upstream.effects <= intended
    assert set(load.acknowledged.values()) <= upstream.effects
    assert len(records) == len(known)
