"""The first address tells everybody where to go, and strangers nothing else."""

from __future__ import annotations

import re

import pytest
from django.conf import settings
from django.test import Client
from django.urls import resolve

from access.models import User
from mcpsite.landing import home


def get(accept: str = "text/html"):
    return Client().get("/", headers={"Accept": accept})


def test_a_browser_gets_a_page_that_leads_to_everything():
    answer = get("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8")
    assert answer["Content-Type"].startswith("text/html")
    page = answer.content.decode()
    for path in ("/admin/", "/api/docs/", "/api/v1/", "/health", "/mcp"):
        assert f"{settings.PUBLIC_URL}{path}" in page


@pytest.mark.django_db
def test_every_link_leads_somewhere():
    links = get("application/json").json()["links"]
    for name, url in links.items():
        path = url.removeprefix(settings.PUBLIC_URL)
        assert path.startswith("/"), name
        if name != "mcp":  # which is the gateway's
            resolve(path)
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    assert all(client.get(links[name]).status_code == 200 for name in ("admin", "api_documentation", "api"))


@pytest.mark.parametrize("accept", ["application/json", "application/*", "text/html;q=0.5, application/json"])
def test_a_program_gets_json(accept):
    answer = get(accept)
    assert answer["Content-Type"] == "application/json"
    assert answer.json()["name"] == "mcpsite"


@pytest.mark.parametrize("accept", ["*/*", "text/html", "image/png", ""])
def test_everybody_else_gets_the_page(accept):
    assert get(accept)["Content-Type"].startswith("text/html")


def test_caches_keep_the_two_apart():
    assert get()["Vary"] == get("application/json")["Vary"] == "Accept"


@pytest.mark.parametrize("accept", ["text/html", "application/json"])
def test_strangers_learn_no_version_and_get_no_cookie(accept):
    answer = get(accept)
    body = answer.content.decode().replace(settings.PUBLIC_URL, "")
    assert not re.search(r"\d+\.\d+", body)
    assert not re.search(r"django|python|postgres|valkey|redis|mcps_", body, re.IGNORECASE)
    assert not answer.cookies
    assert "Server" not in answer.headers


def test_it_needs_no_database_and_no_redis():
    """Without the mark that allows the database, any query would fail."""
    assert get().status_code == 200


def test_it_is_read_only():
    assert [getattr(Client(), method)("/").status_code for method in ("head", "post", "put", "delete")] == [
        200,
        405,
        405,
        405,
    ]


def test_its_scripts_could_only_be_ours():
    assert "script-src 'self'" in get()["Content-Security-Policy"].split("; ")
    assert "<script" not in get().content.decode()


def test_it_is_the_home_page():
    assert resolve("/").func is home
