"""Synchronising as a job: one at a time for each source, followed on its page, and on record with who asked for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from procrastinate.contrib.django import app
from procrastinate.contrib.django.models import ProcrastinateJob

from access.models import User
from audit.caller import Caller
from audit.models import Record
from tools.connectors.base import ConnectorError, Offer
from tools.connectors.mcp import McpConnector
from tools.models import DataSource, Synchronisation, Tool
from tools.source_state import state_for
from tools.synchronisation import SyncFailed, SyncRefused, ask_for_sync, ask_to_look, look, synchronise
from tools.tasks import check_all, release

T = TypeVar("T")

DORA = Caller(actor="dora", actor_id="7", roles="clerk", address="192.0.2.7", request_id="request-1")


def make_source(name: str = "office", **fields: Any) -> DataSource:
    return DataSource.objects.create(
        **{"name": name, "kind": "mcp", "options": {"url": "https://example.com/mcp"}, **fields}
    )


@pytest.fixture
def offered(monkeypatch):
    """What upstreams offer from now on; an exception is raised instead."""

    def use(*names: str, error: Exception | None = None) -> None:
        async def discover(self: McpConnector) -> list[Offer]:
            if error:
                raise error
            return [self._offer({"name": name, "inputSchema": {"type": "object"}}) for name in names]

        monkeypatch.setattr(McpConnector, "discover", discover)

    return use


@pytest.fixture
def root(client):
    client.force_login(User.objects.create_superuser("root"))
    return client


def url(source: DataSource, page: str) -> str:
    return reverse(f"admin:tools_datasource_{page}", args=(source.pk,))


def press(client: Client, source: DataSource) -> Any:
    return client.post(url(source, "synchronise"), {"_form_submitted": "1"})


def as_worker(use: Callable[[], Awaitable[T]]) -> T:
    """Do something as the job worker does it: in a loop of its own, with its own connections."""

    async def run(worker: Any) -> T:
        async with worker.open_async():
            return await use()

    with app.replace_connector(app.connector.get_worker_connector()) as worker:  # type: ignore[attr-defined]
        return asyncio.run(run(worker))


def work() -> None:
    """Run every job that waits."""
    as_worker(lambda: app.run_worker_async(wait=False, install_signal_handlers=False, listen_notify=False))


def records(source: DataSource) -> list[Record]:
    return list(Record.objects.filter(object_id=str(source.pk), code="sync").order_by("id"))


def queued(source: DataSource) -> list[str]:
    return list(
        ProcrastinateJob.objects.filter(args__source_id=str(source.pk), status="todo")
        .order_by("id")
        .values_list("task_name", flat=True)
    )


@pytest.fixture
def jobs(committed_db, monkeypatch):
    """A real queue, without what is due by the clock, and empty afterwards."""
    monkeypatch.setattr(app.periodic_registry, "periodic_tasks", {})
    yield ProcrastinateJob.objects
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM procrastinate_jobs")


def test_the_button_queues_a_job_and_the_page_follows_it(jobs, root, offered):
    source = make_source()
    offered("read", "write")
    assert press(root, source)["HX-Redirect"] == url(source, "change")
    page = root.get(url(source, "change")).content.decode()
    assert f'hx-get="{url(source, "state")}"' in page
    assert "Waiting for the job worker" in page
    work()
    part = root.get(url(source, "state")).content.decode()
    assert "hx-get" not in part
    assert reverse("admin:tools_tool_change", args=(Tool.objects.get(name="read").pk,)) in part
    assert "for root" in part
    (record,) = records(source)
    assert (record.actor, record.door, record.kind) == ("root", "admin", "config")
    assert json.loads(record.detail)["created"] == ["read", "write"]
    assert record.address == "127.0.0.1"


def test_a_second_one_is_refused_while_the_first_is_under_way(jobs, offered):
    source = make_source()
    ask_for_sync(source, DORA, "admin")
    for attempt in (lambda: ask_for_sync(source, DORA, "admin"), lambda: synchronise(source, DORA, "rest")):
        with pytest.raises(SyncRefused, match="under way"):
            attempt()
    assert jobs.count() == 1
    assert jobs.get().lock == jobs.get().queueing_lock == f"tools.sync:{source.pk}"
    other = make_source("other")
    ask_for_sync(other, DORA, "admin")
    offered()
    work()
    ask_for_sync(source, DORA, "admin")
    assert jobs.filter(status="todo").count() == 1


def test_a_failure_is_shown_and_on_record_and_leaves_the_tools(jobs, root, offered):
    source = make_source(secrets={"bearer_token": "canary-hunter2"})
    offered("read")
    synchronise(source, DORA, "rest")
    offered(error=ConnectorError("upstream_timeout", "No <b>answer</b> to canary-hunter2 in time."))
    press(root, source)
    work()
    part = root.get(url(source, "state")).content.decode()
    assert "No &lt;b&gt;answer&lt;/b&gt; to [secret] in time." in part
    assert Tool.objects.get().enabled
    failed = records(source)[-1]
    assert json.loads(failed.detail) | {"label": ""} == {
        "action": "sync",
        "label": "",
        "ok": False,
        "message": "No <b>answer</b> to [secret] in time.",
    }


@pytest.mark.django_db
def test_what_changed_since_the_last_time_is_told(offered):
    source = make_source()
    offered("a", "b")
    synchronise(source, DORA, "rest")
    offered("b", "c", "no good name")
    synchronise(source, DORA, "rest")
    state = state_for(source)
    assert (state.state, state.asked_by, state.unchanged) == ("done", "dora", 1)
    assert {group.word: [each.name for each in group.found] for group in state.groups} == {
        "created": ["c"],
        "missing": ["a"],
        "refused": ["no good name"],
    }
    (refused,) = (group.found[0] for group in state.groups if group.word == "refused")
    assert (refused.url, "cannot be used" in refused.why) == ("", True)
    assert [each.said for each in state.offered] == ["3 tools"]
    assert [record.request_id for record in records(source)] == ["request-1", "request-1"]


@pytest.mark.django_db
def test_kinds_whose_tools_are_written_by_hand_have_no_button(root):
    source = make_source(kind="sql", options={"host": "h", "database": "d", "user": "u"})
    page = root.get(url(source, "change")).content.decode()
    assert url(source, "test_connection") in page
    assert url(source, "synchronise") not in page
    press(root, source)
    assert not ProcrastinateJob.objects.exists()
    assert not Synchronisation.objects.exists()
    other = make_source("other")
    assert url(other, "synchronise") in root.get(url(other, "change")).content.decode()


def test_a_job_whose_worker_died_is_given_up(jobs, root):
    source = make_source()
    ask_for_sync(source, DORA, "admin")
    # As SIGKILL leaves it: taken by a worker that is no longer there.
    with connection.cursor() as cursor:
        cursor.execute("UPDATE procrastinate_jobs SET status = 'doing', worker_id = NULL")
    assert state_for(source).state == "running"

    assert as_worker(lambda: release(timestamp=0)) == 1
    assert "its process has died" in root.get(url(source, "state")).content.decode()
    ask_for_sync(source, DORA, "admin")
    assert state_for(source).state == "waiting"


@pytest.mark.django_db
def test_one_that_was_broken_off_does_not_hold_up_the_next(offered):
    source = make_source(timeout_seconds=5)
    Synchronisation.objects.create(source=source, started_at=timezone.now())
    assert state_for(source).state == "running"
    Synchronisation.objects.update(started_at=timezone.now() - timedelta(minutes=10))
    assert state_for(source).state == "lost"
    offered("read")
    assert synchronise(source, DORA, "command").created == ["read"]


@pytest.mark.django_db
def test_the_state_is_for_those_who_see_the_source(client):
    source = make_source()
    client.force_login(User.objects.create_user("emil", is_staff=True))
    assert client.get(url(source, "state")).status_code == 403


@pytest.mark.django_db
def test_the_command_synchronises_and_records(offered, capsys):
    source = make_source()
    offered("read")
    call_command("sync", "office")
    assert capsys.readouterr().out == "office: Synchronised: 1 new.\n"
    (record,) = records(source)
    assert (record.door, record.actor) == ("command", None)


@pytest.mark.django_db
def test_the_command_fails_when_one_failed_and_does_the_others(offered, capsys):
    make_source("a", enabled=False)
    make_source("b")
    make_source("c", kind="sql", options={"host": "h", "database": "d", "user": "u"})
    offered(error=ConnectorError("upstream_unavailable", "Nobody is there."))
    with pytest.raises(CommandError, match="1 of the data sources"):
        call_command("sync", "--all")
    assert capsys.readouterr().err == "b: Nobody is there.\n"


@pytest.mark.django_db
@pytest.mark.parametrize("given", [(), ("b", "--all"), ("absent",), ("c",)])
def test_the_command_says_what_is_wrong_with_its_arguments(given):
    make_source("b")
    make_source("c", kind="sql", options={"host": "h", "database": "d", "user": "u"})
    with pytest.raises(CommandError):
        call_command("sync", *given)


@pytest.mark.django_db
def test_a_failure_raises_for_who_waits_for_it(offered):
    offered(error=ValueError("odd"))
    with pytest.raises(SyncFailed, match="odd"):
        synchronise(make_source(), DORA, "rest")


def test_what_changed_while_nobody_heard_is_found_by_one_job_for_all_workers(jobs, offered):
    source = make_source()
    ask_to_look(source.pk)
    assert queued(source) == []  # it was never synchronised: that is for people to begin
    offered("old")
    synchronise(source, DORA, "admin")
    ask_to_look(source.pk)
    assert queued(source) == []  # that was a moment ago
    Synchronisation.objects.update(finished_at=timezone.now() - timedelta(minutes=2))
    ask_to_look(source.pk)
    ask_to_look(source.pk)
    assert queued(source) == ["tools.look"]
    offered("old", "new")
    work()
    assert set(Tool.objects.filter(source=source).values_list("spec__name", flat=True)) == {"old", "new"}
    assert len(records(source)) == 2
    assert look(source.pk) is None
    Synchronisation.objects.update(finished_at=timezone.now() - timedelta(minutes=2))
    assert look(source.pk)
    assert len(records(source)) == 2  # nothing was new


def test_a_source_waits_for_one_check_at_a_time(jobs):
    source = make_source()
    for _ in range(2):
        assert check_all(0) == DataSource.objects.filter(enabled=True).count()
    assert queued(source) == ["tools.check"]


@pytest.mark.django_db
def test_a_reason_that_no_database_can_hold_is_told_all_the_same(offered):
    offered(error=ConnectorError("upstream_refused", "No\0" + "o" * 10_000))
    source = make_source()
    with pytest.raises(SyncFailed):
        synchronise(source, DORA, "rest")
    (latest,) = Synchronisation.objects.filter(source=source)
    assert latest.error.startswith("No\\u0000ooo")
    assert len(latest.error) < 1_010
