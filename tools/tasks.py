"""Jobs of the catalogue."""

from __future__ import annotations

from procrastinate.contrib.django import app

from tools.models import DataSource
from tools.sync import check_source


@app.periodic(cron="*/5 * * * *")
@app.task(queueing_lock="tools.check_all", name="tools.check_all")
def check_all(timestamp: int) -> int:
    """Queue a check of every data source that is switched on. Returns how many."""
    sources = DataSource.objects.filter(enabled=True).values_list("pk", flat=True)
    for pk in sources:
        check_one.defer(source_id=str(pk))
    return len(sources)


@app.task(name="tools.check", pass_context=False)
def check_one(source_id: str) -> bool | None:
    """Connect to one data source and note whether it answers; None when it is gone."""
    row = DataSource.objects.filter(pk=source_id, enabled=True).first()
    return check_source(row).ok if row else None
