"""The partitions of coming months: made ahead, so that no record ever lacks a place."""

from __future__ import annotations

import logging
from datetime import date
from typing import Any

from django.db import connection, transaction
from django.utils import timezone

from audit.changes import record_event
from audit.models import Record
from audit.retention.models import Month

logger = logging.getLogger("audit.partitions")

MONTHS_AHEAD = 3
# With fewer than this somebody has to look: the job that makes them has failed for weeks.
FEWEST_AHEAD = 2


def prepare(*, door: str, request: Any = None, actor: Any = None) -> list[date]:
    """Make the partitions of the coming months, and record which were made."""
    with transaction.atomic():
        before = set(_present())
        with connection.cursor() as cursor:
            cursor.execute("SELECT audit_make_partitions(%s)", [MONTHS_AHEAD])
        made = sorted(set(_present()) - before)
        if made:
            names = [f"{month:%Y-%m}" for month in made]
            detail = {"label": ", ".join(names), "months": names}
            record_event(Record.Kind.SYSTEM, "partitions_made", door=door, request=request, actor=actor, detail=detail)
    if made:
        logger.info("partitions of the ledger were made for %s", ", ".join(names))
    return made


def ahead() -> int:
    """How many months after this one have a partition, without a gap between them."""
    today, present = timezone.now().date(), set(_present())
    index, found = today.year * 12 + today.month, 0
    while date(index // 12, index % 12 + 1, 1) in present:
        index, found = index + 1, found + 1
    return found


def _present() -> list[date]:
    return list(Month.objects.filter(present=True).values_list("month", flat=True))
