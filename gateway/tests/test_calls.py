"""The pipeline: what is decided, what is recorded, and what leaves."""

from __future__ import annotations

import asyncio
import hmac
import json
import uuid
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.db import connection

from access.models import ApiToken, Grant, User
from audit.ledger import LedgerUnavailable
from audit.opening import payload_of
from gateway.app import Gateway
from gateway.feed import Listening
from gateway.tests.conftest import Company, FakeConnector, call, in_thread, legacy_call, post, records, until
from mcpsite.postgres import conninfo
from tools.connectors.base import ConnectorError
from tools.models import DataSource, EgressRule, Tool


async def change(make: Any, gateway: Gateway) -> None:
    """Change something in the database, and wait until the gateway has heard of it."""
    assert gateway.feed.snapshot is not None
    before = gateway.feed.snapshot.version
    await in_thread(make)
    await until(lambda: gateway.feed.snapshot.version > before)


async def test_a_read_tool_leaves_one_record_and_its_id_in_the_answer(gateway: Gateway, company: Company) -> None:
    reply = await call(gateway, company.token, "echo")
    assert reply.status == 200
    assert reply.result["content"] == [{"type": "text", "text": "hello"}]
    assert reply.result["resultType"] == "complete"
    (record,) = await records(reply)
    assert str(record.rid) == reply.result["_meta"]["mcpsite/record"]
    assert (record.kind, record.decision, record.code) == ("call", "allow", "ok")
    assert (record.actor, record.roles, record.connector, record.tool) == ("carla", "clerk", "office", "echo")
    assert (record.client, record.address, record.door) == ("tests 1", "192.0.2.7", "mcp")
    assert record.policy_version == gateway.feed.snapshot.version
    current = await in_thread(lambda: Tool.objects.select_related("current").get(name="echo").current)
    assert current is not None
    assert bytes(record.definition or b"").hex() == current.fingerprint
    assert record.request_id == reply.headers["x-request-id"]


async def test_the_commitment_can_be_recomputed_from_the_encrypted_arguments(
    gateway: Gateway, company: Company
) -> None:
    (record,) = await records(await call(gateway, company.token, "echo", {"text": "päßwörd"}))
    kept = await in_thread(lambda: payload_of(record))
    assert kept.arguments == '{"text":"päßwörd"}'.encode()
    assert hmac.digest(kept.salt, b"a" + kept.arguments, "sha256") == bytes(record.args_commit or b"")
    assert "päßwörd".encode() not in bytes(record.ct or b"")


async def test_a_tool_with_effects_leaves_an_intent_before_and_an_outcome_after(
    gateway: Gateway, company: Company, outside: FakeConnector
) -> None:
    outside.gate = asyncio.Event()
    task = asyncio.create_task(call(gateway, company.token, "write"))
    await until(lambda: outside.calls)
    call_id = outside.contexts[0].call_id
    assert [record.kind for record in await records(call_id=call_id)] == ["intent"]
    outside.gate.set()
    reply = await task
    intent, outcome = await records(reply)
    assert (intent.kind, intent.code, outcome.kind, outcome.code) == ("intent", "intended", "outcome", "ok")
    assert intent.args_commit is not None
    assert outcome.result_commit is not None


async def test_a_tool_that_is_not_granted_looks_as_if_it_did_not_exist(gateway: Gateway, company: Company) -> None:
    hidden, absent = await call(gateway, company.token, "hidden"), await call(gateway, company.token, "absent")
    for reply, name in ((hidden, "hidden"), (absent, "absent")):
        assert reply.status == 400
        assert reply.error["code"] == -32602
        assert reply.error["message"] == f"Unknown tool: {name}"
        assert reply.error["data"]["mcpsite/code"] == "unknown_tool"
    assert [r.code for r in await records(hidden)] == ["not_granted"]
    assert [r.code for r in await records(absent)] == ["unknown_tool"]


