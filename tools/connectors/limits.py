"""How much is taken from an upstream."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
from django.conf import settings

from tools.connectors.base import ConnectorError

MAX_RESULT_BYTES: int = settings.MAX_RESULT_BYTES


async def read_capped(response: aiohttp.ClientResponse) -> bytes:
    """The whole body, or ConnectorError `result_too_large` as soon as it is over the limit."""
    if (length := response.content_length) is not None and length <= MAX_RESULT_BYTES:
        return await response.read()
    chunks, size = [], 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > MAX_RESULT_BYTES:
            response.close()
            raise ConnectorError("result_too_large", f"The upstream's answer is larger than {MAX_RESULT_BYTES} bytes.")
        chunks.append(chunk)
    return b"".join(chunks)


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The data of each event of a stream (HTML standard, "Server-sent events"), under the same limit."""
    size, rest = 0, b""
    data: list[bytes] = []
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > MAX_RESULT_BYTES:
            response.close()
            raise ConnectorError("result_too_large", f"The upstream's answer is larger than {MAX_RESULT_BYTES} bytes.")
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data = []
