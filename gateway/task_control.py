"""Tasks from pages, REST and jobs: who may see them, how they are cancelled, and when they are forgotten."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import orjson
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from access.models import User
from audit.arguments import PERMISSION
from audit.caller import caller_of
from audit.entry import Entry
from audit.ledger import record
from gateway.models import Task

SEES_ALL, CANCELS_ALL = "gateway.view_task", "gateway.cancel_task"


def visible_tasks(user: Any, tasks: QuerySet[Task]) -> QuerySet[Task]:
    """All of them, or one's own."""
    return tasks if user.has_perm(SEES_ALL) else tasks.filter(user=user.pk)


def without_contents(tasks: QuerySet[Task]) -> QuerySet[Task]:
    """For lists: what is encrypted stays where it is."""
    return tasks.defer("request", "questions", "answers", "result")


def may_cancel(user: Any, task: Task) -> bool:
    """Whoever began it, and who may cancel those of others."""
    return bool(task.user_id == user.pk or user.has_perm(CANCELS_ALL))


def may_read(user: Any, task: Task) -> bool:
    """Whether the user may read arguments and result: one's own, or who may read them in the ledger."""
    return bool(task.user_id == user.pk or user.has_perm(PERMISSION))


def cancel_task(task: Task, *, actor: User, door: str, request: Any = None) -> Task:
    """Ask for its end, in one transaction with the record; the worker that carries it out looks every second.

    What has ended stays as it is. Returns it as it is now.
    """
    with transaction.atomic():
        task = Task.objects.select_for_update(of=("self",)).select_related("user").get(pk=task.pk)
        if task.is_finished or task.cancel_requested_at is not None:
            return task
        task.cancel_requested_at = task.updated_at = timezone.now()
        task.save(update_fields=["cancel_requested_at", "updated_at"])
        caller = {**asdict(caller_of(request, actor)), "door": door}
        detail = orjson.dumps({"task": task.pk, "of": task.user.username}).decode()
        record(
            Entry(
                kind="system",
                code="task_cancel_requested",
                call_id=task.call_id,
                tool=task.tool,
                detail=detail,
                **caller,
            )
        )
    return task


def forget_tasks() -> int:
    """Delete tasks whose time is over; their records stay. Returns how many."""
    over = Task.objects.filter(expires_at__lte=timezone.now()).exclude(status__in=Task.UNFINISHED)
    deleted, _ = over.delete()
    return deleted
