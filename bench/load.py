"""Makes calls as fast as they are answered and checks every answer, at a small part of the cost of what it measures.

It runs in a process of its own: one JSON object a line says what to do, one line answers. Each connection has one
request in flight and is kept open.
"""

from __future__ import annotations

import asyncio
import gc
import http.client
import resource
import sys
import time
from array import array
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

import httptools
import orjson
import uvloop

from bench.echo import LEGACY, MODERN

_GRACE_SECONDS = 60.0
_SHOWN_FAILURES = 3
# Ids and texts have a fixed width, so that the head of every request is the same bytes.
_FIRST_ID = 100_000_000


class LoadError(Exception):
    """The measurement could not be made; the text is a sentence for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Whom to call and for how long; `headers` come on top of those that the protocol asks for."""

    port: int
    path: str = "/mcp"
    headers: dict[str, str] = field(default_factory=dict)
    era: Literal["modern", "legacy"] = "modern"
    # What is called; empty: the tools are listed instead.
    tool: str = "echo"
    connections: int = 1
    seconds: float = 1.0
    warmup_seconds: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one job saw: latencies in milliseconds, `cpu_seconds` of this process."""

    calls: int
    failures: int
    examples: list[str]
    seconds: float
    cpu_seconds: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


class Requests:
    """Makes the calls of one job, each with a text of its own, as the bytes of HTTP requests."""

    def __init__(self, job: Job) -> None:
        self._job, self.lists = job, not job.tool
        self._next = _FIRST_ID
        self._before = b'{"jsonrpc":"2.0","id":'
        self._middle = b',"method":"tools/call","params":{"name":"%b","arguments":{"text":"call ' % job.tool.encode()
        self._after = b'"}' + (_META if job.era == "modern" else b"") + b"}}"
        if self.lists:
            self._middle = b',"method":"tools/list","params":{"x-call":{"text":"call '

    def head(self, session: str = "") -> bytes:
        """What stands before the body of every call of one connection."""
        return head(self._job, len(self._body(_FIRST_ID)), session)

    def _body(self, number: int) -> bytes:
        digits = b"%d" % number
        return b"".join((self._before, digits, self._middle, digits, self._after))

    def make(self) -> tuple[int, bytes]:
        """The next call's id and body."""
        number = self._next
        self._next += 1
        return number, self._body(number)


_META = (
    b',"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",'
    b'"io.modelcontextprotocol/clientInfo":{"name":"bench","version":"1"},'
    b'"io.modelcontextprotocol/clientCapabilities":{}}'
)
_INITIALIZE = (
    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},'
    b'"clientInfo":{"name":"bench","version":"1"}}}'
)
_INITIALIZED = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'


