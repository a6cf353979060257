"""The ledger in the admin is read page by page without counting, and nothing in it can be changed."""

from __future__ import annotations

import re
import uuid

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from access.models import User
from audit.doors import changes_of
from audit.entry import Entry
from audit.ledger import record
from audit.models import Record

pytestmark = pytest.mark.django_db
LIST = "/admin/audit/record/"


@pytest.fixture
def client(client):
    client.force_login(User.objects.create_superuser("root"))
    return client


def make_record(**values) -> Record:
    return Record.objects.get(rid=record(Entry(**{"kind": "call", "code": "ok", **values})))


def shown(response) -> list[Record]:
    return list(response.context["cl"].result_list)


def test_no_list_counts_or_skips_rows(client):
    for _ in range(60):
        make_record(tool="slow")
    with CaptureQueriesContext(connection) as queries:
        client.get(LIST)
        client.get(LIST, {"_facets": "True"})
        client.get(LIST, {"older_than": str(Record.objects.first().pk - 5)})
    about = [query["sql"] for query in queries if "audit_record" in query["sql"]]
    assert about
    assert not [sql for sql in about if "COUNT(" in sql or "OFFSET" in sql]


def test_paging_goes_to_older_records_and_back(client):
    made = [make_record(tool="paged").pk for _ in range(120)][::-1]
    first = client.get(LIST, {"tool": "paged"})
    assert [each.pk for each in shown(first)] == made[:50]
    second = client.get(LIST + first.context["cl"].older_url)
    assert [each.pk for each in shown(second)] == made[50:100]
    third = client.get(LIST + second.context["cl"].older_url)
    assert [each.pk for each in shown(third)] == made[100:]
    assert third.context["cl"].older_url == ""
    assert [each.pk for each in shown(client.get(LIST + third.context["cl"].newer_url))] == made[50:100]


@pytest.mark.parametrize("cursor", ["x", "-1", "1e9", "9" * 40, "١٢"])
def test_a_cursor_that_is_no_id_is_refused_without_an_error(client, cursor):
    assert client.get(LIST, {"older_than": cursor}).status_code == 302


def test_an_id_finds_its_record_and_its_call(client):
    call = uuid.uuid4()
    intent, outcome = make_record(kind="intent", call_id=call), make_record(kind="outcome", call_id=call)
    make_record()
    assert shown(client.get(LIST, {"q": str(intent.rid)})) == [intent]
    assert shown(client.get(LIST, {"q": str(call)})) == [outcome, intent]


def test_words_are_searched_exactly(client):
    wanted = make_record(tool="find_customer")
    make_record(tool="find_customers")
    assert shown(client.get(LIST, {"q": "find_customer"})) == [wanted]


@pytest.mark.parametrize(
    "query",
    [{"user__password__startswith": "a"}, {"_connector": "OR"}, {"mac__startswith": "a"}, {"writer_id__gt": "1"}],
)
def test_lookups_that_are_no_filters_are_refused(client, query):
    assert client.get(LIST, query).status_code in (302, 400)


def test_control_characters_in_search_and_filters_do_no_harm(client):
    assert client.get(LIST, {"q": "a\x00b", "tool": "\x00"}).status_code == 200


def test_an_intent_leads_to_its_outcome(client):
    call = uuid.uuid4()
    intent, outcome = make_record(kind="intent", call_id=call), make_record(kind="outcome", call_id=call)
    page = client.get(reverse("admin:audit_record_change", args=(intent.pk,))).content.decode()
    assert reverse("admin:audit_record_change", args=(outcome.pk,)) in page


def test_an_intent_without_outcome_says_so(client):
    intent = make_record(kind="intent", call_id=uuid.uuid4())
    assert b"No outcome is recorded" in client.get(reverse("admin:audit_record_change", args=(intent.pk,))).content


def test_fingerprints_are_hexadecimal_and_arguments_are_not_shown(client):
    made = make_record(definition=b"\xab" * 32, arguments=b'{"secret":"canary-1234"}', total_us=1234)
    page = client.get(reverse("admin:audit_record_change", args=(made.pk,))).content.decode()
    assert "ab" * 32 in page
    assert "1.2 ms" in page
    assert "canary" not in page


def test_what_upstreams_wrote_is_shown_as_text(client):
    attack = "<script>alert(1)</script>"
    made = make_record(kind="config", tool=attack, actor=attack, client=attack, detail=f'{{"label":"{attack}"}}')
    for url in (LIST, reverse("admin:audit_record_change", args=(made.pk,))):
        page = client.get(url).content.decode()
        assert attack not in page
        assert not re.search(r"<script>alert", page)


def test_nothing_can_be_added_changed_or_deleted(client):
    made = make_record()
    change = reverse("admin:audit_record_change", args=(made.pk,))
    assert client.get(LIST + "add/").status_code == 403
    assert client.post(change, {"code": "other"}).status_code == 403
    assert client.post(reverse("admin:audit_record_delete", args=(made.pk,)), {"post": "yes"}).status_code == 403
    assert client.get(reverse("admin:audit_record_history", args=(made.pk,))).status_code == 404
    assert Record.objects.get(pk=made.pk).code == "ok"


def test_staff_without_the_permission_see_no_records(client):
    client.force_login(User.objects.create_user("dora", is_staff=True))
    assert client.get(LIST).status_code == 403


def test_of_an_object_in_a_change_only_what_differs_is_told():
    changes = {"options": [{"host": "a", "port": 1}, {"host": "b", "port": 1}], "spec": [None, {"title": "T"}]}
    assert changes_of({"changes": changes}) == [("options: host", "a", "b"), ("spec: title", "", "T")]
