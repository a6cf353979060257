"""Anchors heads with somebody else's server, by a signed POST."""

from __future__ import annotations

import hmac
import json
import time
from dataclasses import dataclass, field
from urllib.parse import SplitResult

from audit.outside.sinks.base import Anchored, Receipt, SinkFailed
from audit.witness import Unusable, request

_SECONDS = 10.0
_SHORTEST_SECRET = 20


@dataclass(frozen=True, slots=True)
class WebhookSink:
    """An address that takes heads. It cannot be asked what it has."""

    url: str
    name: str
    secret: str = field(repr=False)

    @classmethod
    def of(cls, parts: SplitResult, secret: str | None) -> WebhookSink:
        """Raises ValueError."""
        if not secret or len(secret) < _SHORTEST_SECRET:
            raise ValueError(f"a webhook needs LEDGER_ANCHOR_SECRET, of at least {_SHORTEST_SECRET} characters")
        if not parts.hostname:
            raise ValueError("it names no host")
        return cls(parts.geturl(), f"https://{parts.netloc}{parts.path}", secret)

    def put(self, anchored: Anchored, sequence: int) -> Receipt:
        """Send the head; any status of success is the receipt. The number of the head makes it safe to send twice."""
        head = anchored.head
        said = {"origin": head.origin, "number": head.number, "size": head.size, "sequence": sequence}
        body = json.dumps({**said, "note": anchored.note}, ensure_ascii=False).encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "mcpsite-anchor",
            "Idempotency-Key": anchored.key,
            "X-Ledger-Signature": signature(self.secret, int(time.time()), body),
        }
        try:
            answer = request("POST", self.url, headers=headers, body=body, seconds=_SECONDS)
        except Unusable as error:
            raise SinkFailed(str(error)) from error
        if not 200 <= answer.status < 300:
            raise SinkFailed(f"{self.name} answered {answer.status}.")
        return {"status": answer.status, "sequence": sequence}

    def newer(self, origin: str, than: Anchored | None) -> str | None:
        """Nobody knows."""
        return None


def signature(secret: str, at: int, body: bytes) -> str:
    """`t=<seconds since 1970>,v1=<HMAC-SHA-256 of "<t>." and the body, in hexadecimal>`."""
    return f"t={at},v1={hmac.digest(secret.encode(), b'%d.' % at + body, 'sha256').hex()}"
