"""Answers over real sockets: whole in one packet where they can be, and never kept back where they cannot."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from mcpsite.http import Protocol

BODY = b'{"answer":42}'


class Application:
    """A few kinds of answers, by path."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.left = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        length = (b"content-length", str(len(BODY)).encode())
        start: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": [length]}
        match scope["path"]:
            case "/whole":
                await send(start)
                await send({"type": "http.response.body", "body": BODY})
            case "/empty":
                await send(start | {"status": 204, "headers": [(b"content-length", b"0")]})
                await send({"type": "http.response.body", "body": b""})
            case "/stream":
                await send(start | {"headers": []})
                await self.go.wait()
                await send({"type": "http.response.body", "body": BODY})
            case "/parts":
                await send(start)
                await send({"type": "http.response.body", "body": BODY[:5], "more_body": True})
                await send({"type": "http.response.body", "body": BODY[5:]})
            case "/waits":
                scope["state"]["mcpsite.connection"].when_lost = self.left.set
                self.go.set()
                await self.left.wait()
            case "/broken":
                await send(start)
                raise RuntimeError("on purpose")


@pytest.fixture
async def application() -> Application:
    return Application()


@pytest.fixture
async def port(application: Application) -> AsyncIterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(
            application, http=Protocol, lifespan="off", log_config=None, log_level="critical", interface="asgi3"
        )
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve([listening]))
        while not server.started:
            await asyncio.sleep(0.005)
        yield listening.getsockname()[1]
        server.should_exit = True
        await task


async def said(port: int, request: bytes) -> bytes:
    """Everything that comes back until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def get(path: str, method: str = "GET", last: bool = True) -> bytes:
    close = "Connection: close\r\n" if last else ""
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{close}\r\n".encode()


@pytest.mark.parametrize("path", ["/whole", "/parts"])
async def test_an_answer_comes_whole(port: int, path: str) -> None:
    head, _, body = (await said(port, get(path))).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert body == BODY


async def test_a_head_without_a_body_comes_too(port: int) -> None:
    answer = await said(port, get("/whole", "HEAD"))
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n")


async def test_an_empty_answer_comes(port: int) -> None:
    assert (await said(port, get("/empty"))).startswith(b"HTTP/1.1 204")


async def test_the_head_of_a_stream_comes_before_its_body(port: int, application: Application) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(get("/stream"))
    async with asyncio.timeout(5):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        application.go.set()
        assert BODY in await reader.read()
    writer.close()
    await writer.wait_closed()


async def test_pipelined_requests_are_answered_in_order(port: int) -> None:
    requests = get("/whole", "HEAD", last=False) + get("/whole", last=False) + get("/parts")
    answer = await said(port, requests)
    assert answer.count(b"HTTP/1.1 200") == 3
    assert answer.count(BODY) == 2


async def test_an_answer_that_breaks_off_ends_the_connection(port: int) -> None:
    answer = await said(port, get("/broken", last=False))
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n")


async def test_an_application_is_told_when_its_client_leaves(port: int, application: Application) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(get("/waits"))
    async with asyncio.timeout(5):
        await application.go.wait()
        assert not application.left.is_set()
        writer.close()
        await application.left.wait()
