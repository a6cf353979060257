"""Brings messages to a receiver: over one TLS connection of syslog, or as requests to a webhook.

Both are blocking and belong to the thread of one stream. Each has a deadline for the whole of connecting and for the
whole of sending, however slowly the other side behaves.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import ssl
import struct
import termios
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
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
    except (OSError, ValueError) as error:  # ValueError: of a socket that was closed meanwhile
        if not over.is_set():
            raise
        raise TimeoutError from error
    finally:
        timer.cancel()
    if over.is_set():
        raise TimeoutError


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


class _Kept:
    """Keeps one connection."""

    def __init__(self) -> None:
        self._connection: ssl.SSLSocket | None = None

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """End the connection."""
        if (connection := self._connection) is not None:
            _shut(connection)
            self._drop()


class SyslogSender(_Kept):
    """Keeps one connection. What it takes as delivered is what the receiver's system has acknowledged (TCP).

    Whether the receiver's program has read it, syslog does not tell: `repeats` says how many messages a new connection
    begins with once more.
    """

    def __init__(self, options: SyslogOptions, address: tuple[str, int], hostname: str, connect: Connect) -> None:
        super().__init__()
        self._options = options
        self._host, self._port = address
        self._hostname = hostname
        self._connect = connect
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
                _until_acknowledged(connection, options.timeout_seconds)
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


def _until_acknowledged(connection: socket.socket, seconds: float) -> None:
    """Wait until the other side's system has all bytes (tcp(7), SIOCOUTQ). Raises TimeoutError."""
    until = time.monotonic() + seconds
    while struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0" * 4))[0]:
        if time.monotonic() > until:
            raise TimeoutError
        time.sleep(_LOOK_SECONDS)


# --- Webhook ---------------------------------------------------------------------------------------------------------


class WebhookSender(_Kept):
    """Posts batches over one kept connection. 2xx acknowledges; no redirect is followed."""

    repeats = 0

    def __init__(
        self, options: WebhookOptions, url: str, address: tuple[str, int], stream: uuid.UUID, connect: Connect
    ) -> None:
        super().__init__()
        self._options = options
        self._host, self._port = address
        parts = urlsplit(url)
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._authority = parts.netloc
        self._stream = stream
        self._connect = connect

    def is_open(self) -> bool:
        """Each request stands for itself: nothing is lost with the connection."""
        return True

    def send(self, messages: Sequence[Message]) -> None:
        """Post them as one request."""
        secret = self._options.signing_secret.get_secret_value()
        request = webhook_request(self._stream, messages, secret, int(time.time()))
        headers = {"Host": self._authority, **request.headers, "Content-Length": str(len(request.body))}
        if self._options.authorization:
            headers["Authorization"] = self._options.authorization.get_secret_value()
        lines = [f"POST {self._target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        status, said = self._post("\r\n".join((*lines, "", "")).encode("ascii") + request.body)
        if 200 <= status < 300:
            return
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and len(messages) > 1:
            raise TooLarge(f"The receiver answered {status} to {len(messages)} messages.")
        raise NotDelivered(f"The receiver answered {status}{f': {said}' if said else ''}.")

    def _post(self, data: bytes) -> tuple[int, str]:
        """Status and the beginning of what was said. A kept connection may have been closed: then a new one is made."""
        kept = self._connection is not None
        try:
            return self._exchange(data)
        except TimeoutError as error:
            raise NotDelivered(_reason(error, "The receiver did not answer")) from error
        except (OSError, ValueError) as error:
            if not kept:
                raise NotDelivered(_reason(error, "The receiver did not answer")) from error
        return self._post(data)

    def _exchange(self, data: bytes) -> tuple[int, str]:
        """One request and its answer (RFC 9112). Raises OSError, and then there is no connection any more."""
        seconds = self._options.timeout_seconds
        connection = self._connection or self._open()
        try:
            with _deadline(connection, seconds):
                connection.sendall(data)
                answer = _answer(connection)
        except BaseException:
            self._drop()
            raise
        if not answer.keeps:
            self._drop()
        return answer.status, _excerpt(answer.body)

    def _open(self) -> ssl.SSLSocket:
        context, seconds = tls_context(self._options.ca), self._options.timeout_seconds
        made = _secured(self._connect, self._host, self._port, seconds, context, self._host)
        self._connection = made
        return made


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    keeps: bool


def _answer(connection: ssl.SSLSocket) -> _Answer:
    """The answer, once its head is whole. Of a body without a short length only the beginning is read."""
    data = b""
    while True:
        while b"\r\n\r\n" not in data:
            data += _more(connection)
            if len(data) > _MOST_OF_AN_ANSWER:
                raise OSError(errno.EMSGSIZE, "The head of the answer is too long")
        head, _, data = data.partition(b"\r\n\r\n")
        status = re.match(rb"HTTP/1\.[01] (\d{3})(?: |\r|\Z)", head)
        if status is None:
            raise OSError(errno.EPROTO, "The answer is not HTTP")
        if not status[1].startswith(b"1"):  # interim (RFC 9110, section 15.2): the answer follows
            break
    length = re.search(rb"(?im)^content-length:[ \t]*(\d{1,6})[ \t]*\r?$", head)
    closes = re.search(rb"(?im)^(?:connection:.*close|transfer-encoding:)", head) or head.startswith(b"HTTP/1.0")
    if closes or length is None or int(length[1]) > _MOST_OF_AN_ANSWER:
        return _Answer(int(status[1]), data, keeps=False)
    while len(data) < int(length[1]):
        data += _more(connection)
    return _Answer(int(status[1]), data, keeps=len(data) == int(length[1]))


def _more(connection: ssl.SSLSocket) -> bytes:
    if found := connection.recv(_MOST_OF_AN_ANSWER):
        return found
    raise ConnectionResetError(errno.ECONNRESET, "The receiver closed the connection in the middle")


def _excerpt(said: bytes) -> str:
    text = said[: 4 * _EXCERPT].decode("utf-8", "replace")
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())[:_EXCERPT]
