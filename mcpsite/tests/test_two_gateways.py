"""Two gateways of one installation: sessions belong to neither; one that is killed takes no stream of others along."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import orjson
import psycopg
import pytest

from bench.conformance.gateways import Gateways, start_behind
from bench.processes import Stage
from mcpsite.datadir import OWNER_ROLE, DataDir

_REVISION = "2025-11-25"
_PATIENCE_SECONDS = 60


@pytest.fixture(scope="module")
def gateways() -> Iterator[Gateways]:
    with tempfile.TemporaryDirectory(prefix="mcpsite-two-") as folder, Stage(Path(folder)) as stage:
        yield start_behind(stage, "http", "dual")


class Event(NamedTuple):
    id: str
    message: dict[str, Any]


class Stream:
    """One event stream, read event by event; priming events have no message."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response, self._events = response, self._read()

    async def next(self) -> Event:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            return await anext(self._events)

    async def message(self) -> Event:
        """The next event that is more than a place to begin at."""
        while not (event := await self.next()).message:
            pass
        return event

    def cut(self) -> None:
        self._response.close()

    async def _read(self) -> AsyncIterator[Event]:
        found: dict[str, str] = {}
        async for raw in self._response.content:
            line = raw.decode().rstrip("\r\n")
            if line:
                name, _, value = line.partition(":")
                found[name] = value.removeprefix(" ")
            elif "data" in found:
                yield Event(found.get("id", ""), orjson.loads(found["data"] or "{}"))
                found = {}


class Client:
    """A client of an older revision, which sends each request where it is told."""

    def __init__(self, http: aiohttp.ClientSession, gateways: Gateways) -> None:
        self._http, self._number = http, 0
        self._headers = {
            "Authorization": f"Bearer {gateways.token}",
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": _REVISION,
        }

    async def begin(self, port: int) -> None:
        info = {"name": "test", "version": "1"}
        params = {"protocolVersion": _REVISION, "capabilities": {"elicitation": {}}, "clientInfo": info}
        async with await self._post(port, "initialize", params) as answer:
            self._headers["Mcp-Session-Id"] = answer.headers["Mcp-Session-Id"]

    async def tools(self, port: int) -> int:
        async with await self._post(port, "tools/list", {}) as answer:
            return len((await answer.json())["result"]["tools"])

    async def ask_me(self, port: int) -> Stream:
        """The stream of a call whose tool asks the user."""
        params = {"name": "test_elicitation", "arguments": {"message": "Who are you?"}}
        answer = await self._post(port, "tools/call", params)
        assert answer.content_type == "text/event-stream", await answer.text()
        return Stream(answer)

    async def answer(self, port: int, question: Event) -> None:
        result = {"action": "accept", "content": {"username": "ada", "email": "ada@example.com"}}
        message = {"jsonrpc": "2.0", "id": question.message["id"], "result": result}
        async with self._http.post(_url(port), json=message, headers=self._headers) as answer:
            assert answer.status == 202, await answer.text()

    async def go_on(self, port: int, after: Event) -> Stream:
        response = await self._http.get(_url(port), headers={**self._headers, "Last-Event-ID": after.id})
        assert response.status == 200, await response.text()
        return Stream(response)

    async def end(self, port: int) -> int:
        async with self._http.delete(_url(port), headers=self._headers) as answer:
            return answer.status

    async def status_of_ping(self, port: int) -> int:
        async with await self._post(port, "ping", {}) as answer:
            return answer.status

    async def _post(self, port: int, method: str, params: dict[str, Any]) -> aiohttp.ClientResponse:
        self._number += 1
        message = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": params}
        return await self._http.post(_url(port), json=message, headers=self._headers)


def _url(port: int) -> str:
    return f"http://localhost:{port}/mcp"


async def test_sessions_outlive_a_gateway_that_is_killed(gateways: Gateways) -> None:
    survivor, victim = gateways.ports
    timeout = aiohttp.ClientTimeout(total=None, sock_read=_PATIENCE_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        undisturbed, moved, struck = (Client(http, gateways) for _ in range(3))
        await undisturbed.begin(survivor)
        await moved.begin(victim)
        await struck.begin(victim)

        # A stream that has nothing to do with the victim; one that is read on at the victim; one whose call is there.
        calm = await undisturbed.ask_me(survivor)
        calm_question = await calm.message()
        first = await moved.ask_me(survivor)
        primed = await first.next()
        assert primed.id
        assert not primed.message
        first.cut()
        through_victim = await moved.go_on(victim, primed)
        moved_question = await through_victim.message()
        lost = await struck.ask_me(victim)
        lost_question = await lost.message()

        os.kill(gateways.second_pid, signal.SIGKILL)

        # The first notices nothing.
        await undisturbed.answer(survivor, calm_question)
        assert "ada" in str((await calm.message()).message["result"])
        # The second goes on where it stopped, and its question is still open.
        resumed = await moved.go_on(survivor, moved_question)
        await moved.answer(survivor, moved_question)
        done = (await resumed.message()).message["result"]
        assert "ada" in str(done)
        # The third is told that nobody works on its call any more, and has its session still.
        ended = await struck.go_on(survivor, lost_question)
        assert (await ended.message()).message["error"]["data"]["mcpsite/code"] == "call_lost"
        assert await struck.tools(survivor) > 5
        assert await struck.end(survivor) == 200
        assert await struck.status_of_ping(survivor) == 404
        assert await moved.status_of_ping(survivor) == 200
    # Nothing acknowledged is lost, and of what the victim began the ledger knows that it has no outcome.
    assert _outcomes(gateways) == {"ok": 2, None: 1}


def _outcomes(gateways: Gateways) -> dict[str | None, int]:
    """How the calls of the tool ended, by what the ledger has of them."""
    find = """SELECT o.code, count(DISTINCT i.call_id) FROM audit_record i LEFT JOIN audit_record o
              ON o.call_id = i.call_id AND o.kind = 'outcome'
              WHERE i.kind = 'intent' AND i.tool = 'test_elicitation' GROUP BY 1"""
    with psycopg.connect(DataDir(gateways.data).database_url(OWNER_ROLE)) as connection:
        return dict(connection.execute(find).fetchall())
