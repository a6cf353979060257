"""Probes are answered before anything that could wait; scripts of others run nowhere."""

from __future__ import annotations

import pytest
from django.test import Client

from access.models import User

pytestmark = pytest.mark.django_db


_PLACES = {"csp.middleware.CSPMiddleware": "mcpsite.middleware.ContentSecurityPolicy"}


@pytest.fixture(autouse=True)
def ours(settings):
    """The site's middleware with both of these in it."""
    chain = [_PLACES.get(name, name) for name in settings.MIDDLEWARE if name != "mcpsite.middleware.probes"]
    settings.MIDDLEWARE = [chain[0], "mcpsite.middleware.probes", *chain[1:]]


@pytest.fixture
def root(client):
    client.force_login(User.objects.create_superuser("root"))
    return client


def scripts(answer) -> str:
    parts = (part.strip() for part in answer["Content-Security-Policy"].split(";"))
    return next(part for part in parts if part.startswith("script-src"))


def test_inline_and_evaluated_scripts_are_for_the_admin_only(root):
    assert "'unsafe-eval'" in scripts(root.get("/admin/"))
    for url in ("/api/docs/", "/api/v1/tools/", "/nothing"):
        assert scripts(root.get(url)) == "script-src 'self'"


def test_the_page_of_the_api_has_no_inline_script_and_nothing_from_elsewhere(root):
    page = root.get("/api/docs/").content.decode()
    assert "<script>" not in page
    assert "http://" not in page
    assert "https://" not in page


def test_a_probe_is_answered_under_any_host_name():
    assert Client(headers={"Host": "10.0.0.7"}).get("/livez").status_code == 200
    assert Client(headers={"Host": "10.0.0.7"}).get("/admin/").status_code == 400


def test_the_request_id_of_the_caller_is_kept_when_it_is_plain():
    answer = Client(headers={"X-Request-Id": "abcd-1234"}).get("/livez")
    assert answer["X-Request-Id"] == "abcd-1234"
    assert Client(headers={"X-Request-Id": "<b>bad</b>"}).get("/livez")["X-Request-Id"] != "<b>bad</b>"
