"""What metrics say of exports: those that are not finished by their state, and what came of the others so far."""

from __future__ import annotations

from django.db import transaction
from django.db.models import F

from audit.models import Mark

# Rows of name, label (empty where there is none) and number, as those of retention.
GAUGES = """
SELECT 'mcpsite_exports_unfinished', name, count(id)::float8
FROM (VALUES ('waiting'), ('running')) AS states (name) LEFT JOIN audit_export ON state = name GROUP BY name
UNION ALL SELECT 'mcpsite_exports', substr(name, 9), found FROM audit_mark WHERE name LIKE 'exports-%'
UNION ALL SELECT 'mcpsite_' || replace(name, '-', '_'), '', found FROM audit_mark WHERE name LIKE 'export-%'
"""


def count_ended(outcome: str, records: int = 0, seconds: int = 0) -> None:
    """Count an export that has ended, in the current transaction."""
    with transaction.atomic():
        for name, number in ((f"exports-{outcome}", 1), ("export-records", records), ("export-seconds", seconds)):
            if number:
                Mark.objects.get_or_create(name=name)
                Mark.objects.filter(name=name).update(found=F("found") + number)
