"""The sidebar and the palette show what can be opened, and nothing else."""

from __future__ import annotations

import re
import uuid

import pytest
from django.contrib.auth.models import Permission
from django.core.cache import cache
from django.test import Client, RequestFactory

from access.models import ApiToken, Role, ServiceAccount, User
from audit.entry import Entry
from audit.ledger import record
from mcpsite import sidebar
from mcpsite.palette import find
from mcpsite.sidebar import GROUPS, Place, admin_of, navigation
from tools.models import DataSource, Tool

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def nothing_kept():
    cache.clear()


def request_of(*permissions: str, **values):
    user = User.objects.create_user("dora", is_staff=True, **values)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    request = RequestFactory().get("/admin/")
    request.user = user
    return request


def titles(request) -> dict[str, list[str]]:
    return {group["title"]: [item["title"] for item in group["items"]] for group in navigation(request)}


def test_a_superuser_finds_every_list_by_job():
    found = titles(request_of(is_superuser=True))
    assert found["Catalogue"] == ["Data sources", "Tools", "Prompts", "Resources", "Toolsets", "Tasks", "Egress rules"]
    assert found["Access"][:5] == ["Users", "Service accounts", "Roles", "Grants", "API tokens"]
    assert found["Audit"][:2] == ["Overview", "Records"]
    assert found["System"][-1] == "API documentation"


def test_others_find_what_they_may_open():
    assert titles(request_of("view_tool")) == {
        "": ["Dashboard"],
        "Catalogue": ["Tools"],
        "System": ["API documentation"],
    }


def test_a_list_of_an_application_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr(sidebar, "GROUPS", (("Future", (Place("Robots", "robot", "future.Robot"),)), *GROUPS[-1:]))
    assert admin_of("future.Robot") is None
    assert "Future" not in titles(request_of(is_superuser=True))


def test_what_wants_attention_has_a_number():
    record(Entry(kind="denied", code="not_granted", decision="deny"))
    DataSource.objects.create(name="desk", kind="sql", check_ok=False)
    DataSource.objects.create(name="off", kind="sql", check_ok=False, enabled=False)
    DataSource.objects.create(name="new", kind="sql")
    client = Client()
    client.force_login(request_of(is_superuser=True).user)
    page = client.get("/admin/access/role/").content.decode()
    shown = {
        item["title"]: item.get("badge")
        for group in client.get("/admin/").context["sidebar_navigation"]
        for item in group["items"]
    }
    assert shown["Data sources"] == "1"
    assert int(shown["Records"]) >= 1
    assert shown["Tools"] is None
    assert "1 could not be reached when last checked" in page
    assert page.count("could not be reached when last checked") == 1


def test_where_nothing_wants_attention_there_is_no_mark():
    client = Client()
    client.force_login(request_of("view_datasource").user)
    assert not re.search(r"min-w-\[18px\]", client.get("/admin/").content.decode())


# --- The palette -----------------------------------------------------------------------------------------------------


def found(request, term: str) -> list[tuple[str, str]]:
    return [(each.title, each.description) for each in find(request, term)]


def make_tool(name: str) -> Tool:
    source, _ = DataSource.objects.get_or_create(name="desk", kind="sql")
    return Tool.objects.create(source=source, name=name)


def test_pages_and_objects_are_found():
    make_tool("toolbox")
    Role.objects.create(name="tool makers")
    found_ = found(request_of(is_superuser=True), "tool")
    assert found_[:2] == [("Tools", "Catalogue"), ("Toolsets", "Catalogue")]
    assert ("toolbox", "Tool") in found_
    assert ("tool makers", "Role") in found_


def test_service_accounts_and_tokens_are_found():
    robot = ServiceAccount.objects.create(username="robot", is_service=True)
    ApiToken.objects.create(user=robot, name="night", prefix="mcps_abcdefg", digest="d")
    assert ("robot", "Service account") in found(request_of(is_superuser=True), "robot")


def test_nobody_finds_what_they_may_not_see():
    make_tool("find_customer")
    User.objects.create_user("customer")
    assert found(request_of("view_tool"), "customer") == [("find_customer", "Tool")]
    assert found(request_of_other(), "customer") == []


def request_of_other():
    request = RequestFactory().get("/admin/")
    request.user = User.objects.create_user("emil", is_staff=True)
    return request


def test_the_name_counts_more_than_the_description():
    DataSource.objects.create(name="aaa", kind="sql", description="orders of customers")
    make_tool("orders")
    assert found(request_of(is_superuser=True), "orders") == [("orders", "Tool"), ("aaa", "Data source")]


def test_an_id_leads_to_its_records():
    wanted = str(uuid.uuid4())
    assert found(request_of("view_record"), wanted) == [(wanted, "Records with this id, or of this call")]
    assert found(request_of_other(), wanted) == []


@pytest.mark.parametrize("term", ["customer", "\0", "%", "'", "x" * 5000])
def test_the_palette_answers_twice_the_same(term):
    make_tool("find_customer")
    client = Client()
    client.force_login(request_of(is_superuser=True).user)
    first, second = (client.get("/admin/search/", {"s": term, "extended": "1"}) for _ in range(2))
    assert first.status_code == second.status_code == 200
    assert ("find_customer" in first.content.decode()) == ("find_customer" in second.content.decode())
    assert "find_customer" in first.content.decode() or term != "customer"


# --- The ribbon ------------------------------------------------------------------------------------------------------


def test_a_named_installation_says_so_on_every_page(settings):
    client = Client()
    client.force_login(request_of(is_superuser=True).user)
    assert "Staging" not in client.get("/admin/").content.decode()
    settings.SITE_ENVIRONMENT = "Staging"
    page = client.get("/admin/tools/tool/").content.decode()
    assert "[Staging]" in page
    assert page.count("Staging") >= 2
