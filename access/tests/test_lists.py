"""Lists: every row once in every order, and nothing is taken for something else."""

from __future__ import annotations

import itertools

import pytest
from django.urls import get_resolver
from django.utils import timezone
from rest_framework.test import APIClient

from access import tokens
from access.models import User
from tools.models import DataSource, Toolset

pytestmark = pytest.mark.django_db
TOOLSETS = "/api/v1/toolsets/"


@pytest.fixture
def client() -> APIClient:
    _, secret = tokens.issue(User.objects.create_superuser("root"), name="test", scopes=["read", "write"])
    return APIClient(headers={"Authorization": f"Bearer {secret}"})


def make_toolsets(count: int) -> list[str]:
    """Many of them made at the same moment, so that their order is decided by their ids."""
    names = [f"set-{number:02}" for number in range(count)]
    made = Toolset.objects.bulk_create(Toolset(name=name) for name in names)
    moments = itertools.cycle([timezone.now(), timezone.now()])
    for each in made:
        Toolset.objects.filter(pk=each.pk).update(created_at=next(moments))
    return names


def walk(client: APIClient, url: str, way: str = "next") -> tuple[list[str], str]:
    found: list[str] = []
    last = url
    while url:
        page = client.get(url).json()
        names = [each["name"] for each in page["results"]]
        found = found + names if way == "next" else names + found
        last, url = url, page[way]
    return found, last


@pytest.mark.parametrize("ordering", ["name", "-name", "created_at", "-created_at", "updated_at"])
def test_every_order_shows_every_row_once_there_and_back(client, ordering):
    names = make_toolsets(23)
    found, last = walk(client, f"{TOOLSETS}?limit=5&ordering={ordering}")
    assert sorted(found) == names
    assert ordering.endswith("_at") or found == sorted(names, reverse=ordering.startswith("-"))
    back, _ = walk(client, last, "previous")
    assert back == found


def test_rows_that_come_and_go_move_no_others(client):
    make_toolsets(6)
    page = client.get(TOOLSETS, {"limit": 2}).json()
    Toolset.objects.filter(name__in=["set-00", "set-01"]).delete()
    Toolset.objects.create(name="set-000")
    assert [each["name"] for each in client.get(page["next"]).json()["results"]] == ["set-02", "set-03"]


def test_a_cursor_belongs_to_its_order(client):
    make_toolsets(3)
    url = client.get(TOOLSETS, {"limit": 1, "ordering": "-name"}).json()["next"]
    answer = client.get(url.replace("ordering=-name", "ordering=name"))
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor")


@pytest.mark.parametrize("cursor", ["", "x", "x:y", "\0", "é" * 100, "W10:" + "a" * 43])
def test_a_cursor_that_is_none_is_refused(client, cursor):
    answer = client.get(TOOLSETS, {"cursor": cursor})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor")


@pytest.mark.parametrize(
    ("query", "name", "code"),
    [
        ("nmae=x", "nmae", "unknown_parameter"),
        ("page=2", "page", "unknown_parameter"),
        ("ordering=title", "ordering", "invalid_choice"),
        ("ordering=", "ordering", "invalid_choice"),
        ("ordering=name,created_at", "ordering", "invalid_choice"),
        ("ordering=pk%00", "ordering", "invalid_choice"),
        ("limit=501", "limit", "invalid"),
        ("name=%00", "name", "null_characters_not_allowed"),
        ("search=%00", None, None),
        ("search=" + "a+" * 200, "search", "invalid"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(client, query, name, code):
    answer = client.get(f"{TOOLSETS}?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid")
    if name:
        assert answer.json()["errors"][name][0]["code"] == code


@pytest.mark.parametrize("word", ["maybe", "1", "True", "null"])
def test_a_yes_or_no_is_one_of_them(client, word):
    DataSource.objects.create(name="on", kind="sql")
    DataSource.objects.create(name="off", kind="sql", enabled=False)
    url = "/api/v1/data-sources/"
    assert client.get(url, {"enabled": word}).status_code == 400
    assert [each["name"] for each in client.get(url, {"enabled": "false"}).json()["results"]] == ["off"]


def test_columns_to_order_by_are_never_null():
    """A null has no place in a keyset, and its row would be on no page."""
    viewsets = {view for view in _views(get_resolver()) if hasattr(view, "ordering")}
    assert len(viewsets) >= 8
    for view in viewsets:
        model = view.queryset.model
        for name in (*view.ordering, *getattr(view, "ordering_fields", ())):
            assert not model._meta.get_field(name.removeprefix("-")).null, f"{view.__name__}: {name}"


def _views(resolver):
    for each in resolver.url_patterns:
        if hasattr(each, "url_patterns"):
            yield from _views(each)
        elif hasattr(each.callback, "cls"):
            yield each.callback.cls
