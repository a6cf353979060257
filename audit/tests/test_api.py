"""The ledger by REST: read-only, filtered exactly, paged by signed cursors."""

from __future__ import annotations

import uuid

import pytest
from django.contrib.auth.models import Permission
from rest_framework.test import APIClient

from access import tokens
from access.models import User
from audit.entry import Entry
from audit.ledger import record
from audit.models import Record

pytestmark = pytest.mark.django_db
LIST = "/api/v1/audit/records/"


def make_auditor(name: str = "auditor") -> APIClient:
    user = User.objects.create_user(name)
    user.user_permissions.add(Permission.objects.get(codename="view_record"))
    _, secret = tokens.issue(user, name="test", scopes=["read"])
    return APIClient(headers={"Authorization": f"Bearer {secret}"})


def make_record(**values) -> uuid.UUID:
    return record(Entry(**{"kind": "call", "code": "ok", **values}))


def test_records_are_filtered_exactly():
    client, wanted = make_auditor(), make_record(tool="find_customer", actor="dora", definition=b"\x01" * 32)
    make_record(tool="find_customers", actor="dora")
    found = client.get(LIST, {"tool": "find_customer", "actor": "dora", "kind": "call"}).json()["results"]
    assert [each["rid"] for each in found] == [str(wanted)]
    assert found[0]["definition"] == "01" * 32
    assert "ct" not in found[0]


def test_a_record_is_found_by_its_id():
    client, wanted = make_auditor(), make_record(tool="find_customer")
    assert client.get(f"{LIST}{wanted}/").json()["tool"] == "find_customer"
    assert client.get(f"{LIST}{uuid.uuid4()}/").status_code == 404


def test_cursors_walk_through_everything_once():
    client = make_auditor()
    made = [str(make_record(tool="walked")) for _ in range(25)][::-1]
    url, found = f"{LIST}?tool=walked&limit=10", []
    while url:
        page = client.get(url).json()
        found += [each["rid"] for each in page["results"]]
        url = page["next"]
    assert found == made
    assert "count" not in page


def test_a_cursor_is_good_for_its_user_and_its_path_only():
    client, other = make_auditor(), make_auditor("other")
    for _ in range(3):
        make_record(tool="walked")
    url = client.get(LIST, {"tool": "walked", "limit": 1}).json()["next"]
    assert client.get(url).status_code == 200
    answer = other.get(url)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor")
    assert client.get(url.replace("cursor=", "cursor=x")).status_code == 400


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1e3", "", "501", "1" * 5000, "٣"])
def test_a_limit_that_is_no_number_from_1_to_500_is_refused(limit):
    answer = make_auditor().get(LIST, {"limit": limit})
    assert (answer.status_code, answer.json()["errors"]["limit"][0]["code"]) == (400, "invalid")


@pytest.mark.parametrize("query", [{"since": "yesterday"}, {"kind": "unheard"}, {"rid": "7"}])
def test_a_filter_that_makes_no_sense_is_refused(query):
    assert make_auditor().get(LIST, query).status_code == 400


def test_nothing_can_be_written():
    client = make_auditor()
    assert client.post(LIST, {}).status_code in (403, 405)
    assert client.delete(f"{LIST}{make_record()}/").status_code in (403, 405)
    assert Record.objects.exists()


def test_the_permission_is_needed():
    user = User.objects.create_user("dora")
    _, secret = tokens.issue(user, name="test", scopes=["read"])
    answer = APIClient(headers={"Authorization": f"Bearer {secret}"}).get(LIST)
    assert (answer.status_code, answer.json()["code"]) == (403, "permission_denied")


def test_a_filter_that_does_not_exist_is_refused():
    answer = make_auditor().get(LIST, {"tol": "find_customer"})
    assert answer.status_code == 400
    assert answer.json()["errors"]["tol"][0]["code"] == "unknown_parameter"


@pytest.mark.parametrize("since", ["2026-02-30T00:00:00Z", "10000-01-01T00:00:00Z", "\0"])
def test_a_time_that_does_not_exist_is_refused(since):
    assert make_auditor().get(LIST, {"since": since}).status_code == 400


@pytest.mark.parametrize(("since", "found"), [("0001-01-01T00:00:00+14:00", 1), ("9999-12-31T23:59:59-14:00", 0)])
def test_a_time_far_away_is_a_time(since, found):
    client, _ = make_auditor(), make_record(tool="walked")
    assert len(client.get(LIST, {"since": since, "tool": "walked"}).json()["results"]) == found


def test_the_oldest_can_come_first():
    client = make_auditor()
    made = [str(make_record(tool="walked")) for _ in range(3)]
    found = client.get(LIST, {"tool": "walked", "ordering": "id"}).json()["results"]
    assert [each["rid"] for each in found] == made


def test_a_record_is_not_sent_again_to_whoever_has_it():
    client, url = make_auditor(), f"{LIST}{make_record(tool='find_customer')}/"
    tag = client.get(url)["ETag"]
    answer = client.get(url, headers={"If-None-Match": tag})
    assert (answer.status_code, answer.content, answer["ETag"]) == (304, b"", tag)
