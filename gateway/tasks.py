"""Jobs of the gateway."""

from __future__ import annotations

from procrastinate.contrib.django import app

from gateway import idempotency
from gateway.task_control import forget_tasks


@app.periodic(cron="23 * * * *")
@app.task(queueing_lock="gateway.forget", name="gateway.forget")
def forget(timestamp: int) -> int:
    """Delete answers that are no longer kept for repeated calls, and tasks whose time is over. Returns how many."""
    return idempotency.forget_expired() + forget_tasks()
