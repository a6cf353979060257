"""Receivers for tests: a webhook that misbehaves as it is told, a syslog server of a few lines, and rsyslog itself."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

RSYSLOGD = "/usr/sbin/rsyslogd"


def until(condition: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait for a condition, and return what it came to."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come to that in time")


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def server_context(files: tuple[Path, Path, Path], *, asks: bool = False) -> ssl.SSLContext:
    """What a server shows; with `asks`, clients must show a certificate of the same authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[0], files[1])
    if asks:
        context.load_verify_locations(files[2])
        context.verify_mode = ssl.CERT_REQUIRED
    return context


# --- Webhook ---------------------------------------------------------------------------------------------------------

Behaviour = Callable[[BaseHTTPRequestHandler], bool]


@dataclass
class Posted:
    """One request that arrived whole."""

    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> dict[str, Any]:
        return json.loads(self.raw)


@dataclass
class Webhook:
    """A receiver. `script` holds what to do with the next requests; afterwards all are taken."""

    url: str
    port: int
    requests: list[Posted] = field(default_factory=list)
    taken: list[dict[str, Any]] = field(default_factory=list)
    script: deque[Behaviour] = field(default_factory=deque)


def answers(status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> Behaviour:
    """Answers with this status."""

    def behave(handler: BaseHTTPRequestHandler) -> bool:
        handler.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)
        return 200 <= status < 300

    return behave


def closes(handler: BaseHTTPRequestHandler) -> bool:
    """Takes the request and closes in the middle of the answer."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-")
    handler.close_connection = True
    return False


def trickles(handler: BaseHTTPRequestHandler) -> bool:
    """Answers 200, a letter at a time, for ever."""
    with suppress(OSError):
        for letter in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"a" * 10_000:
            handler.wfile.write(bytes([letter]))
            time.sleep(0.05)
    handler.close_connection = True
    return False


@contextmanager
def webhook(context: ssl.SSLContext, port: int = 0) -> Iterator[Webhook]:
    """A webhook over TLS on loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            posted = Posted({name.lower(): value for name, value in self.headers.items()}, raw)
            found.requests.append(posted)
            behave = found.script.popleft() if found.script else answers(204)
            if behave(self):
                found.taken.append(posted.body)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def get_request(self):
            plain, address = super().get_request()
            plain.settimeout(10)
            return context.wrap_socket(plain, server_side=True), address

        def handle_error(self, *_: Any) -> None:
            pass

    server = Server(("127.0.0.1", port), Handler)
    found = Webhook(f"https://127.0.0.1:{server.server_port}/hook", server.server_port)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


# --- Syslog ----------------------------------------------------------------------------------------------------------


class Syslog:
    """Takes octet-counted messages over TLS. `reads` can be cleared: then it takes no more from its connections."""

    def __init__(self, context: ssl.SSLContext, port: int = 0) -> None:
        self.lines: list[str] = []
        self.connections = 0
        self.reads = threading.Event()
        self.reads.set()
        self._context = context
        self._open: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", port))
        self.port = int(self._server.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        try:
            with self._context.wrap_socket(plain, server_side=True) as connection:
                self._open.append(connection)
                self.connections += 1
                self._take(connection)
        except OSError:
            return

    def _take(self, connection: ssl.SSLSocket) -> None:
        data = b""
        while True:
            self.reads.wait()
            more = connection.recv(65_536)
            if not more:
                return
            data += more
            while b" " in data[:12]:
                length, _, rest = data.partition(b" ")
                if len(rest) < int(length):
                    break
                self.lines.append(rest[: int(length)].decode())
                data = rest[int(length) :]

    def cut(self) -> None:
        """End all connections, without a word."""
        for each in self._open:
            with suppress(OSError):
                socket.socket.shutdown(each, socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        """End the server too."""
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()
        self._thread.join(5)


_CONFIGURATION = """
global(workDirectory="{folder}" DefaultNetstreamDriver="gtls" DefaultNetstreamDriverCAFile="{ca}"
    DefaultNetstreamDriverCertFile="{certificate}" DefaultNetstreamDriverKeyFile="{key}" maxMessageSize="64k")
module(load="imtcp" StreamDriver.Name="gtls" StreamDriver.Mode="1" StreamDriver.AuthMode="{mode}" {peers})
template(name="whole" type="string" string="%app-name%|%hostname%|%msgid%|%pri%|%structured-data%|%msg%\\n")
input(type="imtcp" port="{port}" address="127.0.0.1")
action(type="omfile" file="{folder}/messages" template="whole")
"""


class Rsyslog:
    """The real one, over TLS, on a port of its own. With `peer`, clients must show a certificate for that name."""

    def __init__(self, folder: Path, files: tuple[Path, Path, Path], port: int, peer: str = "") -> None:
        self._folder, self.port = folder, port
        mode, peers = ("x509/name", f'PermittedPeer=["{peer}"]') if peer else ("anon", "")
        text = _CONFIGURATION.format(
            folder=folder, certificate=files[0], key=files[1], ca=files[2], port=port, mode=mode, peers=peers
        )
        (folder / "rsyslog.conf").write_text(text)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run it, and wait until it listens."""
        command = [RSYSLOGD, "-n", "-f", f"{self._folder}/rsyslog.conf", "-i", f"{self._folder}/pid"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(self._listens)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """End it, as a restart does."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None

    @property
    def lines(self) -> list[list[str]]:
        """What it wrote: program, host, message id, priority, structured data, message."""
        file = self._folder / "messages"
        text = file.read_text() if file.exists() else ""
        return [line.split("|", 5) for line in text.splitlines()]

    @property
    def numbers(self) -> list[int]:
        """The numbers of the messages, as they came."""
        return [json.loads(line[5])["number"] for line in self.lines]
