"""Brings messages to a receiver: over one TLS connection of syslog, or as requests to a webhook.

Both are blocking and belong to the thread of one stream. Each has a deadline for the whole of connecting and for the
whole of sending, however slowly the other side behaves.
"""

from __future__ import annotations

import errno
import fcntl
import http.client
import os
import socket
import ssl
import struct
import termios
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Protocol
from urllib.parse import urlsplit

from audit.streams.messages import Message, syslog_frame, webhook_request
from audit.streams.options import SyslogOptions, WebhookOptions

_LOOK_SECONDS = 0.005
_MOST_OF_AN_ANSWER = 64 * 1024
_EXCERPT = 200
_PROBATION_SECONDS = 2.0


class Connect(Protocol):
    """Makes a TCP connection to an address that may be reached. Given from above, where egress rules are known.

    Raises OSError.
    """

    def __call__(self, host: str, port: int, seconds: float) -> socket.socket:
        """A socket that is connected."""


class NotDelivered(Exception):
    """The receiver did not take the messages; the text says why."""


class TooLarge(NotDelivered):
    """The receiver does not take so much at once."""


class Sender(Protocol):
    """A way to one receiver."""

    repeats: int

    def is_open(self) -> bool:
        """Whether a connection is kept that still stands."""

    def send(self, messages: Sequence[Message]) -> None:
        """Bring all of them, or raise NotDelivered: then some may have arrived all the same."""

    def close(self) -> None:
        """End what is under way, from any thread."""


@contextmanager
def _deadline(connection: socket.socket, seconds: float) -> Iterator[None]:
    """End the connection when the time is over: each read and write of a slow peer alone would stay in its time.

    Raises TimeoutError for whatever failed because of that.
    """
    over = threading.Event()

    def end() -> None:
        over.set()
        _shut(connection)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise TimeoutError if over.is_set() else error from error
    finally:
        timer.cancel()


def _shut(connection: socket.socket) -> None:
    """Not by the method of an SSL socket, which would first forget that what is written has to be encrypted."""
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def tls_context(ca: str, certificate: str = "", key: str = "") -> ssl.SSLContext:
    """What verifies the receiver, and shows our certificate where there is one. Raises NotDelivered."""
    context = ssl.create_default_context(cadata=ca or None)
    if certificate:
        # The library reads certificates of its own from files only: this one is in memory and nowhere else.
        with os.fdopen(os.memfd_create("client-certificate"), "wb", buffering=0) as file:
            file.write(f"{certificate}\n{key}\n".encode())
            try:
                context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
            except (ssl.SSLError, OSError) as error:
                raise NotDelivered("Our client certificate and its key do not fit or cannot be read.") from error
    return context


def _secured(
    connect: Connect, host: str, port: int, seconds: float, context: ssl.SSLContext, name: str
) -> ssl.SSLSocket:
    try:
        plain = connect(host, port, seconds)
    except OSError as error:
        raise NotDelivered(_reason(error, f"{host}:{port} cannot be reached")) from error
    plain.settimeout(seconds)
    try:
        with _deadline(plain, seconds):
            return context.wrap_socket(plain, server_hostname=name)
    except OSError as error:
        plain.close()
        raise NotDelivered(_reason(error, "The TLS handshake failed")) from error


def _reason(error: BaseException, otherwise: str) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"The receiver's certificate is not trusted: {error.verify_message}."
    if isinstance(error, TimeoutError):
        return f"{otherwise}: it took too long."
    if getattr(error, "code", "") == "egress_denied":
        return str(error)
    said = error.strerror or getattr(error, "reason", "") or str(error) if isinstance(error, OSError) else str(error)
    return f"{otherwise}: {said}." if said else f"{otherwise}."


# --- Syslog ----------------------------------------------------------------------------------------------------------


