"""Runs of agents, from the job to the ledger, with a scripted model and a real gateway."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from datetime import timedelta

import pytest
from django.contrib.auth.models import Permission
from django.db import OperationalError, connection
from django.utils import timezone
from procrastinate.contrib.django import app
from rest_framework.test import APIClient

from access.models import User
from agents.models import Agent, Run, Step
from agents.runs import begin, cancel_run, finish, stay_alive, sweep
from agents.tasks import execute
from agents.tests.conftest import found, in_thread, make_agent, make_provider, queued, ran, steps_of, until
from agents.worker import STOPPED
from audit.ledger import LedgerUnavailable
from audit.models import Record
from gateway.tests.conftest import records
from tools.connectors.base import Source
from tools.connectors.sql import SqlConnector
from tools.connectors.sql_options import SqlOptions
from tools.egress import Egress, Rule
from tools.tests.database import make_tool

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"

pytestmark = pytest.mark.usefixtures("company")


async def test_a_run_calls_tools_and_answers(worker, agent, starter, outside):
    run = await ran(worker, agent, starter)
    assert (run.status, run.code, run.output) == ("succeeded", "ok", "The echo says carla@example.com.")
    assert outside.calls == [{"text": "carla@example.com"}]
    assert (run.model_calls, run.tool_calls, run.tokens, run.scripted) == (2, 1, 0, True)
    assert run.started_at is not None
    assert run.finished_at >= run.started_at


async def test_every_step_leads_to_its_record(worker, agent, starter):
    run = await ran(worker, agent, starter)
    assert run.status == "succeeded", (run.code, run.message)
    asked, called, said = await steps_of(run)
    assert [step.kind for step in (asked, called, said)] == ["model", "tool", "model"]
    assert asked.content["calls"] == [
        {"id": called.tool_call, "tool": "echo", "arguments": {"text": "carla@example.com"}}
    ]
    assert called.content == {"arguments": {"text": "carla@example.com"}, "result": "carla@example.com"}
    [record] = await records(kind="call", trace_id=run.trace_id)
    assert (record.rid, record.call_id, record.request_id) == (called.record_id, called.call_id, str(called.id))
    assert (record.door, record.actor, record.on_behalf_of) == ("agent", "agent-clerk-agent", "stella")
    assert (record.token, record.roles) == ("agent clerk-agent", "clerk")
    told = await records(kind="agent", trace_id=run.trace_id)
    codes = ["run_queued", "run_started", "model_answered", "model_answered", "run_succeeded"]
    assert [each.code for each in told] == codes
    assert {each.object_id for each in told} == {str(run.pk)}
    assert [each.rid for each in told if each.code == "model_answered"] == [asked.record_id, said.record_id]


async def test_a_trace_goes_on_from_who_started_the_run_into_the_log_of_a_database(worker, agent, starter, monkeypatch):
    """REST → run → steps → calls → comment of the statement."""
    own_text = make_tool("SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid()")
    known = connection.settings_dict
    reached = {"host": known["HOST"], "port": int(known["PORT"]), "database": known["NAME"], "user": known["USER"]}
    options = SqlOptions.model_validate({**reached, "password": known["PASSWORD"], "tls": "disable"})
    place = f"unix:{known['HOST']}" if known["HOST"].startswith("/") else f"{known['HOST']}/32"
    database = SqlConnector(Source(uuid.uuid4(), "shop", options, 5), Egress([Rule.parse(place, None)]))
    asked = database.call
    monkeypatch.setattr(database, "call", lambda spec, arguments, context: asked(own_text, {}, context))
    worker.gateway.pipeline._connector = lambda tool: database
    started = await in_thread(lambda: started_by_rest(agent, starter, TRACE))
    await worker.execute(started.pk)
    await database.close()
    trace_id = TRACE[3:35]
    assert started.trace_id == trace_id
    told = await records(trace_id=trace_id)
    assert [each.kind for each in told] == ["agent", "agent", "agent", "call", "agent", "agent"]
    [call] = [each for each in told if each.kind == "call"]
    assert json.loads(call.detail)["run"] == str(started.pk)
    _, step, _ = await steps_of(started)
    assert (step.call_id, str(step.id)) == (call.call_id, call.request_id)
    text = step.content["result"]
    assert f"call='{call.call_id}'" in text
    [(version, trace, span, flags)] = re.findall(r"traceparent='(\w\w)-(\w{32})-(\w{16})-(\w\w)'", text)
    assert (version, trace, flags) == ("00", trace_id, "00")
    assert span != TRACE[36:52]


def started_by_rest(agent: Agent, starter: User, trace: str) -> Run:
    starter.user_permissions.add(Permission.objects.get(codename="run_agent"))
    client = APIClient()
    client.force_authenticate(starter)
    answer = client.post(
        f"/api/v1/agents/{agent.name}/runs/", {"input": "Write to a@example.com."}, headers={"traceparent": trace}
    )
    assert answer.status_code == 202, answer.json()
    run = Run.objects.get(pk=answer.json()["id"])
    assert answer.json()["trace_id"] == run.trace_id
    return run


async def test_a_refusal_is_for_the_model_to_read(worker, company, starter):
    script = '- {call: echo, with: {wrong: 1}}\n- {say: "{{ echo }}"}'
    agent = await in_thread(lambda: make_agent(company.role, make_provider(script)))
    run = await ran(worker, agent, starter)
    assert run.status == "succeeded"
    assert "do not fit the schema of echo" in run.output
    assert [step.code for step in await steps_of(run)] == ["ok", "invalid_arguments", "ok"]


async def test_a_tool_that_is_not_granted_cannot_be_called(worker, company, starter, outside):
    script = '- {call: hidden, with: {text: a}}\n- {say: "{{ hidden }}"}'
    agent = await in_thread(lambda: make_agent(company.role, make_provider(script)))
    run = await ran(worker, agent, starter)
    assert run.status == "succeeded"
    assert "hidden is not a valid tool" in run.output
    assert outside.calls == []


async def test_a_toolset_narrows_the_agent(worker, company, starter, outside):
    script = '- {call: write, with: {text: a}}\n- {say: "{{ write }}"}'
    agent = await in_thread(lambda: make_agent(company.role, make_provider(script), toolset=company.toolset))
    run = await ran(worker, agent, starter)
    assert "write is not a valid tool" in run.output
    assert outside.calls == []


async def test_a_grant_that_is_taken_back_ends_the_calls_of_a_run_that_has_begun(worker, company, starter, outside):
    script = '- {call: echo, with: {text: a}}\n- {call: echo, with: {text: b}}\n- {say: "{{ echo }}"}'
    agent = await in_thread(lambda: make_agent(company.role, make_provider(script)))
    outside.gate = asyncio.Event()
    run = await queued(agent, starter)
    work = asyncio.create_task(worker.execute(run.pk))
    await until(lambda: outside.calls)
    version = worker.gateway.feed.current.version
    await in_thread(lambda: company.role.grants.all().delete())
    await until(lambda: worker.gateway.feed.current.version > version)
    outside.gate.set()
    await work
    assert len(outside.calls) == 1
    assert [step.code for step in await steps_of(run) if step.kind == "tool"] == ["ok", "unknown_tool"]


async def test_a_run_is_begun_once(worker, agent, starter, outside):
    run = await queued(agent, starter)
    assert sorted(await asyncio.gather(worker.execute(run.pk), worker.execute(run.pk))) == ["not_waiting", "ok"]
    assert await worker.execute(run.pk) == "not_waiting"
    assert len(outside.calls) == 1


async def test_the_job_brings_the_run_to_the_worker(worker, agent, starter):
    run = await queued(agent, starter)
    with app.replace_connector(app.connector.get_worker_connector()) as jobs:
        async with jobs.open_async():
            await jobs.run_worker_async(
                queues=["agents"], wait=False, additional_context={"worker": worker}, install_signal_handlers=False
            )
    assert (await found(run)).status == "succeeded"


async def test_a_run_that_could_not_be_begun_is_begun_later(worker, agent, starter, monkeypatch):
    attempts = []

    def begin_at_the_second_attempt(run_id):
        attempts.append(run_id)
        if len(attempts) == 1:
            raise OperationalError("the server is shutting down")
        return begin(run_id)

    monkeypatch.setattr("agents.worker.begin", begin_at_the_second_attempt)
    monkeypatch.setattr(execute.retry_strategy, "wait", 0)
    run = await queued(agent, starter)
    with app.replace_connector(app.connector.get_worker_connector()) as jobs:
        async with jobs.open_async():
            await jobs.run_worker_async(
                queues=["agents"], wait=False, additional_context={"worker": worker}, install_signal_handlers=False
            )
    assert (await found(run)).status == "succeeded"
    assert len(attempts) == 2


async def test_who_asks_the_model_too_often_is_stopped(worker, company, starter):
    script = "".join("- {call: echo, with: {text: a}}\n" for _ in range(5)) + "- {say: done}"
    agent = await in_thread(lambda: make_agent(company.role, make_provider(script), max_model_calls=3))
    run = await ran(worker, agent, starter)
    assert (run.status, run.code, run.model_calls) == ("failed", "model_call_limit", 3)


async def test_who_calls_too_many_tools_is_stopped(worker, company, starter, outside):
    script = "".join("- {call: echo, with: {text: a}}\n" for _ in range(5)) + "- {say: done}"
    agent = await in_thread(lambda: make_agent(company.role, make_provider(script), max_tool_calls=2))
    run = await ran(worker, agent, starter)
    assert (run.status, run.code, len(outside.calls)) == ("failed", "tool_call_limit", 2)


async def test_a_run_ends_when_its_time_is_over(worker, company, starter, outside):
    outside.gate = asyncio.Event()
    agent = await in_thread(lambda: make_agent(company.role, make_provider(), max_seconds=5))
    agent.max_seconds = 1
    await in_thread(agent.save)
    run = await ran(worker, agent, starter)
    assert (run.status, run.code) == ("failed", "time_limit")
    await until(lambda: worker.gateway.ledger.rows)
    assert [each.code for each in await records(trace_id=run.trace_id, kind="call")] == ["cancelled"]


async def test_cancelling_stops_the_call_that_is_under_way(worker, agent, starter, outside):
    outside.gate = asyncio.Event()
    run = await queued(agent, starter)
    work = asyncio.create_task(worker.execute(run.pk))
    await until(lambda: outside.calls)
    await in_thread(lambda: cancel_run(run, actor=starter, door="rest"))
    async with asyncio.timeout(4):
        assert await work == "cancelled"
    assert (await found(run)).status == "cancelled"
    codes = [each.code for each in await records(trace_id=run.trace_id, object_type="agents.Run")]
    assert codes[-2:] == ["run_cancel_requested", "run_cancelled"]


async def test_what_waits_is_cancelled_at_once_and_never_begun(worker, agent, starter, outside):
    run = await queued(agent, starter)
    await in_thread(lambda: cancel_run(run, actor=starter, door="rest"))
    assert (await found(run)).status == "cancelled"
    assert await worker.execute(run.pk) == "not_waiting"
    assert outside.calls == []


async def test_a_run_of_somebody_who_was_switched_off_while_it_waited_calls_nothing(worker, agent, starter, outside):
    await ran(worker, agent, starter)  # the worker is warm: it would call at once
    outside.calls.clear()
    run = await queued(agent, starter)
    await in_thread(lambda: User.objects.filter(pk=starter.pk).update(is_active=False))
    assert await worker.execute(run.pk) == "agent_disabled"
    assert outside.calls == []
    assert "stella was switched off" in (await found(run)).message


async def test_switching_the_agent_off_ends_its_runs(worker, agent, starter, outside):
    outside.gate = asyncio.Event()
    run = await queued(agent, starter)
    work = asyncio.create_task(worker.execute(run.pk))
    await until(lambda: outside.calls)
    await in_thread(lambda: Agent.objects.filter(pk=agent.pk).update(enabled=False))
    assert await work == "agent_disabled"


async def test_a_worker_that_is_stopped_says_so(worker, agent, starter, outside):
    outside.gate = asyncio.Event()
    run = await queued(agent, starter)
    work = asyncio.create_task(worker.execute(run.pk))
    await until(lambda: outside.calls)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    ended = await found(run)
    assert (ended.status, ended.code) == ("failed", STOPPED.code)


async def test_the_run_of_a_worker_that_was_killed_is_lost_and_not_repeated(worker, agent, starter, outside):
    run = await queued(agent, starter)

    def killed() -> None:
        silent = timezone.now() - timedelta(seconds=16)
        Run.objects.filter(pk=run.pk).update(status="running", started_at=silent, heartbeat_at=silent)

    await in_thread(killed)
    await until(lambda: worker._sweeper is not None)
    await in_thread(sweep)
    ended = await found(run)
    assert (ended.status, ended.code) == ("failed", "worker_lost")
    assert await worker.execute(run.pk) == "not_waiting"
    assert outside.calls == []


async def test_a_worker_that_was_given_up_stops_and_changes_nothing(agent, starter):
    run = await queued(agent, starter)
    await in_thread(lambda: Run.objects.filter(pk=run.pk).update(status="failed", code="worker_lost"))
    assert await in_thread(lambda: stay_alive(run.pk)) is not None
    assert not await in_thread(lambda: finish(run.pk, STOPPED))
    assert (await found(run)).code == "worker_lost"


async def test_a_run_that_nobody_takes_does_not_wait_for_ever(agent, starter):
    run = await queued(agent, starter)
    old = timezone.now() - timedelta(minutes=61)
    await in_thread(lambda: Run.objects.filter(pk=run.pk).update(created_at=old))
    assert await in_thread(sweep) == 1
    assert (await found(run)).code == "not_started"


@pytest.mark.parametrize("after", [0, 1])
async def test_a_run_fails_when_the_ledger_cannot_be_written(worker, agent, starter, outside, monkeypatch, after):
    """With the first answer of the model, or with the call of the tool."""
    write, left = worker.gateway.ledger.write, [after]

    async def away(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise LedgerUnavailable
        return await write(*arguments)

    monkeypatch.setattr(worker.gateway.ledger, "write", away)
    run = await ran(worker, agent, starter)
    assert (run.status, run.code) == ("failed", "ledger_unavailable")
    assert len(outside.calls) == after


async def test_a_missing_value_is_a_plain_failure(worker, agent, starter):
    run = await ran(worker, agent, starter, "Nobody to write to.")
    assert (run.status, run.code, run.message) == (
        "failed", "script_error", "There is no e-mail address in the task."
    )  # fmt: skip


async def test_what_the_script_says_otherwise_ends_the_run(worker, company, starter):
    script = '- {call: echo, with: {text: "{{ email }}"}, otherwise: "Who is it?"}\n- {say: done}'
    agent = await in_thread(lambda: make_agent(company.role, make_provider(script)))
    run = await ran(worker, agent, starter, "Nobody.")
    assert (run.status, run.output) == ("succeeded", "Who is it?")


async def test_inputs_and_answers_are_encrypted_at_rest(worker, agent, starter):
    from django.db import connection

    run = await ran(worker, agent, starter)

    def raw() -> bytes:
        with connection.cursor() as cursor:
            cursor.execute("SELECT input || output FROM agents_run")
            runs = [bytes(row[0]) for row in cursor.fetchall()]
            cursor.execute("SELECT content FROM agents_step")
            return b"".join(runs + [bytes(row[0]) for row in cursor.fetchall()])

    assert b"carla" not in await in_thread(raw)
    assert run.input == "Write to carla@example.com."


async def test_a_provider_that_is_off_fails_its_runs(worker, agent, starter):
    def off() -> None:
        agent.provider.enabled = False
        agent.provider.save()

    await in_thread(off)
    assert (await ran(worker, agent, starter)).code == "provider_disabled"


async def test_the_test_of_a_scripted_provider_says_that_it_is_no_ai(worker, agent):
    assert await worker.test_provider(agent.provider_id)
    provider = await in_thread(lambda: Agent.objects.select_related("provider").get().provider)
    assert (provider.check_ok, provider.check_message) == (True, "The script can be followed. It is no AI.")


async def test_records_name_only_runs_that_there_are(worker, agent, starter):
    run = await ran(worker, agent, starter)
    count = await in_thread(lambda: Record.objects.filter(trace_id=run.trace_id).count())
    steps = await in_thread(lambda: Step.objects.filter(run=run).count())
    assert (count, steps) == (6, 3)
    assert await in_thread(lambda: User.objects.get(username="agent-clerk-agent").is_service)
