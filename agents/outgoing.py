"""The HTTP client that models are asked with: it reaches what egress rules allow, and takes no more than it should."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

import httpcore2
import httpx2

from tools.egress import Egress, EgressDenied

# A long answer of a model is some hundred kilobytes; streamed, with its framing, some megabytes.
MAX_ANSWER_BYTES = 16 * 1024 * 1024
_CONNECT_SECONDS = 10.0


class AnswerRefused(httpx2.TransportError):
    """The server's answer is not taken; the text says why."""


class _Backend(httpcore2.AsyncNetworkBackend):
    """Resolves a name once, and connects to a checked address of it."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the library's signature
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            addresses = await self._egress.resolve(host, port)
        except EgressDenied as denied:
            raise httpcore2.ConnectError(str(denied)) from denied
        except OSError as error:
            raise httpcore2.ConnectError(f"The name {host} cannot be resolved.") from error
        return await self._inner.connect_tcp(addresses[0], port, timeout, local_address, socket_options)

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


class _Bounded(httpx2.AsyncByteStream):
    """A body of at most so many bytes."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __aiter__(self) -> AsyncIterator[bytes]:
        taken = 0
        async for chunk in self._inner:
            taken += len(chunk)
            if taken > MAX_ANSWER_BYTES:
                raise AnswerRefused(f"The model's answer is larger than {MAX_ANSWER_BYTES} bytes.")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Transport(httpx2.AsyncHTTPTransport):
    """HTTP/1.1 over guarded connections. No proxy of the environment, no compressed bodies."""

    def __init__(self, egress: Egress) -> None:
        super().__init__(trust_env=False)
        # The transport offers no other way to give its pool another network.
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=httpx2.create_ssl_context(trust_env=False),
            max_connections=4,
            keepalive_expiry=4.0,
            network_backend=_Backend(egress),
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.headers["accept-encoding"] = "identity"
        response = await super().handle_async_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise AnswerRefused("The model's answer is compressed, although that was not asked for.")
        response.stream = _Bounded(response.stream)
        return response


def http_client(egress: Egress, silent_seconds: float) -> httpx2.AsyncClient:
    """A client that follows no redirect; `silent_seconds` is how long the server may send nothing."""
    timeout = httpx2.Timeout(silent_seconds, connect=min(silent_seconds, _CONNECT_SECONDS))
    return httpx2.AsyncClient(transport=_Transport(egress), timeout=timeout, follow_redirects=False, trust_env=False)
