"""A role, its grants and what they come to stand on one page, which says what a form would give before it is saved."""

from __future__ import annotations

import re

import pytest
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse

from access import tokens
from access.drafts import draft_of
from access.models import Grant, Role, ServiceAccount, User
from access.permission_table import groups_of
from access.reach import reach_of_grants, reach_of_role, reach_of_user
from access.snapshot import _load
from audit.models import Record
from audit.subjects import subject_key
from tools.definitions import publish
from tools.models import DataSource, Prompt, Resource, Tool, Toolset

pytestmark = pytest.mark.django_db


def make_staff(name: str = "dora", *permissions: str, **values) -> Client:
    user = User.objects.create_user(name, is_staff=True, **values)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def make_root() -> Client:
    return make_staff("root", is_superuser=True)


def make_tool(name: str, effect: str = "read", **values) -> Tool:
    source, _ = DataSource.objects.get_or_create(
        name="office", kind="mcp", defaults={"options": {"url": "https://example.com/mcp"}}
    )
    tool = Tool.objects.create(source=source, name=name, effect=effect, spec={"name": name}, **values)
    publish(tool, {"name": name, "inputSchema": {"type": "object"}})
    return tool


def make_offered(tool: Tool) -> tuple[Prompt, Resource, Resource]:
    """A prompt, a resource and a template of the tool's source."""
    given = {"source": tool.source, "definition": "{}", "fingerprint": "0" * 64}
    prompt = Prompt.objects.create(name="greet", source_name="greet", **given)
    resource = Resource.objects.create(uri="office://hours", **given)
    return prompt, resource, Resource.objects.create(uri="office://day/{day}", is_template=True, **given)


def form(role: Role | None, *rows: dict[str, object]) -> dict[str, object]:
    """The form of a role with these grants; those with an `id` are saved ones."""
    posted: dict[str, object] = {
        "name": role.name if role else "new",
        "grants-TOTAL_FORMS": len(rows),
        "grants-INITIAL_FORMS": sum("id" in row for row in rows),
    }
    for number, row in enumerate(rows):
        posted |= {f"grants-{number}-{name}": value for name, value in row.items()}
    return posted


def preview(client: Client, role: Role | None, *rows: dict[str, object]):
    url = reverse("admin:access_role_preview", args=(role.pk,)) if role else reverse("admin:access_role_preview_new")
    return client.post(url, form(role, *rows))


def lines(answer) -> dict[str, str]:
    return {str(line.reach.callee): line.state for line in answer.context["draft"].lines}


# --- The preview -----------------------------------------------------------------------------------------------------


def test_a_preview_marks_what_comes_and_what_goes_and_saves_nothing():
    client, role = make_root(), Role.objects.create(name="support")
    make_tool("stays", tags=["a", "b"])
    make_tool("goes", tags=["a"])
    make_tool("comes", "destructive", tags=["b"])
    grant = Grant.objects.create(role=role, tag="a")
    before = Record.objects.count()
    answer = preview(client, role, {"id": grant.pk, "tag": "a", "DELETE": "on"}, {"tag": "b"})
    assert lines(answer) == {"stays": "kept", "goes": "gone", "comes": "new"}
    page = answer.content.decode()
    assert "<strong>2 tools</strong>: 1 read, 1 destroy" in page
    assert "1 new" in page
    assert "1 no longer" in page
    assert [str(each) for each in Grant.objects.all()] == ["support → tag a"]
    assert Record.objects.count() == before


def test_a_preview_is_what_calls_are_decided_by_once_the_form_is_saved():
    client, role = make_root(), Role.objects.create(name="support")
    one, two = make_tool("one"), make_tool("two", tags=["desk"])
    make_tool("off", tags=["desk"], enabled=False)
    toolset = Toolset.objects.create(name="set")
    toolset.tools.add(one)
    rows = ({"toolset": toolset.pk, "calls_per_minute": 50}, {"tool": one.pk, "calls_per_minute": 70}, {"tag": "desk"})
    shown = {
        str(each.reach.callee): each.reach.per_minute for each in preview(client, role, *rows).context["draft"].lines
    }
    client.post(reverse("admin:access_role_change", args=(role.pk,)), form(role, *rows))
    assert role.grants.count() == 3
    assert shown == dict(_load(None, subject_key()).grants[role.pk]) == {"one": 70, two.name: 600}


