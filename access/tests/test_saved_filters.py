"""A list under a name leads back to that list and nowhere else, and is seen by whom it is for."""

from __future__ import annotations

import json

import pytest
from django.contrib.auth.models import Permission
from django.test import Client

from access import saved_filters
from access.models import SavedFilter, User
from audit.models import Record
from tools.models import DataSource, Tool

pytestmark = pytest.mark.django_db
SAVE, LIST, TOOLS = "/admin/access/savedfilter/save/", "/admin/access/savedfilter/", "/admin/tools/tool/"


def make_staff(name: str, *permissions: str, **values) -> Client:
    user = User.objects.create_user(name, is_staff=True, **values)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def save(client: Client, query: str = "effect__exact=read", **values):
    return client.post(SAVE, {"model": "tools.Tool", "query": query, "name": "Reading", **values})


def make_saved(client: Client, **values) -> SavedFilter:
    save(client, **values)
    return SavedFilter.objects.latest("created_at")


def said(client: Client) -> str:
    return " ".join(str(each) for each in client.get(TOOLS).context["messages"])


def menu(client: Client, **query: str) -> str:
    page = client.get(TOOLS, query).content.decode()
    return page[page.index('class="saved-filters"') : page.index('id="changelist-form"')]


def test_a_list_is_saved_opened_and_on_record():
    client = make_staff("dora", "view_tool")
    answer = save(client, "q=find&effect__exact=read&o=-1&p=2&e=1")
    assert answer["Location"] == f"{TOOLS}?q=find&effect__exact=read&o=-1"
    saved = SavedFilter.objects.get()
    assert (saved.user.username, saved.model, saved.shared) == ("dora", "tools.Tool", False)
    assert "?q=find&amp;effect__exact=read&amp;o=-1" in menu(client)
    assert client.get(saved_filters.address(saved)).status_code == 200
    record = Record.objects.get(object_id=str(saved.pk))
    assert (record.code, record.actor, record.object_type) == ("create", "dora", "access.SavedFilter")


def test_the_menu_says_which_filter_is_shown_and_offers_to_save_others():
    client = make_staff("dora", "view_tool")
    make_saved(client)
    assert "Save this list" not in menu(client)
    shown = menu(client, effect__exact="read")
    assert 'aria-current="true"' in shown
    assert "Save this list" not in shown
    assert "Save this list" in menu(client, effect__exact="write")


def test_others_find_only_what_is_for_everybody():
    dora, emil = make_staff("dora", "view_tool"), make_staff("emil", "view_tool")
    make_saved(dora, name="Mine")
    make_saved(dora, name="Ours", shared="on")
    assert "Ours" in menu(emil)
    assert "Mine" not in menu(emil)
    assert [each.name for each in emil.get(LIST).context["cl"].result_list] == ["Ours"]
    assert emil.get(f"{LIST}{SavedFilter.objects.get(name='Mine').pk}/change/").status_code == 302


def test_a_filter_of_a_list_that_one_may_not_see_is_not_shown():
    dora, emil = make_staff("dora", "view_tool"), make_staff("emil")
    make_saved(dora, shared="on")
    assert list(emil.get(LIST).context["cl"].result_list) == []


def test_one_renames_shares_and_deletes_ones_own():
    client = make_staff("dora", "view_tool")
    saved = make_saved(client)
    client.post(f"{LIST}{saved.pk}/change/", {"name": "Only reading", "shared": "on"})
    saved.refresh_from_db()
    assert (saved.name, saved.shared) == ("Only reading", True)
    detail = json.loads(Record.objects.get(object_id=str(saved.pk), code="update").detail)
    assert detail["changes"] == {"name": ["Reading", "Only reading"], "shared": [False, True]}
    client.post(f"{LIST}{saved.pk}/delete/", {"post": "yes"})
    assert not SavedFilter.objects.exists()
    assert Record.objects.filter(object_id=str(saved.pk), code="delete").exists()


