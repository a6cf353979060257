"""How much is taken from an upstream."""

from __future__ import annotations

from collections.abc import AsyncIterator

from django.conf import settings

from tools.connectors.base import ConnectorError

MAX_RESULT_BYTES: int = settings.MAX_RESULT_BYTES


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each event of a stream (HTML standard, "Server-sent events")."""
    rest, after_return = bytearray(), False
    data: list[bytes] = []
    async for chunk in chunks:
        # A line ends with \n, \r or \r\n, which may come in two chunks.
        text = chunk[1:] if after_return and chunk[:1] == b"\n" else chunk
        after_return = chunk[-1:] == b"\r"
        rest += text
        if b"\n" not in text and b"\r" not in text:
            continue
        lines = bytes(rest).splitlines()
        rest = bytearray() if rest.endswith((b"\n", b"\r")) else bytearray(lines.pop())
        for line in lines:
            name, _, value = line.removeprefix(b"\xef\xbb\xbf").partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data = []


def too_large() -> ConnectorError:
    """What is said of an answer over the limit."""
    return ConnectorError("result_too_large", f"The upstream's answer is larger than {MAX_RESULT_BYTES} bytes.")
