"""Who may read `/metrics`: nobody by default."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.db.backends.base.base import BaseDatabaseWrapper
from django.test import AsyncClient

from access import tokens
from access.models import Scope, User
from gateway.app import Gateway
from gateway.tests.conftest import Company, in_thread
from gateway.tests.test_api import Client

SECRET = "a-long-token-for-prometheus-0123456789"


@pytest.fixture
def client(gateway: Gateway) -> AsyncClient:
    client = Client()
    client.gateway = gateway
    return client


async def scrape(client: AsyncClient, token: str | None = None, **headers: str) -> Any:
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    return await client.get("/metrics", headers=headers)


async def make_token(permitted: bool, scope: str = Scope.READ, **options: Any) -> str:
    def make() -> str:
        user = User.objects.create(username="prometheus", is_service=True)
        if permitted:
            user.user_permissions.add(Permission.objects.get(codename="view_metrics"))
        return tokens.issue(user, name="scrape", scopes=[scope], **options)[1]

    return await in_thread(make)


async def test_without_a_credential_it_is_closed(client: AsyncClient, company: Company):
    response = await scrape(client)
    assert response.status_code == 401
    assert response["WWW-Authenticate"].startswith("Bearer")
    assert response.json()["code"] == "not_authenticated"
    assert (await scrape(client, SECRET)).status_code == 401, "an unset METRICS_TOKEN is no token"
    assert (await scrape(client, "")).status_code == 401


async def test_the_token_of_the_settings_reads_metrics_and_nothing_else(
    client: AsyncClient, company: Company, settings
):
    settings.METRICS_TOKEN = SECRET
    response = await scrape(client, SECRET)
    assert response.status_code == 200
    assert response["Content-Type"].startswith("text/plain; version=")
    assert response["Cache-Control"] == "no-store"
    assert b"# TYPE mcpsite_processes gauge\nmcpsite_processes 1.0\n" in response.content
    assert (await scrape(client, f"{SECRET}x")).status_code == 401
    other = await client.get("/api/v1/tools/", headers={"authorization": f"Bearer {SECRET}"})
    assert other.status_code == 401


async def test_the_token_of_the_settings_asks_no_database(client: AsyncClient, company: Company, settings, monkeypatch):
    settings.METRICS_TOKEN = SECRET

    def away(*args: Any, **options: Any) -> Any:
        raise AssertionError("the database was asked")

    with monkeypatch.context() as patched:
        patched.setattr(BaseDatabaseWrapper, "cursor", away)
        assert (await scrape(client, SECRET)).status_code == 200


async def test_a_user_needs_the_permission(client: AsyncClient, company: Company):
    response = await scrape(client, await make_token(permitted=False))
    assert response.status_code == 403
    assert response.json()["code"] == "permission_denied"


async def test_a_user_with_the_permission_reads(client: AsyncClient, company: Company):
    token = await make_token(permitted=True)
    assert b"mcpsite_processes" in (await scrape(client, token)).content
    openmetrics = await scrape(client, token, accept="application/openmetrics-text; version=1.0.0")
    assert openmetrics["Content-Type"].startswith("application/openmetrics-text")


async def test_a_token_must_be_made_for_reading(client: AsyncClient, company: Company):
    response = await scrape(client, await make_token(permitted=True, scope=Scope.TOOLS))
    assert (response.status_code, response.json()["code"]) == (403, "insufficient_scope")


async def test_a_token_of_a_toolset_reads_no_metrics_of_others(client: AsyncClient, company: Company):
    response = await scrape(client, await make_token(permitted=True, toolset=company.toolset))
    assert (response.status_code, response.json()["code"]) == (403, "insufficient_scope")


async def test_a_session_of_the_admin_reads_too(client: AsyncClient, company: Company):
    admin = await in_thread(lambda: User.objects.create_superuser("root"))
    await client.aforce_login(admin)
    assert (await scrape(client)).status_code == 200


async def test_a_server_without_a_gateway_says_so(company: Company, settings):
    settings.METRICS_TOKEN = SECRET
    response = await scrape(AsyncClient(), SECRET)
    assert response.status_code == 503
    assert "no metrics" in response.json()["detail"]