async def test_wrong_arguments_are_explained_to_the_model_and_recorded(
    gateway: Gateway, company: Company, outside: FakeConnector
) -> None:
    reply = await call(gateway, company.token, "echo", {"text": 7})
    assert reply.result["isError"] is True
    assert "text" in reply.result["content"][0]["text"]
    (record,) = await records(reply)
    assert (record.kind, record.code, record.decision) == ("invalid", "invalid_arguments", "deny")
    assert outside.calls == []


async def test_the_budget_is_spent_and_then_refused(gateway: Gateway, company: Company, outside: FakeConnector) -> None:
    await change(lambda: Grant.objects.filter(tool__name="echo").update(calls_per_minute=2), gateway)
    replies = [await call(gateway, company.token, "echo") for _ in range(3)]
    assert [r.result.get("isError", False) for r in replies] == [False, False, True]
    (record,) = await records(replies[2])
    assert (record.kind, record.code) == ("denied", "budget_exhausted")
    assert len(outside.calls) == 2


async def test_what_fails_outside_is_a_result_that_says_so(
    gateway: Gateway, company: Company, outside: FakeConnector
) -> None:
    outside.fails = [ConnectorError("upstream_timeout", "No answer within 3 s.")]
    reply = await call(gateway, company.token, "write")
    assert reply.result["isError"] is True
    assert [r.code for r in await records(reply)] == ["intended", "upstream_timeout"]


async def test_a_read_is_tried_again_and_an_effect_is_not(
    gateway: Gateway, company: Company, outside: FakeConnector
) -> None:
    broken = ConnectorError("upstream_unavailable", "The connection broke.", retryable=True, sent=True)
    outside.fails = [broken]
    assert "isError" not in (await call(gateway, company.token, "echo")).result
    outside.fails = [broken]
    assert (await call(gateway, company.token, "write")).result["isError"] is True
    assert len(outside.calls) == 3


async def test_a_bug_in_a_connector_tells_the_client_nothing_of_it(
    gateway: Gateway, company: Company, outside: FakeConnector
) -> None:
    outside.fails = [KeyError("password=hunter2")]
    reply = await call(gateway, company.token, "echo")
    assert reply.result["isError"] is True
    assert b"hunter2" not in reply.body
    assert [r.code for r in await records(reply)] == ["internal_error"]


async def test_without_the_ledger_nothing_is_called_and_the_refusal_is_quick(
    gateway: Gateway, company: Company, outside: FakeConnector
) -> None:
    gateway.ledger._lose("test")
    loop = asyncio.get_running_loop()
    started = loop.time()
    reply = await call(gateway, company.token, "write")
    assert loop.time() - started < 0.25
    assert reply.status == 503
    assert reply.headers["retry-after"] == "2"
    assert reply.error["data"]["mcpsite/code"] == "ledger_unavailable"
    assert outside.calls == []
    await until(gateway.ready)
    assert (await call(gateway, company.token, "write")).status == 200


async def test_a_ledger_that_hangs_refuses_the_intent_within_250_ms(
    gateway: Gateway, company: Company, outside: FakeConnector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway.ledger, "_settle", lambda: None)
    loop = asyncio.get_running_loop()
    started = loop.time()
    reply = await call(gateway, company.token, "write")
    assert 0.2 < loop.time() - started < 0.3
    assert reply.status == 503
    assert outside.calls == []
    monkeypatch.undo()
    gateway.ledger._lose("test")
    await until(gateway.ready)
    await until(lambda: not gateway.ledger._waiting and not gateway.ledger._in_flight)
    kinds = [(r.kind, r.code) for r in await records(actor="carla", tool="write")]
    assert kinds[-2:] == [("intent", "intended"), ("outcome", "not_called")]


