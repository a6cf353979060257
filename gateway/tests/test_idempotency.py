"""A call that is sent twice under one key is carried out once, whatever happens in between."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.db import DatabaseError, connection, connections
from django.test import AsyncClient
from django.utils import timezone

from access import tokens
from access.models import Grant
from gateway import idempotency, tasks
from gateway.app import Gateway
from gateway.idempotency import KeyRefused, key_of
from gateway.models import KeyedCall
from gateway.tests.conftest import Company, FakeConnector, in_thread, make_user, records, until
from gateway.tests.test_api import Client, ask

KEY = '"8e03978e-40d5-43e8-bc93-6894a57f9324"'
OTHER = {"arguments": {"text": "other"}}


@pytest.fixture
def client(gateway: Gateway) -> AsyncClient:
    client = Client()
    client.gateway = gateway
    return client


async def send(client: AsyncClient, company: Company, name: str = "write", body: Any = None, key: str = KEY) -> Any:
    """In a thread of its own, as the site answers requests."""
    async with ThreadSensitiveContext():
        answer = await ask(client, name, company.token, body, idempotency_key=key)
        await sync_to_async(connections.close_all)()
        return answer


async def the_call() -> KeyedCall:
    return await in_thread(KeyedCall.objects.get)


async def grow_old(**values: Any) -> None:
    long_ago = timezone.now() - timedelta(hours=1)
    await in_thread(lambda: KeyedCall.objects.update(**{"started_at": long_ago, **values}))


@pytest.mark.parametrize("name", ["echo", "write"])
async def test_the_answer_is_given_again_and_nothing_is_called(
    client: AsyncClient, company: Company, outside: FakeConnector, name: str
) -> None:
    first, second = await send(client, company, name), await send(client, company, name)
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.content == second.content
    assert ("Idempotent-Replayed" in first, second["Idempotent-Replayed"]) == (False, "true")
    assert len(outside.calls) == 1
    found = await records(call_id=first.json()["call"])
    assert [each.kind for each in found] == (["call"] if name == "echo" else ["intent", "outcome"])
    assert str(found[-1].rid) == second.json()["record"]


async def test_without_a_key_the_same_call_is_two_calls_and_nothing_is_kept(
    client: AsyncClient, company: Company, outside: FakeConnector
) -> None:
    for _ in range(2):
        assert (await ask(client, "write", company.token)).status_code == 200
    assert len(outside.calls) == 2
    assert await in_thread(KeyedCall.objects.count) == 0


async def test_a_call_under_way_is_not_begun_again(
    client: AsyncClient, company: Company, outside: FakeConnector
) -> None:
    outside.gate = asyncio.Event()
    first = asyncio.create_task(send(client, company))
    await until(lambda: outside.calls)
    others = await asyncio.gather(*(send(client, company) for _ in range(3)))
    assert {(each.status_code, each.json()["code"], each["Retry-After"]) for each in others} == {
        (409, "idempotency_in_progress", "1")
    }
    outside.gate.set()
    answer = await first
    assert (await send(client, company)).content == answer.content
    assert len(outside.calls) == 1


async def test_of_many_at_once_one_is_carried_out(
    client: AsyncClient, company: Company, outside: FakeConnector
) -> None:
    answers = await asyncio.gather(*(send(client, company) for _ in range(8)))
    assert {each.status_code for each in answers} <= {200, 409}
    assert len(outside.calls) == 1


async def test_a_key_stands_for_one_set_of_arguments(
    client: AsyncClient, company: Company, outside: FakeConnector
) -> None:
    await send(client, company)
    refused = await send(client, company, body=OTHER)
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_key_reused")
    assert len(outside.calls) == 1


async def test_a_key_belongs_to_its_principal_and_its_tool(
    client: AsyncClient, company: Company, outside: FakeConnector
) -> None:
    other = await in_thread(lambda: make_user("otto", company.role))
    _, token = await in_thread(lambda: tokens.issue(other, name="test", scopes=["tools"]))
    assert (await send(client, company)).status_code == 200
    assert (await send(client, company, "echo")).status_code == 200
    await until(lambda: client.gateway.feed.current.members.get(other.pk) is not None)  # type: ignore[attr-defined]
    theirs = await ask(client, "write", token, OTHER, idempotency_key=KEY)
    assert (theirs.status_code, theirs.json()["result"]["content"][0]["text"]) == (200, "other")
    assert len(outside.calls) == 3


async def test_what_is_no_longer_granted_is_not_given_again(
    client: AsyncClient, gateway: Gateway, company: Company
) -> None:
    assert (await send(client, company)).status_code == 200
    await in_thread(lambda: Grant.objects.filter(tool__name="write").delete())
    await until(lambda: "write" not in gateway.feed.snapshot.grants[company.role.pk])
    refused = await send(client, company)
    assert (refused.status_code, refused.json()["code"]) == (404, "unknown_tool")


async def test_what_was_refused_can_be_sent_again(client: AsyncClient, company: Company) -> None:
    wrong = {"arguments": {"text": 7}}
    assert (await send(client, company, body=wrong)).status_code == 400
    assert (await send(client, company)).status_code == 200


async def test_a_dead_process_leaves_a_write_unknown_and_never_calls_twice(
    client: AsyncClient, company: Company, outside: FakeConnector
) -> None:
    outside.gate = asyncio.Event()
    dying = asyncio.create_task(send(client, company))
    await until(lambda: outside.calls)
    left = await the_call()
    assert (left.state, left.answer) == ("running", None)
    await grow_old()
    answer = await send(client, company)
    assert (answer.status_code, answer.json()["code"]) == (409, "outcome_unknown")
    assert answer.json()["call"] == str(left.call_id)
    assert str(left.call_id) in answer.json()["detail"]
    (intent,) = await records(call_id=left.call_id)
    assert intent.kind == "intent"
    outside.gate.set()
    await dying
    assert len(outside.calls) == 1


async def test_a_dead_process_leaves_a_read_to_be_called_again(
    client: AsyncClient, company: Company, outside: FakeConnector
) -> None:
    outside.gate = asyncio.Event()
    dying = asyncio.create_task(send(client, company, "echo"))
    await until(lambda: outside.calls)
    assert (await send(client, company, "echo")).status_code == 409
    await grow_old()
    gate, outside.gate = outside.gate, None
    again = await send(client, company, "echo")
    assert (again.status_code, "Idempotent-Replayed" in again) == (200, False)
    gate.set()
    assert (await dying).status_code == 200
    # Whoever was given up for dead does not overwrite what came after.
    assert (await send(client, company, "echo")).content == again.content


async def test_an_outcome_that_was_not_recorded_stays_unknown(
    client: AsyncClient, gateway: Gateway, company: Company, outside: FakeConnector, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside.gate = asyncio.Event()
    monkeypatch.setattr("audit.ledger.ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(gateway.ledger, "_spool", None)
    asking = asyncio.create_task(send(client, company))
    await until(lambda: outside.calls)
    gateway.ledger._lose("test")
    monkeypatch.setattr(gateway.ledger, "_connect", _never)
    outside.gate.set()
    answer = await asking
    assert (answer.status_code, answer.json()["code"]) == (503, "outcome_unknown")
    again = await send(client, company)
    assert (again.status_code, again.json()["code"]) == (409, "outcome_unknown")
    assert again.json()["call"] == answer.json()["call"]
    assert len(outside.calls) == 1


async def _never(*_: Any) -> None:
    raise OSError("away")


async def test_an_answer_that_cannot_be_kept_is_given_all_the_same(
    client: AsyncClient, company: Company, outside: FakeConnector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise DatabaseError("away")

    monkeypatch.setattr("gateway.api.finish", fail)
    assert (await send(client, company)).status_code == 200
    await grow_old()
    assert (await send(client, company)).json()["code"] == "outcome_unknown"
    assert len(outside.calls) == 1


async def test_a_key_is_kept_for_a_day(client: AsyncClient, company: Company, outside: FakeConnector) -> None:
    await send(client, company)
    left = (await the_call()).expires_at - timezone.now()
    assert timedelta(hours=23, minutes=59) < left <= timedelta(hours=24)
    await grow_old(expires_at=timezone.now())
    assert "Idempotent-Replayed" not in await send(client, company, body=OTHER)
    assert len(outside.calls) == 2


async def test_what_is_no_longer_kept_is_deleted(client: AsyncClient, company: Company) -> None:
    await send(client, company)
    await send(client, company, key='"another"')
    assert await in_thread(lambda: tasks.forget(0)) == 0
    await in_thread(lambda: KeyedCall.objects.filter(pk=KeyedCall.objects.first().pk).update(expires_at=timezone.now()))
    assert await in_thread(lambda: tasks.forget(0)) == 1
    assert await in_thread(KeyedCall.objects.count) == 1


async def test_neither_key_nor_arguments_nor_answer_can_be_read_in_the_database(
    client: AsyncClient, company: Company
) -> None:
    await send(client, company, body={"arguments": {"text": "canary-1234"}}, key='"canary-key"')

    def raw() -> str:
        with connection.cursor() as cursor:
            cursor.execute("SELECT encode(answer, 'escape'), gateway_keyedcall::text FROM gateway_keyedcall")
            return str(cursor.fetchall())

    assert "canary" not in await in_thread(raw)
    assert (await the_call()).answer["result"]["content"][0]["text"] == "canary-1234"


@pytest.mark.parametrize(
    ("header", "key"),
    [
        (KEY, KEY.strip('"')),
        ("  " + KEY, KEY.strip('"')),
        (KEY.strip('"'), KEY.strip('"')),
        (r'"a \"b\" \\ c"', r'a "b" \ c'),
        ('"' + "x" * 255 + '"', "x" * 255),
    ],
)
def test_a_key_is_a_string_with_or_without_quotes(header: str, key: str) -> None:
    assert key_of(header) == key


@pytest.mark.parametrize(
    "header", ["", '""', '"a', 'a"', '"a", "b"', "a,b", "a b", '"é"', r'"\x"', '"' + "x" * 256 + '"', '"a";b=1']
)
def test_what_is_no_key_is_refused(header: str) -> None:
    with pytest.raises(KeyRefused) as refused:
        key_of(header)
    assert refused.value.code == "invalid_idempotency_key"


async def test_a_bad_key_calls_nothing(client: AsyncClient, company: Company, outside: FakeConnector) -> None:
    answer = await send(client, company, key='"a", "b"')
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_idempotency_key")
    assert outside.calls == []


async def test_a_late_call_gives_up_nothing_but_its_own(client: AsyncClient, company: Company) -> None:
    await send(client, company)
    stranger = await the_call()
    stranger.call_id = uuid.uuid4()
    await in_thread(lambda: idempotency.release(stranger))
    await in_thread(lambda: idempotency.give_up(stranger))
    assert (await the_call()).state == "finished"
