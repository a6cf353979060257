"""Many clients that listen: each with a `subscriptions/listen` of its own, on a connection of its own."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Sequence
from typing import cast

from bench.processes import BenchError

_ACKNOWLEDGED = b"notifications/subscriptions/acknowledged"
_CHANGED = b"notifications/tools/list_changed"
_BODY = (
    b'{"jsonrpc":"2.0","id":1,"method":"subscriptions/listen","params":{"notifications":{"toolsListChanged":true},'
    b'"_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28",'
    b'"io.modelcontextprotocol/clientInfo":{"name":"bench","version":"1"},'
    b'"io.modelcontextprotocol/clientCapabilities":{}}}}'
)
# So many connections are opened at a time.
_AT_ONCE = 100
_PATIENCE_SECONDS = 60.0


class _Listener(asyncio.Protocol):
    """One stream. It looks for words and parses nothing, so that it costs little beside what is measured."""

    def __init__(self, crowd: Crowd, token: str) -> None:
        self._crowd, self._token = crowd, token
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the stream."""
        self.transport = cast(asyncio.Transport, transport)
        lines = (
            "POST /mcp HTTP/1.1",
            f"Host: 127.0.0.1:{self._crowd.port}",
            f"Authorization: Bearer {self._token}",
            "Content-Type: application/json",
            "Accept: application/json, text/event-stream",
            "MCP-Protocol-Version: 2026-07-28",
            "Mcp-Method: subscriptions/listen",
            f"Content-Length: {len(_BODY)}",
            "",
            "",
        )
        self.transport.write("\r\n".join(lines).encode() + _BODY)

    def data_received(self, data: bytes) -> None:
        """The acknowledgement, changes, or a refusal."""
        if _CHANGED in data:
            self._crowd.heard(data.count(_CHANGED))
        elif not self.opened.done():
            if _ACKNOWLEDGED in data:
                self.opened.set_result(None)
            elif not data.startswith(b"HTTP/1.1 200"):
                self.opened.set_exception(BenchError(f"A stream was refused: {data[:300]!r}"))

    def connection_lost(self, error: Exception | None) -> None:
        """Nothing ends the stream but the end of the measurement."""
        self._crowd.lost += 1
        if not self.opened.done():
            self.opened.set_exception(BenchError("A connection was lost before its stream was open."))


class Crowd:
    """All of them. `lost` says how many have ended."""

    def __init__(self, port: int, tokens: Sequence[str]) -> None:
        self.port = port
        self._tokens = tokens
        self._all: list[_Listener] = []
        self._times: list[float] = []
        self._everybody: asyncio.Future[None] | None = None
        self.lost = 0

    async def grow_to(self, count: int) -> None:
        """Open streams until there are so many. Raises BenchError."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard != resource.RLIM_INFINITY and hard < count + 100:
            raise BenchError(f"{count} streams need as many open files, and the limit is {hard} (ulimit -n).")
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, count + 1_000)), hard))
        while len(self._all) < count:
            await asyncio.gather(*(self._open() for _ in range(min(_AT_ONCE, count - len(self._all)))))

    async def _open(self) -> None:
        token = self._tokens[len(self._all) % len(self._tokens)]
        listener = _Listener(self, token)
        self._all.append(listener)
        await asyncio.get_running_loop().create_connection(lambda: listener, "127.0.0.1", self.port)
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await listener.opened

    def expect(self) -> None:
        """From now on, wait for everybody to hear of one change."""
        self._times = []
        self._everybody = asyncio.get_running_loop().create_future()

    def heard(self, times: int) -> None:
        """One of them heard of a change."""
        self._times += [time.perf_counter()] * times
        if self._everybody is not None and len(self._times) >= len(self._all) and not self._everybody.done():
            self._everybody.set_result(None)

    async def when_heard(self) -> tuple[float, float]:
        """When the first and the last of them heard of it. Raises BenchError when some do not, or hear it twice."""
        assert self._everybody is not None
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._everybody
        except TimeoutError as error:
            raise BenchError(f"{len(self._all) - len(self._times)} of {len(self._all)} did not hear of it.") from error
        if len(self._times) > len(self._all) or self.lost:
            raise BenchError(f"{len(self._times)} heard of it, of {len(self._all)}; {self.lost} streams were lost.")
        return self._times[0], self._times[-1]

    def close(self) -> None:
        """Leave."""
        for listener in self._all:
            if listener.transport is not None:
                listener.transport.abort()
