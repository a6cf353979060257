"""What goes back for one request: one write, or a stream from the first event on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import orjson
import pytest

from gateway import replies
from gateway.app import Gateway
from gateway.replies import Reply, Streams
from gateway.tests.conftest import Company, FakeConnector, modern, records, until


class Wire:
    """What a server would send, and a client that may leave or not read."""

    is_lost = False

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.when_lost: Callable[[], None] | None = None
        self.waiting = 0
        self.writable = asyncio.Event()
        self.writable.set()

    @property
    def scope(self) -> dict[str, Any]:
        return {"state": {"mcpsite.connection": self}}

    @property
    def text(self) -> str:
        return b"".join(event.get("body", b"") for event in self.sent).decode()

    async def send(self, event: Any) -> None:
        await self.writable.wait()
        self.sent.append(event)

    def unsent(self) -> int:
        return self.waiting

    def abort(self) -> None:
        tell, self.when_lost = self.when_lost, None
        if tell is not None:
            tell()


class Kept:
    """A log of events in memory."""

    def __init__(self) -> None:
        self.events: list[bytes] = []
        self.ended = False

    async def add(self, data: bytes) -> str:
        self.events.append(data)
        return str(len(self.events))

    taken_over: Callable[[], None] | None = None

    async def end(self) -> None:
        self.ended = True


@pytest.fixture
async def wire() -> Wire:
    return Wire()


def make_reply(wire: Wire, streams: Streams | None = None) -> Reply:
    return Reply(Streams() if streams is None else streams, wire.scope, wire.send, "r1")


async def test_without_an_event_the_answer_is_whole(wire: Wire) -> None:
    assert await make_reply(wire).finish(200, b"{}", []) == 200
    assert [event["type"] for event in wire.sent] == ["http.response.start", "http.response.body"]
    assert (b"content-length", b"2") in wire.sent[0]["headers"]


async def test_the_first_event_opens_a_stream_whose_last_event_is_the_answer(wire: Wire) -> None:
    streams = Streams()
    reply = make_reply(wire, streams)
    reply.event({"method": "a"})
    await until(lambda: '"a"' in wire.text)
    assert len(streams) == 1
    assert await reply.finish(404, b'{"error":1}', []) == 200
    headers = dict(wire.sent[0]["headers"])
    assert (headers[b"content-type"], headers[b"x-accel-buffering"]) == (b"text/event-stream", b"no")
    assert wire.text == 'event: message\ndata: {"method":"a"}\n\nevent: message\ndata: {"error":1}\n\n'
    assert wire.sent[-1] == {"type": "http.response.body", "body": b""}
    assert len(streams) == 0
    reply.event({"method": "late"})
    assert reply._writer is None


async def test_silent_streams_are_kept_alive(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "_KEEP_ALIVE_SECONDS", 0.01)
    reply = make_reply(wire)
    reply.open()
    await until(lambda: wire.text.startswith(":\n\n:\n\n"))
    await reply.finish(202, b"", [])
    assert "data" not in wire.text


async def test_events_that_are_kept_have_ids_and_begin_with_an_empty_one(wire: Wire) -> None:
    reply, log = make_reply(wire), Kept()
    reply.log, reply.primes = log, True
    reply.event({"n": 1})
    await reply.finish(200, b"{}", [])
    assert wire.text.split("\n\n")[0] == "id: 1\nretry: 1000\ndata:"
    assert [line for line in wire.text.splitlines() if line.startswith("id:")] == ["id: 1", "id: 2", "id: 3"]
    assert log.events == [b"", b'{"n":1}', b"{}"]
    assert log.ended


async def test_what_is_kept_goes_on_without_the_client(wire: Wire) -> None:
    reply, log = make_reply(wire), Kept()
    reply.log = log
    reply.can_be_withdrawn()
    reply.event({"n": 1})
    wire.abort()
    reply.event({"n": 2})
    await reply.finish(200, b"{}", [])
    assert log.events == [b'{"n":1}', b'{"n":2}', b"{}"]


async def test_a_client_that_does_not_read_is_left(wire: Wire) -> None:
    reply = make_reply(wire)
    reply.can_be_withdrawn()
    wire.writable.clear()
    lost = []
    for _ in range(12):
        reply.event(b"x" * 100_000)
        lost.append(reply.is_lost)
    assert lost == [False] * 10 + [True, True]
    assert reply._unwritten == 1_100_000
    reply.close()


async def ask(gateway: Gateway, company: Company, wire: Wire, **headers: str) -> None:
    """One tools/call over a connection that may be lost."""
    is_modern = not headers
    body = modern("tools/call", {"name": "echo", "arguments": {"text": "hello"}})
    if not is_modern:
        del body["params"]["_meta"]
    sent = {"host": "localhost", "content-type": "application/json", "authorization": f"Bearer {company.token}"}
    sent |= headers or {"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "echo"}
    raw = [(name.encode(), value.encode()) for name, value in sent.items()]
    scope = {"type": "http", "method": "POST", "path": "/mcp", "headers": raw, **wire.scope}
    incoming = iter([{"type": "http.request", "body": orjson.dumps(body)}])

    async def receive() -> Any:
        return next(incoming)

    await gateway(scope, receive, wire.send)


async def test_a_modern_client_that_leaves_cancels_its_call(
    gateway: Gateway, company: Company, outside: FakeConnector, wire: Wire
) -> None:
    outside.gate = asyncio.Event()
    asked = asyncio.create_task(ask(gateway, company, wire))
    await until(lambda: outside.calls)
    before = {record.pk for record in await records(code="cancelled")}
    wire.abort()
    await asked
    assert wire.sent == []
    await until(lambda: not gateway.ledger.queued)
    [record] = [each for each in await records(code="cancelled") if each.pk not in before]
    assert (record.tool, record.decision) == ("echo", "allow")


async def test_an_older_client_that_leaves_cancels_nothing(
    gateway: Gateway, company: Company, outside: FakeConnector, wire: Wire
) -> None:
    outside.gate = asyncio.Event()
    asked = asyncio.create_task(ask(gateway, company, wire, **{"mcp-protocol-version": "2025-11-25"}))
    await until(lambda: outside.calls)
    wire.abort()
    outside.gate.set()
    await asked
    assert orjson.loads(wire.text)["result"]["content"]


@pytest.mark.parametrize("is_modern", [True, False])
async def test_a_client_that_left_before_it_was_looked_for_is_gone_as_well(wire: Wire, is_modern: bool) -> None:
    reply = make_reply(wire)
    wire.is_lost = True

    async def serve() -> None:
        (reply.ends_with_client if is_modern else reply.can_be_withdrawn)()
        await asyncio.sleep(0)

    task = asyncio.create_task(serve())
    await asyncio.wait({task})
    assert (reply.is_lost, task.cancelled()) == (True, is_modern)