def head(job: Job, length: int, session: str = "") -> bytes:
    """The head of a request with a body of `length` bytes: basic/transports of 2026-07-28, or of 2025-11-25."""
    headers = {
        "Host": f"127.0.0.1:{job.port}",
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "Content-Length": str(length),
        "MCP-Protocol-Version": MODERN if job.era == "modern" else LEGACY,
    }
    if job.era == "modern":
        headers |= {"Mcp-Method": "tools/call", "Mcp-Name": job.tool} if job.tool else {"Mcp-Method": "tools/list"}
    if session:
        headers["Mcp-Session-Id"] = session
    lines = [f"POST {job.path} HTTP/1.1", *(f"{name}: {value}" for name, value in (headers | job.headers).items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def open_sessions(port: int, token: str, count: int) -> None:
    """Begin so many sessions of 2025-11-25 and leave them; raises LoadError."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_GRACE_SECONDS)
    headers = {
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
    }
    for _ in range(count):
        connection.request("POST", "/mcp", _INITIALIZE, headers)
        response = connection.getresponse()
        body = response.read()
        if not response.getheader("Mcp-Session-Id"):
            raise LoadError(f"initialize was answered {response.status}: {body[:300]!r}")
    connection.close()


def problem(number: int, status: int, body: bytes, sse: bool, lists: bool = False) -> str | None:
    """Why the answer is not the right one to call `number`, or None when it is."""
    if status != 200:
        return f"HTTP {status}: {body[:300]!r}"
    try:
        message = _from_events(body, number) if sse else orjson.loads(body)
        result = message["result"]
        said = result["tools"][0]["name"] == "echo" if lists else f"call {number}" in result["content"][0]["text"]
        right = message["id"] == number and said
        if right and not result.get("isError"):
            return None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        pass
    return f"a wrong answer to call {number}: {body[:300]!r}"


def _from_events(body: bytes, number: int) -> Any:
    for event in body.replace(b"\r\n", b"\n").split(b"\n\n"):
        data = b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))
        if data and (message := orjson.loads(data)).get("id") == number:
            return message
    return None


class _Connection(asyncio.Protocol):
    """One kept connection with one request in flight; its methods `on_…` are httptools' callbacks."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._head = run.requests.head()
        self._number = 0
        self._sent = 0.0
        self._chunks: list[bytes] = []
        self._sse = False
        self._session = ""
        self._waiting: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class derives from nothing

    async def shake_hands(self, job: Job) -> None:
        """The `initialize` of a legacy client; the session, where the server gives one, goes with every call after."""
        for body, status in ((_INITIALIZE, 200), (_INITIALIZED, 202)):
            self._waiting = asyncio.get_running_loop().create_future()
            self._write(head(job, len(body), self._session) + body)
            async with asyncio.timeout(_GRACE_SECONDS):
                await self._waiting
            if self._parser.get_status_code() != status:
                raise LoadError(f"initialize was answered {self._parser.get_status_code()}: {self._chunks!r:.300}")
        self._waiting = None
        self._head = self._run.requests.head(self._session)

    def call(self) -> None:
        """Send the next request."""
        self._number, body = self._run.requests.make()
        self._sent = time.perf_counter()
        self._write(self._head + body)

    def _write(self, request: bytes) -> None:
        assert self._transport is not None
        self._chunks.clear()
        self._sse = False
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._run.broken(f"an answer that is not HTTP: {error}")

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._sse = value.startswith(b"text/event-stream")
        elif self._waiting is not None and name.lower() == b"mcp-session-id":
            self._session = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)

    def on_message_complete(self) -> None:
        now = time.perf_counter()
        if self._waiting is not None:
            self._waiting.set_result(None)
            return
        if not self._parser.should_keep_alive():
            status, body = self._parser.get_status_code(), b"".join(self._chunks)
            self._run.broken(f"the connection is not kept open after HTTP {status}: {body[:300]!r}")
            return
        wrong = problem(
            self._number, self._parser.get_status_code(), b"".join(self._chunks), self._sse, self._run.requests.lists
        )
        if self._run.answered(now - self._sent, now, wrong):
            self.call()

    def connection_lost(self, exc: Exception | None) -> None:
        self._run.broken(f"the connection was lost: {exc or 'closed by the peer'}")

    def close(self) -> None:
        """Close without a word."""
        if self._transport is not None:
            self._transport.abort()


class Run:
    """The connections of one job, from the first to the last call."""

    def __init__(self, job: Job) -> None:
        self.requests = Requests(job)
        self._job = job
        self._connections: list[_Connection] = []
        self._latencies = array("d")
        self._failures: list[str] = []
        self._deadline = self._last = 0.0
        self._busy = 0
        self._done: asyncio.Future[None] | None = None

    async def connect(self) -> None:
        """Open every connection, in the legacy era with a session for each; raises LoadError."""
        loop = asyncio.get_running_loop()
        try:
            for _ in range(self._job.connections):
                _, connection = await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._job.port)
                self._connections.append(connection)
                if self._job.era == "legacy":
                    await connection.shake_hands(self._job)
        except OSError as error:  # a timeout is one, too
            raise LoadError(f"Nobody answers on port {self._job.port}: {error}") from error

    def close(self) -> None:
        """Close every connection."""
        self._done = None
        for connection in self._connections:
            connection.close()

    async def calls(self, seconds: float) -> Result:
        """Call for `seconds` on every connection and wait for the last answers; raises LoadError if some never come."""
        self._latencies, self._failures = array("d"), []
        self._done = asyncio.get_running_loop().create_future()
        self._busy = len(self._connections)
        cpu, started = _cpu_seconds(), time.perf_counter()
        self._deadline = started + seconds
        for connection in self._connections:
            connection.call()
        try:
            await asyncio.wait_for(self._done, seconds + _GRACE_SECONDS)
        except TimeoutError as error:
            raise LoadError(f"{self._busy} calls were not answered within {_GRACE_SECONDS:g} s.") from error
        return self._result(self._last - started, _cpu_seconds() - cpu)

    def answered(self, latency: float, now: float, wrong: str | None) -> bool:
        """Count one answer; whether the connection is to go on."""
        self._latencies.append(latency)
        self._last = now
        if wrong is not None:
            self._failures.append(wrong)
        if now < self._deadline and wrong is None:
            return True
        self._busy -= 1
        if not self._busy and self._done is not None and not self._done.done():
            self._done.set_result(None)
        return False

    def broken(self, why: str) -> None:
        """End the run: a connection cannot be used any longer."""
        if self._done is not None and not self._done.done():
            self._done.set_exception(LoadError(f"A call failed: {why}."))

    def _result(self, seconds: float, cpu_seconds: float) -> Result:
        ordered = sorted(self._latencies)
        return Result(
            calls=len(ordered),
            failures=len(self._failures),
            examples=self._failures[:_SHOWN_FAILURES],
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            p50_ms=_percentile(ordered, 0.50),
            p95_ms=_percentile(ordered, 0.95),
            p99_ms=_percentile(ordered, 0.99),
        )


def _percentile(ordered: list[float], part: float) -> float:
    return 1000 * ordered[min(len(ordered) - 1, int(len(ordered) * part))]


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _say(message: dict[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(message) + b"\n")
    sys.stdout.buffer.flush()


def _do(runner: asyncio.Runner, job: Job) -> None:
    """Warm up, say so, wait for the word, measure; whoever drives us reads the clocks of the target in between."""
    run = Run(job)
    try:
        runner.run(run.connect())
        warm = runner.run(run.calls(job.warmup_seconds))
        _say({"warm": asdict(warm)})
        if sys.stdin.readline():
            _say({"result": asdict(runner.run(run.calls(job.seconds)))})
    except LoadError as error:
        _say({"error": str(error)})
    finally:
        run.close()


def main() -> None:
    """Do the jobs that come on standard input until it ends."""
    gc.disable()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        while line := sys.stdin.readline():
            _do(runner, Job(**orjson.loads(line)))
            gc.collect()


if __name__ == "__main__":
    main()