def test_prompts_and_resources_are_shown_beside_tools_as_calls_are_decided():
    client, role = make_root(), Role.objects.create(name="support")
    tool = make_tool("one", tags=["desk"])
    prompt, resource, template = make_offered(tool)
    Prompt.objects.update(tags=["desk"])
    toolset = Toolset.objects.create(name="set")
    toolset.resources.add(resource, template)
    Resource.objects.filter(pk=template.pk).update(missing=True)
    rows = ({"toolset": toolset.pk, "calls_per_minute": 50}, {"tag": "desk"})
    answer = preview(client, role, *rows)
    reach = [line.reach for line in answer.context["draft"].lines]
    assert [str(each.callee) for each in reach] == ["one", "greet", "office://hours"]
    page = answer.content.decode()
    for sum_ in ("<strong>1 tool</strong>: 1 read", "<strong>1 prompt</strong>", "<strong>1 resource</strong>"):
        assert sum_ in page
    assert reverse("admin:tools_prompt_change", args=(prompt.pk,)) in page
    client.post(reverse("admin:access_role_change", args=(role.pk,)), form(role, *rows))
    granted = _load(None, subject_key()).offered.grants[role.pk]
    assert granted == {("prompt", "greet"): 600, ("resource", "office://hours"): 50}
    assert granted == {(each.kind, str(each.callee)): each.per_minute for each in reach[1:]}


def test_a_change_of_the_budget_is_shown():
    client, role = make_root(), Role.objects.create(name="support")
    tool = make_tool("one")
    grant = Grant.objects.create(role=role, tool=tool, calls_per_minute=5)
    answer = preview(client, role, {"id": grant.pk, "tool": tool.pk, "calls_per_minute": 9})
    assert "<del>5</del> 9 a minute" in answer.content.decode()


@pytest.mark.parametrize("row", [{"calls_per_minute": 5}, {"tag": "NOT A TAG"}, {"tag": "desk", "tool": "both"}])
def test_a_grant_that_is_not_complete_does_not_count_and_is_said_not_to(row):
    tool = make_tool("one", tags=["desk"])
    row = {name: tool.pk if value == "both" else value for name, value in row.items()}
    answer = preview(make_root(), Role.objects.create(name="support"), row)
    assert lines(answer) == {}
    assert "1 grant not complete" in answer.content.decode()


def test_a_role_that_is_not_made_yet_has_a_preview_too():
    make_tool("one", tags=["desk"])
    assert lines(preview(make_root(), None, {"tag": "desk"})) == {"one": "new"}


def test_only_who_may_change_the_role_gets_a_preview_of_it():
    role, mine = Role.objects.create(name="support"), Role.objects.create(name="mine")
    make_tool("one", tags=["desk"])
    assert preview(make_staff("ada", "view_role", "view_grant"), role, {"tag": "desk"}).status_code == 403
    dora = make_staff("dora", "view_role", "change_role", "add_grant", "change_grant", "view_grant")
    assert lines(preview(dora, role, {"tag": "desk"})) == {"one": "new"}
    User.objects.get(username="dora").groups.add(mine)
    assert preview(dora, mine, {"tag": "desk"}).status_code == 403
    assert preview(dora, None, {"tag": "desk"}).status_code == 403
    assert preview(Client(), role, {"tag": "desk"}).status_code == 302


def test_who_may_not_change_grants_is_shown_those_that_there_are():
    role = Role.objects.create(name="support")
    make_tool("one", tags=["desk"])
    make_tool("two", tags=["other"])
    grant = Grant.objects.create(role=role, tag="desk")
    for permissions in (("change_role",), ("change_role", "view_grant")):
        client = make_staff("-".join(permissions), "view_role", *permissions)
        assert lines(preview(client, role, {"id": grant.pk, "tag": "other"})) == {"one": "kept"}


def test_a_preview_is_asked_for_by_post_and_of_a_role_that_exists():
    client = make_root()
    assert client.get(reverse("admin:access_role_preview_new")).status_code == 405
    assert client.post(reverse("admin:access_role_preview", args=(99_999,))).status_code == 404


# --- The page --------------------------------------------------------------------------------------------------------


def test_the_page_of_a_role_shows_tools_permissions_and_members():
    role = Role.objects.create(name="support")
    make_tool("send_reply", "write", tags=["desk"])
    Grant.objects.create(role=role, tag="desk")
    role.permissions.set(Permission.objects.filter(codename="view_tool"))
    emil, robot = User.objects.create_user("emil"), ServiceAccount.objects.create(username="robot", is_service=True)
    for user in (emil, robot):
        user.groups.add(role)
    page = make_root().get(reverse("admin:access_role_change", args=(role.pk,))).content.decode()
    assert "<strong>1 tool</strong>: 1 write" in page
    assert "2 members" in page
    assert reverse("admin:access_user_change", args=(emil.pk,)) in page
    assert reverse("admin:access_serviceaccount_change", args=(robot.pk,)) in page
    ticked = re.findall(r'aria-label="([^"]+)" checked', page)
    assert ticked == ["View: Tool"]


