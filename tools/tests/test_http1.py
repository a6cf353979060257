from __future__ import annotations

import asyncio
import gc
import socket
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import pytest

from tools import egress as egress_module
from tools.connectors import http1, http1_connection, limits
from tools.connectors.base import ConnectorError
from tools.connectors.http1 import HttpClient
from tools.connectors.http1_connection import Response, Stream
from tools.egress import Egress, Rule

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
EGRESS = Egress([Rule.parse("127.0.0.0/8", None)])


class Raw:
    """A server that answers each request with the next of these bytes, and hangs up where it says None."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(2))
                answer = await self.answered()
                if answer is None:
                    break
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass

    async def answered(self) -> bytes | None:
        return self.answers.pop(0) if self.answers else OK


@asynccontextmanager
async def served(server: Handler, limit: int = 4, host: str = "127.0.0.1") -> AsyncIterator[HttpClient]:
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(cast("asyncio.Task[None]", asyncio.current_task()))
        await server(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    client = HttpClient(f"http://{host}:{port}/mcp?a=b", {"X-Always": "1"}, EGRESS, limit)
    try:
        async with asyncio.timeout(5):
            yield client
    finally:
        await client.close()
        listener.close()
        await asyncio.wait_for(asyncio.gather(*tasks), 5)


def hangs_up(server: Handler) -> Handler:
    """The server, without the errors of a connection that ends."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await server(reader, writer)

    return answer


@asynccontextmanager
async def without_collector() -> AsyncIterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def post(client: HttpClient, **headers: str) -> Response:
    return await client.request("POST", headers, b"{}")


async def test_a_request_goes_out_whole_and_its_connection_is_used_again():
    server = Raw()
    async with served(server) as client:
        assert [(await post(client, Who="me")).body for _ in range(3)] == [b"ok"] * 3
    head = server.requests[0]
    assert head.startswith(b"POST /mcp?a=b HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nX-Always: 1\r\nWho: me\r\nContent-Length: 2\r\n\r\n{}" in head
    assert server.connections == 1


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX: y\r\n\r\n",
            b"abcde",
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 103 Early Hints\r\nContent-Length: 9\r\n\r\n" + OK, b"ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    ],
)
async def test_bodies_of_every_form_are_read_and_leave_the_connection_usable(answer, body):
    server = Raw(answer)
    async with served(server) as client:
        assert (await post(client)).body == body
        assert (await post(client)).body == b"ok"
    assert server.connections == 1


async def test_a_body_without_a_length_ends_with_the_connection():
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nall of it")
        writer.close()

    async with served(answer) as client:
        assert (await post(client)).body == b"all of it"


@pytest.mark.parametrize(
    "answer",
    [
        None,
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000 + b"\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 40_000,
        CHUNKED + b"0\r\n" + b"X: y\r\n" * 40_000,
        CHUNKED + b"1\r\na\r\n0\r\nX: " + b"a" * 1_000_000,
    ],
)
async def test_what_is_not_sound_http_is_a_broken_connection_and_the_next_request_gets_another(answer):
    server = Raw(answer)
    async with served(server) as client:
        with pytest.raises(ConnectorError, match="broke before it answered"):
            await post(client)
        assert (await post(client)).body == b"ok"
    assert server.connections == 2


@pytest.mark.parametrize("extra", [OK, b"stray"])
async def test_an_answer_that_nobody_asked_for_is_never_taken_for_the_next_one(extra):
    server = Raw(OK + extra)
    async with served(server) as client:
        assert (await post(client)).body == b"ok"
        assert (await post(client)).body == b"ok"
    assert server.connections == 2


async def test_a_server_that_hangs_up_at_once_is_a_broken_connection():
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pass

    async with served(hang_up) as client:
        for _ in range(20):
            with pytest.raises(ConnectorError, match="broke before it answered"):
                await post(client)


async def test_what_comes_while_nobody_asks_ends_the_connection():
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(OK)
        await asyncio.sleep(0.05)
        writer.write(OK.replace(b"ok", b"no"))
        assert await reader.read() == b""
        gone.set()

    gone = asyncio.Event()
    async with served(answer) as client:
        assert (await post(client)).body == b"ok"
        await gone.wait()


@pytest.mark.parametrize("how", ["told", "counted"])
async def test_an_answer_over_the_limit_is_not_read(monkeypatch, how):
    monkeypatch.setattr(limits, "MAX_RESULT_BYTES", 1000)
    told = b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n"
    counted = CHUNKED + b"1f4\r\n" + b"a" * 500 + b"\r\n"
    async with served(Raw(told if how == "told" else counted + b"1f5\r\n" + b"a" * 501)) as client:
        with pytest.raises(ConnectorError) as caught:
            await post(client)
    assert caught.value.code == "result_too_large"


async def test_no_more_connections_than_allowed_are_used_and_all_requests_are_served():
    server = Raw()
    async with served(server, limit=2) as client:
        assert [answer.body for answer in await asyncio.gather(*(post(client) for _ in range(50)))] == [b"ok"] * 50
    assert server.connections == 2


