"""ETags and preconditions: of two writers who saw the same state only one wins."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection
from rest_framework.test import APIClient

from access import tokens
from access.models import Role, User
from audit.conditions import etag_of
from tools.models import DataSource, Toolset

TOOLSETS = "/api/v1/toolsets/"


def make_client() -> APIClient:
    root, _ = User.objects.get_or_create(username="root", is_superuser=True)
    _, secret = tokens.issue(root, name="test", scopes=["read", "write"])
    return APIClient(headers={"Authorization": f"Bearer {secret}"})


@pytest.fixture
def client(db: None) -> APIClient:
    return make_client()


def make_toolset(client: APIClient, name: str = "desk") -> Any:
    return client.post(TOOLSETS, {"name": name, "title": "old"})


def test_what_was_made_has_an_address_and_a_tag(client):
    answer = make_toolset(client)
    assert answer["Location"] == f"http://testserver{TOOLSETS}{answer.json()['id']}/"
    found = client.get(answer["Location"])
    assert found["ETag"] == answer["ETag"]
    assert found["ETag"].startswith('"')
    assert found.json() == answer.json()


def test_a_tag_changes_with_the_object_and_only_then(client):
    made = make_toolset(client)
    url = made["Location"]
    same = client.patch(url, {"title": "new"})
    assert same["ETag"] not in ("", made["ETag"])
    assert client.get(url)["ETag"] == same["ETag"] == client.get(url)["ETag"]


def test_a_change_with_an_old_tag_is_refused_and_changes_nothing(client):
    made = make_toolset(client)
    url, old = made["Location"], made["ETag"]
    new = client.patch(url, {"title": "first"}, headers={"If-Match": old})["ETag"]
    for refused in (
        client.patch(url, {"title": "second"}, headers={"If-Match": old}),
        client.put(url, {"name": "desk", "title": "second"}, headers={"If-Match": old}),
        client.delete(url, headers={"If-Match": old}),
        client.patch(url, {"title": "second"}, headers={"If-Match": f"W/{new}"}),
        client.patch(url, {"title": "second"}, headers={"If-Match": "no tag"}),
        client.patch(url, {"title": "second"}, headers={"If-None-Match": "*"}),
    ):
        assert (refused.status_code, refused.json()["code"]) == (412, "precondition_failed")
        assert refused["Content-Type"] == "application/problem+json"
    assert Toolset.objects.get().title == "first"
    assert client.patch(url, {"title": "third"}, headers={"If-Match": f'"other", {new}'}).status_code == 200
    assert client.delete(url, headers={"If-Match": "*"}).status_code == 204


def test_a_refused_body_with_the_right_tag_changes_nothing(client):
    made = make_toolset(client)
    assert client.patch(made["Location"], {"name": "No"}, headers={"If-Match": made["ETag"]}).status_code == 400
    assert client.get(made["Location"])["ETag"] == made["ETag"]


@pytest.mark.parametrize("header", ["{tag}", "W/{tag}", '"x", {tag}', "*"])
def test_what_somebody_has_is_not_sent_again(client, header):
    made = make_toolset(client)
    answer = client.get(made["Location"], headers={"If-None-Match": header.format(tag=made["ETag"])})
    assert (answer.status_code, answer.content, answer["ETag"]) == (304, b"", made["ETag"])
    assert client.get(made["Location"], headers={"If-None-Match": '"other"'}).status_code == 200


def test_a_secret_changes_the_tag_and_cannot_be_guessed_from_it(client, settings):
    source = DataSource.objects.create(name="desk", kind="sql", options={}, secrets={"password": "one"})
    first, shown = etag_of(source, {}), {}
    source.secrets = {"password": "two"}
    second = etag_of(source, shown)
    assert first != second
    settings.SECRET_KEY = "another" * 10
    assert etag_of(source, shown) != second


def test_a_page_in_a_browser_has_no_tag(client):
    answer = client.get(make_toolset(client)["Location"], headers={"Accept": "text/html"})
    assert answer["Content-Type"].startswith("text/html")
    assert "ETag" not in answer


def test_of_many_writers_with_the_same_tag_one_wins(committed_db):
    made = make_toolset(make_client())
    clients, ready = [make_client() for _ in range(4)], threading.Barrier(4)

    def write(number: int) -> int:
        ready.wait()
        try:
            return (
                clients[number]
                .patch(made["Location"], {"title": f"by {number}"}, headers={"If-Match": made["ETag"]})
                .status_code
            )
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as threads:
        assert sorted(threads.map(write, range(4))) == [200, 412, 412, 412]


def test_two_who_make_the_same_at_once_are_told_apart(committed_db):
    clients, ready = [make_client() for _ in range(4)], threading.Barrier(4)

    def make(number: int) -> int:
        ready.wait()
        try:
            return clients[number].post("/api/v1/roles/", {"name": "support"}).status_code
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as threads:
        found = sorted(threads.map(make, range(4)))
    assert found[0] == 201
    assert set(found[1:]) <= {400, 409}
    assert Role.objects.count() == 1
