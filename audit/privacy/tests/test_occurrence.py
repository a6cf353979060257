"""Whether a value occurs: by commitment where nothing else is kept, by comparison where it is, and honestly neither."""

from __future__ import annotations

import html
import io
import json
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from access import tokens
from access.models import User
from audit.arguments import ReadingRefused, TooManyReadings
from audit.ledger import Entry, record
from audit.models import Record
from audit.privacy.erasure import erase
from audit.privacy.occurrence import Question, Report, search

pytestmark = pytest.mark.django_db


def make_call(arguments: Any, tool: str = "", **values: Any) -> Record:
    raw = arguments if isinstance(arguments, bytes) else json.dumps(arguments).encode()
    fields = {"kind": "call", "code": "ok", "tool": tool or "find", "arguments": raw, **values}
    return Record.objects.get(rid=record(Entry(**fields)))


def a_tool() -> str:
    return f"t_{uuid.uuid4().hex[:8]}"


def ask(**question: Any) -> Report:
    return search(Question(**question), "case 7", door="command")


def test_a_value_is_found_in_the_argument_that_has_it() -> None:
    tool = a_tool()
    hit = make_call({"id": "42", "deep": [{"mail": "a@x.org"}]}, tool)
    make_call({"id": "43"}, tool)
    report = ask(tool=tool, argument="id", value="42")
    assert (report.verdict, report.looked_at) == ("occurs", 2)
    assert [each.record.pk for each in report.findings] == [hit.pk]
    assert ask(tool=tool, argument="/deep/*/mail", value="a@x.org").verdict == "occurs"
    assert ask(tool=tool, argument="/deep/0/mail", value="a@x.org").verdict == "occurs"
    assert ask(tool=tool, value="a@x.org").verdict == "occurs"
    assert ask(tool=tool, argument="id", value="44").verdict == "absent"
    assert ask(tool=tool, argument="deep", value="42").verdict == "absent"


@pytest.mark.parametrize(("value", "sought"), [(42, "42"), (True, "true"), (None, "null"), ({"a": 1}, '{"a": 1}')])
def test_what_is_no_text_is_compared_as_json(value: Any, sought: str) -> None:
    tool = a_tool()
    make_call({"n": value}, tool)
    assert ask(tool=tool, argument="n", value=sought).verdict == "occurs"
    assert ask(tool=tool, argument="n", value="something").verdict == "absent"


def test_whole_arguments_are_found_by_their_commitment_also_where_they_were_not_kept() -> None:
    tool = a_tool()
    make_call(b'{"a":1,"b":"\xc3\xbc"}', tool, keeps_arguments=False)
    assert ask(tool=tool, arguments='{"a":1,"b":"ü"}').verdict == "occurs"
    assert ask(tool=tool, arguments='{"a": 1, "b": "ü"}').verdict == "occurs"
    assert ask(tool=tool, arguments='{"a":2}').verdict == "absent"
    assert ask(tool=tool, arguments="no json").verdict == "absent"


@pytest.mark.parametrize("hostile", ["[" * 200_000, '"\\ud800"', "9" * 5_000], ids=["deep", "surrogate", "digits"])
@pytest.mark.parametrize("asked", ["value", "arguments"])
def test_a_hostile_candidate_is_no_fault(asked: str, hostile: str) -> None:
    tool = a_tool()
    make_call({"n": 1}, tool)
    assert ask(tool=tool, **{asked: hostile}).verdict == "absent"


def test_a_result_is_found_by_its_commitment() -> None:
    tool = a_tool()
    made = make_call({}, tool, result=b'{"content":[]}')
    assert ask(record=str(made.rid), result='{"content":[]}').verdict == "occurs"
    assert ask(tool=tool, result="{}").verdict == "absent"


