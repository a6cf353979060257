"""The whole way: the worker, the rules for outgoing connections, a receiver over TLS, and who asks for a test."""

from __future__ import annotations

import pytest
from django.db import connections

from audit.models import Stream, StreamState
from audit.streams.steering import ask_to_test, begin
from audit.streams.tests.receivers import server_context, until, webhook
from audit.streams.tests.test_steering import grow, seal_all
from audit.streams.worker import StreamWorker
from mcpsite.postgres import conninfo
from tools.dialling import dial
from tools.egress import EgressDenied
from tools.models import EgressRule

SECRET = "a signing secret that is long enough"


@pytest.fixture
def hook(authority, tmp_path):
    with webhook(server_context(authority.files(tmp_path, "127.0.0.1"))) as found:
        yield found


@pytest.fixture
def worker(committed_db):
    made = StreamWorker(conninfo(connections["default"].settings_dict), dial)
    made.start()
    yield made
    made.stop()


def make_stream(hook, authority, **values) -> Stream:
    seal_all()
    options = {"ca": authority.pem, "timeout_seconds": 5, "batch_records": 100}
    given = {"name": "hook", "kind": "webhook", "address": hook.url, "options": options, **values}
    stream = Stream.objects.create(secrets={"signing_secret": SECRET}, **given)
    begin(stream)
    return stream


def state() -> StreamState:
    return StreamState.objects.get()


def test_an_inside_address_is_reached_only_by_a_rule_and_then_everything_arrives(worker, hook, authority):
    make_stream(hook, authority)
    grow(3)
    until(lambda: "an administrator must allow it" in state().error)
    assert not hook.requests
    EgressRule.objects.create(network="127.0.0.1/32", port=hook.port, note="the receiver")
    until(lambda: sum(len(body["messages"]) for body in hook.taken) == 3, 30)
    until(lambda: state().number == 4)
    assert state().error == ""


def test_a_test_message_is_sent_by_the_worker_also_for_a_stream_that_is_switched_off(worker, hook, authority):
    EgressRule.objects.create(network="127.0.0.1/32", note="the receiver")
    stream = make_stream(hook, authority, enabled=False)
    tested = ask_to_test(stream, "mia")
    assert (tested.ok, tested.message) == (True, "The receiver took the test message.")
    assert [each["type"] for each in hook.taken[0]["messages"]] == ["test"]
    assert state().number == 1


def test_a_change_is_taken_over_and_a_stream_that_is_switched_off_stops(worker, hook, authority):
    EgressRule.objects.create(network="127.0.0.1/32", note="the receiver")
    stream = make_stream(hook, authority)
    grow(2)
    until(lambda: state().number == 3)
    stream.kinds = ["denied"]
    stream.save()
    until(lambda: state().filters == {"kinds": ["denied"], "decisions": [], "tools": []})
    end = grow(2)
    until(lambda: state().cursor == end)
    assert state().number == 3
    stream.enabled = False
    stream.save()
    until(lambda: not worker._running)
    grow(1)
    assert state().cursor == end


def test_secrets_that_cannot_be_used_are_a_failure_that_says_so(worker, hook, authority):
    make_stream(hook, authority)
    Stream.objects.update(options={"batch_records": -1})
    Stream.objects.get().save()
    until(lambda: "cannot be used" in state().error)
    assert state().failing_since is not None


@pytest.mark.parametrize("host", ["169.254.169.254", "127.0.0.1", "10.0.0.1", "[::1]"])
def test_dialling_goes_through_the_gate(committed_db, host):
    with pytest.raises(EgressDenied):
        dial(host.strip("[]"), 443, 2)
