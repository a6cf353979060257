"""Trying a tool in the admin: the same pipeline, each of its gates told, and nobody's rights but those one may use."""

from __future__ import annotations

import re
import uuid
from typing import Any

import orjson
import pytest
from django.contrib.auth.models import Permission
from django.test import AsyncClient
from django.urls import reverse

from access.models import Grant, Role, User
from gateway.app import Gateway
from gateway.gates import Gate
from gateway.tests.conftest import Company, FakeConnector, in_thread, records, until
from tools.connectors.base import ConnectorError, Result
from tools.models import Tool

ECHO = {"do": "call", "as_json": "0", "arg:/text": "hello"}
PASSED_ALL = ["passed"] * 7


class Client(AsyncClient):
    """Django's client, with the gateway in the scope as the site puts it there."""

    gateway: Gateway

    def _base_scope(self, **request: Any) -> dict[str, Any]:
        return {**super()._base_scope(**request), "mcpsite.gateway": self.gateway}  # type: ignore[misc]


async def logged_in(gateway: Gateway, user: User) -> Client:
    client = Client()
    client.gateway = gateway
    await client.aforce_login(user)
    await until(lambda: user.pk in gateway.feed.current.members)
    return client


def make_user(name: str, *permissions: str, roles: tuple[Role, ...] = (), **fields: Any) -> User:
    user = User.objects.create_user(name, is_staff=True, **fields)
    user.groups.set(roles)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return user


@pytest.fixture
async def root(gateway: Gateway, company: Company) -> Client:
    """An administrator without any role."""
    return await logged_in(gateway, await in_thread(lambda: make_user("root", is_superuser=True)))


@pytest.fixture
async def dora(gateway: Gateway, company: Company) -> Client:
    """Somebody of the staff with a role of her own, who may try tools, but not with others' rights."""

    def make() -> User:
        return make_user("dora", "view_tool", "try_tool", roles=(company.role,))

    return await logged_in(gateway, await in_thread(make))


def url(tool: Tool) -> str:
    return reverse("try-tool", args=(tool.pk,))


async def send(client: Client, tool: Tool, **form: Any) -> Any:
    return await client.post(url(tool), {**ECHO, **form})


def states(response: Any) -> list[str]:
    return [gate.state for gate in response.context["trial"].gates]


def failed(response: Any) -> Gate:
    (found,) = (gate for gate in response.context["trial"].gates if gate.state == "failed")
    return found


async def test_the_record_names_the_administrator_and_the_role_tried_as(root: Client, company: Company) -> None:
    response = await send(root, company.tools["echo"], role=str(company.role.pk))
    trial = response.context["trial"]
    assert (response.status_code, trial.code, states(response)) == (200, "ok", PASSED_ALL)
    assert trial.result.blocks[0].text == "hello"
    (record,) = await records(call_id=trial.call_id)
    assert record.rid == trial.record_id
    assert (record.actor, record.roles, record.door, record.code) == ("root", "clerk", "admin", "ok")
    assert orjson.loads(record.detail or "") == {"tried_as_role": "clerk"}
    assert record.request_id == response["X-Request-Id"]
    assert reverse("admin:audit_record_change", args=(record.pk,)) in response.content.decode()
    assert "no-store" in response["Cache-Control"]


async def test_the_grant_that_decides_is_named(root: Client, company: Company) -> None:
    response = await send(root, company.tools["echo"], role=str(company.role.pk))
    assert next(gate.said for gate in response.context["trial"].gates if gate.title == "Grant") == "clerk → echo."


async def test_even_a_superuser_without_a_grant_calls_nothing(
    root: Client, company: Company, outside: FakeConnector
) -> None:
    response = await send(root, company.tools["echo"])
    assert (failed(response).title, response.context["trial"].code) == ("Grant", "not_granted")
    assert "the caller has no role" in failed(response).said
    assert states(response) == ["passed", "passed", "failed", "skipped", "skipped", "skipped", "passed"]
    (record,) = await records(call_id=response.context["trial"].call_id)
    assert (record.kind, record.code, record.actor) == ("denied", "not_granted", "root")
    assert outside.calls == []


async def test_a_tool_that_is_off_says_so(root: Client, gateway: Gateway, company: Company) -> None:
    tool = company.tools["echo"]
    await in_thread(lambda: Tool.objects.filter(pk=tool.pk).update(enabled=False))
    await until(lambda: "echo" not in gateway.feed.current.tools)
    response = await send(root, tool, role=str(company.role.pk))
    assert failed(response) == Gate("Grant", "failed", "The tool is switched off.")


async def test_a_spent_budget_stops_at_its_gate(root: Client, gateway: Gateway, company: Company) -> None:
    await in_thread(lambda: Grant.objects.filter(tool__name="echo").update(calls_per_minute=1))
    await until(lambda: gateway.feed.current.grants[company.role.pk]["echo"] == 1)
    assert states(await send(root, company.tools["echo"], role=str(company.role.pk))) == PASSED_ALL
    response = await send(root, company.tools["echo"], role=str(company.role.pk))
    assert (failed(response).title, response.context["trial"].code) == ("Budget", "budget_exhausted")
    assert "1 calls a minute" in failed(response).said


