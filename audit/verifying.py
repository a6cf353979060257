"""Runs the verifier on this installation's own ledger, MACs included, and puts the verdict on record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import transaction

from audit.changes import record_event
from audit.entry import MAC_PURPOSE
from audit.models import Mark, Record
from audit.verify import OK, Options, Report, verify_database
from keyring.keys import ring

# The marks of the newest verdicts: over everything, and over a part. `found` is the number of faults.
WHOLE, PART = "verified-all", "verified-part"
_LISTED = 20
_NAMES = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}


def verify_installation(
    *,
    door: str,
    since: datetime | None = None,
    until: datetime | None = None,
    keys: tuple[str, ...] = (),
    witness: str | None = None,
    accepted: tuple[int, ...] = (),
    jobs: int = 1,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    database: Mapping[str, Any] | None = None,
) -> Report:
    """The report, which is on record by then; of another `database` than the reader's where one is named.

    Raises Unusable when nothing could be told.
    """
    keys = (*keys, *map(str, settings.LEDGER_WITNESSES))
    options = Options(keys, witness, since, until, jobs, _mac_keys(), accepted, progress)
    report = verify_database(conninfo(database or settings.LEDGER_DATABASES["reader"]), options)
    told = report.as_json(_LISTED)
    detail = {**told, "since": since and since.isoformat(), "until": until and until.isoformat()}
    if accepted:
        detail["accepted_breaks"] = list(accepted)
    code = "ledger_verified" if report.verdict == OK else "ledger_faulty"
    with transaction.atomic():
        record_event(Record.Kind.SYSTEM, code, door=door, detail=detail)
        name = PART if since or until else WHOLE
        Mark.objects.update_or_create(name=name, defaults={"found": report.faults})
    return report


def _mac_keys() -> tuple[bytes, ...]:
    return tuple(ring().derive(MAC_PURPOSE, name) for name in ring().key_ids)


def conninfo(database: Mapping[str, Any]) -> str:
    """The connection of an entry of Django's settings, as libpq reads it."""
    given = {theirs: database[ours] for ours, theirs in _NAMES.items() if database.get(ours)}
    options = {name: value for name, value in database.get("OPTIONS", {}).items() if isinstance(value, str | int)}
    return " ".join(f"{name}='{_escaped(str(value))}'" for name, value in {**options, **given}.items())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")