def test_nobody_changes_or_deletes_those_of_others():
    saved = make_saved(make_staff("dora", "view_tool"), shared="on")
    emil = make_staff("emil", "view_tool", "change_tool")
    assert emil.post(f"{LIST}{saved.pk}/change/", {"name": "Stolen"}).status_code == 403
    assert emil.post(f"{LIST}{saved.pk}/delete/", {"post": "yes"}).status_code == 403
    assert SavedFilter.objects.get().name == "Reading"


def test_a_user_can_be_deleted_with_their_filters():
    saved = make_saved(make_staff("dora", "view_tool"))
    root = make_staff("root", is_superuser=True)
    root.post(f"/admin/access/user/{saved.user_id}/delete/", {"post": "yes"})
    assert not User.objects.filter(username="dora").exists()
    assert not SavedFilter.objects.exists()


@pytest.mark.parametrize(
    "model", ["", "tools", "tools.Nothing", "access.Role", "sessions.Session", "//evil.example", "a.b.c", "\0.\0"]
)
def test_only_lists_that_one_may_see_are_saved(model):
    client = make_staff("dora", "view_tool")
    assert save(client, model=model).status_code == 403
    assert not SavedFilter.objects.exists()


@pytest.mark.parametrize(
    "query", ["//evil.example/", "https://evil.example/?q=1", "q=//evil.example", "?q=x", "\r\nX: y=1"]
)
def test_a_query_never_leads_elsewhere(query):
    client = make_staff("dora", "view_tool")
    answer = save(client, query)
    assert answer["Location"].startswith(f"{TOOLS}?")
    assert "\n" not in answer["Location"]
    for each in SavedFilter.objects.all():
        assert saved_filters.address(each).startswith(f"{TOOLS}?")


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("", "nothing to save"),
        ("p=3&all=", "nothing to save"),
        ("source__secrets__contains=x", "cannot be filtered like this"),
        ("effect__exact=read&source__id__exact=no-uuid", "cannot be filtered like this"),
        ("q=" + "x" * 3000, "too many filters"),
    ],
)
def test_what_the_list_would_refuse_is_not_saved(query, reason):
    client = make_staff("dora", "view_tool")
    for name in ("one", "two"):  # a filter shows where there is something to choose
        Tool.objects.create(source=DataSource.objects.create(name=name, kind="mcp"), name=name)
    save(client, query)
    assert reason in said(client)
    assert not SavedFilter.objects.exists()


def test_names_are_not_empty_and_used_once_for_each_list():
    client = make_staff("dora", "view_tool")
    save(client, name="  ")
    assert not SavedFilter.objects.exists()
    save(client)
    save(client, "effect__exact=write")
    assert "You have a filter of this name" in said(client)
    assert save(make_staff("emil", "view_tool")).status_code == 302
    assert SavedFilter.objects.count() == 2


def test_there_is_an_end_to_saving(monkeypatch):
    monkeypatch.setattr(saved_filters, "MOST_OF_A_USER", 1)
    client = make_staff("dora", "view_tool")
    save(client)
    save(client, "effect__exact=write", name="Second")
    assert SavedFilter.objects.count() == 1


def test_only_a_form_saves():
    assert make_staff("dora", "view_tool").get(SAVE).status_code == 405
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(User.objects.get(username="dora"))
    assert save(strict).status_code == 403


def test_names_are_escaped():
    client = make_staff("dora", "view_tool")
    make_saved(client, name="<b>bold</b>")
    assert "<b>bold" not in menu(client)
    assert "&lt;b&gt;bold" in menu(client)


def test_the_menu_is_on_every_list_but_not_in_a_popup():
    client = make_staff("root", is_superuser=True)
    for url in (TOOLS, "/admin/access/user/", "/admin/audit/record/", "/admin/procrastinate/procrastinatejob/"):
        assert 'class="saved-filters"' in client.get(url).content.decode()
    assert 'class="saved-filters"' not in client.get(TOOLS, {"_popup": "1"}).content.decode()
