"""Jobs of exports."""

from __future__ import annotations

from uuid import UUID

from asgiref.sync import sync_to_async
from procrastinate import JobContext
from procrastinate.contrib.django import app
from procrastinate.exceptions import JobAborted
from procrastinate.jobs import Status

from audit.export.asking import LOST_SECONDS, TASK, expire, restart_lost
from audit.export.models import Export
from audit.export.targets import Target
from audit.export.working import Stopped, Telling, carry_out, write_records_of


def made(export: Export, target: Target, telling: Telling) -> tuple[int, bytes]:
    """The content of the archive, by its form."""
    if export.form != Export.Form.PACK:
        return write_records_of(export, target, telling)
    # What a pack needs is loaded by who makes one.
    from audit.packs.making import write_pack

    return write_pack(export, target, telling)


@app.task(name=TASK, lock=TASK, pass_context=True)
def make(context: JobContext, export_id: str) -> str:
    """Make one archive; how it ended. A worker that has to stop leaves it to the next one."""
    try:
        return carry_out(UUID(export_id), made, context.should_abort)
    except Stopped as error:
        raise JobAborted from error


# The sixth column is seconds: within a minute another worker goes on.
@app.periodic(cron="* * * * * */30")
@app.task(queueing_lock="audit.exports", name="audit.exports")
async def look_after(timestamp: int) -> int:
    """Take up what a dead worker left, and delete what is past its time. Returns how much."""
    for job in await app.job_manager.get_stalled_jobs(task_name=TASK, seconds_since_heartbeat=LOST_SECONDS):
        await app.job_manager.finish_job(job, Status.FAILED, delete_job=False)
    return await sync_to_async(restart_lost)() + await sync_to_async(expire)()
