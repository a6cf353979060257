"""Every address of the site asks who is there, except for a few that are named here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from uuid import UUID

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, resolve

from access.models import User

pytestmark = pytest.mark.django_db

PUBLIC = {
    "/",
    "/health",
    "/livez",
    "/readyz",
    "/admin/login/",
    "/api/v1/auth/token/",
    "/api/v1/auth/token/refresh/",
    "/api/v1/auth/token/verify/",
    "/api/v1/auth/token/revoke/",
}
REFUSED = {301, 302, 401, 403}
_VALUES = {"int": "1", "uuid": str(UUID(int=1)), "slug": "x", "str": "x", "path": "x"}


def patterns(resolver: URLResolver, before: str = "") -> Iterator[str]:
    for each in resolver.url_patterns:
        here = before + str(each.pattern)
        if isinstance(each, URLResolver):
            yield from patterns(each, here)
        elif isinstance(each, URLPattern):
            yield here


def filled(pattern: str) -> str:
    """An address that the pattern takes."""
    path = re.sub(r"\(\?P<\w+>[^()]*\)", "x", pattern)
    path = re.sub(r"<(?:(\w+):)?\w+>", lambda found: _VALUES[found[1] or "str"], path)
    path = "/" + re.sub(r"\\Z|[\^$?\\]", "", path).lstrip("/")
    resolve(path)  # or the test would knock at no door
    return path


def addresses() -> list[str]:
    return sorted({filled(pattern) for pattern in patterns(get_resolver())})


def test_there_are_at_most_nine_public_addresses():
    assert len(PUBLIC) <= 9
    assert set(addresses()) >= PUBLIC


@pytest.mark.parametrize("method", ["get", "head", "post", "put", "patch", "delete", "options"])
def test_nothing_else_is_open(method):
    client = Client()
    found = {url: getattr(client, method)(url).status_code for url in addresses() if url not in PUBLIC}
    assert len(found) > 100
    assert {url: status for url, status in found.items() if status not in REFUSED} == {}


def test_who_is_sent_on_is_sent_to_the_login():
    client = Client()
    for url in addresses():
        answer = client.get(url)
        if answer.status_code in (301, 302) and url not in PUBLIC:
            assert answer["Location"].startswith(("/admin/", url)), url


def test_a_user_who_is_not_staff_finds_no_admin():
    client = Client()
    client.force_login(User.objects.create_user("emil"))
    admin = [url for url in addresses() if url.startswith("/admin/") and url not in PUBLIC]
    statuses = {url: client.get(url).status_code for url in admin}
    assert {url: status for url, status in statuses.items() if status not in REFUSED} == {}


def test_pages_of_users_are_not_cached_and_cannot_be_framed():
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    answer = client.get("/admin/")
    assert "no-store" in answer["Cache-Control"]
    assert "Cookie" in answer["Vary"]
    assert answer["X-Frame-Options"] == "DENY"
