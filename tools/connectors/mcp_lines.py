"""The lines over which upstream servers are heard: event streams over HTTP, and stdout."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from tools.connectors.base import ConnectorError
from tools.connectors.event_stream import events
from tools.connectors.http1_connection import Stream
from tools.connectors.limits import Noise
from tools.connectors.mcp_messages import parsed

logger = logging.getLogger("tools.connectors.mcp_lines")

Take = Callable[[dict[str, Any]], None]


class HttpLine:
    """An event stream, read until its end. Requests of the server go to `answer`."""

    def __init__(self, stream: Stream, identifier: int | None, take: Take, answer: Take) -> None:
        self.identifier, self.is_noisy = identifier, False
        self._stream, self._take, self._answer = stream, take, answer
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_task(self._read())

    def close(self) -> None:
        """Hear no more."""
        self.over.cancel()

    async def _read(self) -> None:
        noise = Noise()
        try:
            async for data in events(self._stream.chunks()):
                self._stream.recount()
                message = parsed(data)
                if noise.is_too_much(len(data)):
                    self.is_noisy = True
                    break
                if message is not None and "method" not in message:
                    break  # the answer to what opened the stream is its end
                if message is not None:
                    (self._answer if "id" in message else self._take)(message)
        except ConnectorError as error:
            logger.debug("a line was lost: %s", error)
        finally:
            self._stream.abort()


class ProcessLine:
    """What a process writes, as long as it runs; `hang_up` says that nobody listens."""

    is_noisy = False  # of a process all that it writes is counted

    def __init__(self, identifier: int | None, hang_up: Callable[[ProcessLine], None]) -> None:
        self.identifier = identifier
        self._hang_up = hang_up
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def close(self) -> None:
        """Hear no more."""
        self.end()
        self._hang_up(self)

    def end(self) -> None:
        """The process is over, or says nothing more on it."""
        if not self.over.done():
            self.over.set_result(None)