async def test_arguments_are_checked_by_the_pipeline_and_not_by_the_form(root: Client, company: Company) -> None:
    form = {"role": str(company.role.pk), "as_json": "1", "text": '{"text": 7}'}
    response = await send(root, company.tools["echo"], **form)
    assert (failed(response).title, response.context["trial"].code) == ("Arguments", "invalid_arguments")
    assert states(response)[:5] == ["passed", "passed", "passed", "passed", "failed"]


async def test_without_the_ledger_the_first_gate_says_so(root: Client, gateway: Gateway, company: Company) -> None:
    gateway.ledger._lose("test")
    response = await send(root, company.tools["echo"], role=str(company.role.pk))
    assert (failed(response).title, response.context["trial"].code) == ("Policy and ledger", "ledger_unavailable")


async def test_without_a_policy_nobody_is_known(root: Client, gateway: Gateway, company: Company) -> None:
    gateway.feed.snapshot = None
    response = await send(root, company.tools["echo"])
    assert (failed(response).title, response.context["trial"].code) == ("Caller", "policy_unavailable")


async def test_a_failure_outside_is_a_result_and_no_refusal(
    root: Client, company: Company, outside: FakeConnector
) -> None:
    outside.fails = [ConnectorError("upstream_refused", "No <b>bold</b> answer.")]
    response = await send(root, company.tools["echo"], role=str(company.role.pk))
    assert (states(response), response.context["trial"].code) == (PASSED_ALL, "upstream_refused")
    page = response.content.decode()
    assert "The tool reports an error" in page
    assert "No &lt;b&gt;bold&lt;/b&gt; answer." in page


# --- Whose rights -----------------------------------------------------------------------------------------------------


async def test_staff_try_a_tool_with_their_own_rights(dora: Client, company: Company) -> None:
    assert states(await send(dora, company.tools["echo"])) == PASSED_ALL
    response = await send(dora, company.tools["hidden"])
    assert failed(response).said.startswith("Not granted: no grant of clerk names it.")


async def test_staff_cannot_try_a_tool_as_another_role(dora: Client, company: Company, outside: FakeConnector) -> None:
    def make() -> Role:
        role = Role.objects.create(name="chief")
        Grant.objects.create(role=role, tool=company.tools["hidden"])
        return role

    chief = await in_thread(make)
    assert "chief" not in (await dora.get(url(company.tools["hidden"]))).content.decode()
    assert (await send(dora, company.tools["hidden"], role=str(chief.pk))).status_code == 403
    assert outside.calls == []


@pytest.mark.parametrize("held", [(), ("view_tool",), ("try_tool",), ("view_tool", "change_tool", "try_tool_as_role")])
async def test_the_page_needs_its_permission(gateway: Gateway, company: Company, held: tuple[str, ...]) -> None:
    client = await logged_in(gateway, await in_thread(lambda: make_user("emil", *held, roles=(company.role,))))
    assert (await client.get(url(company.tools["echo"]))).status_code == 403
    assert (await send(client, company.tools["echo"])).status_code == 403


async def test_the_button_is_there_for_those_who_may(dora: Client, company: Company) -> None:
    tool = company.tools["echo"]
    change, button = (reverse(f"admin:tools_tool_{page}", args=(tool.pk,)) for page in ("change", "try_it"))
    assert button in (await dora.get(change)).content.decode()
    assert (await dora.get(button))["Location"] == url(tool)
    user = await in_thread(lambda: make_user("emil", "view_tool"))
    client = Client()
    client.gateway = dora.gateway
    await client.aforce_login(user)
    assert button not in (await client.get(change)).content.decode()


async def test_a_call_needs_the_csrf_token(gateway: Gateway, root: Client, company: Company) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.gateway = gateway
    await strict.aforce_login(await in_thread(lambda: User.objects.get(username="root")))
    assert (await send(strict, company.tools["echo"], role=str(company.role.pk))).status_code == 403


# --- Effects ----------------------------------------------------------------------------------------------------------


async def confirmation(client: Client, company: Company, **form: Any) -> str:
    response = await send(client, company.tools["write"], role=str(company.role.pk), **form)
    assert response.context.get("trial") is None
    return str(response.context["confirmation"])


async def test_a_tool_with_effects_is_called_after_it_was_confirmed(
    root: Client, company: Company, outside: FakeConnector
) -> None:
    said = await confirmation(root, company)
    assert outside.calls == []
    response = await send(root, company.tools["write"], role=str(company.role.pk), do=f"call:{said}")
    assert states(response) == PASSED_ALL
    assert outside.calls == [{"text": "hello"}]
    intent, outcome = await records(call_id=response.context["trial"].call_id)
    assert (intent.kind, outcome.kind) == ("intent", "outcome")
    assert orjson.loads(intent.detail or "") == orjson.loads(outcome.detail or "") == {"tried_as_role": "clerk"}


