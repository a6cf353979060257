"""Tasks in the admin and by REST: one's own, those of others with a permission, and the end of either."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from access import tokens
from access.models import User
from audit.models import Record
from gateway.models import Task
from gateway.task_admin import TaskAdmin

pytestmark = pytest.mark.django_db


def make_task(user: User, identifier: str, status: str = "working", **fields: Any) -> Task:
    now = timezone.now()
    return Task.objects.create(
        id=identifier,
        user=user,
        token="mcps_abc",
        tool="slow_report",
        effect="read",
        call_id=uuid.uuid4(),
        status=status,
        request={"arguments": {"month": "May secret"}},
        worker="0" * 16,
        heartbeat_at=now,
        created_at=now,
        updated_at=now,
        expires_at=now + timedelta(hours=1),
        **fields,
    )


def make_member(name: str, *permissions: str) -> User:
    user = User.objects.create(username=name, is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return user


def page(user: User, path: str, **posted: Any) -> Any:
    client = Client()
    client.force_login(user)
    return client.post(path, posted) if posted else client.get(path)


def test_the_list_holds_ones_own_tasks_and_those_of_others_with_the_permission() -> None:
    anna, otto, boss = make_member("anna"), make_member("otto"), make_member("boss", "view_task")
    make_task(anna, "of-anna")
    make_task(otto, "of-otto", "failed", code="task_lost")
    listed = reverse("admin:gateway_task_changelist")
    own, all_of_them = page(anna, listed).content.decode(), page(boss, listed).content.decode()
    assert ("of-anna" in own, "of-otto" in own) == (True, False)
    assert ("of-anna" in all_of_them, "task_lost" in all_of_them) == (True, True)
    assert page(make_member("nobody"), listed).status_code == 403


def test_the_list_goes_by_indexes_and_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskAdmin, "list_per_page", 2)
    anna, now = make_member("anna", "view_task"), timezone.now()
    for number in range(5):
        make_task(anna, f"t{number}", "failed" if number == 3 else "working")
    Task.objects.filter(pk__in=("t1", "t3")).update(tool="quick")
    Task.objects.update(created_at=now)  # of the same moment: the id tells them apart
    listed = reverse("admin:gateway_task_changelist")

    def shown(url: str = "", **given: str) -> tuple[list[str], Any]:
        client = Client()
        client.force_login(anna)
        with CaptureQueriesContext(connection) as queries:
            cl = client.get(listed + url, given).context["cl"]
        sql = [each["sql"] for each in queries if '"gateway_task"' in each["sql"]]
        assert not [each for each in sql if "COUNT(" in each or "OFFSET" in each or '"result"' in each]
        return [task.pk for task in cl.result_list], cl

    first, cl = shown()
    second, cl = shown(cl.older_url)
    third, last = shown(cl.older_url)
    assert (first, second, third) == (["t4", "t3"], ["t2", "t1"], ["t0"])
    assert not last.older_url
    assert shown(last.newer_url)[0] == second
    assert shown(status="failed")[0] == ["t3"]
    for term, found in (
        ("quick", ["t3", "t1"]),
        ("t2", ["t2"]),
        ("slow_report", ["t4", "t2"]),
        ("anna", first),
        ("no", []),
    ):
        assert shown(q=term)[0] == found, term
    assert shown(q=str(Task.objects.get(pk="t1").call_id))[0] == ["t1"]
    assert page(anna, f"{listed}?older_than=nowhere").status_code == 302


def test_the_page_shows_contents_to_whom_they_belong() -> None:
    anna = make_member("anna")
    task = make_task(anna, "of-anna", "completed", code="ok", result={"content": [{"text": "the answer"}]})
    address = reverse("admin:gateway_task_change", args=(task.pk,))
    own = page(anna, address).content.decode()
    assert ("May secret" in own, "the answer" in own, "Cancel" in own) == (True, True, False)
    others = page(make_member("boss", "view_task"), address).content.decode()
    assert ("May secret" in others, "the answer" in others, "slow_report" in others) == (False, False, True)
    auditor = page(make_member("auditor", "view_task", "read_arguments"), address).content.decode()
    assert "the answer" in auditor


def test_who_may_cancels_a_task_from_its_page_and_it_is_on_record() -> None:
    anna, boss = make_member("anna"), make_member("boss", "view_task")
    task = make_task(anna, "of-anna")
    address = reverse("admin:gateway_task_change", args=(task.pk,))
    assert page(boss, address, go="1").status_code == 403
    assert page(anna, address, go="1").status_code == 302
    task.refresh_from_db()
    assert task.cancel_requested_at is not None
    [record] = Record.objects.filter(code="task_cancel_requested", call_id=task.call_id)
    assert (record.actor, record.door, record.tool) == ("anna", "admin", "slow_report")
    assert "Stopping" in page(anna, address).content.decode()


def test_rest_lists_shows_and_cancels() -> None:
    anna = make_member("anna")
    _, raw = tokens.issue(anna, name="rest", scopes=["read", "write"])
    task = make_task(anna, "of-anna")
    make_task(make_member("otto"), "of-otto")
    client = Client(headers={"Authorization": f"Bearer {raw}"})
    assert [each["id"] for each in client.get("/api/v1/tasks/").json()["results"]] == ["of-anna"]
    assert client.get("/api/v1/tasks/of-otto/").status_code == 404
    shown = client.get("/api/v1/tasks/of-anna/").json()
    assert (shown["arguments"], shown["result"], shown["status"]) == ({"month": "May secret"}, None, "working")
    cancelled = client.post("/api/v1/tasks/of-anna/cancel/")
    assert (cancelled.status_code, cancelled.json()["cancel_requested_at"] is not None) == (200, True)
    Task.objects.filter(pk=task.pk).update(status="cancelled")
    refused = client.post("/api/v1/tasks/of-anna/cancel/")
    assert (refused.status_code, refused.json()["code"]) == (409, "task_finished")
    assert Record.objects.filter(code="task_cancel_requested", call_id=task.call_id, door="rest").count() == 1
