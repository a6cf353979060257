"""A lean HTTP/1.1 client (RFC 9112) for the call path: POST to one URL over kept connections.

A general client costs more than all the rest of a call. This one knows one origin, keeps no cookies, follows no
redirect and decodes no content encoding.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Mapping
from functools import cache
from urllib.parse import urlsplit

from tools.connectors.base import ConnectorError
from tools.connectors.http1_connection import Connection, Response
from tools.egress import Egress, EgressDenied

# Common servers close after five seconds; a request on a connection that is just being closed would be lost.
_IDLE_SECONDS = 4.0
# Of several addresses one may swallow packets: the next is tried after so long.
_DIAL_SECONDS = 2.0


class HttpClient:
    """Sends requests to one URL over at most `limit` connections, each made for an address that egress has checked.

    The URL is in its ASCII form (RFC 3986, with an IDNA host name), as pydantic's `HttpUrl` gives it; else ValueError.
    """

    def __init__(self, url: str, headers: Mapping[str, str], egress: Egress, limit: int) -> None:
        if not url.isascii():
            raise ValueError("The URL holds characters that are not ASCII.")
        parts = urlsplit(url)
        self._tls = parts.scheme == "https"
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if self._tls else 80)
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = {"Host": parts.netloc.rpartition("@")[2], **headers}
        self._egress = egress
        self._places = asyncio.Semaphore(limit)
        self._idle: deque[Connection] = deque()
        self._used: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False

    async def request(
        self, method: str, headers: Mapping[str, str], body: bytes, target: str | None = None
    ) -> Response:
        """The answer; where it is an event stream, the caller must close that. `target` is another path of the origin.

        Raises ConnectorError; keeps no deadline. A cancelled request closes its connection.
        """
        data = self._head(method, target or self._target, headers, len(body)) + body
        await self._places.acquire()
        try:
            connection = self._kept() or await self._dial()
        except BaseException:
            self._places.release()
            raise
        self._used.add(connection)
        return await connection.exchange(data)

    async def close(self) -> None:
        """Close all connections, also those in use."""
        self._closed = True
        for connection in (*self._idle, *self._used):
            connection.abort()
        self._idle.clear()

    def _head(self, method: str, target: str, headers: Mapping[str, str], length: int) -> bytes:
        lines = [f"{name}: {value}" for name, value in {**self._headers, **headers}.items()]
        text = "\r\n".join((f"{method} {target} HTTP/1.1", *lines, f"Content-Length: {length}", "", ""))
        if text.count("\n") != len(lines) + 3 or text.count("\r") != len(lines) + 3:
            raise ValueError("A header of the request holds a line break.")
        return text.encode("ascii")

    # --- Connections --------------------------------------------------------------------------------------------------

    def _kept(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable(_IDLE_SECONDS):
                return connection
            connection.abort()
        return None

    async def _dial(self) -> Connection:
        if self._closed:
            raise ConnectorError("upstream_unavailable", "The connector is closed.", retryable=True, sent=False)
        try:
            addresses = await self._egress.resolve(self._host, self._port)
            for address in addresses[:-1]:
                try:
                    async with asyncio.timeout(_DIAL_SECONDS):
                        return await self._connect(address)
                except OSError:  # TimeoutError is one.
                    continue
            return await self._connect(addresses[-1])
        except OSError as error:
            raise _not_connected(error) from error

    async def _connect(self, address: str) -> Connection:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(self._released),
            address,
            self._port,
            ssl=_tls_context() if self._tls else None,
            server_hostname=self._host if self._tls else None,
        )
        return connection

    def _released(self, connection: Connection, kept: bool) -> None:
        """The connection is not in use any more."""
        if connection not in self._used:
            return
        self._used.discard(connection)
        self._places.release()
        if kept and not self._closed:
            self._idle.append(connection)
            if self._sweeper is None:
                self._sweeper = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._sweep)
        else:
            connection.abort()

    def _sweep(self) -> None:
        """Close what has been idle for too long; the longest idle stand first."""
        self._sweeper = None
        while self._idle and not self._idle[0].is_usable(_IDLE_SECONDS):
            self._idle.popleft().abort()
        if self._idle:
            self._sweeper = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._sweep)


@cache
def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _not_connected(error: OSError) -> ConnectorError:
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConnectorError("upstream_unavailable", "The upstream's TLS certificate cannot be trusted.", sent=False)
    if isinstance(error, EgressDenied):
        return ConnectorError(error.code, str(error), sent=False)
    if isinstance(error, ssl.SSLError):
        return ConnectorError("upstream_unavailable", "The upstream does not speak TLS as it should.", sent=False)
    return ConnectorError("upstream_unavailable", "The upstream cannot be reached.", retryable=True, sent=False)