def test_permissions_that_are_ticked_are_saved():
    client, role = make_root(), Role.objects.create(name="support")
    wanted = Permission.objects.filter(codename__in=("view_tool", "sync_datasource", "read_arguments"))
    url = reverse("admin:access_role_change", args=(role.pk,))
    client.post(url, {**form(role), "permissions": [each.pk for each in wanted]})
    assert set(role.permissions.values_list("codename", flat=True)) == {each.codename for each in wanted}
    assert client.get(url).content.decode().count(" checked") >= 3


def test_the_table_offers_what_the_editor_holds_and_no_more():
    role = Role.objects.create(name="support")
    page = make_staff("dora", "view_role", "change_role").get(reverse("admin:access_role_change", args=(role.pk,)))
    assert set(re.findall(r'aria-label="([^"]+)"(?: checked)?>', page.content.decode())) >= {"View: Role"}
    assert "View: Tool" not in page.content.decode()


def test_every_permission_has_one_place_in_the_table():
    every = list(Permission.objects.select_related("content_type"))
    placed = [
        each
        for group in groups_of(every)
        for row in group.rows
        for each in (*row.standard.values(), *row.others)
        if each is not None
    ]
    assert sorted(each.pk for each in placed) == sorted(each.pk for each in every)


def test_the_page_of_a_user_shows_tools_of_all_roles_and_tokens():
    emil = User.objects.create_user("emil")
    tool = make_tool("send_reply", "write", tags=["desk"])
    for name, budget in (("support", 5), ("sales", 50)):
        role = Role.objects.create(name=name)
        Grant.objects.create(role=role, tool=tool, calls_per_minute=budget)
        emil.groups.add(role)
    token, secret = tokens.issue(emil, name="laptop", scopes=["tools"])
    other, _ = tokens.issue(User.objects.create_user("eva"), name="hers", scopes=["tools"])
    page = make_root().get(reverse("admin:access_user_change", args=(emil.pk,))).content.decode()
    assert "50 a minute" in page
    assert "sales: tool send_reply, support: tool send_reply" in page
    assert reverse("admin:access_apitoken_change", args=(token.pk,)) in page
    assert "laptop" in page
    assert f"{reverse('admin:access_apitoken_add')}?user={emil.pk}" in page
    assert other.prefix not in page
    assert secret not in page
    assert token.digest not in page


def test_the_add_page_of_a_user_needs_no_tools_and_tokens():
    client = make_root()
    assert client.get(reverse("admin:access_user_add")).status_code == 200
    assert client.get(reverse("admin:access_serviceaccount_add")).status_code == 200


# --- What grants come to ---------------------------------------------------------------------------------------------


def test_what_is_shown_of_a_user_is_what_the_snapshot_decides_by():
    emil = User.objects.create_user("emil")
    one = make_tool("one", tags=["desk"])
    make_tool("two", tags=["desk"])
    for name, values in (("a", {"tag": "desk"}), ("b", {"tool": one, "calls_per_minute": 7_000})):
        role = Role.objects.create(name=name)
        Grant.objects.create(role=role, **values)
        emil.groups.add(role)
    snapshot = _load(None, subject_key())
    decided = {
        name: max(snapshot.grants[role].get(name, 0) for role in snapshot.members[emil.pk].roles)
        for name in ("one", "two")
    }
    assert {str(each.callee): each.per_minute for each in reach_of_user(emil)} == decided
    assert decided == {"one": 7_000, "two": 600}


def test_a_tool_whose_source_is_off_is_reached_by_nobody():
    role = Role.objects.create(name="support")
    tool = make_tool("one")
    Grant.objects.create(role=role, tool=tool)
    DataSource.objects.update(enabled=False)
    assert reach_of_role(role) == []
    assert draft_of([], role.grants.all()).lines == ()


def test_a_grant_names_what_it_grants():
    role = Role.objects.create(name="support")
    tool = make_tool("one", tags=["desk"])
    toolset = Toolset.objects.create(name="set")
    toolset.tools.add(tool)
    grants = [Grant(role=role, tag="desk"), Grant(role=role, tool=tool), Grant(role=role, toolset=toolset)]
    assert reach_of_grants(grants)[0].through == ("tag desk", "tool one", "toolset set")
