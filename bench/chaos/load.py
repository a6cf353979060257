"""Clients that call without pause and remember what they were told, and an upstream that remembers its effects."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from bench.processes import free_port

WRITE, READ = "effect", "look"
_REVISION = "2026-07-28"
_META = {"io.modelcontextprotocol/protocolVersion": _REVISION, "io.modelcontextprotocol/clientCapabilities": {}}
_SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
_PAUSE_SECONDS = 0.05
_CLIENT_SECONDS = 15.0
_SLOWEST_SECONDS = 0.02


@dataclass
class Outside:
    """An upstream MCP server whose tool `effect` has an effect in the middle of the call, and which takes its time.

    Calls are told apart by their trace id.
    """

    url: str
    dice: random.Random
    effects: Counter[str] = field(default_factory=Counter)

    async def _answer(self, request: web.Request) -> web.Response:
        message = await request.json()
        if message["method"] == "server/discover":
            result: dict[str, Any] = {"supportedVersions": [_REVISION], "capabilities": {"tools": {}}}
        elif message["method"] == "tools/list":
            result = {"tools": [_tool(WRITE, reads=False), _tool(READ, reads=True)]}
        else:
            params = message["params"]
            await asyncio.sleep(self.dice.uniform(0, _SLOWEST_SECONDS))
            if params["name"] == WRITE:
                self.effects[params["_meta"]["traceparent"][3:35]] += 1
            await asyncio.sleep(self.dice.uniform(0, _SLOWEST_SECONDS))
            result = {"content": [{"type": "text", "text": params["arguments"]["text"]}]}
        answer = {"jsonrpc": "2.0", "id": message["id"], "result": {"resultType": "complete", **result}}
        return web.json_response(answer)


def _tool(name: str, *, reads: bool) -> dict[str, Any]:
    return {"name": name, "description": name, "inputSchema": _SCHEMA, "annotations": {"readOnlyHint": reads}}


@asynccontextmanager
async def outside(dice: random.Random) -> AsyncIterator[Outside]:
    """The upstream, listening."""
    upstream = Outside(f"http://127.0.0.1:{(port := free_port())}/mcp", dice)
    application = web.Application()
    application.router.add_post("/mcp", upstream._answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield upstream
    finally:
        await runner.cleanup()


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A call that was answered as carried out: its tool and its trace id."""

    tool: str
    trace: str


@dataclass
class Load:
    """Clients, of which each calls one of two tools by one of two doors, again and again."""

    base: str
    token: str
    acknowledged: dict[str, Acknowledged] = field(default_factory=dict)
    served: Counter[tuple[str, str]] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _stop: bool = False

    @asynccontextmanager
    async def running(self, clients: int) -> AsyncIterator[Load]:
        """So many clients call while the block runs; each call ends before it is left.

        Half of them connect anew for each call, so that every web worker has something to do.
        """
        timeout = aiohttp.ClientTimeout(total=_CLIENT_SECONDS)
        async with AsyncExitStack() as sessions:
            both = [
                await sessions.enter_async_context(
                    aiohttp.ClientSession(
                        timeout=timeout, connector=aiohttp.TCPConnector(limit=0, force_close=connects_anew)
                    )
                )
                for connects_anew in (False, True)
            ]
            tasks = [asyncio.create_task(self._client(number, both[number // 4 % 2])) for number in range(clients)]
            try:
                yield self
            finally:
                self._stop = True
                await asyncio.gather(*tasks)

    async def _client(self, number: int, session: aiohttp.ClientSession) -> None:
        tool, door = (WRITE, READ)[number % 2], ("mcp", "rest")[number // 2 % 2]
        count = 0
        while not self._stop:
            count += 1
            trace = f"{number + 1:016x}{count:016x}"
            try:
                record = await (self.by_mcp if door == "mcp" else self._rest)(tool, trace, session)
            except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
                self.codes[type(error).__name__] += 1
                record = None
            if record is None:
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            self.acknowledged[record] = Acknowledged(tool, trace)
            self.served[tool, door] += 1

    async def by_mcp(self, tool: str, trace: str, session: aiohttp.ClientSession) -> str | None:
        """Call once; the id of the record, None when it was not carried out."""
        meta = {**_META, "traceparent": _traceparent(trace)}
        params = {"name": tool, "arguments": {"text": trace}, "_meta": meta}
        headers = {
            "Authorization": f"Bearer {self.token}",
            "MCP-Protocol-Version": _REVISION,
            "Mcp-Method": "tools/call",
            "Mcp-Name": tool,
        }
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        async with session.post(f"{self.base}/mcp", json=body, headers=headers) as response:
            answer = await response.json(content_type=None)
        if "error" in answer:
            self.codes[(answer["error"].get("data") or {}).get("mcpsite/code", str(response.status))] += 1
            return None
        result = answer["result"]
        code = "failed" if result.get("isError") else "ok"
        return self._checked(result, result["_meta"]["mcpsite/record"], code, trace)

    async def _rest(self, tool: str, trace: str, session: aiohttp.ClientSession) -> str | None:
        headers = {"Authorization": f"Bearer {self.token}", "traceparent": _traceparent(trace)}
        body = {"arguments": {"text": trace}}
        async with session.post(f"{self.base}/api/v1/tools/{tool}/call/", json=body, headers=headers) as response:
            answer = await response.json(content_type=None)
        if response.status != 200:
            self.codes[str(answer.get("code") or response.status)] += 1
            return None
        return self._checked(answer["result"], answer["record"], answer["code"], trace)

    def _checked(self, result: dict[str, Any], record: str, code: str, trace: str) -> str | None:
        """The id of the record, of a call that was carried out."""
        if code != "ok":
            self.codes[code] += 1
            return None
        if result["content"][0]["text"] != trace:
            self.wrong.append(f"the call {trace} got the answer of another one")
        self.codes["ok"] += 1
        return record

    async def until_served(self, more: int, seconds: float) -> float | None:
        """How long it takes until each tool was served so often again by each door; None when that takes too long."""
        before, started = Counter(self.served), time.monotonic()
        wanted = {(tool, door): before[tool, door] + more for tool in (WRITE, READ) for door in ("mcp", "rest")}
        while any(self.served[each] < number for each, number in wanted.items()):
            if time.monotonic() - started > seconds:
                return None
            await asyncio.sleep(0.01)
        return time.monotonic() - started


def _traceparent(trace: str) -> str:
    return f"00-{trace}-00f067aa0ba902b7-01"
