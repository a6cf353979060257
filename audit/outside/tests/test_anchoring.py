"""Anchors: a file, S3 with Object Lock as moto enforces it, a webhook behind real TLS; and what they prove."""

from __future__ import annotations

import hmac
import json
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import pytest
from botocore.exceptions import ClientError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from moto.server import ThreadedMotoServer
from procrastinate.contrib.django import app
from rest_framework.test import APIClient

from access.models import User
from audit.models import Record
from audit.outside import sinks
from audit.outside.anchoring import anchor_all
from audit.outside.models import Anchor, SinkState
from audit.outside.sinks.base import Anchored, Sink, SinkFailed
from audit.outside.sinks.webhook import signature
from audit.outside.tests.heads import codes, store
from audit.tests.logs import Log
from audit.verify import check_note, parse_note, read_witness
from audit.witness import State

SECRET = "a secret of the webhook"
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def anchored(log: Log, number: int = -1) -> Anchored:
    return Anchored(*log.heads[number])


def sink(word: str) -> Sink:
    (found,) = sinks.read([word], SECRET)
    return found


# --- In a file --------------------------------------------------------------------------------------------------------


def test_a_file_grows_by_a_line_for_each_head_and_says_where_it_is(tmp_path):
    file, log = sink(f"file://{tmp_path}"), Log()
    receipts = [file.put(anchored(log), 1)]
    log.add("a")
    receipts += [file.put(anchored(log), 2), file.put(anchored(log), 2)]
    raw = (tmp_path / "heads.jsonl").read_bytes()
    assert raw.count(b"\n") == 2, "the same head is not written twice"
    assert receipts[1] == receipts[2]
    for receipt, (head, note) in zip(receipts, log.heads, strict=False):
        line = json.loads(raw[receipt["offset"] :].partition(b"\n")[0])
        assert (line["number"], line["size"], line["note"]) == (head.number, head.size, note)
    assert file.newer(log.origin, anchored(log)) is None
    assert file.newer(log.origin, anchored(log, 0)) == log.heads[1][1]
    assert file.newer("another log", None) is None


def test_a_torn_line_hides_no_other(tmp_path):
    file, log = sink(f"file://{tmp_path}"), Log()
    file.put(anchored(log), 1)
    path = tmp_path / "heads.jsonl"
    with path.open("ab") as torn:
        torn.write(b'{"origin": "mcp.exa')
    assert file.newer(log.origin, None) == log.heads[0][1]
    log.add("a")
    receipt = file.put(anchored(log), 2)
    assert json.loads(path.read_bytes()[receipt["offset"] :])["number"] == 1
    assert file.newer(log.origin, anchored(log)) is None


def test_the_tail_is_found_in_a_long_file(tmp_path):
    file, log = sink(f"file://{tmp_path}"), Log()
    for number in range(200):
        log.seal()
        file.put(anchored(log), number)
    assert (tmp_path / "heads.jsonl").stat().st_size > 64 * 1024
    assert file.newer(log.origin, None) == log.heads[-1][1]
    assert file.put(anchored(log), 0)["number"] == 200
    assert (tmp_path / "heads.jsonl").read_bytes().count(b"\n") == 200


def test_a_verifier_reads_the_head_of_an_anchor_and_of_a_witness(tmp_path):
    file, log = sink(f"file://{tmp_path}"), Log()
    for text in "ab":
        file.put(anchored(log), 1)
        log.add(text)
    path = tmp_path / "heads.jsonl"
    with path.open("ab") as torn:
        torn.write(b'{"origin": "mcp.exa')
    state = tmp_path / "state.json"
    state.write_text(State(head=log.heads[1][1]).text)
    for place in (path, state):
        kept, _ = read_witness(str(place))
        assert kept.head.text == log.heads[1][0].text


def test_a_directory_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(SinkFailed, match="cannot be written: No such file or directory"):
        sink(f"file://{tmp_path}/mounted").put(anchored(Log()), 1)
    assert list(tmp_path.iterdir()) == []


# --- In S3 ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 with the buckets `locked` and `plain`."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ACCESS_KEY_ID", "test")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    url = f"http://{host}:{port}"
    client = boto3.client("s3", endpoint_url=url)
    client.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    client.create_bucket(Bucket="plain")
    yield url
    patch.undo()
    server.stop()


