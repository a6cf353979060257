"""The policy of recording in the admin and by REST: comprehensible, checked, and on record with before and after."""

from __future__ import annotations

import html
import json
import uuid
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from access import tokens
from access.models import User
from audit.models import Record
from tools.definitions import publish
from tools.models import DataSource, Tool
from tools.recording import PolicyRefused
from tools.recording_form import given_policy, recording_example, recording_fields, sample

pytestmark = pytest.mark.django_db

SCHEMA = {
    "type": "object",
    "properties": {"mail": {"type": "string", "format": "email"}, "n": {"type": "integer"}},
}


def make_tool(**fields: Any) -> Tool:
    source = DataSource.objects.create(
        name=f"s-{uuid.uuid4().hex[:6]}", kind="mcp", options={"url": "http://x.example/"}
    )
    tool = Tool.objects.create(source=source, name=f"t_{uuid.uuid4().hex[:6]}", spec={"name": "t"}, **fields)
    publish(tool, {"name": "t", "inputSchema": SCHEMA})
    return tool


def make_client() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser(f"root-{uuid.uuid4().hex[:6]}"))
    return client


def address(tool: Tool) -> str:
    return reverse("admin:tools_tool_change", args=(tool.pk,))


def filled(tool: Tool, **values: Any) -> dict[str, Any]:
    rows = {"versions-TOTAL_FORMS": 0, "versions-INITIAL_FORMS": 0}
    return {"name": tool.name, "effect": "read", "as_task": tool.as_task, "tags": "", "enabled": "on", **rows, **values}


def test_each_argument_has_a_choice_and_a_source_only_the_rest() -> None:
    tool = make_tool(recording={"arguments": {"n": "clear", "/deep/*": "dropped"}})
    fields = recording_fields(tool)
    assert [(fields[f"recorded_argument_{n}"].label, fields[f"recorded_argument_{n}"].initial) for n in (0, 1)] == [
        ("mail", ""),
        ("n", "clear"),
    ]
    assert fields["recorded_further"].initial == "/deep/* dropped"
    assert "recorded_argument_0" not in recording_fields(tool.source)


def test_what_is_filled_in_is_saved_and_recorded_with_before_and_after() -> None:
    tool, client = make_tool(), make_client()
    values = {
        "recorded_argument_0": "domain",
        "recorded_further": "/deep/*/street dropped\n",
        "recorded_results_kb": 8,
        "recorded_subject": "n",
        "recorded_kind": "customer",
    }
    answer = client.post(address(tool), filled(tool, **values))
    assert answer.status_code == 302, answer.content.decode()
    tool.refresh_from_db()
    wanted = {
        "arguments": {"mail": "domain", "/deep/*/street": "dropped"},
        "results_kb": 8,
        "subject": {"argument": "n", "kind": "customer"},
    }
    assert tool.recording == wanted
    record = Record.objects.filter(object_id=str(tool.pk), code="update").latest("id")
    assert json.loads(record.detail or "")["changes"]["recording"] == [None, wanted]
    page = html.unescape(client.get(address(tool)).content.decode())
    assert "•••@example.com" in page
    assert "What the ledger keeps" in page


def test_a_policy_that_cannot_be_is_refused_and_nothing_is_saved() -> None:
    tool, client = make_tool(), make_client()
    answer = client.post(address(tool), filled(tool, recorded_further="/a shown"))
    assert answer.status_code == 200
    assert "arguments./a" in html.unescape(answer.content.decode())
    tool.refresh_from_db()
    assert tool.recording is None


def test_a_source_has_a_policy_as_well() -> None:
    source = make_tool().source
    assert given_policy(source, {"recorded_otherwise": "dropped"}) == {"otherwise": "dropped"}
    page = make_client().get(reverse("admin:tools_datasource_change", args=(source.pk,))).content.decode()
    assert "recorded_otherwise" in page


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"recorded_further": "alone"}, "is no rule"),
        ({"recorded_subject": "n"}, "Name both"),
        ({"recorded_further": "a b c"}, "arguments.a b"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(PolicyRefused) as refused:
        given_policy(make_tool(), values)
    assert said in str(refused.value)


def test_the_example_says_what_there_will_be() -> None:
    said = html.unescape(recording_example(make_tool()))
    assert "ada@example.com" in said
    assert "the commitment only" in said
    tool = make_tool(recording={"arguments": {"mail": "dropped"}, "otherwise": "clear", "results_kb": 4})
    said = html.unescape(recording_example(tool))
    assert said.count("ada@example.com") == 1
    assert "4 KB, encrypted" in said
    assert "cannot be used" in recording_example(make_tool(recording={"otherwise": "no"}))


def test_samples_follow_the_schema() -> None:
    assert sample({"enum": ["b"]}) == "b"
    assert sample({"type": ["boolean", "null"]}) is True
    assert sample({"type": "array", "items": {"type": "object", "properties": {"a": {"default": 3}}}}) == [{"a": 3}]
    assert sample(True) == "…"


def test_the_policy_is_read_and_set_by_rest() -> None:
    tool = make_tool()
    user = User.objects.create_superuser(f"api-{uuid.uuid4().hex[:6]}")
    _, raw = tokens.issue(user, name="t", scopes=["read", "write"])
    client = Client(headers={"Authorization": f"Bearer {raw}"})
    where = f"/api/v1/tools/{tool.name}/"
    policy = {"arguments": {"mail": "last4"}, "otherwise": "dropped"}
    answer = client.patch(where, {"recording": policy}, content_type="application/json")
    assert answer.status_code == 200, answer.content
    assert answer.json()["recording"] == policy
    answer = client.patch(where, {"recording": {"otherwise": "hidden"}}, content_type="application/json")
    assert answer.status_code == 400
    assert "otherwise" in json.dumps(answer.json())
    source = f"/api/v1/data-sources/{tool.source.pk}/"
    answer = client.patch(source, {"recording": {"results_kb": 2}}, content_type="application/json")
    assert (answer.status_code, answer.json()["recording"]) == (200, {"results_kb": 2})
    assert client.patch(where, {"recording": None}, content_type="application/json").json()["recording"] is None
