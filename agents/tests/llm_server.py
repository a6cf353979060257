"""A server that speaks OpenAI's chat completions, streamed, as far as an agent needs it; and one that misbehaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson
from aiohttp import web

Reply = dict[str, Any]


def says(text: str) -> Reply:
    return {"content": text}


def calls(name: str, arguments: str, identifier: str = "call_1") -> Reply:
    function = {"name": name, "arguments": arguments}
    return {"tool_calls": [{"index": 0, "id": identifier, "type": "function", "function": function}]}


@dataclass
class LanguageModelServer:
    """Answers with `replies` in turn; `misbehave` answers instead, if it is there."""

    replies: list[Reply] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    counts: bool = True
    usage: dict[str, int] = field(
        default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    )
    misbehave: Callable[[web.Request], Any] | None = None
    url: str = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.requests.append(orjson.loads(await request.read()))
        if self.misbehave is not None:
            return await self.misbehave(request)
        reply = self.replies.pop(0)
        if not self.requests[-1].get("stream"):
            return web.json_response(self._whole(reply))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for chunk in self._chunks(reply):
            await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        return response

    def _whole(self, reply: Reply) -> dict[str, Any]:
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **reply}}
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        return {
            "id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage
        }  # fmt: skip

    def _chunks(self, reply: Reply) -> list[dict[str, Any]]:
        deltas: list[Any] = [{"role": "assistant", "content": ""}]
        if "content" in reply:
            deltas += [{"content": word + " "} for word in reply["content"].split()]
        else:
            [call] = reply["tool_calls"]
            whole = call["function"]["arguments"]
            deltas.append(
                {"tool_calls": [{**call, "function": {"name": call["function"]["name"], "arguments": whole[:4]}}]}
            )
            deltas.append({"tool_calls": [{"index": 0, "function": {"arguments": whole[4:]}}]})
        chunks = [self._chunk([{"index": 0, "delta": delta, "finish_reason": None}]) for delta in deltas]
        chunks.append(self._chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}]))
        if self.counts:
            chunks.append({**self._chunk([]), "usage": self.usage})
        return chunks

    def _chunk(self, choices: list[Any]) -> dict[str, Any]:
        return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices}


@asynccontextmanager
async def serving(*replies: Reply, **fields: Any) -> AsyncIterator[LanguageModelServer]:
    server = LanguageModelServer(list(replies), **fields)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        yield server
    finally:
        await runner.cleanup()


async def hangs(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    raise AssertionError("nobody waits so long")


async def drips(request: web.Request) -> web.StreamResponse:
    """Never silent for long, and never done."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    while True:
        await response.write(b": \n")
        await asyncio.sleep(0.1)


async def floods(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    while True:
        await response.write(b"data: " + b"x" * 1_000_000)


async def talks_garbage(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"data: {not json\n\n\xff\xfe", headers={"Content-Type": "text/event-stream"})


async def says_nothing(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"data: [DONE]\n\n", headers={"Content-Type": "text/event-stream"})


async def echoes_the_key(request: web.Request) -> web.StreamResponse:
    error = {"error": {"message": f"Bad key {request.headers['Authorization']}", "type": "auth", "code": "bad"}}
    return web.json_response(error, status=401)


async def compresses(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"\x1f\x8b", headers={"Content-Type": "text/event-stream", "Content-Encoding": "gzip"})


async def sends_elsewhere(request: web.Request) -> web.StreamResponse:
    return web.Response(status=307, headers={"Location": "http://169.254.169.254/latest/meta-data/"})


def _streamed(data: bytes) -> web.Response:
    return web.Response(body=b"data: " + data + b"\n\n", headers={"Content-Type": "text/event-stream"})


async def fails_with_control_characters(request: web.Request) -> web.StreamResponse:
    return _streamed(rb'{"error": {"message": "no \u0000 such \u001b[31m model \ud800"}}')


async def hides_the_key_at_the_cut(request: web.Request) -> web.StreamResponse:
    key = request.headers["Authorization"].removeprefix("Bearer ")
    return _streamed(orjson.dumps({"error": {"message": "x" * (500 - len(key) + 1) + key}}))


async def says_half_a_character(request: web.Request) -> web.StreamResponse:
    """A lone surrogate: JSON can escape it, but it is no text."""
    delta = rb'{"role":"assistant","content":"a \ud800 b"}'
    return _streamed(
        b'{"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":%s}]}'
        % delta
    )
