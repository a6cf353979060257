"""Jobs of retention: what is due is noted, exports are made, and what two persons have approved is dropped."""

from __future__ import annotations

from uuid import UUID

from asgiref.sync import sync_to_async
from django.contrib.auth import get_user_model
from procrastinate.contrib.django import app
from procrastinate.jobs import Status

from audit.retention.archiving import TASK, lost, queue, run
from audit.retention.expiring import TASK as DROP
from audit.retention.expiring import ExpiryRefused, carry_out_due, drop, find
from audit.retention.models import Archive, Expiry


@app.task(name=TASK)
def archive(archive_id: str) -> str:
    """Export one month. Returns how it ended."""
    found = Archive.objects.filter(pk=UUID(archive_id)).first()
    return "gone" if found is None else run(found).state


@app.task(name=DROP)
def drop_expired(expiry_id: str, actor: str, door: str) -> str:
    """Drop what somebody wants dropped now. Returns how it ended, or why it did not."""
    found = Expiry.objects.filter(pk=UUID(expiry_id)).first()
    if found is None:
        return "gone"
    try:
        return drop(found, door=door, actor=get_user_model().objects.get(pk=actor)).state
    except ExpiryRefused as refused:
        return str(refused)


@app.periodic(cron="*/5 * * * *")
@app.task(queueing_lock="audit.retention", name="audit.retention")
async def look_after(timestamp: int) -> int:
    """Take up exports whose job has died, and carry out what was approved and has waited. Returns how much."""
    for job in await app.job_manager.get_stalled_jobs(task_name=TASK):
        await app.job_manager.finish_job(job, Status.FAILED, delete_job=False)
    return await sync_to_async(_look_after)()


def _look_after() -> int:
    waiting = lost()
    for each in waiting:
        queue(each)
    return len(waiting) + len(carry_out_due())


@app.periodic(cron="41 2 * * *")
@app.task(queueing_lock="audit.expiries", name="audit.expiries")
def find_expiries(timestamp: int) -> int:
    """Note what is past its time. Nothing leaves by that: two persons have to agree. Returns how much is new."""
    return len(find())
