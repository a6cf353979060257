"""What is done to many objects is shown before, done to all or none, and recorded for each."""

from __future__ import annotations

import json

import pytest
from django.contrib.auth.models import Permission
from django.test import Client

from access.models import User
from audit import bulk
from audit.models import Record
from tools.models import DataSource, Tool

pytestmark = pytest.mark.django_db
TOOLS, USERS = "/admin/tools/tool/", "/admin/access/user/"


@pytest.fixture
def client(client):
    client.force_login(User.objects.create_superuser("root"))
    return client


def make_tools(*names: str, **values) -> list[Tool]:
    source, _ = DataSource.objects.get_or_create(name="desk", kind="mcp")
    return [Tool.objects.create(source=source, name=name, **values) for name in names]


def choose(client: Client, url: str, action: str, objects, **more):
    return client.post(url, {"action": action, "_selected_action": [obj.pk for obj in objects], **more})


def confirm(client: Client, url: str, action: str, objects, **more):
    return choose(client, url, action, objects, confirmed="yes", **more)


def said(answer, client: Client) -> str:
    return " ".join(str(each) for each in client.get(answer["Location"]).context["messages"])


def changes_on_record(obj):
    return [json.loads(each.detail)["changes"] for each in Record.objects.filter(object_id=str(obj.pk), code="update")]


def test_nothing_happens_before_it_is_confirmed(client):
    tools = make_tools("first", "second")
    page = choose(client, TOOLS, "switch_off", tools)
    assert page.context["title"] == "Switch off 2 tools?"
    assert [(str(each.obj), each.changes) for each in page.context["affected"]] == [
        ("first", [("enabled", "yes", "no")]),
        ("second", [("enabled", "yes", "no")]),
    ]
    assert Tool.objects.filter(enabled=True).count() == 2
    assert [changes_on_record(tool) for tool in tools] == [[], []]


def test_each_change_is_recorded(client):
    tools = make_tools("first", "second")
    answer = confirm(client, TOOLS, "switch_off", tools)
    assert said(answer, client) == "2 tools changed."
    assert not Tool.objects.filter(enabled=True).exists()
    assert [changes_on_record(tool) for tool in tools] == [[{"enabled": [True, False]}]] * 2


def test_what_is_so_already_is_left_alone_and_leaves_no_record(client):
    (on,), (off,) = make_tools("on"), make_tools("off", enabled=False)
    page = choose(client, TOOLS, "switch_off", [on, off])
    assert [each.obj for each in page.context["affected"]] == [on]
    assert [(each.obj, each.reason) for each in page.context["left_out"]] == [(off, "It is so already.")]
    answer = confirm(client, TOOLS, "switch_off", [on, off])
    assert said(answer, client) == "1 tool changed. 1 stayed as it was."
    assert changes_on_record(off) == []


def test_a_form_is_filled_in_before(client):
    (tool,) = make_tools("first")
    assert "effect" in choose(client, TOOLS, "set_effect", [tool]).context["form"].fields
    assert confirm(client, TOOLS, "set_effect", [tool], effect="nonsense").context["form"].errors
    assert changes_on_record(tool) == []
    confirm(client, TOOLS, "set_effect", [tool], effect="read")
    assert changes_on_record(tool) == [{"effect": ["write", "read"]}]


def test_a_tag_is_added_once_and_checked(client):
    tools = [*make_tools("first", tags=["desk"]), *make_tools("second")]
    assert confirm(client, TOOLS, "add_tag", tools, tag="Not a tag!").context["form"].errors
    confirm(client, TOOLS, "add_tag", tools, tag="desk")
    assert list(Tool.objects.order_by("name").values_list("tags", flat=True)) == [["desk"], ["desk"]]
    assert changes_on_record(tools[0]) == []


def test_data_sources_are_switched_and_keep_their_secrets(client):
    source = DataSource.objects.create(name="desk", kind="mcp", secrets={"token": "kept"})
    confirm(client, "/admin/tools/datasource/", "switch_off", [source])
    found = DataSource.objects.get()
    assert (found.enabled, found.secrets) == (False, {"token": "kept"})


def test_who_may_only_look_finds_no_action():
    user = User.objects.create_user("dora", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename="view_tool"))
    client = Client()
    client.force_login(user)
    tools = make_tools("first")
    confirm(client, TOOLS, "switch_off", tools)
    assert Tool.objects.get().enabled


def test_objects_that_one_may_not_change_are_left_alone():
    dora = User.objects.create_user("dora", is_staff=True)
    dora.user_permissions.set(Permission.objects.filter(codename__in=["view_user", "change_user"]))
    root, emil = User.objects.create_superuser("root"), User.objects.create_user("emil")
    client = Client()
    client.force_login(dora)
    page = choose(client, USERS, "deactivate", [root, emil, dora])
    assert [each.obj for each in page.context["affected"]] == [emil]
    assert {str(each.obj): each.reason for each in page.context["left_out"]} == {
        "root": "You may not change it.",
        "dora": "This is you.",
    }
    confirm(client, USERS, "deactivate", [root, emil, dora])
    assert set(User.objects.filter(is_active=True)) == {root, dora}


def test_a_refusal_takes_all_changes_back(client, monkeypatch):
    """The last superuser is found out only when the others are switched off."""
    root, emil = User.objects.get(), User.objects.create_user("emil")
    other = User.objects.create_user("other", is_staff=True, is_active=True)
    other.user_permissions.set(Permission.objects.all())
    User.objects.filter(pk=other.pk).update(is_superuser=True)
    client.force_login(other)
    User.objects.filter(pk=other.pk).update(is_service=True)  # does not count as somebody who could help
    answer = confirm(client, USERS, "deactivate", [emil, root])
    assert said(answer, client).startswith("Nothing was changed. This is the last active superuser")
    assert User.objects.filter(is_active=True).count() == 3
    assert changes_on_record(emil) == []


def test_too_many_at_once_are_refused(client, monkeypatch):
    monkeypatch.setattr(bulk, "MOST", 2)
    tools = make_tools("first", "second", "third")
    answer = choose(client, TOOLS, "switch_off", tools)
    assert "At most 2 can be changed at once" in said(answer, client)
    assert Tool.objects.filter(enabled=True).count() == 3
