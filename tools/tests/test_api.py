"""The catalogue by REST: secrets go in and never out, and what is decided elsewhere cannot be set."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from procrastinate.contrib.django.models import ProcrastinateJob
from rest_framework.test import APIClient

from access import tokens
from access.models import User
from audit import changes
from audit.models import Record
from tools.models import DataSource, Synchronisation, Tool, Toolset
from tools.tasks import sync_one

pytestmark = pytest.mark.django_db
SOURCES, TOOLS = "/api/v1/data-sources/", "/api/v1/tools/"
OPTIONS = {"host": "db.example.com", "database": "desk", "user": "reader"}
SPEC = {"description": "Finds a customer", "statement": "SELECT 1 AS one"}


@pytest.fixture
def client() -> APIClient:
    _, secret = tokens.issue(User.objects.create_superuser("root"), name="test", scopes=["read", "write"])
    return APIClient(headers={"Authorization": f"Bearer {secret}"})


def make_source(client, **values) -> dict[str, Any]:
    answer = client.post(SOURCES, {"name": "desk", "kind": "sql", "options": OPTIONS, **values})
    assert answer.status_code == 201, answer.json()
    return answer.json()


def make_tool(client, **values) -> dict[str, Any]:
    answer = client.post(TOOLS, {"name": "find", "source": "desk", "effect": "read", "spec": SPEC, **values})
    assert answer.status_code == 201, answer.json()
    return answer.json()


def test_a_secret_goes_in_and_never_comes_out(client):
    made = make_source(client, secrets={"password": "canary-1234"})
    assert made["secrets_set"] == ["password"]
    for url in (SOURCES, f"{SOURCES}{made['id']}/"):
        assert b"canary" not in client.get(url).content
    assert DataSource.objects.get().secrets == {"password": "canary-1234"}
    assert not Record.objects.filter(detail__contains="canary").exists()


def test_patching_keeps_what_is_not_named(client):
    made = make_source(client, secrets={"password": "canary-1234"})
    answer = client.patch(f"{SOURCES}{made['id']}/", {"description": "The desk"})
    assert (answer.status_code, answer.json()["description"]) == (200, "The desk")
    assert DataSource.objects.get().secrets == {"password": "canary-1234"}
    assert client.patch(f"{SOURCES}{made['id']}/", {"secrets": {"password": None}}).json()["secrets_set"] == []


def test_errors_are_told_at_their_option(client):
    answer = client.post(SOURCES, {"name": "desk", "kind": "sql", "options": {**OPTIONS, "port": 99999999}})
    assert list(answer.json()["errors"]) == ["options.port"]
    answer = client.post(SOURCES, {"name": "desk", "kind": "sql", "options": {**OPTIONS, "password": "canary-1234"}})
    assert answer.status_code == 400
    assert b"canary" not in answer.content


def test_a_kept_secret_is_not_sent_to_another_address(client):
    made = make_source(client, secrets={"password": "canary-1234"})
    answer = client.patch(f"{SOURCES}{made['id']}/", {"options": {**OPTIONS, "host": "evil.example.com"}})
    assert (answer.status_code, list(answer.json()["errors"])) == (400, ["secrets.password"])


def test_the_kind_is_fixed(client):
    made = make_source(client)
    answer = client.patch(f"{SOURCES}{made['id']}/", {"kind": "mcp"})
    assert answer.json()["errors"]["kind"][0]["code"] == "fixed"
    assert client.post(SOURCES, {"name": "x", "kind": "nothing"}).json()["errors"]["kind"][0]["code"] == "unknown_kind"


def test_testing_a_source_says_and_records_what_was_found(client):
    made = make_source(client, options={**OPTIONS, "host": "127.0.0.1"})
    answer = client.post(f"{SOURCES}{made['id']}/test/")
    assert (answer.status_code, answer.json()["ok"]) == (200, False)
    assert Record.objects.filter(code="test", object_id=made["id"]).count() == 1


def test_a_synchronisation_is_asked_for_and_followed(client):
    url = f"{SOURCES}{make_source(client, name='office', kind='mcp', options={'url': 'http://127.0.0.1:1/mcp'})['id']}/sync/"
    assert client.get(url).json()["state"] == ""
    answer = client.post(url)
    assert (answer.status_code, answer.json()["state"], answer.json()["asked_by"]) == (202, "waiting", "root")
    assert client.get(url).json() == answer.json()
    again = client.post(url)
    assert (again.status_code, again.json()["code"]) == (409, "sync_refused")
    latest = Synchronisation.objects.get()
    sync_one.func(SimpleNamespace(job=SimpleNamespace(id=latest.job_id)), **arguments_of(latest.job_id))
    found = client.get(url).json()
    assert (found["state"], found["found"]) == ("failed", {})
    assert "127.0.0.1:1" in found["error"]
    record = Record.objects.get(code="sync")
    assert (record.actor, record.door) == ("root", "rest")


def arguments_of(job_id: int) -> dict[str, Any]:
    return ProcrastinateJob.objects.get(pk=job_id).args


def test_who_may_look_may_not_synchronise():
    user = User.objects.create_user("dora")
    user.user_permissions.add(Permission.objects.get(codename="view_datasource"))
    _, secret = tokens.issue(user, name="test", scopes=["read", "write"])
    client = APIClient(headers={"Authorization": f"Bearer {secret}"})
    url = f"{SOURCES}{DataSource.objects.create(name='office', kind='mcp').pk}/sync/"
    assert (client.get(url).status_code, client.post(url).status_code) == (200, 403)


def test_tools_that_are_written_by_hand_are_not_synchronised(client):
    answer = client.post(f"{SOURCES}{make_source(client)['id']}/sync/")
    assert (answer.status_code, answer.json()["code"]) == (409, "sync_refused")


def test_a_tool_is_made_published_and_recorded(client):
    make_source(client)
    made = make_tool(client)
    assert made["definition"]["description"] == "Finds a customer"
    assert len(made["fingerprint"]) == 64
    changed = client.patch(f"{TOOLS}find/", {"spec": {**SPEC, "statement": "SELECT 2 AS two"}}).json()
    assert changed["fingerprint"] != made["fingerprint"]
    records = Record.objects.filter(object_id=made["id"]).order_by("id")
    assert [record.code for record in records] == ["create", "update"]
    assert json.loads(records[1].detail)["changes"]["spec"][1]["statement"] == "SELECT 2 AS two"


def test_what_people_decide_about_a_tool_can_be_changed(client):
    make_source(client)
    make_tool(client)
    answer = client.patch(
        f"{TOOLS}find/", {"effect": "destructive", "tags": ["desk"], "enabled": False, "name": "find_2"}
    )
    assert answer.status_code == 200, answer.json()
    tool = Tool.objects.get()
    assert (tool.name, tool.effect, tool.tags, tool.enabled) == ("find_2", "destructive", ["desk"], False)
    assert json.loads(tool.current.definition)["name"] == "find_2"


def test_a_statement_that_is_refused_saves_nothing(client):
    make_source(client)
    answer = client.post(TOOLS, {"name": "find", "source": "desk", "spec": {**SPEC, "statement": "DROP TABLE x"}})
    assert answer.status_code == 400
    assert not Tool.objects.exists()


def test_tools_of_a_source_that_is_synchronised_are_not_made_by_hand(client):
    make_source(client, name="office", kind="mcp", options={"url": "https://example.com/mcp"})
    assert client.post(TOOLS, {"name": "find", "source": "office", "spec": {}}).status_code == 400


def test_fields_that_are_not_for_callers_are_never_applied(client):
    made = make_source(client)
    forged = {
        "id": "0" * 32,
        "created_at": "2020-01-01T00:00:00Z",
        "check_ok": True,
        "checked_at": "2020-01-01T00:00:00Z",
    }
    client.patch(f"{SOURCES}{made['id']}/", forged)
    source = DataSource.objects.get()
    assert (str(source.pk), source.check_ok, source.checked_at) == (made["id"], None, None)
    tool = make_tool(client, fingerprint="0" * 64, definition={"name": "forged"})
    client.patch(f"{TOOLS}find/", {"fingerprint": "0" * 64, "definition": {}})
    assert client.patch(f"{TOOLS}find/", {"current": None, "created_at": "2020-01-01"}).status_code == 400
    assert client.get(f"{TOOLS}find/").json()["fingerprint"] == tool["fingerprint"] != "0" * 64


def test_a_tool_can_be_deleted(client):
    make_source(client)
    make_tool(client)
    assert client.delete(f"{TOOLS}find/").status_code == 204
    assert not Tool.objects.exists()


def test_a_toolset_names_its_tools(client):
    make_source(client)
    make_tool(client)
    answer = client.post("/api/v1/toolsets/", {"name": "support", "tools": ["find"]})
    assert (answer.status_code, answer.json()["tools"]) == (201, ["find"])
    record = Record.objects.get(object_id=str(Toolset.objects.get().pk))
    assert json.loads(record.detail)["changes"]["tools"] == [None, ["find"]]


def test_what_cannot_be_recorded_is_not_changed(client, monkeypatch):
    def refuse(*args, **kwargs):
        from django.db import OperationalError

        raise OperationalError("the ledger refuses")

    made = make_source(client)
    monkeypatch.setattr(changes, "record", refuse)
    assert client.patch(f"{SOURCES}{made['id']}/", {"description": "new"}).status_code == 503
    assert client.delete(f"{SOURCES}{made['id']}/").status_code == 503
    assert DataSource.objects.get().description == ""
