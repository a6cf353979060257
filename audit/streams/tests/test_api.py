from __future__ import annotations

import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client

from access import tokens
from access.models import User
from audit.models import Record
from audit.streams.models import Stream, StreamState
from audit.streams.tests.authority import Authority
from audit.streams.tests.test_steering import grow, seal_all

pytestmark = pytest.mark.usefixtures("committed_db")

URL = "/api/v1/audit/streams/"
PULL = "/api/v1/audit/stream/"
SECRET = "a signing secret that is long enough"


def make_client(*permissions: str, **values) -> Client:
    user = User.objects.create_user("dora", **values)
    user.user_permissions.set(Permission.objects.filter(content_type__app_label="audit", codename__in=permissions))
    _, secret = tokens.issue(user, name="tests", scopes=["read", "write"])
    return Client(headers={"Authorization": f"Bearer {secret}"})


@pytest.fixture
def client() -> Client:
    return make_client(is_superuser=True)


def post(client: Client, url: str = URL, **body):
    return client.post(url, body, content_type="application/json")


def make(client: Client, **values):
    body = {"name": "hook", "kind": "webhook", "address": "https://siem.example.com/in", **values}
    return post(client, **{"secrets": {"signing_secret": SECRET}, **body})


def test_a_stream_is_made_with_its_place_and_its_secrets_are_not_told(client):
    end = grow(2)
    answer = make(client, options={"batch_records": 50}, kinds=["denied"])
    assert answer.status_code == 201, answer.content
    body = answer.json()
    assert body["secrets_set"] == ["signing_secret"]
    assert "secrets" not in body
    assert SECRET not in answer.content.decode()
    assert body["options"]["batch_records"] == 50
    assert StreamState.objects.get(stream=body["id"]).cursor == end
    told = Record.objects.filter(object_type="audit.Stream", code="create").latest("id")
    assert SECRET not in (told.detail or "")
    with connection.cursor() as cursor:
        cursor.execute("SELECT secrets FROM audit_stream")
        assert SECRET.encode() not in bytes(cursor.fetchone()[0])


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"address": "http://siem.example.com/in"}, "address"),
        ({"address": "https://user:pass@siem.example.com/in"}, "address"),
        ({"address": "https://siem.example.com/in\r\nX: y"}, "address"),
        ({"kind": "syslog-tls", "address": "https://siem.example.com", "secrets": {}}, "address"),
        ({"kind": "syslog-tls", "address": "siem.example.com:99999", "secrets": {}}, "address"),
        ({"secrets": {}}, "secrets.signing_secret"),
        ({"secrets": {"signing_secret": "short"}}, "secrets.signing_secret"),
        ({"secrets": {"signing_secret": SECRET, "authorization": "a\nb"}}, "secrets.authorization"),
        ({"secrets": {"signing_secret": SECRET, "client_key": "x"}}, "options.client_key"),
        ({"options": {"signing_secret": SECRET}}, "secrets.signing_secret"),
        ({"options": {"batch_records": 0}}, "options.batch_records"),
        ({"options": {"nonsense": 1}}, "options.nonsense"),
        ({"options": {"ca": "-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----"}}, "options.ca"),
        ({"kinds": ["calls"]}, "kinds"),
        ({"decisions": ["perhaps"]}, "decisions"),
        ({"kind": "carrier-pigeon"}, "kind"),
    ],
)
def test_what_cannot_work_is_refused_at_its_field(client, values, field):
    answer = make(client, **values)
    assert answer.status_code == 400, answer.content
    assert [name for name in answer.json()["errors"] if name.startswith(field)], answer.json()
    assert not Stream.objects.exists()


def test_a_certificate_and_its_key_belong_together(client):
    certificate, key = Authority().certificate("us.example.com")
    syslog = {"kind": "syslog-tls", "address": "siem.example.com"}
    answer = make(client, **syslog, options={"client_certificate": certificate}, secrets={})
    assert "secrets.client_key" in answer.json()["errors"]
    answer = make(client, **syslog, options={"client_certificate": certificate}, secrets={"client_key": key})
    assert answer.status_code == 201, answer.content