class SyslogSender:
    """Keeps one connection. What it takes as delivered is what the receiver's system has acknowledged (TCP).

    Whether the receiver's program has read it, syslog does not tell: `repeats` says how many messages a new connection
    begins with once more.
    """

    def __init__(self, options: SyslogOptions, address: tuple[str, int], hostname: str, connect: Connect) -> None:
        self._options = options
        self._host, self._port = address
        self._hostname = hostname
        self._connect = connect
        self._connection: ssl.SSLSocket | None = None
        self._opened = 0.0
        self.repeats = options.resend

    def is_open(self) -> bool:
        """Whether the connection still stands."""
        if self._connection is None:
            return False
        try:
            self._look(self._connection)
        except OSError:
            self._drop()
            return False
        return True

    def send(self, messages: Sequence[Message]) -> None:
        """Write them, and wait until the receiver's system has them."""
        options = self._options
        frames = [
            syslog_frame(each, host=self._hostname, facility=options.facility, longest=options.max_message_bytes)
            for each in messages
        ]
        connection = self._connection or self._open()
        try:
            self._look(connection)
            with _deadline(connection, options.timeout_seconds):
                connection.sendall(b"".join(frames))
                while _unacknowledged(connection):
                    time.sleep(_LOOK_SECONDS)
            self._prove(connection)
        except (OSError, ValueError) as error:  # ValueError: it was closed by another thread
            self._drop()
            raise NotDelivered(_reason(error, "The connection ended while messages were sent")) from error

    def _open(self) -> ssl.SSLSocket:
        options = self._options
        key = options.client_key.get_secret_value() if options.client_key else ""
        context = tls_context(options.ca, options.client_certificate, key)
        name = options.server_name or self._host
        made = _secured(self._connect, self._host, self._port, options.timeout_seconds, context, name)
        self._connection, self._opened = made, time.monotonic()
        return made

    def _prove(self, connection: ssl.SSLSocket) -> None:
        """Believe a new connection only after a while: whoever refuses our certificate says so after the handshake."""
        self._look(connection)
        while time.monotonic() - self._opened < _PROBATION_SECONDS:
            time.sleep(_LOOK_SECONDS)
            self._look(connection)

    @staticmethod
    def _look(connection: ssl.SSLSocket) -> None:
        """Raise OSError when it has ended. A receiver of syslog has nothing to say: what it says is passed over."""
        seconds = connection.gettimeout()
        connection.setblocking(False)
        try:
            if not connection.recv(1024):
                raise ConnectionResetError(errno.ECONNRESET, "The receiver closed it")
        except ssl.SSLWantReadError:
            return
        finally:
            connection.settimeout(seconds)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """End the connection."""
        if (connection := self._connection) is not None:
            _shut(connection)
            self._drop()


def _unacknowledged(connection: socket.socket) -> int:
    """How many bytes the other side's system has not acknowledged yet (tcp(7), SIOCOUTQ)."""
    left: int = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0" * 4))[0]
    return left


# --- Webhook ---------------------------------------------------------------------------------------------------------


class WebhookSender:
    """Posts batches over one kept connection. 2xx acknowledges; no redirect is followed."""

    repeats = 0

    def __init__(
        self, options: WebhookOptions, url: str, address: tuple[str, int], stream: uuid.UUID, connect: Connect
    ) -> None:
        self._options = options
        self._host, self._port = address
        parts = urlsplit(url)
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._authority = parts.netloc
        self._stream = stream
        self._connect = connect
        self._connection: http.client.HTTPConnection | None = None

    def is_open(self) -> bool:
        """Each request stands for itself: nothing is lost with the connection."""
        return True

    def send(self, messages: Sequence[Message]) -> None:
        """Post them as one request."""
        secret = self._options.signing_secret.get_secret_value()
        request = webhook_request(self._stream, messages, secret, int(time.time()))
        headers = {**request.headers, "Host": self._authority, "Accept-Encoding": "identity"}
        if self._options.authorization:
            headers["Authorization"] = self._options.authorization.get_secret_value()
        status, said = self._post(headers, request.body)
        if 200 <= status < 300:
            return
        if status == http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE and len(messages) > 1:
            raise TooLarge(f"The receiver answered {status} to {len(messages)} messages.")
        raise NotDelivered(f"The receiver answered {status}{f': {said}' if said else ''}.")

    def _post(self, headers: dict[str, str], body: bytes) -> tuple[int, str]:
        """Status and the beginning of what was said. A kept connection may have been closed: then a new one is made."""
        kept = self._connection is not None
        try:
            return self._exchange(headers, body)
        except (OSError, http.client.HTTPException) as error:
            self._drop()
            if not kept or isinstance(error, TimeoutError):
                raise NotDelivered(_reason(error, "The receiver did not answer")) from error
        try:
            return self._exchange(headers, body)
        except (OSError, http.client.HTTPException) as error:
            self._drop()
            raise NotDelivered(_reason(error, "The receiver did not answer")) from error

    def _exchange(self, headers: dict[str, str], body: bytes) -> tuple[int, str]:
        seconds = self._options.timeout_seconds
        if self._connection is None:
            context = tls_context(self._options.ca)
            secured = _secured(self._connect, self._host, self._port, seconds, context, self._host)
            self._connection = http.client.HTTPConnection(self._host, self._port)
            self._connection.sock = secured
        connection = self._connection
        with _deadline(connection.sock, seconds):
            connection.request("POST", self._target, body, headers)
            answer = connection.getresponse()
            said = answer.read(_MOST_OF_AN_ANSWER)
        if not answer.isclosed() or answer.will_close:
            self._drop()
        return answer.status, _excerpt(said)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """End the connection."""
        connection = self._connection
        if connection is not None and connection.sock is not None:
            _shut(connection.sock)
            self._drop()


def _excerpt(said: bytes) -> str:
    text = said[: 4 * _EXCERPT].decode("utf-8", "replace")
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())[:_EXCERPT]
