"""AWS KMS at the wire, as far as the sealer asks it: `TrentService.Sign` and `GetPublicKey` (AWS JSON 1.1), Ed25519."""

from __future__ import annotations

import json
import re
import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from audit.sealing import kms as module

ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
_SIGNED = re.compile(
    r"AWS4-HMAC-SHA256 Credential=test/[0-9]{8}/eu-central-1/kms/aws4_request, .*Signature=[0-9a-f]{64}"
)


class Kms:
    """A server with one key. `failure` is the error that it answers everything with, `lies` that it signs wrongly."""

    def __init__(self) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.spec, self.usage = "ECC_NIST_EDWARDS25519", "SIGN_VERIFY"
        self.failure = ""
        self.lies = False
        self.asked: list[str] = []
        self.url = ""

    def answer(self, target: str, asked: dict[str, Any]) -> dict[str, Any]:
        """What the service answers; raises LookupError with the name of its error."""
        self.asked.append(target.removeprefix("TrentService."))
        if self.failure:
            raise LookupError(self.failure)
        if asked["KeyId"] != ARN:
            raise LookupError("NotFoundException")
        if target == "TrentService.GetPublicKey":
            der = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            return {"KeyId": ARN, "PublicKey": b64encode(der).decode(), "KeySpec": self.spec, "KeyUsage": self.usage}
        assert target == "TrentService.Sign"
        if (asked["MessageType"], asked["SigningAlgorithm"]) != ("RAW", "ED25519_SHA_512"):
            raise LookupError("InvalidKeyUsageException")
        if asked.get("DryRun"):
            raise LookupError("DryRunOperationException")
        message = b64decode(asked["Message"])
        if not 1 <= len(message) <= 4096:
            raise LookupError("ValidationException")
        key = Ed25519PrivateKey.generate() if self.lies else self.key
        return {"KeyId": ARN, "Signature": b64encode(key.sign(message)).decode(), "SigningAlgorithm": "ED25519_SHA_512"}


@pytest.fixture
def kms(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kms]:
    """A service of the test's own, and credentials for it."""
    service = Kms()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                if not _SIGNED.fullmatch(self.headers["Authorization"]):
                    raise LookupError("IncompleteSignatureException")
                self._say(200, service.answer(self.headers["X-Amz-Target"], json.loads(body)))
            except LookupError as error:
                self._say(400, {"__type": str(error), "message": f"{error} at the test"})

        def _say(self, status: int, document: dict[str, Any]) -> None:
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            return

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    module._client.cache_clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        service.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield service
        finally:
            module._client.cache_clear()
            server.shutdown()
            thread.join()
