"""Jobs of the ledger."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from django.utils import timezone
from procrastinate.contrib.django import app

import audit.export.tasks
import audit.retention.tasks  # noqa: F401 - their jobs are found from here
from audit import reconcile
from audit.outside import anchoring
from audit.retention.partitions import prepare
from audit.streams.steering import watch
from audit.verify import OK
from audit.verifying import verify_installation

logger = logging.getLogger("audit.tasks")


@app.periodic(cron="17 3 * * *")
@app.task(queueing_lock="audit.partitions", retry=5, name="audit.partitions")
def prepare_partitions(timestamp: int) -> int:
    """Make the partitions of the coming months, so that no record ever lacks a place. Returns how many were made."""
    return len(prepare(door="job"))


@app.periodic(cron="* * * * *")
@app.task(queueing_lock="audit.reconcile", name="audit.reconcile")
def close_open_intents(timestamp: int) -> int:
    """Record that the outcome of a call is unknown, where none came in time. Returns of how many calls."""
    return reconcile.reconcile()


@app.periodic(cron="* * * * *")
@app.task(queueing_lock="audit.streams", name="audit.streams")
def watch_streams(timestamp: int) -> list[str]:
    """Put alarms of streams that began or ended on record, also when the process that delivers is gone."""
    changed = watch()
    if changed:
        logger.warning("alarms of streams changed: %s", "; ".join(changed))
    return changed


@app.periodic(cron="* * * * *")
@app.task(queueing_lock="audit.anchor", name="audit.anchor")
def anchor(timestamp: int) -> int:
    """Write the newest head to the sinks outside. Returns how many took it."""
    return anchoring.anchor_all()


@app.periodic(cron="41 2 * * *")
@app.task(queueing_lock="audit.verify", lock="audit.verify", name="audit.verify")
def verify_newest(timestamp: int) -> str:
    """Verify what was recorded in the last 25 hours. Returns the verdict."""
    return _verify(timezone.now() - timedelta(hours=25))


@app.periodic(cron="11 4 * * 0")
@app.task(queueing_lock="audit.verify_all", lock="audit.verify", name="audit.verify_all")
def verify_everything(timestamp: int) -> str:
    """Verify the whole ledger. Returns the verdict."""
    return _verify(None)


def _verify(since: datetime | None) -> str:
    report = verify_installation(door="job", since=since)
    if report.verdict != OK:
        logger.critical("the ledger is not as it was sealed: %s", report)
    return report.verdict