def test_what_the_receiver_is_told_as_a_password_is_not_sent_elsewhere(client):
    url = make(client, secrets={"signing_secret": SECRET, "authorization": "Splunk 1"})["Location"]
    moved = {"address": "https://evil.example.com/in"}
    answer = client.patch(url, moved, content_type="application/json")
    assert answer.status_code == 400
    assert list(answer.json()["errors"]) == ["secrets.authorization"]
    given = {**moved, "secrets": {"authorization": "Splunk 2"}}
    assert client.patch(url, given, content_type="application/json").status_code == 200
    removed = {"secrets": {"authorization": None}}
    assert client.patch(url, removed, content_type="application/json").json()["secrets_set"] == ["signing_secret"]


def test_a_change_keeps_the_place_and_the_etag_does_not_move_with_it(client):
    answer = make(client)
    url = answer["Location"]
    StreamState.objects.update(cursor=7, number=8)
    patched = client.patch(
        url, {"enabled": False}, content_type="application/json", headers={"If-Match": answer["ETag"]}
    )
    assert patched.status_code == 200
    assert StreamState.objects.get().cursor == 7


def test_the_state_tells_how_it_stands(client):
    seal_all()
    url = make(client)["Location"]
    StreamState.objects.update(error="The receiver answered 500.", number=12)
    grow(3)  # and the record of the stream itself
    body = client.get(f"{url}state/").json()
    assert (body["sent"], body["lag_records"], body["error"]) == (11, 4, "The receiver answered 500.")


def test_steering_needs_permissions_of_its_own():
    client = make_client("view_stream", "change_stream")
    stream = Stream.objects.create(name="hook", kind="webhook", address="https://siem.example.com/in")
    StreamState.objects.create(stream=stream)
    for verb in ("test", "rewind", "acknowledge"):
        assert post(client, f"{URL}{stream.pk}/{verb}/", to="2026-01-01T00:00:00Z").status_code == 403
    assert client.get(f"{URL}{stream.pk}/state/").status_code == 200
    assert client.get(PULL).status_code == 403


def test_the_place_is_set_by_time(client):
    grow(2)
    url = make(client)["Location"]
    answer = post(client, f"{url}rewind/", to="2001-01-01T00:00:00Z")
    assert (answer.status_code, answer.json()["after"]) == (200, 0)
    assert post(client, f"{url}rewind/").status_code == 400


# --- Pulling ---------------------------------------------------------------------------------------------------------


def test_pulling_goes_through_all_records_in_their_sealed_order():
    client = make_client("pull_records")
    start = seal_all() - 1
    end = grow(25)
    seqs, after = [], start
    while True:
        body = client.get(PULL, {"after": after, "limit": 10}).json()
        seqs += [each["seq"] for each in body["records"]]
        if body["next"] == after:
            break
        after = body["next"]
    assert seqs == list(range(start + 1, end))
    assert body["sealed"] == end
    again = client.get(PULL, {"after": start, "limit": 10}).json()
    assert again == client.get(PULL, {"after": start, "limit": 10}).json()


def test_pulling_tells_of_no_arguments():
    client = make_client("pull_records")
    start = seal_all() - 1
    grow()
    told = client.get(PULL, {"after": start}).json()["records"][0]
    assert told["type"] == "record"
    assert not {"ct", "key_id", "mac", "shown"} & set(told["record"])


def test_who_has_read_more_than_there_is_is_told():
    client = make_client("pull_records")
    answer = client.get(PULL, {"after": seal_all()})
    assert (answer.status_code, answer.json()["code"]) == (409, "ahead_of_ledger")


@pytest.mark.parametrize("query", ["after=-2", "limit=0", "limit=1001", "wait=21", "after=x", "since=1"])
def test_a_query_that_makes_no_sense_is_refused(query):
    assert make_client("pull_records").get(f"{PULL}?{query}").status_code == 400