async def test_an_outcome_leaves_when_it_is_in_the_spool_and_nothing_new_is_asked_for(
    gateway: Gateway, company: Company, outside: FakeConnector, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside.gate = asyncio.Event()
    asking = asyncio.create_task(call(gateway, company.token, "write"))
    await until(lambda: outside.calls)
    connect = gateway.ledger._connect
    monkeypatch.setattr(gateway.ledger, "_connect", _never)
    gateway.ledger._lose("test")
    outside.gate.set()
    reply = await asking
    assert reply.status == 200
    assert (gateway.ledger.spooled, gateway.ready()) == (1, False)
    assert [r.kind for r in await records(reply)] == ["intent"]
    monkeypatch.setattr(gateway.ledger, "_connect", connect)
    await until(gateway.ready)
    assert [(r.kind, r.code) for r in await records(reply)] == [("intent", "intended"), ("outcome", "ok")]
    assert str((await records(reply))[1].rid) == reply.result["_meta"]["mcpsite/record"]


async def _never() -> None:
    raise OSError("away")


async def test_an_outcome_that_cannot_be_recorded_does_not_leave(
    gateway: Gateway, company: Company, outside: FakeConnector, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(entry: Any) -> uuid.UUID:
        raise LedgerUnavailable("gone")

    monkeypatch.setattr(gateway.ledger, "conclude", failing)
    reply = await call(gateway, company.token, "write")
    assert reply.status == 503
    assert reply.error["data"]["mcpsite/code"] == "outcome_unknown"
    assert b"hello" not in reply.body


async def test_a_cancelled_call_is_on_record(gateway: Gateway, company: Company, outside: FakeConnector) -> None:
    outside.gate = asyncio.Event()
    task = asyncio.create_task(call(gateway, company.token, "write"))
    await until(lambda: outside.calls)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    call_id = outside.contexts[0].call_id
    await until(lambda: not gateway.ledger._waiting and not gateway.ledger._in_flight)
    assert [r.code for r in await records(call_id=call_id)] == ["intended", "cancelled"]


@pytest.mark.parametrize(
    "take_away",
    [
        lambda: ApiToken.objects.update(revoked_at="2026-01-01T00:00Z"),
        lambda: User.objects.filter(username="carla").update(is_active=False),
    ],
    ids=["token revoked", "user deactivated"],
)
async def test_revocation_is_refused_at_the_next_call(gateway: Gateway, company: Company, take_away: Any) -> None:
    await change(take_away, gateway)
    reply = await call(gateway, company.token, "echo")
    assert reply.status == 401
    assert reply.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "take_away",
    [
        lambda: Grant.objects.all().delete(),
        lambda: User.objects.get(username="carla").groups.clear(),
        lambda: Tool.objects.filter(name="echo").update(enabled=False),
        lambda: DataSource.objects.update(enabled=False),
    ],
    ids=["grant", "role", "tool", "source"],
)
async def test_what_is_taken_away_is_unknown_at_the_next_call(
    gateway: Gateway, company: Company, take_away: Any
) -> None:
    await change(take_away, gateway)
    assert (await call(gateway, company.token, "echo")).error["message"] == "Unknown tool: echo"


async def test_a_lost_notification_is_made_good_within_five_seconds(gateway: Gateway, company: Company) -> None:
    def quietly() -> None:
        from django.db import connections, transaction

        with transaction.atomic("owner"), connections["owner"].cursor() as cursor:
            cursor.execute("ALTER TABLE access_grant DISABLE TRIGGER raise_policy_version")
            cursor.execute("DELETE FROM access_grant")
            cursor.execute("UPDATE access_policyversion SET version = version + 1")
            cursor.execute("ALTER TABLE access_grant ENABLE TRIGGER raise_policy_version")
        connections["owner"].close()

    loop = asyncio.get_running_loop()
    started = loop.time()
    await change(quietly, gateway)
    assert loop.time() - started < 5
    assert (await call(gateway, company.token, "echo")).error["message"] == "Unknown tool: echo"


async def test_a_thousand_changes_at_once_are_heard_as_one(gateway: Gateway, company: Company) -> None:
    def at_once() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify('mcpsite_policy', n::text) FROM generate_series(1, 1000) AS n")
        Grant.objects.all().delete()

    assert gateway.feed.snapshot is not None
    before = gateway.feed.snapshot.version
    await in_thread(at_once)
    await until(lambda: gateway.feed.snapshot.version > before, seconds=10)
    assert (await call(gateway, company.token, "echo")).error["message"] == "Unknown tool: echo"


async def test_who_listens_sleeps_until_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    wait = psycopg.waiting.wait_async

    def watched(gen: Any, fileno: int, interval: float, timeout: float | None) -> Any:
        looks.append(interval)
        return wait(gen, fileno, interval, timeout)

    async with await Listening.connect(conninfo(settings.DATABASES["default"]), autocommit=True) as connection:
        monkeypatch.setattr("psycopg.waiting.wait_async", watched)
        async for _ in connection.notifies(timeout=0.01):
            pass
    assert min(looks) >= 1


async def test_a_snapshot_that_cannot_be_confirmed_allows_nothing(gateway: Gateway, company: Company) -> None:
    gateway.feed._confirmed -= 60
    reply = await call(gateway, company.token, "echo")
    assert reply.status == 503
    assert reply.headers["retry-after"] == "2"


async def test_both_eras_take_the_same_path(gateway: Gateway, company: Company) -> None:
    reply = await legacy_call(gateway, company.token, "echo")
    assert reply.result["content"] == [{"type": "text", "text": "hello"}]
    assert "resultType" not in reply.result
    assert [r.code for r in await records(reply)] == ["ok"]


async def test_nul_and_surrogates_are_refused_or_kept_but_never_lose_the_record(
    gateway: Gateway, company: Company
) -> None:
    reply = await call(gateway, company.token, "echo", {"text": "a\0b"})
    assert reply.result["content"][0]["text"] == "a\0b"
    assert [r.code for r in await records(reply)] == ["ok"]
    strange = await post(
        gateway,
        {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "x\0y", "arguments": {}}},
        company.token,
    )
    (record,) = await records(strange)
    assert record.tool == "x\ufffdy"


