"""A stream against receivers that misbehave: nothing is lost, the order stays, repetitions can be recognised."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid

import psycopg
import pytest

from audit.streams import delivery as loop
from audit.streams import senders
from audit.streams.options import SyslogOptions, WebhookOptions
from audit.streams.senders import SyslogSender, WebhookSender
from audit.streams.tests.authority import Authority
from audit.streams.tests.conftest import NO_FILTER, delivering
from audit.streams.tests.receivers import (
    RSYSLOGD,
    Rsyslog,
    Syslog,
    answers,
    closes,
    free_port,
    server_context,
    trickles,
    until,
    webhook,
)
from mcpsite import env

SECRET = "the secret of the tests, long enough"


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """Nobody waits for minutes in a test."""
    monkeypatch.setattr(loop, "_BACKOFF_SECONDS", (0.05, 0.1))
    monkeypatch.setattr(loop, "_IDLE_SECONDS", 0.03)
    monkeypatch.setattr(loop, "_CANDIDATE_SECONDS", 0.05)
    monkeypatch.setattr(senders, "_PROBATION_SECONDS", 0.2)


def connect(host: str, port: int, seconds: float) -> socket.socket:
    return socket.create_connection((host, port), seconds)


@pytest.fixture
def files(authority, tmp_path):
    return authority.files(tmp_path / "server", "127.0.0.1", "siem.example.com")


@pytest.fixture
def hook(files):
    with webhook(server_context(files)) as found:
        yield found


def web_sender(book, hook, authority, **options):
    given = WebhookOptions.model_validate(
        {"ca": authority.pem, "signing_secret": SECRET, "timeout_seconds": 1, **options}
    )
    return WebhookSender(given, hook.url, ("127.0.0.1", hook.port), book.stream, connect)


def numbers_of(bodies) -> list[int]:
    return [each["number"] for body in bodies for each in body["messages"]]


# --- Webhook ---------------------------------------------------------------------------------------------------------


def test_records_arrive_in_order_and_the_place_moves_after_they_were_acknowledged(book, deliver, hook, authority):
    book.begin()
    book.grow(120)
    deliver(book.work(batch=50), web_sender(book, hook, authority))
    until(lambda: book.state["cursor"] == 120)
    assert numbers_of(hook.taken) == list(range(1, 121))
    assert [len(body["messages"]) for body in hook.taken] == [50, 50, 20]
    seqs = [each["seq"] for body in hook.taken for each in body["messages"]]
    assert seqs == list(range(120))
    state = book.state
    assert (state["number"], state["pending"], state["failing_since"]) == (121, None, None)
    assert state["acknowledged_at"] is not None
    book.grow(3)
    until(lambda: book.state["cursor"] == 123)
    assert numbers_of(hook.taken)[-3:] == [121, 122, 123]


def test_numbers_are_dense_also_where_a_filter_leaves_most_out(book, deliver, hook, authority):
    book.begin()
    for _ in range(5):
        book.grow(9)
        book.grow(1, kind="denied", decision="deny", code="not_granted")
    deliver(book.work(kinds=["denied"]), web_sender(book, hook, authority))
    until(lambda: book.state["cursor"] == 50)
    messages = [each for body in hook.taken for each in body["messages"]]
    assert [each["number"] for each in messages] == [1, 2, 3, 4, 5]
    assert [each["seq"] for each in messages] == [9, 19, 29, 39, 49]


@pytest.mark.parametrize(
    "behaviour",
    [answers(500), answers(404), answers(302, {"Location": "/elsewhere"}), closes, trickles],
    ids=["500", "404", "redirect", "closes in the middle", "answers too slowly"],
)
def test_what_is_not_acknowledged_is_sent_again_exactly_as_it_was(book, deliver, hook, authority, behaviour):
    book.begin()
    book.grow(10)
    hook.script.extend([behaviour, behaviour])
    deliver(book.work(batch=4), web_sender(book, hook, authority))
    until(lambda: book.state["failing_since"])
    book.grow(10)  # what comes meanwhile does not change the batch
    until(lambda: book.state["cursor"] == 20)
    first = hook.requests[:3]
    assert len({each.raw for each in first}) == 1
    assert len({each.headers["webhook-id"] for each in first}) == 1
    assert numbers_of(hook.taken) == list(range(1, 21))
    assert book.state["failing_since"] is None
    assert book.state["error"] == ""
    assert {each.headers["host"] for each in hook.requests} == {f"127.0.0.1:{hook.port}"}


def test_the_reason_of_a_failure_is_kept_and_the_place_is_not_moved(book, deliver, hook, authority):
    book.begin()
    book.grow(3)
    hook.script.extend([answers(503, body=b"we are\nclosed \x1b[31m")] * 1000)
    deliver(book.work(), web_sender(book, hook, authority))
    until(lambda: book.state["error"])
    state = book.state
    assert state["error"] == "The receiver answered 503: we are closed [31m."
    assert (state["cursor"], state["number"], state["acknowledged_at"]) == (0, 1, None)


def test_a_receiver_for_which_a_batch_is_too_large_is_given_smaller_ones(book, deliver, hook, authority):
    def measured(handler):
        return answers(413 if len(hook.requests[-1].body["messages"]) > 3 else 200)(handler)

    book.begin()
    book.grow(16)
    hook.script.extend([measured] * 50)
    deliver(book.work(batch=16), web_sender(book, hook, authority))
    until(lambda: book.state["cursor"] == 16)
    assert numbers_of(hook.taken) == list(range(1, 17))
    assert max(len(body["messages"]) for body in hook.taken) == 2


def test_a_batch_is_at_most_a_megabyte(book, deliver, hook, authority):
    book.begin()
    book.grow(12, detail=json.dumps({"x": "y" * 200_000}))
    deliver(book.work(batch=100), web_sender(book, hook, authority, timeout_seconds=5))
    until(lambda: book.state["cursor"] == 12)
    assert numbers_of(hook.taken) == list(range(1, 13))
    assert max(len(each.raw) for each in hook.requests) < 1_200_000


def test_records_that_are_gone_are_told_to_the_receiver_and_counted(book, deliver, hook, authority):
    book.begin()
    book.grow(20)
    book.drop(0, 11)
    deliver(book.work(), web_sender(book, hook, authority))
    until(lambda: book.state["cursor"] == 20)
    first, *rest = [each for body in hook.taken for each in body["messages"]]
    assert (first["type"], first["number"], first["first_seq"], first["last_seq"]) == ("gap", 1, 0, 11)
    assert [each["number"] for each in rest] == list(range(2, 10))
    assert book.state["missed"] == 12


@pytest.mark.parametrize(
    ("names", "days", "said"),
    [
        (("other.example.com",), 1, "IP address mismatch"),
        (("127.0.0.1",), -1, "expired"),
    ],
)
def test_a_certificate_that_is_not_the_receivers_is_refused(book, deliver, authority, tmp_path, names, days, said):
    book.begin()
    book.grow()
    with webhook(server_context(authority.files(tmp_path / "wrong", *names, days=days))) as wrong:
        deliver(book.work(), web_sender(book, wrong, authority))
        until(lambda: book.state["error"])
    assert "certificate is not trusted" in book.state["error"]
    assert said in book.state["error"]
    assert not wrong.requests


def test_a_certificate_of_somebody_elses_authority_is_refused(book, deliver, hook):
    book.begin()
    book.grow()
    deliver(book.work(), web_sender(book, hook, Authority("strangers")))
    until(lambda: "certificate is not trusted" in book.state["error"])
    assert not hook.requests


def test_the_authorization_that_was_set_is_sent(book, deliver, hook, authority):
    book.begin()
    book.grow()
    deliver(book.work(), web_sender(book, hook, authority, authorization="Splunk 1234"))
    until(lambda: hook.taken)
    assert hook.requests[0].headers["authorization"] == "Splunk 1234"


def test_two_replicas_send_each_record_once_and_one_goes_on_for_the_other(book, hook, authority):
    book.begin()
    book.grow(30)
    with delivering(book, book.work(batch=5), web_sender(book, hook, authority)) as first:
        until(lambda: book.state["cursor"] >= 5)
        with delivering(book, book.work(batch=5), web_sender(book, hook, authority)):
            book.grow(30)
            until(lambda: book.state["cursor"] == 60)
            assert numbers_of(hook.taken) == list(range(1, 61))
            first.stop()
            book.grow(30)
            until(lambda: book.state["cursor"] == 90)
    assert numbers_of(hook.taken) == list(range(1, 91))


def test_a_leader_that_lost_its_connection_cannot_move_the_place(book, hook, authority):
    """The other one leads from then on; what the first had under way is sent again, and nothing is lost."""
    book.begin()
    book.grow(10)
    holding, released = threading.Event(), threading.Event()

    def holds(handler):
        holding.set()
        released.wait(10)
        return answers(200)(handler)

    hook.script.append(holds)
    old = loop.Delivery(book.conninfo, book.work(), web_sender(book, hook, authority, timeout_seconds=20))
    ended: list[BaseException] = []

    def run():
        try:
            old.run()
        except psycopg.Error as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert holding.wait(10)
    book.connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'mcpsite stream tests'"
        " AND query LIKE '%audit_streamstate%'"
    )
    with delivering(book, book.work(), web_sender(book, hook, authority)):
        until(lambda: book.state["cursor"] == 10)
        released.set()
        thread.join(10)
        assert ended
        book.grow(5)
        until(lambda: book.state["cursor"] == 15)
    assert sorted(set(numbers_of(hook.taken))) == list(range(1, 16))
    assert book.state["number"] == 16


PROGRAM = """
import sys, uuid, socket, django
django.setup()
from audit.streams.delivery import Delivery, Work
from audit.streams.options import WebhookOptions
from audit.streams.senders import WebhookSender
conninfo, stream, port, ca, secret = sys.argv[1:]
options = WebhookOptions(ca=ca, signing_secret=secret, timeout_seconds=30)
def connect(host, port, seconds): return socket.create_connection((host, port), seconds)
sender = WebhookSender(options, f"https://127.0.0.1:{port}/hook", ("127.0.0.1", int(port)), uuid.UUID(stream), connect)
work = Work(uuid.UUID(stream), "tests", {"kinds": [], "decisions": [], "tools": []}, True, 7)
Delivery(conninfo, work, sender).run()
"""


def test_killed_between_sending_and_keeping_nothing_is_lost_and_the_repetition_can_be_recognised(book, hook, authority):
    """Ten times: the receiver has the batch, and the process is killed before it hears so."""
    book.begin()
    book.grow(70)
    for _ in range(10):
        arrived, go_on = threading.Event(), threading.Event()

        def holds(handler, arrived=arrived, go_on=go_on):
            taken = answers(200)
            arrived.set()
            go_on.wait(20)
            hook.taken.append(hook.requests[-1].body)
            taken(handler)
            return False

        hook.script.append(answers(200))
        hook.script.append(holds)
        command = [
            sys.executable,
            "-c",
            PROGRAM,
            book.conninfo,
            str(book.stream),
            str(hook.port),
            authority.pem,
            SECRET,
        ]
        process = subprocess.Popen(command, env=env.for_child(DJANGO_SETTINGS_MODULE="mcpsite.settings"))
        try:
            if book.state["cursor"] + 7 < 70:
                assert arrived.wait(30)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            go_on.set()
        hook.script.clear()
        if book.state["cursor"] + 7 >= 70:
            break
    with delivering(book, book.work(batch=7), web_sender(book, hook, authority)):
        until(lambda: book.state["cursor"] == 70)
    numbers = numbers_of(each.body for each in hook.requests)
    assert sorted(set(numbers)) == list(range(1, 71))
    assert len(numbers) > 70
    by_id: dict[str, set[bytes]] = {}
    for each in hook.requests:
        by_id.setdefault(each.headers["webhook-id"], set()).add(each.raw)
    assert all(len(bodies) == 1 for bodies in by_id.values())


def test_a_place_that_somebody_sets_meanwhile_is_taken_over(book, deliver, hook, authority):
    book.begin()
    book.grow(10)
    deliver(book.work(), web_sender(book, hook, authority))
    until(lambda: book.state["cursor"] == 10)
    book.set(cursor=4, resend_cursor=4, resend_number=11, pending=None)
    until(lambda: book.state["cursor"] == 10 and book.state["number"] == 17)
    messages = [each for body in hook.taken for each in body["messages"]]
    assert [each["seq"] for each in messages] == [*range(10), *range(4, 10)]
    assert [each["number"] for each in messages] == list(range(1, 17))


def test_a_test_message_does_not_move_the_place_and_goes_out_also_when_switched_off(book, deliver, hook, authority):
    book.begin()
    book.grow(3)
    book.ask_to_test("mia")
    deliver(book.work(enabled=False), web_sender(book, hook, authority))
    until(lambda: book.state["test_asked_at"] is None)
    assert (book.state["test_ok"], book.state["test_message"]) == (True, "The receiver took the test message.")
    body = hook.taken[0]["messages"][0]
    assert (body["type"], body["by"]) == ("test", "mia")
    assert "number" not in body
    assert book.state["cursor"] == 0


def test_a_test_says_why_it_failed(book, deliver, hook, authority):
    book.begin()
    book.ask_to_test()
    hook.script.append(answers(401, body=b"who is mcps_" + b"x" * 43))
    deliver(book.work(), web_sender(book, hook, authority))
    until(lambda: book.state["test_asked_at"] is None)
    assert (book.state["test_ok"], book.state["test_message"]) == (False, "The receiver answered 401: who is [secret].")


# --- Syslog ----------------------------------------------------------------------------------------------------------


def syslog_sender(port, authority, **options):
    given = SyslogOptions.model_validate({"ca": authority.pem, "timeout_seconds": 2, "resend": 20, **options})
    return SyslogSender(given, ("127.0.0.1", port), "mcp.example.com", connect)


@pytest.fixture
def syslog(files):
    made = Syslog(server_context(files))
    yield made
    made.close()


def told(lines) -> list[int]:
    return [json.loads(line[line.index("{") :]).get("number", 0) for line in lines]


def test_syslog_takes_all_in_order(book, deliver, syslog, authority):
    book.begin()
    book.grow(500)
    deliver(book.work(batch=100), syslog_sender(syslog.port, authority))
    until(lambda: book.state["cursor"] == 500)
    until(lambda: len(syslog.lines) == 500)
    assert told(syslog.lines) == list(range(1, 501))
    assert syslog.connections == 1


def test_a_new_connection_begins_with_the_last_messages_once_more(book, deliver, syslog, authority):
    book.begin()
    book.grow(60)
    deliver(book.work(batch=10), syslog_sender(syslog.port, authority))
    until(lambda: len(syslog.lines) == 60)
    until(lambda: book.state["cursor"] == 60)
    syslog.cut()
    until(lambda: len(syslog.lines) == 80)
    book.grow(5)
    until(lambda: book.state["cursor"] == 65)
    until(lambda: len(syslog.lines) == 85)
    assert told(syslog.lines) == [*range(1, 61), *range(41, 61), *range(61, 66)]
    assert syslog.connections == 2


def test_a_receiver_that_loses_what_it_had_not_read_is_sent_it_again(book, deliver, files, authority):
    """Its system acknowledged, its program never saw it: the very case that syslog cannot tell."""
    first = Syslog(server_context(files))
    book.begin()
    book.grow(15)
    deliver(book.work(batch=5), syslog_sender(first.port, authority))
    until(lambda: len(first.lines) == 15)
    first.reads.clear()
    book.grow(1)  # the read that is under way takes this one
    until(lambda: book.state["cursor"] == 16)
    book.grow(12)
    until(lambda: book.state["cursor"] == 28)
    lost = set(range(1, 29)) - set(told(first.lines))
    assert lost
    first.close()
    second = Syslog(server_context(files), first.port)
    until(lambda: lost <= set(told(second.lines)))
    second.close()


def test_a_receiver_that_does_not_read_stops_the_stream_and_nothing_else(book, deliver, syslog, authority):
    book.begin()
    syslog.reads.clear()
    book.grow(400, detail=json.dumps({"x": "y" * 60_000}))
    deliver(book.work(batch=50), syslog_sender(syslog.port, authority, max_message_bytes=100_000, timeout_seconds=1))
    until(lambda: book.state["failing_since"], 40)
    assert "took too long" in book.state["error"]
    assert book.state["cursor"] < 400
    started = time.monotonic()
    book.write(10)
    assert time.monotonic() - started < 1
    syslog.reads.set()
    until(lambda: book.state["cursor"] == 400, 60)
    until(lambda: set(told(syslog.lines)) >= set(range(1, 401)), 60)


def test_a_receiver_that_refuses_our_certificate_is_not_taken_for_one_that_listens(book, deliver, files, authority):
    """With TLS 1.3 the handshake succeeds, and the bytes are acknowledged, before the refusal arrives."""
    strict = Syslog(server_context(files, asks=True))
    book.begin()
    book.grow(100)
    deliver(book.work(batch=10), syslog_sender(strict.port, authority, resend=0))
    until(lambda: book.state["error"])
    until(lambda: book.state["failed_at"] and not strict.lines)
    assert book.state["cursor"] == 0
    strict.close()


def test_a_client_certificate_is_shown(book, deliver, files, authority):
    strict = Syslog(server_context(files, asks=True))
    certificate, key = authority.certificate("mcp.example.com")
    book.begin()
    book.grow(3)
    deliver(book.work(), syslog_sender(strict.port, authority, client_certificate=certificate, client_key=key))
    until(lambda: len(strict.lines) == 3)
    strict.close()


def test_a_server_name_can_stand_for_the_address(book, deliver, authority, tmp_path):
    named = Syslog(server_context(authority.files(tmp_path / "named", "logs.example.com")))
    book.begin()
    book.grow(2)
    with delivering(book, book.work(), syslog_sender(named.port, authority)):
        until(lambda: "certificate is not trusted" in book.state["error"])
    assert not named.lines
    deliver(book.work(), syslog_sender(named.port, authority, server_name="logs.example.com"))
    until(lambda: len(named.lines) == 2)
    named.close()


def test_other_filters_repeat_nothing_since_the_count_would_be_another(book, deliver, syslog, authority):
    book.begin()
    book.grow(10)
    with delivering(book, book.work(), syslog_sender(syslog.port, authority)):
        until(lambda: book.state["cursor"] == 10)
        until(lambda: len(syslog.lines) == 10)
    book.grow(1, kind="denied", decision="deny", code="not_granted")
    deliver(book.work(kinds=["denied"]), syslog_sender(syslog.port, authority))
    until(lambda: book.state["cursor"] == 11)
    until(lambda: len(syslog.lines) == 11)
    assert told(syslog.lines) == list(range(1, 12))
    assert book.state["filters"] == {**NO_FILTER, "kinds": ["denied"]}


# --- The real one ----------------------------------------------------------------------------------------------------


@pytest.fixture
def rsyslog(files, tmp_path):
    assert os.path.exists(RSYSLOGD), "install rsyslog and rsyslog-gnutls: `make test` does"
    made = Rsyslog(tmp_path, files, free_port())
    yield made
    made.stop()


def test_rsyslog_understands_every_message(book, deliver, rsyslog, authority):
    rsyslog.start()
    book.begin()
    book.grow(50, detail='{"message": "two\\nlines and ∆"}')
    book.grow(1, kind="denied", decision="deny", code="not_granted")
    deliver(book.work(), syslog_sender(rsyslog.port, authority))
    until(lambda: len(rsyslog.lines) == 51)
    program, host, what, priority, data, message = rsyslog.lines[0]
    assert (program, host, what, priority) == ("mcpsite", "mcp.example.com", "call", str(13 * 8 + 6))
    assert data == '[meta sequenceId="1"]'
    assert json.loads(message)["record"]["detail"] == {"message": "two\nlines and ∆"}
    assert rsyslog.lines[50][2:4] == ["denied", str(13 * 8 + 4)]
    assert rsyslog.numbers == list(range(1, 52))


def test_rsyslog_can_be_restarted_without_a_loss(book, deliver, rsyslog, authority):
    rsyslog.start()
    book.begin()
    deliver(book.work(batch=20), syslog_sender(rsyslog.port, authority, resend=200))
    for _ in range(3):
        book.grow(100)
        until(lambda: book.state["cursor"] > 0)
        rsyslog.stop()
        book.grow(50)
        rsyslog.start()
    until(lambda: book.state["cursor"] == 450, 40)
    until(lambda: set(rsyslog.numbers) == set(range(1, 451)), 40)


def test_rsyslog_that_knows_its_peers_takes_only_those(book, deliver, files, authority, tmp_path):
    strict = Rsyslog(tmp_path, files, free_port(), peer="mcp.example.com")
    strict.start()
    try:
        certificate, key = authority.certificate("mcp.example.com")
        book.begin()
        book.grow(5)
        with delivering(book, book.work(), syslog_sender(strict.port, authority)):
            until(lambda: book.state["error"])
        assert book.state["cursor"] == 0
        deliver(book.work(), syslog_sender(strict.port, authority, client_certificate=certificate, client_key=key))
        until(lambda: set(strict.numbers) == set(range(1, 6)))
    finally:
        strict.stop()


def test_each_stream_has_a_lock_of_its_own(book):
    keys = {loop.lock_key(uuid.uuid4()) for _ in range(100)}
    assert len(keys) == 100
    assert all(-(2**31) <= key < 2**31 for key in keys)
