"""Jobs of the catalogue."""

from __future__ import annotations

import uuid
from contextlib import suppress

from django.db import transaction
from procrastinate import JobContext
from procrastinate.contrib.django import app
from procrastinate.exceptions import AlreadyEnqueued
from procrastinate.jobs import Status

from audit.caller import Caller
from tools.models import DataSource
from tools.sync import check_source
from tools.synchronisation import LOOK, TASK, SyncFailed, SyncRefused, look, synchronise

CHECK = "tools.check"


@app.periodic(cron="*/5 * * * *")
@app.task(queueing_lock="tools.check_all", name="tools.check_all")
def check_all(timestamp: int) -> int:
    """Queue a check of every data source that is switched on. Returns of how many.

    One that waits for its check already is not queued again, and no source is checked twice at the same time.
    """
    sources = DataSource.objects.filter(enabled=True).values_list("pk", flat=True)
    for pk in sources:
        name = f"{CHECK}:{pk}"
        with suppress(AlreadyEnqueued), transaction.atomic():
            check_one.configure(lock=name, queueing_lock=name).defer(source_id=str(pk))
    return len(sources)


@app.task(name=CHECK, pass_context=False)
def check_one(source_id: str) -> bool | None:
    """Connect to one data source and note whether it answers; None when it is gone."""
    row = DataSource.objects.filter(pk=source_id, enabled=True).first()
    return check_source(row).ok if row else None


@app.task(name=TASK, pass_context=True)
def sync_one(context: JobContext, source_id: str, caller: dict[str, str | None], door: str) -> bool | None:
    """Synchronise one data source for somebody; whether it worked, or None when it is gone. The page shows the rest."""
    row = DataSource.objects.filter(pk=source_id).first()
    if row is None:
        return None
    try:
        synchronise(row, Caller(**caller), door, context.job.id)
    except (SyncFailed, SyncRefused):
        return False
    return True


@app.task(name=LOOK)
def look_again(source_id: str) -> bool | None:
    """Synchronise one data source that nobody heard for a while; None when that was not needed."""
    return look(uuid.UUID(source_id))


@app.periodic(cron="* * * * *")
@app.task(queueing_lock="tools.release", name="tools.release")
async def release(timestamp: int) -> int:
    """End synchronisations whose worker has died, so that their sources can be synchronised again. Returns how many."""
    stalled = list(await app.job_manager.get_stalled_jobs(task_name=TASK))
    for job in stalled:
        await app.job_manager.finish_job(job, Status.FAILED, delete_job=False)
    return len(stalled)
