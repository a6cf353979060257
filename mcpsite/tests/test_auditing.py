"""The auditor's own place: who lands there, what it says, and that each of its links finds what it names."""

from __future__ import annotations

import re
import uuid
from datetime import timedelta

import pytest
from django.core.cache import cache
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from access.models import User
from audit import auditing
from audit.auditing import checks, counts
from audit.entry import Entry
from audit.filters import TOPICS
from audit.ledger import record
from audit.models import Record, Stream, StreamState
from audit.selections import VIEWS
from mcpsite.bootstrap import ensure_standard_roles

pytestmark = pytest.mark.django_db

OVERVIEW = "/admin/audit/overview/"
LIST = "/admin/audit/record/"


@pytest.fixture(autouse=True)
def nothing_kept():
    cache.clear()


def make_client(role: str = "auditor", **values) -> Client:
    roles = {each.name: each for each in ensure_standard_roles()}
    user = User.objects.create_user("ada", is_staff=True, **values)
    if role:
        user.groups.set([roles[role]])
    client = Client()
    client.force_login(user)
    return client


def test_an_auditor_lands_on_the_overview_and_can_still_see_the_dashboard():
    client = make_client()
    assert client.get("/admin/").headers["Location"] == OVERVIEW
    page = client.get(OVERVIEW)
    assert page.status_code == 200
    assert client.get("/admin/?days=1").status_code == 200
    assert "/admin/?days=1" in page.content.decode()


@pytest.mark.parametrize(("role", "values"), [("administrator", {}), ("", {"is_superuser": True}), ("", {})])
def test_everybody_else_lands_on_the_dashboard(role, values):
    assert make_client(role, **values).get("/admin/").status_code == 200


def test_without_the_ledger_there_is_no_overview():
    assert make_client("").get(OVERVIEW).status_code == 403


def test_an_auditor_finds_the_ledger_first():
    page = make_client().get(OVERVIEW).content.decode()
    groups = re.findall(r"(Audit|Retention|Catalogue|Access)\s*</", page)
    assert groups.index("Audit") < groups.index("Catalogue")


def test_every_link_of_the_overview_opens_for_an_auditor():
    client = make_client()
    page = client.get(OVERVIEW).content.decode()
    main = page[page.index('class="board"') :]
    links = {link.replace("&amp;", "&") for link in re.findall(r'href="(/[^"]+)"', main)}
    assert len(links) > 12
    assert {link: client.get(link).status_code for link in links if client.get(link).status_code != 200} == {}


