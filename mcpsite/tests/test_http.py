"""Answers over real sockets: whole in one packet where they can be, and never kept back where they cannot."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn

from mcpsite import http
from mcpsite.http import Protocol, review

BODY = b'{"answer":42}'


class Application:
    """A few kinds of answers, by path."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.left = asyncio.Event()
        # Of the server.
        self.connections: set[Any] = set()

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
            case "/headers":
                while (await receive()).get("more_body"):
                    pass
                body = b",".join(name for name, _ in scope["headers"])
                await send(start | {"headers": [(b"content-length", str(len(body)).encode())]})
                await send({"type": "http.response.body", "body": body})
            case "/large":
                await send(start | {"headers": [(b"content-length", b"20000000")]})
                await send({"type": "http.response.body", "body": b"x" * 20_000_000})
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
        application.connections = server.server_state.connections
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


# --- Clients that mean no good ----------------------------------------------------------------------------------------


async def left(port: int, request: bytes) -> bool:
    """Whether the connection ends without an answer."""
    try:
        return await said(port, request) == b""
    except ConnectionError:
        return True


HALF_A_HEAD = b"GET /whole HTTP/1.1\r\nHost: a\r\nX: "
HALF_A_BODY = b"POST /headers HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n12"


@pytest.mark.parametrize("filling", [b"x", b"x\r\nY: "])
async def test_a_head_without_end_is_refused(port: int, filling: bytes) -> None:
    answer = await said(port, HALF_A_HEAD + filling * (70_000 // len(filling)))
    assert answer.startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("filling", [b"2;" + b"x" * 2_000_000, b"0\r\nX: " + b"x" * 2_000_000])
async def test_what_frames_a_body_has_an_end(port: int, filling: bytes) -> None:
    head = b"POST /headers HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert await left(port, head + filling)


async def test_of_requests_that_are_sent_ahead_there_are_not_too_many(port: int) -> None:
    assert await left(port, b"GET /waits HTTP/1.1\r\nHost: a\r\n\r\n" * 1_000)


async def test_trailers_do_not_pass_for_headers(port: int) -> None:
    head = b"POST /headers HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = await said(port, head + b"1\r\nx\r\n0\r\nAuthorization: Bearer late\r\n\r\n")
    assert answer.endswith(b"\r\n\r\nhost,connection,transfer-encoding")


@pytest.mark.parametrize("request_", [HALF_A_HEAD, HALF_A_BODY, b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n"])
async def test_a_client_that_stands_still_is_left(port: int, application: Application, request_: bytes) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request_)
    async with asyncio.timeout(5):
        while not any(each._waits_for() for each in application.connections):
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)  # until no more of a large answer fits into the system's buffers
        (connection,) = application.connections
        for now, are_open in ((0.0, True), (http.PATIENCE_SECONDS - 1, True), (http.PATIENCE_SECONDS, False)):
            review(application.connections, now)
            assert connection.transport.is_closing() is not are_open
        while application.connections:
            await asyncio.sleep(0.005)
    writer.close()


async def test_of_clients_that_leave_too_much_unread_those_go_that_leave_most(
    port: int, application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers = [(await asyncio.open_connection("127.0.0.1", port))[1] for _ in range(2)]
    writers[0].write(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
    async with asyncio.timeout(5):
        while len(application.connections) < 2 or not any(each.unsent() for each in application.connections):
            await asyncio.sleep(0.005)
        review(application.connections, 0.0)
        assert not any(each.transport.is_closing() for each in application.connections)
        monkeypatch.setattr(http, "_MOST_UNREAD", 1_000_000)
        review(application.connections, 0.0)
        assert sorted(each.transport.is_closing() for each in application.connections) == [False, True]
        while len(application.connections) > 1:
            await asyncio.sleep(0.005)
    for writer in writers:
        writer.close()


async def test_a_client_that_waits_for_us_or_takes_a_breath_is_not_left(port: int, application: Application) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /whole HTTP/1.1\r\nHost: a\r\n\r\n")
    async with asyncio.timeout(5):
        await reader.readuntil(BODY)
        (connection,) = application.connections
        assert connection._waits_for() is None
        writer.write(b"GET /waits HTTP/1.1\r\nHost: a\r\n\r\n")
        await application.go.wait()
        assert connection._waits_for() is None
    writer.close()
    await application.left.wait()
