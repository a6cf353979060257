"""A record is told as a story: who, what, why, what happened; and arguments only to those who may read them."""

from __future__ import annotations

import html
import json
import re
import uuid

import pytest
from django.contrib.auth.models import Permission
from django.http import HttpRequest
from django.test import Client
from django.urls import reverse

from access import tokens
from access.models import ServiceAccount, User
from audit.arguments import open_arguments
from audit.codes import MEANINGS, meaning_of
from audit.entry import Entry
from audit.ledger import record
from audit.models import Record
from audit.story import Story, colour_of
from keyring import keys
from tools.definitions import publish
from tools.models import DataSource, Tool

pytestmark = pytest.mark.django_db


def make_record(**values) -> Record:
    return Record.objects.get(rid=record(Entry(**{"kind": "call", "code": "ok", **values})))


def client_of(name: str, *permissions: str, **values) -> Client:
    user = User.objects.create_user(name, is_staff=True, **values)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def make_root() -> Client:
    return client_of("root", is_superuser=True)


def address(made: Record, page: str = "change") -> str:
    return reverse(f"admin:audit_record_{page}", args=(made.pk,))


def story(client: Client, made: Record) -> str:
    return html.unescape(client.get(address(made)).content.decode())


def make_tool(name: str = "send_reply") -> Tool:
    source = DataSource.objects.create(name="office", kind="mcp", options={"url": "https://example.com/mcp"})
    tool = Tool.objects.create(source=source, name=name, effect="write")
    publish(tool, {"name": name, "inputSchema": {"type": "object"}})
    return tool


# --- Its headline -----------------------------------------------------------------------------------------------------


def test_what_was_refused_unread_is_told_of_whoever_is_known() -> None:
    known: tuple[dict[str, str], ...] = ({"actor": "carla", "address": "192.0.2.7"}, {"address": "192.0.2.7"}, {})
    told = [Story(HttpRequest(), Record(kind="invalid", code="refused_unread", **each)).headline for each in known]
    said = "sent a request that was refused unread"
    assert told == [f"carla {said}", f"192.0.2.7 {said}", f"Somebody {said}"]


# --- Its colour -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "decision", "code", "colour"),
    [
        ("call", "allow", "ok", "green"),
        ("outcome", "allow", "tool_error", "orange"),
        ("call", "allow", "input_required", "green"),
        ("outcome", "allow", "unknown", "red"),
        ("intent", "allow", "intended", "grey"),
        ("denied", "deny", "not_granted", "red"),
        ("auth", "deny", "invalid_credentials", "red"),
        ("agent", None, "run_succeeded", "grey"),
        ("agent", None, "run_failed", "orange"),
        ("system", None, "ledger_faulty", "red"),
    ],
)
def test_the_colour_says_what_became_of_it(kind, decision, code, colour):
    assert colour_of(Record(kind=kind, decision=decision, code=code)) == colour


# --- What is told ----------------------------------------------------------------------------------------------------


def test_a_call_is_told_with_who_what_why_and_how_long():
    made = make_record(
        tool="find_customer",
        actor="maria",
        on_behalf_of="the board",
        token="mcps_abc",
        roles="support,sales",
        client="Claude",
        address="10.1.2.3",
        door="mcp",
        decision="allow",
        code="tool_error",
        policy_version=42,
        upstream_us=3_000,
        total_us=4_000,
        result=b"12345",
    )
    page = story(make_root(), made)
    for said in ("maria called find_customer", meaning_of("tool_error"), "the board", "mcps_abc", "support, sales"):
        assert said in page
    for said in ("Claude", "10.1.2.3", "version 42 of the policy", "4.0 ms", "1.0 ms", "3.0 ms", "5 bytes", "Failed"):
        assert said in page
    assert "margin-left: 25.0%; width: 75.0%" in page