def bucket(s3: str, name: str = "locked", prefix: str = "heads", **options: str) -> Sink:
    more = "".join(f"&{key}={value}" for key, value in options.items())
    return sink(f"s3://{name}/{prefix}?endpoint={quote(s3, safe='')}&region=us-east-1{more}")


def test_what_is_anchored_in_s3_cannot_be_deleted_or_overwritten(s3):
    log, place = Log(), bucket(s3, prefix="kept", days="30")
    receipt = place.put(anchored(log), 1)
    until = datetime.fromisoformat(receipt["locked_until"])
    assert timedelta(days=29) < until - datetime.now(UTC) <= timedelta(days=30)
    client = boto3.client("s3", endpoint_url=s3)
    kept = {"Bucket": "locked", "Key": receipt["key"], "VersionId": receipt["version"]}
    for options in ({}, {"BypassGovernanceRetention": True}):
        with pytest.raises(ClientError, match="Access Denied"):
            client.delete_object(**kept, **options)
    client.put_object(Bucket="locked", Key=receipt["key"], Body=b"something else")
    assert client.get_object(**kept)["Body"].read().decode() == log.heads[0][1], "the version of the receipt is there"
    assert client.head_object(**kept)["ETag"] == receipt["etag"]
    assert check_note(parse_note(log.heads[0][1]), log.vkeys)


def test_the_same_head_is_stored_once_in_s3(s3):
    log, place = Log(), bucket(s3, prefix="once")
    assert place.put(anchored(log), 1) == place.put(anchored(log), 1)
    boto3.client("s3", endpoint_url=s3).put_object(
        Bucket="locked", Key=place.put(anchored(log), 1)["key"], Body=b"something else"
    )
    with pytest.raises(SinkFailed, match="holds something else under"):
        place.put(anchored(log), 1)


def test_s3_knows_the_newest_head_also_after_a_break(s3):
    log, place = Log(), bucket(s3, prefix="newest")
    backup = log.copy()
    log.add("a")
    log.add("b")
    for number in range(3):
        place.put(anchored(log, number), number)
    assert place.newer(log.origin, anchored(log, 0)) == log.heads[2][1]
    assert place.newer(log.origin, anchored(log, 2)) is None
    backup.at = log.at
    backup.break_off("restored")
    place.put(anchored(backup), 4)
    assert anchored(backup).head.number == 1
    assert place.newer(log.origin, None) == backup.heads[-1][1]
    assert place.newer(log.origin, anchored(backup)) is None
    assert place.newer("another log", None) is None


def test_a_bucket_without_locks_is_refused_unless_none_are_wanted(s3):
    with pytest.raises(SinkFailed, match=r"^s3://plain/heads"):
        bucket(s3, "plain").put(anchored(Log()), 1)
    receipt = bucket(s3, "plain", prefix="", mode="none").put(anchored(Log()), 1)
    assert receipt["locked_until"] is None
    with pytest.raises(SinkFailed, match="NoSuchBucket"):
        bucket(s3, "nowhere").put(anchored(Log()), 1)
    with pytest.raises(SinkFailed, match="cannot be reached"):
        bucket("http://127.0.0.1:9").put(anchored(Log()), 1)


# --- With a webhook ---------------------------------------------------------------------------------------------------


class Receiver:
    """Somebody's HTTPS server: what it was sent, and what it answers."""

    def __init__(self) -> None:
        self.status = 204
        self.got: list[tuple[dict[str, str], dict[str, Any], bytes]] = []


@pytest.fixture
def receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Receiver, str]]:
    found = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            found.got.append((dict(self.headers), json.loads(raw), raw))
            self.send_response(found.status)
            self.send_header("Location", "https://elsewhere.example/")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    certificate = _certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield found, f"https://127.0.0.1:{server.server_port}/anchors?for=us"
    server.shutdown()
    thread.join()
    server.server_close()


def _certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "receiver")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "receiver.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