def test_what_was_dropped_or_erased_is_undecidable() -> None:
    tool = a_tool()
    make_call({"id": 1, "note": "x"}, tool, some_arguments=b'{"id":1}')
    assert ask(tool=tool, argument="note", value="x").verdict == "undecidable"
    assert ask(tool=tool, argument="id", value="1").verdict == "occurs"
    assert ask(tool=tool, argument="id", value="2").verdict == "absent"
    assert ask(tool=tool, value="x").verdict == "undecidable"
    user = User.objects.create_user(f"u-{uuid.uuid4().hex[:8]}")
    gone = make_call({"id": 1}, tool, actor=user.username, actor_id=str(user.pk))
    erase("user", user.username, "r", door="command")
    report = ask(record=str(gone.rid), argument="id", value="1")
    assert (report.verdict, report.findings[0].why) == ("undecidable", "erased")
    assert ask(record=str(gone.rid), arguments='{"id": 1}').verdict == "undecidable"


def test_no_record_is_no_answer() -> None:
    report = ask(tool=a_tool(), value="x")
    assert (report.verdict, report.looked_at, report.complete) == ("undecidable", 0, True)


def test_time_and_number_are_bounded_and_that_is_said() -> None:
    tool = a_tool()
    for n in range(5):
        make_call({"n": n}, tool)
    report = ask(tool=tool, argument="n", value="9", most=3)
    assert (report.looked_at, report.complete, report.verdict) == (3, False, "undecidable")
    assert ask(tool=tool, argument="n", value="9", most=5).verdict == "absent"
    assert ask(tool=tool, argument="n", value="0", since=timezone.now()).looked_at == 0
    assert ask(tool=tool, argument="n", value="0", until=timezone.now() - timedelta(hours=1)).looked_at == 0