@pytest.mark.parametrize("when", ["waiting for a place", "waiting for an answer"])
async def test_a_cancelled_request_gives_its_place_back(when):
    class Holding(Raw):
        async def answered(self) -> bytes | None:
            await hold.wait()
            return OK

    hold = asyncio.Event()
    async with served(Holding(), limit=1) as client:
        first = asyncio.create_task(post(client))
        await asyncio.sleep(0.02)
        second = asyncio.create_task(post(client))
        await asyncio.sleep(0.02)
        cancelled, other = (second, first) if when == "waiting for a place" else (first, second)
        cancelled.cancel()
        hold.set()
        assert (await other).body == b"ok"
        assert (await post(client)).body == b"ok"
        assert cancelled.cancelled()


@pytest.mark.parametrize("turns", range(6))
async def test_a_request_cancelled_just_as_its_answer_comes_leaves_the_next_one_alone(turns):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        if not writers:
            writers.append(writer)
            asked.set()
            await reader.readuntil(b"{}")
        writer.write(OK)
        await reader.read()

    writers: list[asyncio.StreamWriter] = []
    asked = asyncio.Event()
    async with served(hangs_up(answer)) as client:
        first = asyncio.create_task(post(client))
        await asked.wait()
        writers[0].write(OK)
        for _ in range(turns):
            await asyncio.sleep(0)
        first.cancel()
        assert (await post(client)).body == b"ok"


async def test_nothing_is_written_to_a_connection_that_the_server_has_just_closed():
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sockets.append(writer.get_extra_info("socket"))
        while await reader.readuntil(b"{}"):
            writer.write(OK)

    async def outcome(turns: int) -> str:
        """Of a request so many turns of the event loop after the end of its connection."""
        await post(client)
        sockets[-1].shutdown(socket.SHUT_RDWR)
        for _ in range(turns):
            await asyncio.sleep(0)
        try:
            return (await post(client)).body.decode()
        except ConnectorError:
            return "broken"

    sockets: list[Any] = []
    async with served(hangs_up(answer)) as client:
        # In the first two the event loop has not seen the end yet.
        assert [await outcome(turns) for turns in range(5)] == ["broken", "broken", "ok", "ok", "ok"]


async def test_nothing_of_an_answer_is_kept_when_its_connection_ends():
    answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1000000\r\n\r\n" + b"a" * 1_000_000
    stream = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + b"a" * 1_000_000
    server = Raw(*[answer, stream] * 10)
    async with served(server) as client, without_collector():
        tracemalloc.start()
        try:
            for _ in range(10):
                assert len((await post(client)).body) == 1_000_000
                events = cast(Stream, (await post(client)).stream)
                await anext(events.chunks())
                events.close()
                del events
            await asyncio.sleep(0.05)
            assert tracemalloc.get_traced_memory()[0] < 5_000_000
        finally:
            tracemalloc.stop()


async def test_an_answer_in_tiny_pieces_takes_no_more_memory_than_in_one():
    pieces = b"2\r\nab\r\n" * 500_000
    async with served(Raw(CHUNKED + pieces + b"0\r\n\r\n")) as client:
        tracemalloc.start()
        try:
            assert len((await post(client)).body) == 1_000_000
            assert tracemalloc.get_traced_memory()[1] < 15_000_000
        finally:
            tracemalloc.stop()


async def test_idle_connections_are_closed(monkeypatch):
    monkeypatch.setattr(http1, "_IDLE_SECONDS", 0.05)
    server = Raw()
    async with served(server) as client:
        await asyncio.gather(post(client), post(client))
        await asyncio.sleep(0.2)
        assert not client._idle
        assert (await post(client)).body == b"ok"
    assert server.connections == 3


async def test_the_second_address_is_tried_when_the_first_refuses(monkeypatch):
    async def lookup(host: str, port: int) -> list[str]:
        return ["127.0.0.9", "127.0.0.1"]

    monkeypatch.setattr(egress_module, "lookup", lookup)
    async with served(Raw(), host="two.example.com") as client:
        assert (await post(client)).body == b"ok"


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\rb"])
async def test_a_header_with_a_line_break_is_not_sent(value):
    server = Raw()
    async with served(server) as client:
        with pytest.raises(ValueError, match="line break"):
            await post(client, Bad=value)
    assert server.connections == 0


async def test_a_closed_client_answers_at_once_and_ends_what_is_under_way():
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with served(answer) as client:
        under_way = asyncio.create_task(post(client))
        await asyncio.sleep(0.05)
        await client.close()
        with pytest.raises(ConnectorError, match="broke"):
            await under_way
        with pytest.raises(ConnectorError, match="is closed"):
            await post(client)


async def test_of_a_stream_that_comes_all_at_once_others_have_their_turn_in_between(monkeypatch):
    monkeypatch.setattr(http1_connection, "_PORTION", 1_000)
    text = bytes(range(256)) * 400
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(text) + text
    async with served(Raw(answer)) as client:
        stream = cast(Stream, (await post(client)).stream)
        await asyncio.sleep(0.05)  # until all of it is here
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        parts = [part async for part in stream.chunks()]
        counting.cancel()
        stream.close()
    assert b"".join(parts) == text
    assert max(map(len, parts)) == 1_000
    assert turns > 90