def test_a_webhook_gets_a_signed_head_with_its_sequence(receiver):
    server, url = receiver
    log = Log()
    assert sink(url).put(anchored(log), 7) == {"status": 204, "sequence": 7}
    ((headers, content, raw),) = server.got
    assert content == {"origin": log.origin, "number": 0, "size": 0, "sequence": 7, "note": log.heads[0][1]}
    at, _, mac = headers["X-Ledger-Signature"].partition(",v1=")
    assert mac == hmac.new(SECRET.encode(), f"{at[2:]}.".encode() + raw, "sha256").hexdigest()
    assert signature(SECRET, int(at[2:]), raw) == headers["X-Ledger-Signature"]
    sink(url).put(anchored(log), 7)
    assert server.got[1][0]["Idempotency-Key"] == headers["Idempotency-Key"] == anchored(log).key
    assert sink(url).newer(log.origin, None) is None
    assert SECRET not in repr(sink(url))


@pytest.mark.parametrize(("status", "sentence"), [(500, "answered 500"), (302, "sends on to"), (404, "answered 404")])
def test_a_webhook_that_does_not_take_it_has_failed(receiver, status, sentence):
    server, url = receiver
    server.status = status
    with pytest.raises(SinkFailed, match=sentence):
        sink(url).put(anchored(Log()), 1)
    assert len(server.got) == 1, "redirects are not followed"


def test_a_webhook_must_prove_who_it_is(receiver, monkeypatch):
    server, url = receiver
    monkeypatch.setenv("SSL_CERT_FILE", "/dev/null")
    with pytest.raises(SinkFailed, match="CERTIFICATE_VERIFY_FAILED"):
        sink(url).put(anchored(Log()), 1)
    assert server.got == []


# --- All of them ------------------------------------------------------------------------------------------------------


@pytest.fixture
def log(db) -> Log:
    log = Log()
    log.add("a")
    store(log)
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO audit_key (vkey, since) VALUES (%s, 0)", log.vkeys)
    return log


def test_the_newest_head_goes_to_every_sink_once(log, settings, tmp_path, receiver, s3):
    server, url = receiver
    settings.LEDGER_ANCHORS = (sink(f"file://{tmp_path}"), bucket(s3, prefix="every"), sink(url))
    assert anchor_all(NOW) == 3
    assert anchor_all(NOW + timedelta(minutes=1)) == 0, "nothing was written meanwhile"
    log.add("b")
    store(log, 2)
    assert anchor_all(NOW + timedelta(minutes=2)) == 3
    assert [content["sequence"] for _, content, _ in server.got] == [1, 2]
    found = Anchor.objects.filter(sink=f"file://{tmp_path}").order_by("id")
    assert [(each.head, json.loads(each.receipt)["number"]) for each in found] == [(1, 1), (2, 2)]
    assert json.loads(Anchor.objects.get(sink="s3://locked/every", head=2).receipt)["version"]
    assert not SinkState.objects.filter(failures__gt=0).exists()
    root = User.objects.create_superuser("root")
    api = APIClient()
    api.force_authenticate(root)
    assert len(api.get("/api/v1/audit/anchors/").json()["results"]) == 6


def test_a_job_of_every_minute_does_it():
    found = {name: task.cron for (name, _), task in app.periodic_registry.periodic_tasks.items()}
    assert found["audit.anchor"] == "* * * * *"


def test_an_idle_ledger_is_anchored_once_an_hour(log, settings, tmp_path):
    settings.LEDGER_ANCHORS = (sink(f"file://{tmp_path}"),)
    anchor_all()
    for minutes, wanted in ((1, 0), (59, 0), (61, 1)):
        log.seal()
        store(log, len(log.heads) - 1)
        assert anchor_all(datetime.now(UTC) + timedelta(minutes=minutes)) == wanted


