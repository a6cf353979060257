"""Synchronising a data source on somebody's behalf: as a job that is asked for, or at once; either way on record."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.utils import timezone
from procrastinate.contrib.django import app
from procrastinate.contrib.django.models import ProcrastinateJob
from procrastinate.exceptions import AlreadyEnqueued

from audit.caller import Caller
from audit.ledger import Entry, record
from audit.masking import known
from audit.models import Record
from keyring.keys import DecryptionError
from tools.connectors.base import ConnectorError, Offer
from tools.connectors.registry import connector_class
from tools.models import DataSource, Synchronisation
from tools.outcome import printable
from tools.sync import SyncOutcome, sync_source

TASK, LOOK = "tools.sync", "tools.look"
_OPEN = frozenset({"todo", "doing"})
# Beyond the deadline of the source: for what happens to its tools afterwards.
_GRACE_SECONDS = 120
# What was found so lately needs no other look, whichever worker asks for one.
_FRESH_SECONDS = 60
_LONGEST_MESSAGE = 1_000


class SyncRefused(Exception):
    """It was not begun; the text says why."""


class SyncFailed(Exception):
    """The source did not do what was asked; it is on record. The text says why."""


def ask_for_sync(source: DataSource, caller: Caller, door: str) -> None:
    """Queue a job that synchronises the source. Raises SyncRefused when one is under way, or when there is no use."""
    if not connector_class(source.kind).discovers:
        raise SyncRefused("The tools of this kind of source are written by hand: there is nothing to synchronise.")
    lock = f"{TASK}:{source.pk}"
    task = app.configure_task(TASK, lock=lock, queueing_lock=lock)
    with transaction.atomic():
        latest = _unless_under_way(source)
        latest.asked_by, latest.asked_at = caller.actor or "", timezone.now()
        latest.job_id = task.defer(source_id=str(source.pk), caller=asdict(caller), door=door)
        latest.started_at = latest.finished_at = None
        latest.save()


def ask_to_look(source_id: uuid.UUID) -> None:
    """Queue a job that looks whether the source offers something else than was found last, unless one waits for that.

    Every worker asks when it begins to hear the source. What was never synchronised is left to people.
    """
    if not _is_stale(source_id):
        return
    name = f"{LOOK}:{source_id}"
    task = app.configure_task(LOOK, lock=f"{TASK}:{source_id}", queueing_lock=name)
    with suppress(AlreadyEnqueued), transaction.atomic():
        task.defer(source_id=str(source_id))


def look(source_id: uuid.UUID) -> bool | None:
    """Synchronise, unless that was done meanwhile; None when there is nothing to do."""
    row = DataSource.objects.filter(pk=source_id, enabled=True).first()
    if row is None or not _is_stale(source_id):
        return None
    try:
        synchronise(row, Caller(), "job", is_told=True)
    except (SyncFailed, SyncRefused):
        return False
    return True


def _is_stale(source_id: uuid.UUID) -> bool:
    before = timezone.now() - timedelta(seconds=_FRESH_SECONDS)
    return Synchronisation.objects.filter(source=source_id, source__enabled=True, finished_at__lt=before).exists()


def synchronise(
    source: DataSource,
    caller: Caller,
    door: str,
    job_id: int | None = None,
    *,
    take: Callable[[], list[Offer]] | None = None,
    is_told: bool = False,
) -> SyncOutcome:
    """Synchronise now, and record what came of it together with the change. `take` is that of `sync_source`.

    When the source itself told of a change (`is_told`), every worker heard it, and what was found by the first is no
    news from the others: a record of nothing is not written. Raises SyncRefused when one is under way, and SyncFailed,
    which is on record.
    """
    _begin(source, caller, job_id)
    try:
        with transaction.atomic():
            outcome = sync_source(source, take)
            if is_told and not outcome.is_news:
                _finish(source, error="")
            else:
                _finish(source, found=outcome.told(), error="")
                _record(source, caller, door, {"ok": True, **outcome.told()})
    except (ConnectorError, DecryptionError, ValueError) as error:
        message = printable(known().refresh().text(str(error) or type(error).__name__), _LONGEST_MESSAGE)
        with transaction.atomic():
            _finish(source, error=message)
            _record(source, caller, door, {"ok": False, "message": message})
        raise SyncFailed(message) from error
    return outcome


def state_of(latest: Synchronisation) -> str:
    """`waiting`, `running`, `done`, `failed`, or `lost` when it ended without a word; empty when there was none."""
    if latest.finished_at is not None:
        return "failed" if latest.error else "done"
    if latest.job_id is None:
        return _state_without_job(latest)
    status = ProcrastinateJob.objects.filter(pk=latest.job_id).values_list("status", flat=True).first()
    if status not in _OPEN:
        return "lost"
    return "waiting" if status == "todo" else "running"


def _state_without_job(latest: Synchronisation) -> str:
    if latest.started_at is None:
        return ""
    longest = timedelta(seconds=latest.source.timeout_seconds + _GRACE_SECONDS)
    return "running" if timezone.now() - latest.started_at < longest else "lost"


def _begin(source: DataSource, caller: Caller, job_id: int | None) -> None:
    with transaction.atomic():
        latest = _unless_under_way(source, job_id)
        latest.asked_by, latest.job_id = caller.actor or "", job_id
        latest.started_at, latest.finished_at = timezone.now(), None
        latest.save()


def _unless_under_way(source: DataSource, own_job: int | None = None) -> Synchronisation:
    """The row of the source, locked. Raises SyncRefused when another synchronisation waits or runs."""
    Synchronisation.objects.get_or_create(source=source)
    latest = Synchronisation.objects.select_for_update(of=("self",)).select_related("source").get(source=source)
    if state_of(latest) in ("waiting", "running") and (own_job is None or latest.job_id != own_job):
        raise SyncRefused("A synchronisation of this source is under way. Wait until it is done.")
    return latest


def _finish(source: DataSource, **state: Any) -> None:
    Synchronisation.objects.filter(source=source).update(finished_at=timezone.now(), **state)


def _record(source: DataSource, caller: Caller, door: str, said: dict[str, Any]) -> None:
    detail = {"action": "sync", "label": str(source), **said}
    record(
        Entry(
            kind=Record.Kind.CONFIG.value,
            code="sync",
            door=door,
            object_type=source._meta.label,
            object_id=str(source.pk),
            detail=json.dumps(detail, ensure_ascii=False),
            **asdict(caller),
        )
    )
