"""Tasks: a call that its client asks for later, which survives the worker, and is nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from django.db import connection
from django.utils import timezone

from access import tokens
from access.models import Grant
from audit.models import Record
from audit.reconcile import reconcile
from gateway import task_rows, task_work, tasks
from gateway.app import Gateway
from gateway.models import Task
from gateway.tests.conftest import (
    META,
    Company,
    FakeConnector,
    Reply,
    in_thread,
    legacy_call,
    make_user,
    modern,
    post,
    records,
    until,
)
from mcpsite.postgres import conninfo
from tools import exact
from tools.connectors.base import ConnectorError, Context, Result, Spec
from tools.models import Tool

TASKS = "io.modelcontextprotocol/tasks"
DECLARED: dict[str, Any] = {"extensions": {TASKS: {}}, "elicitation": {}}


class Curious(FakeConnector):
    """Asks its client as many questions at once as it is told to, and answers with the answers."""

    questions = 0

    async def call(self, spec: Spec, arguments: dict[str, Any], context: Context) -> Result:
        if not self.questions:
            return await super().call(spec, arguments, context)
        assert context.client is not None
        params = [{"message": f"Question {number}"} for number in range(self.questions)]
        answers = await asyncio.gather(*(context.client.ask("elicitation/create", each) for each in params))
        said = " ".join(answer["content"]["word"] for answer in answers)
        return Result({"content": [{"type": "text", "text": said}]}, False)


@pytest.fixture
def outside() -> FakeConnector:
    return Curious(gate=asyncio.Event())


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_work, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(task_work, "_BEAT_SECONDS", 0.05)
    monkeypatch.setattr(task_work, "LOST_SECONDS", 0.4)


@pytest.fixture
async def survivor(company: Company, outside: FakeConnector) -> AsyncIterator[Gateway]:
    """Another worker."""
    gateway = Gateway(conninfo(connection.settings_dict))
    gateway.pipeline._connector = lambda tool: outside
    await gateway.start()
    await until(gateway.ready)
    yield gateway
    await gateway.stop()


async def ask(
    gateway: Gateway, token: str, method: str, params: dict[str, Any], capabilities: Any = DECLARED, **headers: str
) -> Reply:
    body = modern(method, params)
    body["params"]["_meta"] = META | {"io.modelcontextprotocol/clientCapabilities": capabilities}
    sent = {"mcp_protocol_version": "2026-07-28", "mcp_method": method}
    sent["mcp_name"] = params.get("name") or params["taskId"]
    return await post(gateway, exact.written(body), token, **(sent | headers))


async def call(gateway: Gateway, token: str, name: str, capabilities: Any = DECLARED) -> Reply:
    arguments = {"text": "hello", "size": 2**70}
    return await ask(gateway, token, "tools/call", {"name": name, "arguments": arguments}, capabilities)


async def become(company: Company, gateway: Gateway, as_task: str, *names: str) -> None:
    """Set when calls of these tools become tasks, and wait until it is in force."""
    await in_thread(lambda: Tool.objects.filter(name__in=names).update(as_task=as_task))
    await until(lambda: gateway.feed.snapshot and all(gateway.feed.snapshot.tools[n].as_task == as_task for n in names))


async def ended(gateway: Gateway, company: Company, identifier: str) -> dict[str, Any]:
    return await seen(gateway, company, identifier, "completed", "failed", "cancelled")


async def seen(gateway: Gateway, company: Company, identifier: str, *statuses: str) -> dict[str, Any]:
    async with asyncio.timeout(10):
        while True:
            task: dict[str, Any] = (await ask(gateway, company.token, "tasks/get", {"taskId": identifier})).result
            if task["status"] in statuses:
                return task
            await asyncio.sleep(0.02)


async def begun(gateway: Gateway, company: Company, name: str = "echo") -> str:
    """The id of a task whose call is under way."""
    reply = await call(gateway, company.token, name)
    assert reply.result["resultType"] == "task"
    return str(reply.result["taskId"])


def die(gateway: Gateway) -> None:
    """What is left of a worker after kill -9: rows that nobody looks after."""
    assert gateway.tasks._task is not None
    gateway.tasks._task.cancel()
    for work in gateway.tasks._held.values():
        work.job.remove_done_callback(work.when_done)
        work.job.cancel()


# --- Becoming one ----------------------------------------------------------------------------------------------------


async def test_a_call_that_is_slow_becomes_a_task_with_its_result(
    company: Company, gateway: Gateway, outside: FakeConnector, settings: Any
) -> None:
    settings.TASK_AFTER_SECONDS = 0.05
    assert outside.gate is not None
    created = await call(gateway, company.token, "echo")
    assert created.result.keys() >= {"taskId", "createdAt", "lastUpdatedAt", "ttlMs", "pollIntervalMs"}
    assert created.result["resultType"] == "task"
    assert created.result["status"] == "working"
    going_on = await ask(gateway, company.token, "tasks/get", {"taskId": created.result["taskId"]})
    assert (going_on.result["resultType"], going_on.result["status"]) == ("complete", "working")
    outside.gate.set()
    task = await ended(gateway, company, created.result["taskId"])
    assert (task["status"], task["result"]["content"][0]["text"]) == ("completed", "hello")
    [record] = await records(call_id=task["result"]["_meta"]["mcpsite/call"])
    assert (record.code, record.tool) == ("ok", "echo")
    assert created.result["taskId"] in (record.detail or "")
    assert len(outside.calls) == 1


async def test_a_call_that_is_quick_is_answered_as_ever(
    company: Company, gateway: Gateway, outside: FakeConnector
) -> None:
    outside.gate = None
    reply = await call(gateway, company.token, "echo")
    assert (reply.result["resultType"], reply.result["content"][0]["text"]) == ("complete", "hello")
    assert await in_thread(Task.objects.count) == 0


@pytest.mark.parametrize("as_task", ["at_once", "always", "never"])
async def test_the_tool_says_when_a_call_becomes_a_task(
    company: Company, gateway: Gateway, outside: FakeConnector, as_task: str
) -> None:
    assert outside.gate is not None
    outside.gate.set()
    await become(company, gateway, as_task, "echo")
    able, unable = await call(gateway, company.token, "echo"), await call(gateway, company.token, "echo", {})
    assert able.result["resultType"] == ("complete" if as_task == "never" else "task")
    if as_task != "always":
        assert unable.result["content"][0]["text"] == "hello"
        return
    assert (unable.status, unable.error["code"]) == (400, -32021)
    assert unable.error["data"]["requiredCapabilities"] == {"extensions": {TASKS: {}}}
    [record] = await records(unable)
    assert (record.kind, record.code) == ("denied", "task_required")
    assert (await legacy_call(gateway, company.token, "echo")).result["isError"] is True
    hidden = await call(gateway, company.token, "hidden", {})
    assert hidden.error["code"] == -32602


async def test_what_is_refused_at_once_never_becomes_a_task(company: Company, gateway: Gateway) -> None:
    await become(company, gateway, "at_once", "echo")
    wrong = await ask(gateway, company.token, "tools/call", {"name": "echo", "arguments": {}})
    assert wrong.result["isError"] is True
    assert await in_thread(Task.objects.count) == 0


async def test_the_tasks_of_one_user_are_limited(company: Company, gateway: Gateway, settings: Any) -> None:
    settings.TASKS_PER_USER = 1
    await become(company, gateway, "at_once", "echo")
    await begun(gateway, company)
    refused = await call(gateway, company.token, "echo")
    assert refused.result["_meta"]["mcpsite/code"] == "too_many_tasks"
    [record] = await records(refused)
    assert (record.kind, record.code) == ("denied", "too_many_tasks")


async def test_an_error_of_the_protocol_is_a_failure_and_one_of_the_tool_a_result(
    company: Company, gateway: Gateway, outside: FakeConnector
) -> None:
    assert outside.gate is not None
    outside.gate.set()
    await become(company, gateway, "at_once", "echo")
    refusal = {"code": -32603, "message": "It\0broke"}
    outside.fails = [
        ConnectorError("upstream_refused", "no", refusal=refusal),
        ConnectorError("upstream_timeout", "no"),
    ]
    failed, done = [await ended(gateway, company, await begun(gateway, company)) for _ in range(2)]
    assert (failed["status"], failed["error"]["code"], failed["error"]["message"]) == ("failed", -32603, "It\0broke")
    assert "result" not in failed
    assert (done["status"], done["result"]["isError"]) == ("completed", True)


async def test_discovery_names_the_extension(company: Company, gateway: Gateway) -> None:
    reply = await post(
        gateway,
        modern("server/discover"),
        company.token,
        mcp_protocol_version="2026-07-28",
        mcp_method="server/discover",
    )
    assert reply.result["capabilities"]["extensions"] == {TASKS: {}}


# --- Whose it is -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["tasks/get", "tasks/update", "tasks/cancel"])
async def test_a_task_of_somebody_else_looks_as_if_there_were_none(
    company: Company, gateway: Gateway, method: str
) -> None:
    await become(company, gateway, "at_once", "echo")
    identifier = await begun(gateway, company)
    other = await in_thread(lambda: tokens.issue(make_user("otto", company.role), name="o", scopes=["tools"])[1])
    narrow = await in_thread(lambda: tokens.issue(company.user, name="n", scopes=["read"])[1])
    await until(lambda: len(gateway.feed.snapshot.tokens) == 3)
    tries = [(other, identifier), (narrow, identifier), (company.token, "made-up"), (company.token, "x" * 500)]
    for token, named in tries:
        reply = await ask(gateway, token, method, {"taskId": named, "inputResponses": {}})
        assert (reply.status, reply.error["code"]) == (400, -32602)
    denied = await records(code="unknown_task", kind="denied")
    assert [record.actor for record in denied[-4:]] == ["otto", "carla", "carla", "carla"]
    undeclared = await ask(gateway, company.token, method, {"taskId": identifier, "inputResponses": {}}, {})
    assert (undeclared.status, undeclared.error["code"]) == (400, -32021)
    misrouted = await ask(gateway, company.token, method, {"taskId": identifier}, mcp_name="another")
    assert (misrouted.status, misrouted.error["code"]) == (400, -32020)
    assert (await ask(gateway, company.token, "tasks/get", {"taskId": identifier})).result["status"] == "working"


async def test_a_task_ends_with_the_grant_of_its_tool(company: Company, gateway: Gateway) -> None:
    await become(company, gateway, "at_once", "echo")
    identifier = await begun(gateway, company)
    await in_thread(lambda: Grant.objects.filter(tool__name="echo").delete())
    await until(lambda: not len(gateway.tasks))
    row = await in_thread(lambda: Task.objects.get(pk=identifier))
    assert (row.status, row.code) == ("failed", "not_granted")
    reply = await ask(gateway, company.token, "tasks/get", {"taskId": identifier})
    assert reply.error["code"] == -32602


async def test_a_grant_that_went_before_a_call_became_a_task_ends_it_too(
    company: Company, gateway: Gateway, outside: FakeConnector, settings: Any
) -> None:
    settings.TASK_AFTER_SECONDS = 3600

    async def ask_at_last(context: Context) -> None:
        assert context.client is not None
        await context.client.ask("elicitation/create", {"message": "?"})

    assert outside.gate is not None
    outside.during = ask_at_last
    await become(company, gateway, "at_once", "write")
    await begun(gateway, company, "write")
    late = asyncio.create_task(call(gateway, company.token, "echo"))
    await until(lambda: len(outside.calls) == 2)
    await in_thread(lambda: Grant.objects.filter(tool__name="echo").delete())
    await until(lambda: gateway.tasks._checked and not any("echo" in g for g in gateway.tasks._checked.grants.values()))
    outside.gate.set()
    identifier = (await late).result["taskId"]
    await until(lambda: len(gateway.tasks) == 1)
    row = await in_thread(lambda: Task.objects.get(pk=identifier))
    assert (row.status, row.code) == ("failed", "not_granted")


async def test_arguments_and_results_are_not_readable_in_the_table(
    company: Company, gateway: Gateway, outside: FakeConnector
) -> None:
    assert outside.gate is not None
    outside.gate.set()
    await become(company, gateway, "at_once", "echo")
    await ended(gateway, company, await begun(gateway, company))

    def stored() -> bytes:
        with connection.cursor() as cursor:
            cursor.execute("SELECT request || result FROM gateway_task")
            return bytes(cursor.fetchone()[0])

    assert b"hello" not in await in_thread(stored)
    row = await in_thread(lambda: Task.objects.get())
    assert (row.request["arguments"], row.result["content"][0]["text"]) == ({"text": "hello", "size": 2.0**70}, "hello")


# --- Answers and cancellation ----------------------------------------------------------------------------------------


async def test_a_task_waits_for_answers_which_may_come_one_by_one(
    company: Company, gateway: Gateway, survivor: Gateway, outside: Curious
) -> None:
    outside.questions = 2
    await become(company, gateway, "at_once", "echo")
    identifier = await begun(gateway, company)
    async with asyncio.timeout(10):
        while len((await seen(gateway, company, identifier, "working", "input_required")).get("inputRequests", ())) < 2:
            await asyncio.sleep(0.02)
    task = await seen(gateway, company, identifier, "input_required")
    (first, one), (second, _) = task["inputRequests"].items()
    assert (one["method"], one["params"]["message"]) == ("elicitation/create", "Question 0")
    # By the other worker, with an answer to nothing besides.
    given = {first: {"action": "accept", "content": {"word": "one"}}, "q99": {"action": "accept"}}
    reply = await ask(survivor, company.token, "tasks/update", {"taskId": identifier, "inputResponses": given})
    assert reply.result.keys() == {"resultType", "_meta"}
    assert reply.result["resultType"] == "complete"
    left = await ask(survivor, company.token, "tasks/get", {"taskId": identifier})
    assert (left.result["status"], list(left.result["inputRequests"])) == ("input_required", [second])
    given = {second: {"action": "accept", "content": {"word": "two"}}}
    await ask(survivor, company.token, "tasks/update", {"taskId": identifier, "inputResponses": given})
    task = await ended(gateway, company, identifier)
    assert task["result"]["content"][0]["text"] == "one two"
    answered = await records(code="task_answered", call_id=task["result"]["_meta"]["mcpsite/call"])
    assert [record.actor for record in answered] == ["carla", "carla"]


async def test_a_task_whose_client_never_answers_comes_to_its_end(
    company: Company, gateway: Gateway, outside: Curious, settings: Any
) -> None:
    settings.TASK_TIMEOUT_SECONDS = -4.5
    outside.questions = 1
    await become(company, gateway, "at_once", "echo")
    task = await ended(gateway, company, await begun(gateway, company))
    assert (task["status"], task["error"]["data"]["mcpsite/code"]) == ("failed", "task_timeout")


async def test_answers_that_are_none_are_refused(company: Company, gateway: Gateway, outside: Curious) -> None:
    outside.questions = 1
    await become(company, gateway, "at_once", "echo")
    identifier = await begun(gateway, company)
    await seen(gateway, company, identifier, "input_required")
    wrongs: tuple[Any, ...] = (None, [], {"q1": 12})
    for wrong in wrongs:
        reply = await ask(gateway, company.token, "tasks/update", {"taskId": identifier, "inputResponses": wrong})
        assert reply.error["code"] == -32602
    await seen(gateway, company, identifier, "input_required")


@pytest.mark.parametrize("name", ["echo", "write"])
async def test_a_task_is_cancelled_at_any_worker(
    company: Company, gateway: Gateway, survivor: Gateway, name: str
) -> None:
    await become(company, gateway, "at_once", name)
    identifier = await begun(gateway, company, name)
    for _ in range(2):
        reply = await ask(survivor, company.token, "tasks/cancel", {"taskId": identifier})
        assert reply.result.keys() == {"resultType", "_meta"}
    task = await ended(gateway, company, identifier)
    assert task["status"] == "cancelled"
    assert "error" not in task
    assert "result" not in task
    again = await ask(gateway, company.token, "tasks/cancel", {"taskId": identifier})
    assert again.result["resultType"] == "complete"
    call_id = await in_thread(lambda: Task.objects.get(pk=identifier).call_id)
    codes = [record.code for record in await records(call_id=call_id)]
    assert codes.count("task_cancel_requested") == 1
    assert codes.count("cancelled") == 1


# --- Workers that die ------------------------------------------------------------------------------------------------


async def test_a_reading_tool_is_begun_anew_by_another_worker_but_once(
    company: Company, gateway: Gateway, survivor: Gateway, outside: FakeConnector
) -> None:
    assert outside.gate is not None
    await become(company, gateway, "at_once", "echo")
    identifier = await begun(gateway, company)
    await until(lambda: len(outside.calls) == 1)
    die(gateway)
    await until(lambda: len(outside.calls) == 2, 15)
    outside.gate.set()
    task = await ended(survivor, company, identifier)
    assert (task["status"], task["result"]["content"][0]["text"]) == ("completed", "hello")
    assert outside.calls[0] == outside.calls[1] == {"text": "hello", "size": 2**70}
    done = [record for record in await records(call_id=task["result"]["_meta"]["mcpsite/call"]) if record.code == "ok"]
    assert len(done) == 1
    assert '"attempt":2' in (done[0].detail or "")


async def test_a_reading_tool_is_not_begun_a_third_time(
    company: Company, gateway: Gateway, survivor: Gateway, outside: FakeConnector
) -> None:
    await become(company, gateway, "at_once", "echo")
    identifier = await begun(gateway, company)
    await in_thread(lambda: Task.objects.update(attempts=2))
    die(gateway)
    task = await ended(survivor, company, identifier)
    assert (task["status"], task["error"]["data"]["mcpsite/code"]) == ("failed", "task_lost")
    assert len(outside.calls) == 1
    codes = [record.code for record in await records(call_id=task["error"]["data"]["mcpsite/call"])]
    assert "unknown" in codes


async def test_what_a_tool_with_effects_did_is_unknown_and_it_is_not_called_again(
    company: Company, gateway: Gateway, survivor: Gateway, outside: FakeConnector
) -> None:
    await become(company, gateway, "at_once", "write")
    identifier = await begun(gateway, company, "write")
    await until(lambda: len(outside.calls) == 1)
    call_id = await in_thread(lambda: Task.objects.get(pk=identifier).call_id)
    # Nothing was heard of a worker that died, not even this.
    gateway.ledger.put = lambda entry: None  # type: ignore[method-assign]
    die(gateway)
    task = await ended(survivor, company, identifier)
    assert (task["status"], task["error"]["data"]["mcpsite/code"]) == ("failed", "outcome_unknown")
    assert len(outside.calls) == 1
    assert [record.code for record in await records(call_id=call_id)] == ["intended", "unknown"]


async def test_a_database_that_hangs_holds_nobody_up_and_leaves_no_task_behind(
    company: Company, gateway: Gateway, outside: FakeConnector, monkeypatch: pytest.MonkeyPatch
) -> None:
    await become(company, gateway, "at_once", "echo")
    identifier = await begun(gateway, company)
    monkeypatch.setattr(task_work, "LOST_SECONDS", 60.0)
    with psycopg.connect(conninfo(connection.settings_dict)) as hanging:
        hanging.execute("LOCK TABLE gateway_task IN ACCESS EXCLUSIVE MODE")
        with monkeypatch.context() as patched:
            patched.setattr(task_rows, "_HANG_SECONDS", 0.05)
            for method in ("tasks/get", "tasks/cancel", "tasks/update"):
                reply = await ask(gateway, company.token, method, {"taskId": identifier, "inputResponses": {}})
                assert (reply.status, reply.error["data"]["mcpsite/code"]) == (503, "tasks_unavailable")
            refused = await call(gateway, company.token, "echo")
            assert refused.result["_meta"]["mcpsite/code"] == "tasks_unavailable"
    await until(lambda: not gateway.tasks.rows._left, 10)
    assert await in_thread(lambda: list(Task.objects.values_list("pk", flat=True))) == [identifier]
    assert len(outside.calls) == 1


async def test_what_is_taken_up_while_a_worker_gives_its_sign_of_life_goes_on(
    company: Company, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_work, "_BEAT_SECONDS", 3600)
    await become(company, gateway, "at_once", "echo")
    await begun(gateway, company)
    beat = gateway.tasks.rows.beat

    async def slow(worker: str, held: list[str]) -> frozenset[str]:
        mine = await beat(worker, held)
        await begun(gateway, company)
        return mine

    monkeypatch.setattr(gateway.tasks.rows, "beat", slow)
    await gateway.tasks._beat()
    assert [work.ending for work in gateway.tasks._held.values()] == [None, None]


async def test_a_task_that_its_worker_has_let_go_is_not_kept_from_others(
    company: Company, gateway: Gateway, survivor: Gateway
) -> None:
    await become(company, gateway, "at_once", "echo")
    let_go, _ = [await begun(gateway, company) for _ in range(2)]
    work = gateway.tasks._held.pop(let_go)  # as when its end could not be written for minutes
    work.job.remove_done_callback(work.when_done)
    await until(lambda: let_go in (*gateway.tasks._held, *survivor.tasks._held))


async def test_a_worker_that_stops_in_order_leaves_reading_tasks_to_another_one(
    company: Company, gateway: Gateway, outside: FakeConnector, survivor: Gateway
) -> None:
    assert outside.gate is not None
    await become(company, survivor, "at_once", "echo", "write")
    reading, writing = await begun(survivor, company), await begun(survivor, company, "write")
    await until(lambda: len(outside.calls) == 2)
    await survivor.tasks.stop()
    outside.gate.set()
    assert (await ended(gateway, company, reading))["status"] == "completed"
    assert (await ended(gateway, company, writing))["error"]["data"]["mcpsite/code"] == "outcome_unknown"
    assert len(outside.calls) == 3


async def test_the_intent_of_a_task_stays_open_as_long_as_it_is_under_way(
    company: Company, gateway: Gateway, settings: Any
) -> None:
    await become(company, gateway, "at_once", "write")
    identifier = await begun(gateway, company, "write")
    call_id = await in_thread(lambda: Task.objects.get(pk=identifier).call_id)
    settings.CALL_TIMEOUT_SECONDS = -60
    await in_thread(reconcile)
    assert [record.code for record in await records(call_id=call_id)] == ["intended"]


async def test_expired_tasks_are_unknown_and_then_deleted(
    company: Company, gateway: Gateway, outside: FakeConnector
) -> None:
    assert outside.gate is not None
    outside.gate.set()
    await become(company, gateway, "at_once", "echo")
    gone, kept = [await begun(gateway, company) for _ in range(2)]
    await ended(gateway, company, gone)
    await in_thread(lambda: Task.objects.filter(pk=gone).update(expires_at=timezone.now() - timedelta(seconds=1)))
    reply = await ask(gateway, company.token, "tasks/get", {"taskId": gone})
    assert reply.error["code"] == -32602
    await in_thread(lambda: tasks.forget(0))
    assert await in_thread(lambda: list(Task.objects.values_list("pk", flat=True))) == [kept]


async def test_a_client_that_leaves_before_it_hears_of_the_task_cancels_the_call(
    company: Company, gateway: Gateway, outside: FakeConnector
) -> None:
    request = asyncio.create_task(call(gateway, company.token, "echo"))
    await until(lambda: len(outside.calls) == 1)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    assert await in_thread(Task.objects.count) == 0
    assert await in_thread(lambda: Record.objects.filter(actor="carla", code="cancelled").exists())