def test_a_search_is_on_record_without_the_value() -> None:
    tool, secret = a_tool(), f"canary-{uuid.uuid4().hex}"
    make_call({"a": secret}, tool)
    ask(tool=tool, argument="a", value=secret)
    found = Record.objects.filter(code="value_sought").latest("id")
    detail = json.loads(found.detail or "")
    assert secret not in (found.detail or "")
    assert (detail["reason"], detail["tool"], detail["argument"], detail["occurs"]) == ("case 7", tool, "a", 1)


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ({"tool": "t"}, "Give one of"),
        ({"tool": "t", "value": "x", "result": "y"}, "Give one of"),
        ({"value": "x"}, "Name a tool"),
        ({"tool": "t", "arguments": "x", "argument": "a"}, "Give the value"),
    ],
)
def test_a_question_that_is_none_is_refused(question: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ask(**question)


def test_a_reason_is_needed_and_an_hour_has_its_limit(settings: Any) -> None:
    with pytest.raises(ReadingRefused, match="Say why"):
        search(Question(tool="t", value="x"), " ", door="command")
    settings.ARGUMENT_READS_PER_HOUR = 2
    user = User.objects.create_user(f"u-{uuid.uuid4().hex[:8]}")
    for _ in range(2):
        search(Question(tool="t", value="x"), "r", door="rest", actor=user)
    with pytest.raises(TooManyReadings, match="2 times within an hour"):
        search(Question(tool="t", value="x"), "r", door="rest", actor=user)


# --- The doors --------------------------------------------------------------------------------------------------------


def user_of(*permissions: str, **values: Any) -> User:
    user = User.objects.create_user(f"u-{uuid.uuid4().hex[:8]}", **values)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return user


def rest(*permissions: str) -> Client:
    _, raw = tokens.issue(user_of(*permissions), name="t", scopes=["read", "write"])
    return Client(headers={"Authorization": f"Bearer {raw}"})


def test_the_page_says_whether_and_where_it_occurs() -> None:
    tool, client = a_tool(), Client()
    made = make_call({"id": "C-1"}, tool)
    client.force_login(user_of("read_arguments", "view_record", is_staff=True))
    where = reverse("admin:audit_datakey_search")
    asked = {"tool": tool, "what": "value", "argument": "id", "candidate": "C-1", "reason": "case 9"}
    page = html.unescape(client.post(where, asked).content.decode())
    assert "Occurs" in page
    assert reverse("admin:audit_record_change", args=(made.pk,)) in page
    assert "case 9" in page  # the list of who read what, and why
    assert "Does not occur" in client.post(where, {**asked, "candidate": "C-2"}).content.decode()
    wrong = client.post(where, {**asked, "tool": "", "record": "no id"})
    assert wrong.status_code == 400
    client.force_login(user_of("view_record", is_staff=True))
    assert client.post(where, asked).status_code == 403


def test_rest_answers_where_it_occurs() -> None:
    tool, client = a_tool(), rest("read_arguments")
    made = make_call({"id": "C-1"}, tool)
    where = "/api/v1/audit/occurrences/"
    asked = {"tool": tool, "argument": "id", "value": "C-1", "reason": "case 9"}
    answer = client.post(where, asked, content_type="application/json")
    assert answer.status_code == 200, answer.content
    assert answer.json()["verdict"] == "occurs"
    assert [each["record"] for each in answer.json()["findings"]] == [str(made.rid)]
    assert client.post(where, {**asked, "reason": ""}, content_type="application/json").status_code == 400
    assert client.post(where, {"reason": "r", "value": "x"}, content_type="application/json").status_code == 400
    assert rest("view_record").post(where, asked, content_type="application/json").status_code == 403


def test_what_is_kept_is_read_by_rest_with_a_reason(settings: Any) -> None:
    made = make_call({"id": "C-1"}, a_tool(), result=b'{"content":[]}', keeps_result=1000)
    client = rest("read_arguments")
    where = f"/api/v1/audit/records/{made.rid}/reading/"
    answer = client.post(where, {"reason": "case 11"}, content_type="application/json")
    assert answer.status_code == 200, answer.content
    body = answer.json()
    assert json.loads(body["arguments"]) == {"id": "C-1"}
    assert (body["arguments_proven"], body["result_proven"], body["arguments_partial"]) == (True, True, False)
    assert answer["Cache-Control"] == "no-store"
    read = Record.objects.get(code="arguments_read", object_id=str(made.rid))
    assert (json.loads(read.detail or "")["reason"], read.door) == ("case 11", "rest")
    assert client.post(where, {}, content_type="application/json").status_code == 400
    assert rest("view_record").post(where, {"reason": "r"}, content_type="application/json").status_code == 403
    settings.ARGUMENT_READS_PER_HOUR = 1
    refused = client.post(where, {"reason": "r"}, content_type="application/json")
    assert (refused.status_code, refused.json()["code"]) == (429, "too_many_readings")


def test_reading_what_was_erased_is_gone() -> None:
    user = user_of()
    made = make_call({}, a_tool(), actor=user.username, actor_id=str(user.pk))
    erase("user", user.username, "r", door="command")
    answer = rest("read_arguments").post(
        f"/api/v1/audit/records/{made.rid}/reading/", {"reason": "r"}, content_type="application/json"
    )
    assert (answer.status_code, answer.json()["code"]) == (410, "erased")


def test_the_command_takes_the_candidate_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = a_tool()
    made = make_call({"id": "C-1"}, tool)
    monkeypatch.setattr("sys.stdin", io.StringIO("C-1\n"))
    out = io.StringIO()
    call_command("find_value", "--tool", tool, "--argument", "id", "--reason", "case", stdout=out)
    assert f"{made.rid} occurs" in out.getvalue()
    assert "occurs: 1 records were looked at." in out.getvalue()
    monkeypatch.setattr("sys.stdin", io.StringIO("x"))
    with pytest.raises(CommandError, match="Name a tool"):
        call_command("find_value", "--reason", "case", stdout=out)
    for wrong in ("--since=yesterday", "--until=2026-13-01", "--record=x"):
        with pytest.raises(CommandError, match=f"argument {wrong.partition('=')[0]}: invalid"):
            call_command("find_value", "--tool", tool, "--reason", "case", wrong, stdout=out)
