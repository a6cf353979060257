"""Calling a tool by REST: the same pipeline, the same record, the same refusals."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import AsyncClient

from access import tokens
from access.models import Grant
from gateway.app import Gateway
from gateway.tests.conftest import Company, FakeConnector, in_thread, records, until


class Client(AsyncClient):
    """Django's client, with the gateway in the scope as the site puts it there."""

    gateway: Gateway

    def _base_scope(self, **request: Any) -> dict[str, Any]:
        return {**super()._base_scope(**request), "mcpsite.gateway": self.gateway}  # type: ignore[misc]


@pytest.fixture
def client(gateway: Gateway) -> AsyncClient:
    client = Client()
    client.gateway = gateway
    return client


async def ask(client: AsyncClient, name: str, token: str | None, body: Any = None, **headers: str) -> Any:
    """Underscores in header names stand for hyphens."""
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    headers |= {"authorization": f"Bearer {token}"} if token else {}
    body = {"arguments": {"text": "hello"}} if body is None else body
    return await client.post(f"/api/v1/tools/{name}/call/", body, content_type="application/json", headers=headers)


async def test_a_call_answers_with_result_and_record(client: AsyncClient, company: Company) -> None:
    response = await ask(client, "echo", company.token)
    assert response.status_code == 200
    answer = response.json()
    assert answer["result"]["content"][0]["text"] == "hello"
    (record,) = await records(call_id=answer["call"])
    assert (str(record.rid), record.door, record.actor, record.code) == (answer["record"], "rest", "carla", "ok")
    assert record.request_id == response["X-Request-Id"]


async def test_a_jwt_calls_as_its_user(client: AsyncClient, company: Company) -> None:
    pair = await in_thread(lambda: tokens.obtain(company.user))
    assert (await ask(client, "echo", pair["access"])).status_code == 200
    await in_thread(lambda: tokens.end_all_sessions(company.user))
    assert (await ask(client, "echo", pair["access"])).status_code == 401


async def test_without_a_token_there_is_a_challenge(client: AsyncClient, company: Company) -> None:
    response = await ask(client, "echo", None)
    assert response.status_code == 401
    assert response["WWW-Authenticate"].startswith("Bearer")


async def test_what_is_not_granted_is_not_found(client: AsyncClient, company: Company) -> None:
    hidden, absent = await ask(client, "hidden", company.token), await ask(client, "absent", company.token)
    for response in (hidden, absent):
        assert response.status_code == 404
        assert response["Content-Type"] == "application/problem+json"
        assert response.json()["code"] == "unknown_tool"


async def test_wrong_arguments_are_a_problem_with_a_reason(client: AsyncClient, company: Company) -> None:
    response = await ask(client, "echo", company.token, {"arguments": {"text": 7}})
    assert (response.status_code, response.json()["code"]) == (400, "invalid_arguments")
    assert "text" in response.json()["detail"]


@pytest.mark.parametrize("body", [{"arguments": []}, [], "x", {"arguments": "x"}])
async def test_a_body_that_is_none_is_refused(client: AsyncClient, company: Company, body: Any) -> None:
    assert (await ask(client, "echo", company.token, body)).status_code == 400


async def test_a_spent_budget_says_when_to_come_back(client: AsyncClient, gateway: Gateway, company: Company) -> None:
    await in_thread(lambda: Grant.objects.filter(tool__name="echo").update(calls_per_minute=1))
    clerk = company.role.pk
    await until(lambda: gateway.feed.snapshot.grants[clerk]["echo"] == 1)
    assert (await ask(client, "echo", company.token)).status_code == 200
    response = await ask(client, "echo", company.token)
    assert (response.status_code, response.json()["code"]) == (429, "budget_exhausted")
    assert int(response["Retry-After"]) > 30
    assert response["RateLimit-Policy"] == '"calls";q=1;w=60'
    assert response["RateLimit"] == f'"calls";r=0;t={response["Retry-After"]}'
    (record,) = await records(call_id=response.json()["call"])
    assert str(record.rid) == response.json()["record"]


async def test_a_token_without_the_scope_is_told_so(client: AsyncClient, gateway: Gateway, company: Company) -> None:
    _, raw = await in_thread(lambda: tokens.issue(company.user, name="r", scopes=["read"]))
    response = await ask(client, "echo", raw)
    assert (response.status_code, response.json()["code"]) == (403, "insufficient_scope")


async def test_without_the_ledger_nothing_is_called(
    client: AsyncClient, gateway: Gateway, company: Company, outside: FakeConnector
) -> None:
    gateway.ledger._lose("test")
    response = await ask(client, "write", company.token)
    assert (response.status_code, response.json()["code"]) == (503, "ledger_unavailable")
    assert response["Retry-After"] == "2"
    assert outside.calls == []


async def test_every_answer_tells_what_is_left_of_the_budget(client: AsyncClient, company: Company) -> None:
    first, second = await ask(client, "echo", company.token), await ask(client, "echo", company.token)
    assert first["RateLimit-Policy"] == '"calls";q=600;w=60'
    assert (first["RateLimit"], second["RateLimit"]) == ('"calls";r=599;t=1', '"calls";r=598;t=1')
    wrong = await ask(client, "echo", company.token, {"arguments": {"text": 7}})
    assert (wrong.status_code, "RateLimit" in wrong) == (400, True)
    assert "RateLimit" not in await ask(client, "hidden", company.token)
