"""A log for tests of the witness: real heads, signatures and proofs, behind a server that can also misbehave."""

from __future__ import annotations

import json
import re
import threading
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit import verify

TOKEN = "mcps_" + "w" * 43
ORIGIN = "mcp.example.com/ledger/3f9c2a71"


def leaf(text: str) -> bytes:
    return sha256(b"\0" + text.encode()).digest()


def proof(first: int, leaves: list[bytes], whole: bool = True) -> list[bytes]:
    """RFC 6962, section 2.1.2, word for word."""
    size = len(leaves)
    if first in (0, size):
        return [] if whole or not first else [verify.root_of(leaves)]
    k = 1 << (size - 1).bit_length() - 1
    if first <= k:
        return [*proof(first, leaves[:k], whole), verify.root_of(leaves[k:])]
    return [*proof(first - k, leaves[k:], False), verify.root_of(leaves[:k])]


class Log:
    """Leaves, and heads over them; `copy` is what a backup holds."""

    def __init__(self, origin: str = ORIGIN) -> None:
        self.origin = origin
        self.keys = [Ed25519PrivateKey.generate()]
        self.leaves: list[bytes] = []
        self.heads: list[tuple[verify.Head, str]] = []
        self.at = datetime(2026, 11, 23, 12, tzinfo=UTC)
        self.seal()

    def copy(self) -> Log:
        other = Log.__new__(Log)
        other.__dict__.update(self.__dict__, keys=[*self.keys], leaves=[*self.leaves], heads=[*self.heads])
        return other

    def key(self, private: Ed25519PrivateKey) -> verify.Key:
        return verify.Key(self.origin, verify.ED25519, private.public_key().public_bytes_raw())

    @property
    def vkeys(self) -> list[str]:
        return [str(self.key(each)) for each in self.keys]

    def add(self, *texts: str) -> None:
        self.leaves += [leaf(each) for each in texts]
        self.seal()

    def seal(self, *further: str, by: Ed25519PrivateKey | None = None) -> verify.Head:
        self.at += timedelta(seconds=1)
        previous = self.heads[-1][0].hash if self.heads else verify.FIRST_PREVIOUS
        head = verify.Head(
            self.origin, len(self.leaves), verify.root_of(self.leaves), len(self.heads), previous, self.at, further
        )
        signers = [by or self.keys[-1]]
        if any(each.startswith("successor") for each in further):
            signers = self.keys[-2:]
        self.heads.append((head, self.signed(head, signers)))
        return head

    def signed(self, head: verify.Head, signers: list[Ed25519PrivateKey]) -> str:
        lines = (verify.Signature(self.origin, self.key(each).id, each.sign(head.text.encode())) for each in signers)
        return str(verify.Note(head.text, tuple(lines)))

    def rotate(self) -> None:
        self.keys.append(Ed25519PrivateKey.generate())
        self.seal(f"successor {self.key(self.keys[-1])}")

    def break_off(self, reason: str) -> verify.Head:
        return self.seal(f"break {urlsafe_b64encode(reason.encode()).decode()}")

    def answer(self, path: str) -> Any:
        parts = urlsplit(path)
        what = parts.path.removeprefix("/api/v1/audit")
        if what == "/keys/":
            return {"keys": self.vkeys}
        if what == "/heads/newest/":
            return {"note": self.heads[-1][1]}
        if found := re.fullmatch(r"/heads/(\d+)/", what):
            return {"note": self.heads[int(found[1])][1]}
        query = parse_qs(parts.query)
        first, second = (self.heads[int(query[name][0])] for name in ("from", "to"))
        path_ = proof(first[0].size, self.leaves[: second[0].size])
        return {"from": first[1], "to": second[1], "path": [b64encode(each).decode() for each in path_]}


class Server:
    """Serves `log`, which can be exchanged, and keeps what is posted. `misbehave` answers in the place of all this."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.cosigned: dict[int, list[str]] = {}
        self.contradictions: list[dict[str, str]] = []
        self.requests = 0
        self.misbehave: Callable[[BaseHTTPRequestHandler], bool] = lambda handler: False
        self.stopping = threading.Event()

    def post(self, path: str, body: dict[str, str]) -> Any:
        if path.endswith("/contradictions/"):
            self.contradictions.append(body)
        elif found := re.fullmatch(r"/api/v1/audit/heads/(\d+)/cosignatures/", path):
            self.cosigned.setdefault(int(found[1]), []).append(body["line"])
        else:
            raise LookupError(path)
        return body


@contextmanager
def serving(log: Log) -> Iterator[tuple[Server, str]]:
    """The server and its address."""
    server = Server(log)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.serve(lambda: server.log.answer(self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.serve(lambda: server.post(self.path, body))

        def serve(self, make: Callable[[], Any]) -> None:
            server.requests += 1
            try:
                if server.misbehave(self):
                    return None
                if self.headers["Authorization"] != f"Bearer {TOKEN}":
                    return self.say(401, {"detail": "The token is not valid."})
                self.say(200, make())
            except (LookupError, ValueError):
                self.say(404, {"detail": "Not found."})
            except OSError:
                self.close_connection = True

        def say(self, status: int, content: Any) -> None:
            raw = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *arguments: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{http.server_port}"
    finally:
        server.stopping.set()
        http.shutdown()
        thread.join()
        http.server_close()
