"""How much is taken from an upstream."""

from __future__ import annotations

import asyncio

from django.conf import settings

from tools.connectors.base import ConnectorError

MAX_RESULT_BYTES: int = settings.MAX_RESULT_BYTES

# What a server may say without being asked, within a window of time; each message counts as so much at the least.
_MOST_NOISE_BYTES, _NOISE_SECONDS, _LEAST_NOISE = 1024 * 1024, 10.0, 64


class Noise:
    """Counts what a server says that nobody waits for; with another limit than the usual one, what is not all noise."""

    def __init__(self, most_bytes: int | None = None) -> None:
        self._most_bytes = most_bytes or _MOST_NOISE_BYTES
        self._since = self._bytes = 0.0

    def is_too_much(self, size: int) -> bool:
        """Whether it is, with this message."""
        now = asyncio.get_running_loop().time()
        if now - self._since > _NOISE_SECONDS:
            self._since, self._bytes = now, 0.0
        self._bytes += max(size, _LEAST_NOISE)
        return self._bytes > self._most_bytes


def too_large() -> ConnectorError:
    """What is said of an answer over the limit."""
    return ConnectorError("result_too_large", f"The upstream's answer is larger than {MAX_RESULT_BYTES} bytes.")
