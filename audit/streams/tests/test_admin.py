from __future__ import annotations

import pytest
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from access.models import User
from audit.models import Record
from audit.streams.models import Stream, StreamState
from audit.streams.tests.test_steering import grow, make_stream

pytestmark = pytest.mark.usefixtures("committed_db")

ADD = "/admin/audit/stream/add/"
SECRET = "a signing secret that is long enough"


def make_client(*permissions: str, **values) -> Client:
    user = User.objects.create_user("ada", is_staff=True, **values)
    user.user_permissions.set(Permission.objects.filter(content_type__app_label="audit", codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def client() -> Client:
    return make_client(is_superuser=True)


def filled(**values):
    usual = {
        "name": "hook",
        "kind": "webhook",
        "address": "https://siem.example.com/in",
        "enabled": "on",
        "alarm_minutes": "15",
        "timeout_seconds": "15",
        "batch_records": "100",
        "signing_secret": SECRET,
    }
    return {**usual, **values}


def page(stream: Stream) -> str:
    return reverse("admin:audit_stream_change", args=(stream.pk,))


def test_a_webhook_is_added_with_what_its_kind_needs(client):
    answer = client.post(ADD, filled(kinds=["denied", "auth"], tools="rooms, refund_order"))
    assert answer.status_code == 302, answer.context["adminform"].form.errors
    stream = Stream.objects.get()
    assert stream.options == {"ca": "", "timeout_seconds": 15, "batch_records": 100}
    assert stream.secrets == {"signing_secret": SECRET}
    assert (stream.kinds, stream.tools) == (["denied", "auth"], ["rooms", "refund_order"])
    assert stream.state.number == 1
    assert SECRET not in (Record.objects.filter(object_type="audit.Stream").latest("id").detail or "")


def test_a_syslog_receiver_is_added(client):
    answer = client.post(
        ADD, filled(kind="syslog-tls", address="siem.example.com:6514", facility="16", signing_secret="")
    )
    assert answer.status_code == 302, answer.context["adminform"].form.errors
    assert Stream.objects.get().options["facility"] == 16


def test_what_is_wrong_is_said_at_its_field(client):
    answer = client.post(ADD, filled(address="http://x", signing_secret=""))
    errors = answer.context["adminform"].form.errors
    assert "https" in str(errors["address"])
    answer = client.post(ADD, filled(signing_secret="short"))
    assert "24 characters" in str(answer.context["adminform"].form.errors["signing_secret"])


def test_a_secret_that_is_left_empty_is_kept_and_never_shown(client):
    client.post(ADD, filled())
    stream = Stream.objects.get()
    shown = client.get(page(stream)).content.decode()
    assert SECRET not in shown
    assert "A value is stored" in shown
    answer = client.post(page(stream), filled(signing_secret="", batch_records="7"))
    assert answer.status_code == 302, answer.context["adminform"].form.errors
    stream.refresh_from_db()
    assert (stream.secrets, stream.options["batch_records"]) == ({"signing_secret": SECRET}, 7)


def test_the_page_says_how_it_stands(client):
    stream = make_stream()
    StreamState.objects.update(failing_since=timezone.now(), error="The receiver answered 500.", number=1235)
    grow(2)
    listed = client.get("/admin/audit/stream/").content.decode()
    assert "Retrying" in listed
    shown = client.get(page(stream)).content.decode()
    assert "1,234 messages were acknowledged" in shown
    assert "The receiver answered 500." in shown
    StreamState.objects.update(missed=5)
    assert "Records missed" in client.get("/admin/audit/stream/").content.decode()


def test_who_may_only_look_sees_neither_fields_nor_buttons():
    stream = make_stream()
    client = make_client("view_stream")
    shown = client.get(page(stream)).content.decode()
    assert "signing_secret" not in shown
    assert "Send a test message" not in shown
    url = reverse("admin:audit_stream_move", args=(stream.pk,))
    assert client.post(url, {"to": "2026-01-01 00:00", "_form_submitted": "on"}).status_code == 403


def test_the_place_is_set_from_a_dialog(client):
    grow(2)
    stream = make_stream()
    url = reverse("admin:audit_stream_move", args=(stream.pk,))
    assert client.get(url).status_code == 200
    answer = client.post(url, {"to": "2001-01-01 00:00", "_form_submitted": "on"})
    assert answer.headers["HX-Redirect"] == page(stream)
    assert StreamState.objects.get().cursor == 0
    wrong = client.post(url, {"to": "yesterday", "_form_submitted": "on"})
    assert "HX-Redirect" not in wrong.headers


def test_a_gap_is_taken_note_of(client):
    stream = make_stream()
    StreamState.objects.update(missed=5)
    url = reverse("admin:audit_stream_acknowledge", args=(stream.pk,))
    client.post(url, {"_form_submitted": "on"})
    assert StreamState.objects.get().missed == 0