def test_what_a_record_names_is_linked_while_it_exists():
    client, tool = make_root(), make_tool()
    maria = User.objects.create_user("maria")
    token, _ = tokens.issue(maria, name="one", scopes=["tools"])
    made = make_record(
        tool="send_reply",
        connector="office",
        actor="maria",
        actor_id=str(maria.pk),
        token=token.prefix,
        definition=bytes.fromhex(tool.current.fingerprint),
    )
    places = [
        reverse("admin:tools_tool_change", args=(tool.pk,)),
        reverse("admin:tools_datasource_change", args=(tool.source.pk,)),
        reverse("admin:access_user_change", args=(maria.pk,)),
        reverse("admin:access_apitoken_change", args=(token.pk,)),
    ]
    page = story(client, made)
    assert all(f'href="{place}"' in page for place in places)
    assert f'href="{places[0]}#version-1">Version 1 of the tool</a>, the current one' in page
    publish_again(tool)
    assert "which is at version 2 now" in story(client, made)
    maria.delete()
    tool.source.delete()
    page = story(client, made)
    assert not any(place in page for place in places)
    assert "send_reply" in page


def publish_again(tool: Tool) -> None:
    publish(tool, {"name": tool.name, "description": "Another.", "inputSchema": {"type": "object"}})


def test_a_link_goes_only_where_the_reader_may_go():
    tool = make_tool()
    made = make_record(tool="send_reply", definition=bytes.fromhex(tool.current.fingerprint))
    page = story(client_of("ada", "view_record"), made)
    assert reverse("admin:tools_tool_change", args=(tool.pk,)) not in page
    assert "What clients saw" not in page
    assert "What clients saw" in story(client_of("eva", "view_record", "view_tool"), made)


def test_a_program_is_linked_to_its_own_page():
    robot = ServiceAccount.objects.create(username="robot", is_service=True)
    made = make_record(actor="robot", actor_id=str(robot.pk))
    assert reverse("admin:access_serviceaccount_change", args=(robot.pk,)) in story(make_root(), made)


def test_an_intent_and_its_outcome_lead_to_each_other_and_share_the_times():
    client, call = make_root(), uuid.uuid4()
    intent = make_record(kind="intent", code="intended", tool="t", call_id=call)
    outcome = make_record(kind="outcome", tool="t", call_id=call, total_us=2_000, upstream_us=1_000)
    assert address(outcome) in story(client, intent)
    assert "2.0 ms" in story(client, intent)
    assert address(intent) in story(client, outcome)


def test_a_call_that_asks_its_client_is_told_step_by_step():
    shared = {"kind": "intent", "call_id": uuid.uuid4(), "actor": "ada", "tool": "send_reply"}
    asked, answered = (make_record(**shared, code=code) for code in ("input_required", "answered"))
    root = make_root()
    pages = [story(root, made) for made in (asked, answered)]
    assert "send_reply asked ada for something, and waits" in pages[0]
    assert "ada answered what send_reply asked" in pages[1]
    assert all("Question to the client" in page and "Answer of the client" in page for page in pages)


def test_an_outcome_that_came_after_all_stands_beside_the_unknown_one():
    client, call = make_root(), uuid.uuid4()
    intent = make_record(kind="intent", code="intended", tool="t", call_id=call, actor="ada")
    unknown = make_record(kind="outcome", code="unknown", tool="t", call_id=call, actor="ada")
    late = make_record(kind="outcome", tool="t", call_id=call, actor="ada")
    for each in (intent, unknown, late):
        assert all(address(other) in story(client, each) for other in (intent, unknown, late) if other != each)
    assert "Nobody knows what became of ada" in story(client, unknown)
    assert "Unknown" in story(client, unknown)


def test_records_of_the_same_trace_and_request_are_listed():
    client = make_root()
    made = make_record(tool="a", trace_id="ab" * 16, request_id="the-request")
    traced, asked = make_record(tool="b", trace_id="ab" * 16), make_record(tool="c", request_id="the-request")
    other = make_record(tool="d", trace_id="cd" * 16, request_id="another-one")
    page = story(client, made)
    assert address(traced) in page
    assert address(asked) in page
    assert address(other) not in page


def test_one_goes_from_record_to_record_of_the_same_actor():
    client = make_root()
    first, _, second, third = (make_record(actor=name) for name in ("maria", "emil", "maria", "maria"))
    page = story(client, second)
    assert re.search(rf'href="{address(first)}"[^>]*title="The record of maria before', page)
    assert re.search(rf'href="{address(third)}"[^>]*title="The next record of maria', page)


