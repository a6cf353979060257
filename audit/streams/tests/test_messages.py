from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import uuid
from datetime import UTC, datetime

from audit.streams.messages import Message, signing_key, syslog_frame, told, trial, webhook_request
from audit.streams.sealed import COLUMNS, Gone, Sealed

STREAM = uuid.UUID("5f0c1a44-8a57-4c0e-9c65-0e2f4c4a3a11")
# RFC 5424, section 6, as a pattern.
LINE = re.compile(
    r"<(\d{1,3})>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) (\S{1,255}) (\S{1,48}) (\S{1,128}) (\S{1,32})"
    r" (-|(?:\[[^\]]+\])+) (.*)",
    re.DOTALL,
)


def make_sealed(seq: int = 4, **values):
    usual = {"at": datetime(2026, 3, 1, 12, tzinfo=UTC), "kind": "call", "code": "ok", "decision": "allow"}
    return Sealed(seq, 40 + seq, "ab" * 32, {**dict.fromkeys(COLUMNS), **usual, **values})


def parsed(frame: bytes):
    length, _, line = frame.partition(b" ")
    assert int(length) == len(line)
    found = LINE.fullmatch(line.decode("ascii"))
    assert found
    return found.groups()


def frame_of(message: Message, longest: int = 8192) -> bytes:
    return syslog_frame(message, host="mcp.example.com", facility=13, longest=longest)


def test_a_frame_is_octet_counted_and_follows_rfc_5424():
    priority, at, host, program, process, what, data, body = parsed(frame_of(told(STREAM, 17, make_sealed())))
    assert (priority, at, host) == (str(13 * 8 + 6), "2026-03-01T12:00:00.000000Z", "mcp.example.com")
    assert (program, process, what, data) == ("mcpsite", "-", "call", '[meta sequenceId="17"]')
    message = json.loads(body)
    assert (message["stream"], message["number"], message["seq"], message["type"]) == (str(STREAM), 17, 4, "record")


def test_line_breaks_and_other_scripts_stay_within_one_ascii_line():
    frame = frame_of(told(STREAM, 1, make_sealed(actor="eve\n<13>1 forged\x00 ∆")))
    assert b"\n" not in frame
    assert json.loads(parsed(frame)[7])["record"]["actor"] == "eve\n<13>1 forged\x00 ∆"


def test_severity_tells_refusals_and_failures_from_the_rest():
    def severity(**values):
        return int(parsed(frame_of(told(STREAM, 1, make_sealed(**values))))[0]) % 8

    assert severity() == 6
    assert severity(code="not_granted", decision="deny") == 4
    assert severity(code="upstream_timeout") == 5


def test_a_long_detail_is_left_out_and_that_is_said():
    frame = frame_of(told(STREAM, 1, make_sealed(detail='{"x": "' + "y" * 9000 + '"}')))
    body = json.loads(parsed(frame)[7])
    assert len(frame) < 8192
    assert body["detail_omitted"] is True
    assert "detail" not in body["record"]
    whole = json.loads(parsed(frame_of(told(STREAM, 1, make_sealed(detail='{"x": "' + "y" * 9000 + '"}')), 20_000))[7])
    assert "detail_omitted" not in whole


def test_the_count_of_syslog_begins_again_where_the_standard_says():
    assert parsed(frame_of(told(STREAM, 2**31 - 1, make_sealed())))[6] == '[meta sequenceId="2147483647"]'
    assert parsed(frame_of(told(STREAM, 2**31, make_sealed())))[6] == '[meta sequenceId="1"]'


def test_a_gap_is_a_message_with_a_number_of_its_own():
    message = told(STREAM, 9, Gone(100, 149))
    assert message.body | {"x": 1} == {
        "format": "mcpsite-stream/1",
        "stream": str(STREAM),
        "number": 9,
        "type": "gap",
        "first_seq": 100,
        "last_seq": 149,
        "records": 50,
        "x": 1,
    }


def test_a_test_has_no_number():
    assert parsed(frame_of(trial(STREAM, "mia")))[6] == "-"


def test_a_request_is_signed_as_standard_webhooks_says():
    """Recomputed from the published rule: HMAC-SHA-256 over `id.timestamp.body`, with the decoded secret."""
    key = bytes(range(32))
    messages = [told(STREAM, number, make_sealed(number)) for number in (5, 6, 7)]
    request = webhook_request(STREAM, messages, "whsec_" + base64.b64encode(key).decode(), 1_772_000_000)
    headers = request.headers
    assert (headers["webhook-id"], headers["webhook-timestamp"]) == (f"{STREAM}_5", "1772000000")
    signed = f"{STREAM}_5.1772000000.".encode() + request.body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert (headers["mcpsite-first"], headers["mcpsite-last"]) == ("5", "7")
    body = json.loads(request.body)
    assert (body["first"], body["last"], [each["number"] for each in body["messages"]]) == (5, 7, [5, 6, 7])


def test_the_same_batch_sent_later_has_the_same_id_and_body():
    messages = [told(STREAM, 5, make_sealed())]
    early, late = (webhook_request(STREAM, messages, "x" * 24, at) for at in (1, 2))
    assert early.headers["webhook-id"] == late.headers["webhook-id"]
    assert early.body == late.body
    assert early.headers["webhook-signature"] != late.headers["webhook-signature"]


def test_a_secret_that_is_no_base64_is_taken_as_it_is():
    assert signing_key("plain words of a password") == b"plain words of a password"
    assert signing_key("whsec_not base64!") == b"whsec_not base64!"