async def test_concurrent_callers_get_their_own_answers(gateway: Gateway, company: Company) -> None:
    texts = [f"text {n}" for n in range(400)]
    replies = await asyncio.gather(*(call(gateway, company.token, "echo", {"text": text}) for text in texts))
    assert [r.result["content"][0]["text"] for r in replies] == texts
    assert len({r.result["_meta"]["mcpsite/record"] for r in replies}) == 400
    assert gateway.ledger.batches < 400


def test_egress_rules_are_part_of_the_policy(company: Company) -> None:
    from access.models import PolicyVersion

    before = PolicyVersion.objects.get().version
    EgressRule.objects.create(network="10.9.0.0/16", note="test")
    assert PolicyVersion.objects.get().version == before + 1


async def test_a_process_that_writes_says_when_it_starts_and_when_it_ends(company: Company) -> None:
    gateway = Gateway(conninfo(connection.settings_dict))
    await gateway.start()
    await until(gateway.ready)
    await gateway.stop()
    found = await records(writer_id=gateway.ledger.writer_id)
    assert [(each.kind, each.code, each.writer_seq) for each in found] == [
        ("system", "writer_started", 1),
        ("system", "writer_stopped", 2),
    ]
    said = json.loads(found[0].detail or "")
    assert (said["program"], said["writer_id"]) == ("web", str(gateway.ledger.writer_id))
    assert {"version", "host", "pid"} <= set(said)


async def test_what_happens_to_a_source_is_on_record_once_a_minute(gateway: Gateway, company: Company) -> None:
    for number in range(20):
        gateway.connectors._hear("office", "server_ended", {"pid": number})
    gateway.connectors._hear("office", "server_started", {"pid": 1})
    await until(lambda: not gateway.ledger.queued)
    found = await records(connector="office", kind="system", writer_id=gateway.ledger.writer_id)
    assert [(each.code, each.detail) for each in found] == [
        ("server_ended", '{"pid":0}'),
        ("server_started", '{"pid":1}'),
    ]