def test_a_sink_that_is_down_keeps_no_other_waiting_and_is_asked_less_and_less(log, settings, tmp_path):
    down = tmp_path / "down"
    settings.LEDGER_ANCHORS = (sink(f"file://{down}"), sink(f"file://{tmp_path}"))
    tries, at = 0, NOW
    for minute in range(180):
        at = NOW + timedelta(minutes=minute)
        before = SinkState.objects.filter(sink=f"file://{down}").values_list("failures", flat=True).first()
        anchor_all(at)
        tries += SinkState.objects.get(sink=f"file://{down}").failures != before
    assert Anchor.objects.filter(sink=f"file://{tmp_path}").exists()
    state = SinkState.objects.get(sink=f"file://{down}")
    assert state.failures == tries == 9
    assert (state.failing_since, "No such file or directory" in state.error) == (NOW, True)
    assert state.next_at - state.tried_at == timedelta(hours=1)
    assert Record.objects.filter(code="anchor_failed").count() == 1, "not one for each minute"
    down.mkdir()
    anchor_all(state.next_at)
    state.refresh_from_db()
    assert (state.failures, state.error) == (0, "")
    assert Record.objects.filter(code="anchor_recovered").count() == 1


def restored(log: Log) -> Log:
    """The database goes back to head 1: what the tests put there is exchanged for an older state."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT max(number) FROM audit_head")
        assert cursor.fetchone()[0] == 1
    older = log.copy()
    del older.heads[2:], older.leaves[older.heads[-1][0].size :]
    return older


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_an_anchor_that_is_ahead_of_the_database_is_held_against_it(log, settings, tmp_path, s3, kind):
    place = sink(f"file://{tmp_path}") if kind == "file" else bucket(s3, prefix=tmp_path.name)
    settings.LEDGER_ANCHORS = (place,)
    log.add("b")
    place.put(anchored(log), 1)  # of the time that the restored database knows nothing of
    older = restored(log)
    assert anchor_all(NOW) == 0
    assert codes() == [(f"anchor {place.name}", "head_behind", 2)]
    assert "accept-restore" in SinkState.objects.get().error
    older.at = log.at
    older.add("another b")
    store(older, 2)
    anchor_all(NOW + timedelta(hours=1))
    assert codes() == [(f"anchor {place.name}", "head_behind", 2)], "said once"
    older.break_off("restored on purpose")
    store(older, 3)
    assert anchor_all(NOW + timedelta(hours=3)) == 1
    assert SinkState.objects.get().failures == 0


def test_a_fork_is_told_from_a_rollback(log, settings, tmp_path):
    place = sink(f"file://{tmp_path}")
    settings.LEDGER_ANCHORS = (place,)
    log.add("b")
    place.put(anchored(log), 1)
    older = restored(log)
    older.add("another b")
    store(older, 2)
    anchor_all(NOW)
    assert codes() == [(f"anchor {place.name}", "head_forked", 2)]


def test_what_anybody_could_have_written_into_a_file_proves_nothing(log, settings, tmp_path):
    place = sink(f"file://{tmp_path}")
    settings.LEDGER_ANCHORS = (place,)
    stranger = Log()
    stranger.add("x")
    stranger.add("y")
    place.put(anchored(stranger), 1)
    assert anchor_all(NOW) == 0
    assert codes() == []
    assert "which no known key of the ledger signed" in SinkState.objects.get().error


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("nonsense", "is none of file://"),
        ("http://host/path", "is none of file://"),
        ("file://host/path", "an absolute path"),
        ("file:///path?x=1", "without options"),
        ("s3:///prefix", "no bucket"),
        ("s3://b/p?mode=sometimes", "mode must be one of compliance, governance, none"),
        ("s3://b/p?days=0", "days must be a number from 1 to 36500"),
        ("s3://b/p?colour=red", "colour is no option"),
        ("https:///path", "names no host"),
        ("https://user:hunter2@host/", "holds a password"),
    ],
)
def test_a_wrong_anchor_is_refused_and_not_repeated(word, sentence):
    with pytest.raises(ImproperlyConfigured, match=sentence) as caught:
        sinks.read([word], SECRET)
    assert "hunter2" not in str(caught.value)


def test_a_webhook_needs_a_secret_and_no_sink_is_named_twice():
    for secret in (None, "short"):
        with pytest.raises(ImproperlyConfigured, match="needs LEDGER_ANCHOR_SECRET"):
            sinks.read(["https://host/"], secret)
    with pytest.raises(ImproperlyConfigured, match="names s3://b twice"):
        sinks.read(["s3://b", "s3://b?days=1"], None)