def test_a_change_is_told_with_before_and_after():
    detail = json.dumps({"action": "update", "label": "office", "changes": {"timeout_seconds": [30, 60]}})
    made = make_record(
        kind="config", code="update", actor="root", object_type="tools.DataSource", object_id="x", detail=detail
    )
    page = story(make_root(), made)
    assert "root changed data source office" in page
    assert "<del>30</del>" in page
    assert "<ins>60</ins>" in page


def test_a_type_that_is_gone_does_no_harm():
    made = make_record(kind="config", code="update", actor="root", object_type="gone.Thing", object_id="x")
    assert "root changed gone.Thing x" in story(make_root(), made)


@pytest.mark.parametrize("kind", Record.Kind.values)
@pytest.mark.parametrize("code", ["ok", "not_granted", "login", "a_code_of_tomorrow"])
def test_every_kind_of_record_can_be_read_when_it_says_next_to_nothing(kind, code):
    assert make_root().get(address(make_record(kind=kind, code=code))).status_code == 200


@pytest.mark.parametrize("page", ["zzz", "999999999999", "9" * 30])
def test_a_record_that_does_not_exist_leads_back_and_says_so(page):
    answer = make_root().get(f"/admin/audit/record/{page}/change/", follow=True)
    assert "exist" in answer.content.decode()


def test_whoever_may_not_see_records_sees_none():
    made = make_record(tool="secret_tool")
    client = client_of("dora", "view_tool", "read_arguments")
    assert client.get(address(made)).status_code == 403
    assert client.post(address(made, "arguments"), {"reason": "case 7"}).status_code == 403
    assert Client().get(address(made)).status_code == 302


# --- Arguments -------------------------------------------------------------------------------------------------------


def test_arguments_are_shown_on_request_to_who_may_read_them_and_that_is_on_record():
    made = make_record(tool="t", arguments=b'{"name":"canary-1234"}')
    client = client_of("ada", "view_record", "read_arguments")
    assert "canary" not in story(client, made)
    answer = client.post(address(made, "arguments"), {"reason": "case 7"})
    page = html.unescape(answer.content.decode())
    assert '"name": "canary-1234"' in page
    assert "what the record commits to" in page
    assert "no-store" in answer["Cache-Control"]
    read = Record.objects.get(code="arguments_read", object_id=str(made.rid))
    assert (read.kind, read.actor, read.door) == ("system", "ada", "admin")
    assert "canary" not in read.detail
    assert address(read) in story(client, made)


def test_arguments_are_hidden_from_who_may_only_see_records():
    made = make_record(tool="t", arguments=b'{"name":"canary-1234"}')
    client = client_of("ada", "view_record")
    assert "needs the permission" in story(client, made)
    answer = client.post(address(made, "arguments"), {"reason": "case 7"})
    assert answer.status_code == 403
    assert "canary" not in answer.content.decode()
    assert not Record.objects.filter(code="arguments_read", object_id=str(made.rid)).exists()


def test_following_the_address_of_arguments_opens_nothing():
    made = make_record(arguments=b"{}")
    assert make_root().get(address(made, "arguments"))["Location"] == address(made)
    assert not Record.objects.filter(code="arguments_read", object_id=str(made.rid)).exists()


def test_arguments_that_were_not_kept_are_said_not_to_be():
    made = make_record(kind="denied", arguments=b'{"long":"text"}', keeps_arguments=False)
    assert "They were not kept" in make_root().post(address(made, "arguments"), {"reason": "case 7"}).content.decode()


def test_arguments_of_a_lost_key_are_said_to_be_unreadable(monkeypatch):
    made = make_record(arguments=b"{}")
    monkeypatch.setattr("keyring.fields.ring", lambda: keys.KeyRing({"other": b"x" * 32}))
    page = html.unescape(make_root().post(address(made, "arguments"), {"reason": "case 7"}).content.decode())
    assert "cannot be decrypted" in page
    assert "not in the key ring" in page


def test_arguments_that_do_not_fit_their_commitment_are_said_to_be_changed(rf):
    made = make_record(arguments=b'{"a":1}')
    made.args_commit = b"\0" * 32
    request = rf.get("/")
    request.user = User.objects.create_superuser("root")
    assert open_arguments(request, made, "case 7").proven is False


def test_a_code_is_a_sentence():
    assert all(meaning_of(code).endswith(".") and "`" not in meaning_of(code) for code in MEANINGS)
    assert meaning_of("a_code_of_tomorrow") == ""