async def test_a_confirmation_holds_for_one_call(root: Client, company: Company, outside: FakeConnector) -> None:
    said = await confirmation(root, company)
    for _ in range(2):
        last = await send(root, company.tools["write"], role=str(company.role.pk), do=f"call:{said}")
    assert last.context["confirmation"] != said
    assert len(outside.calls) == 1


async def test_a_confirmation_holds_for_what_was_confirmed(
    root: Client, dora: Client, company: Company, outside: FakeConnector
) -> None:
    said = await confirmation(root, company)
    role = str(company.role.pk)
    others = [
        await send(root, company.tools["write"], role=role, do=f"call:{said}", **{"arg:/text": "other"}),
        await send(root, company.tools["write"], do=f"call:{said}"),
        await send(dora, company.tools["write"], do=f"call:{said}"),
        await send(root, company.tools["write"], role=role, do="call:made-up"),
    ]
    assert [response.context.get("trial") for response in others] == [None] * 4
    assert outside.calls == []


# --- The form ---------------------------------------------------------------------------------------------------------


async def test_the_form_and_json_are_two_views_of_the_same(root: Client, company: Company) -> None:
    tool = company.tools["echo"]
    as_json = await send(root, tool, do="switch")
    assert orjson.loads(as_json.context["asked"].text) == {"text": "hello"}
    as_form = await send(root, tool, do="switch", as_json="1", text='{"text": "back"}')
    assert 'name="arg:/text"' in as_form.content.decode()
    assert as_form.context["form"].children[0].value == "back"


async def test_what_the_form_cannot_show_stays_json(root: Client, company: Company) -> None:
    response = await send(root, company.tools["echo"], do="switch", as_json="1", text='{"other": 1}')
    assert response.context["asked"].as_json
    assert "Edit them as JSON" in response.content.decode()


@pytest.mark.parametrize("text", ["{", "[]", "7", '{"text": NaN', "[" * 100_000])
async def test_json_that_cannot_be_read_calls_nothing(
    root: Client, company: Company, outside: FakeConnector, text: str
) -> None:
    response = await send(root, company.tools["echo"], role=str(company.role.pk), as_json="1", text=text)
    assert response.context["asked"].errors["text"]
    assert response.context.get("trial") is None
    assert outside.calls == []


@pytest.mark.parametrize("text", ['{"text": NaN}', '{"text": "\\ud800"}', f'{{"text": {"9" * 400}}}'])
async def test_json_that_is_none_for_others_calls_nothing(
    root: Client, company: Company, outside: FakeConnector, text: str
) -> None:
    response = await send(root, company.tools["echo"], role=str(company.role.pk), as_json="1", text=text)
    assert response.status_code == 200
    assert response.context["asked"].errors["text"]
    assert outside.calls == []


async def test_the_page_of_a_tool_that_is_not_there_is_not_found(root: Client) -> None:
    assert (await root.get(reverse("try-tool", args=(uuid.uuid4(),)))).status_code == 404


async def test_an_image_is_drawn_only_when_it_is_one(root: Client, company: Company, outside: FakeConnector) -> None:
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    blocks = [
        {"type": "image", "mimeType": "image/png", "data": pixel},
        {"type": "image", "mimeType": "image/svg+xml", "data": pixel},
        {"type": "image", "mimeType": "image/png", "data": '"><script>alert(1)</script>'},
    ]

    async def call(*_: Any) -> Result:
        return Result({"content": blocks, "structuredContent": {"rows": [{"a": 1, "b": "<i>"}]}}, False)

    outside.call = call  # type: ignore[method-assign, assignment]
    response = await send(root, company.tools["echo"], role=str(company.role.pk))
    page = response.content.decode()
    assert re.findall(r'<img src="(data:[^"]{17})', page) == ["data:image/png;base64,"]
    assert "<script>alert" not in page
    (table,) = response.context["trial"].result.tables
    assert (table.title, table.columns, table.rows) == ("Rows", ["a", "b"], [["1", "<i>"]])


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "mimeType": "image/png", "data": "é"},
        {"type": "image", "mimeType": ["image/png"], "data": "AAAA"},
        {"type": "text", "text": "[" * 900 + "]" * 900},
    ],
)
async def test_whatever_an_upstream_answers_the_outcome_is_shown(
    root: Client, company: Company, outside: FakeConnector, block: dict[str, Any]
) -> None:
    async def call(*_: Any) -> Result:
        return Result({"content": [block]}, False)

    outside.call = call  # type: ignore[method-assign, assignment]
    response = await send(root, company.tools["echo"], role=str(company.role.pk))
    assert (response.status_code, response.context["trial"].code) == (200, "ok")


@pytest.mark.parametrize("do", ["call", "switch"])
async def test_json_that_is_nested_too_deeply_calls_nothing(
    root: Client, company: Company, outside: FakeConnector, do: str
) -> None:
    text = '{"text": ' + "[" * 1000 + "]" * 1000 + "}"
    response = await send(root, company.tools["echo"], role=str(company.role.pk), as_json="1", text=text, do=do)
    assert "nested too deeply" in response.context["asked"].errors["text"]
    assert outside.calls == []
