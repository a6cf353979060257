"""What receivers are sent: JSON messages, counted without gaps, as lines of syslog or as signed requests."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from audit.codes import CARRIED_OUT
from audit.streams.sealed import Gone, Sealed
from audit.verify import time_text

FORMAT = "mcpsite-stream/1"
_SEVERITIES = {"deny": 4}
_WELL = frozenset({*CARRIED_OUT, "create", "update", "delete", "login", "logout", "intended"})
_NOTICE, _INFORMATIONAL, _ERROR = 5, 6, 3
# RFC 5424, section 7.3.1: sequenceId goes from 1 to 2147483647 and begins again.
_SEQUENCE = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `seq` is where its record was sealed, None for a test."""

    body: dict[str, Any]
    at: datetime
    what: str
    severity: int
    seq: int | None = None

    @property
    def count(self) -> int:
        """The stream's own count of it; 0 for a test."""
        return int(self.body.get("number", 0))


def told(stream: uuid.UUID, number: int, item: Sealed | Gone) -> Message:
    """The message of a record, or of records that are gone."""
    head = {"format": FORMAT, "stream": str(stream), "number": number}
    if isinstance(item, Gone):
        body = {**head, "type": "gap", "first_seq": item.first_seq, "last_seq": item.last_seq, "records": item.count}
        return Message(body, datetime.now(UTC), "gap", _ERROR, item.first_seq)
    return Message(
        {**head, "type": "record", **item.body()}, item.at, item.values["kind"], _severity(item.values), item.seq
    )


def trial(stream: uuid.UUID, by: str) -> Message:
    """A message that is no record and has no number."""
    now = datetime.now(UTC)
    body = {"format": FORMAT, "stream": str(stream), "type": "test", "at": time_text(now), "by": by}
    return Message(body, now, "test", _INFORMATIONAL)


def _severity(values: dict[str, Any]) -> int:
    """Warning for what was refused, notice for what did not go well, else informational (RFC 5424, table 2)."""
    usual = _INFORMATIONAL if values["code"] in _WELL else _NOTICE
    return _SEVERITIES.get(values["decision"] or "", usual)


# --- Syslog ----------------------------------------------------------------------------------------------------------


def syslog_frame(message: Message, *, host: str, facility: int, longest: int) -> bytes:
    """RFC 5424 with octet counting (RFC 5425, section 4.3.1). ASCII only, so that no byte order mark is needed."""
    sequence = f'[meta sequenceId="{(message.count - 1) % _SEQUENCE + 1}"]' if message.count else "-"
    head = f"<{facility * 8 + message.severity}>1 {time_text(message.at)} {host} mcpsite - {message.what} {sequence} "
    line = head + _json(message.body)
    if len(line) > longest:
        line = head + _json(_shortened(message.body))
    return b"%d %s" % (len(line), line.encode("ascii"))


def _json(body: dict[str, Any]) -> str:
    return json.dumps(body, separators=(",", ":"))


def _shortened(body: dict[str, Any]) -> dict[str, Any]:
    """Without the detail, which alone can be long; that it is missing is said."""
    record = {name: value for name, value in body.get("record", {}).items() if name != "detail"}
    return {**body, "record": record, "detail_omitted": True}


# --- Webhook ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """The headers and the body of one POST."""

    headers: dict[str, str]
    body: bytes


def webhook_request(stream: uuid.UUID, messages: Sequence[Message], secret: str, sent_at: int) -> Request:
    """A batch as one request, signed as Standard Webhooks 1.0 says; `sent_at` in seconds since 1970.

    The id follows from the stream and the first message's number: a repeated request has the same id and body.
    """
    first, last = messages[0].count, messages[-1].count
    identifier = f"{stream}_{first}" if first else f"{stream}_test_{uuid.uuid4()}"
    span = {"first": first, "last": last} if first else {}
    body = json.dumps(
        {"format": FORMAT, "stream": str(stream), **span, "messages": [each.body for each in messages]},
        separators=(",", ":"),
    ).encode("ascii")
    signed = f"{identifier}.{sent_at}.".encode("ascii") + body
    signature = base64.b64encode(hmac.digest(signing_key(secret), signed, "sha256")).decode("ascii")
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "mcpsite",
        "webhook-id": identifier,
        "webhook-timestamp": str(sent_at),
        "webhook-signature": f"v1,{signature}",
    }
    if first:
        headers |= {"mcpsite-stream": str(stream), "mcpsite-first": str(first), "mcpsite-last": str(last)}
    return Request(headers, body)


def signing_key(secret: str) -> bytes:
    """`whsec_` and base64 are bytes; anything else is taken as it is."""
    if secret.startswith("whsec_"):
        try:
            return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except (binascii.Error, ValueError):
            pass
    return secret.encode("utf-8")