EXAMPLES = {
    "Denials": Entry(kind="denied", code="not_granted", decision="deny", tool="rooms"),
    "Changes of privilege": Entry(kind="config", code="create", object_type="access.Grant", object_id="1"),
    "Break-glass reads": Entry(kind="system", code="arguments_read"),
    "Unknown outcomes": Entry(kind="outcome", code="unknown", decision="allow"),
    "Administrators' calls": Entry(kind="call", code="ok", decision="allow", roles="administrator,staff"),
    "Exports": Entry(kind="system", code="export_made"),
    "Logins and tokens": Entry(kind="auth", code="login"),
    "The ledger itself": Entry(kind="system", code="ledger_key_rotated"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_view_finds_what_it_names_and_nothing_else(name):
    """One record of each sort: the count goes up by one, and the list shows it."""
    view = next(each for each in VIEWS if each.name == name)
    client = make_client()
    cache.delete("audit.auditing")
    before = int(counts()[name])
    record(Entry(kind="call", code="ok", decision="allow", roles="administrators-of-nothing"))
    for entry in EXAMPLES.values():
        if entry.decision != "deny" or name == "Denials":
            record(entry)
    cache.delete("audit.auditing")
    assert int(counts()[name]) == before + 1
    shown = client.get(f"{LIST}?{view.address}")
    assert shown.status_code == 200
    example = EXAMPLES[name]
    newest = Record.objects.filter(kind=example.kind, code=example.code, roles=example.roles).latest("id")
    assert str(newest.pk) in shown.content.decode()


def test_there_is_an_example_of_each_view():
    assert set(EXAMPLES) == {view.name for view in VIEWS}


def test_the_views_stand_in_the_menu_of_saved_filters():
    page = make_client().get(LIST).content.decode()
    assert all(view.name.replace("'", "&#x27;") in page for view in VIEWS)
    assert "Ready-made" not in make_other_list()


def make_other_list() -> str:
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    return client.get("/admin/tools/tool/").content.decode()


def test_a_topic_that_there_is_not_is_refused():
    client = make_client()
    answer = client.get(f"{LIST}?topic=nonsense", follow=True)
    assert "topic" in answer.content.decode()
    assert all(client.get(f"{LIST}?topic={name}").status_code == 200 for name in TOPICS)


# --- The checks ------------------------------------------------------------------------------------------------------


def found(name: str):
    return next(each for each in checks() if each.name == name)


def with_head(monkeypatch, **age: float) -> None:
    """The sealer alone may write heads: here one is said to be there."""
    head = auditing._Head(1_000_000, 5, timezone.now() - timedelta(**age))
    monkeypatch.setattr(auditing, "_newest_head", lambda: head)


def test_a_head_that_is_overdue_is_an_alarm(monkeypatch):
    with_head(monkeypatch, seconds=1)
    assert (found("Sealing").state, "5 records" in found("Sealing").note) == ("good", True)
    with_head(monkeypatch, minutes=10)
    assert found("Sealing").state == "bad"
    monkeypatch.setattr(auditing, "_newest_head", lambda: None)
    assert found("Sealing").said == "Nothing is sealed yet"


@pytest.mark.parametrize(
    ("code", "verdict", "state"), [("ledger_verified", "OK", "good"), ("ledger_faulty", "MODIFIED", "bad")]
)
def test_the_last_verdict_is_told(code, verdict, state):
    record(Entry(kind="system", code=code, detail=f'{{"verdict":"{verdict}"}}'))
    assert (found("Verified").said, found("Verified").state) == (verdict, state)


def test_records_that_wait_for_their_seal_are_counted():
    before = int(found("Not sealed yet").said.replace("None", "0").replace(",", ""))
    record(Entry(kind="call", code="ok"))
    assert found("Not sealed yet").said == f"{before + 1:,}"
    assert found("Not sealed yet").state in ("good", "bad")


def test_an_intent_without_an_outcome_is_an_alarm(monkeypatch):
    monkeypatch.setattr(auditing, "_OPEN", auditing._OPEN.replace("'2 minutes'", "'-1 minute'"))
    before = found("Open intents").said
    assert before in ("None", *map(str, range(1, 10_000)))
    call = "01a20763-c917-73ac-98e1-deca5d039989"
    record(Entry(kind="intent", code="intended", call_id=uuid.UUID(call)))
    number = int(found("Open intents").said)
    assert found("Open intents").state == "bad"
    record(Entry(kind="outcome", code="ok", call_id=uuid.UUID(call)))
    after = found("Open intents").said
    assert number - 1 == (0 if after == "None" else int(after))


def test_streams_with_an_alarm_are_named():
    assert found("Streams").state == "open"
    stream = Stream.objects.create(name="siem", kind="webhook", address="https://siem.example.com/in")
    StreamState.objects.create(stream=stream, cursor=10**9)
    assert (found("Streams").state, found("Streams").said) == ("good", "1")
    StreamState.objects.update(missed=3)
    assert (found("Streams").state, found("Streams").note) == ("bad", "siem")


def test_without_witness_and_anchor_that_is_said(monkeypatch):
    with_head(monkeypatch, seconds=1)
    monkeypatch.setattr(auditing, "_COSIGNED", "SELECT 0, NULL, NULL")
    monkeypatch.setattr(auditing, "_ANCHORED", "SELECT 0, NULL, NULL")
    assert (found("Witnesses").state, found("Anchors").state) == ("open", "open")
    monkeypatch.setattr(auditing, "_COSIGNED", "SELECT 1, 7, now() - interval '2 hours'")
    monkeypatch.setattr(auditing, "_ANCHORED", "SELECT 2, 7, now()")
    assert (found("Witnesses").state, found("Anchors").said) == ("bad", "2")


def test_the_address_of_the_overview_is_known():
    assert reverse("audit-overview") == OVERVIEW
