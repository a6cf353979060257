"""What the worker does for an export: reads, writes, signs, and says how far it is."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import OperationalError, connection, transaction
from django.utils import timezone

from audit.export.asking import end_failed, end_unfinished
from audit.export.gauges import count_ended
from audit.export.lines import pages
from audit.export.models import Export
from audit.export.parts import Cancelled, Parts, TooLarge, ours
from audit.export.records import record_export
from audit.export.scope import rows_of, told
from audit.export.signing import SealerAway
from audit.export.targets import Archive, Target
from audit.export.writing import Begun, Form, write_export
from audit.patience import TooSlow
from audit.proofs.documents import keys
from audit.timeline import timeline_of

logger = logging.getLogger("audit.export")

_TELL_SECONDS = 0.5
_SEALED_SECONDS = 3.0
_DISK_FULL = "53100"


class Stopped(Exception):
    """This worker has to end: another one goes on."""


class Telling:
    """Says how far an export is, at most twice a second, and hears that it is not wanted any more."""

    def __init__(self, export: Export, parts: Parts, archive: Archive, must_stop: Callable[[], bool]) -> None:
        self._export, self._parts, self._archive, self._must_stop = export, parts, archive, must_stop
        self._told = 0.0

    def records(self, number: int) -> None:
        """So many so far. Raises Cancelled and Stopped."""
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self.say(records=number)

    def say(self, **state: Any) -> None:
        """Write it down now. Raises Cancelled and Stopped."""
        if self._must_stop():
            raise Stopped
        self._write(state)

    def _write(self, state: dict[str, Any]) -> None:
        if not ours(self._export).update(**state):
            raise Cancelled
        self._told = time.monotonic()

    def keep(self, begun: Begun) -> None:
        """Let another worker go on from here, should this one end. Raises Cancelled."""
        with transaction.atomic():
            self._parts.keep()
            kept = {**begun.as_json(), "size": self._parts.size, "entries": self._archive.entries}
            self._write({"records": begun.counted.records, "kept": kept})


# What makes the content of an archive: gives the records, and the manifest's SHA-256.
Maker = Callable[[Export, Target, Telling], tuple[int, bytes]]


def write_records_of(export: Export, target: Target, telling: Telling) -> tuple[int, bytes]:
    """The records of its scope."""
    rows = rows_of(export.scope, until=export.asked_at)
    expected = timeline_of(rows, None, export.asked_at)
    telling.say(stage="Reading records", expected=None if expected.begins or expected.too_slow else expected.total)
    form: Form = "csv" if export.form == Export.Form.CSV else "jsonl"
    begun = Begun.of(export.kept) if export.kept else None
    written = write_export(
        target,
        pages(rows, payloads=export.payloads, after=begun.place if begun else None),
        form=form,
        scope=told(export.scope),
        by=export.asked_by,
        keys=keys(),
        tell=telling.records,
        keep=telling.keep,
        begun=begun,
    )
    return written.counted.records, written.digest


def carry_out(export_id: uuid.UUID, make: Maker, must_stop: Callable[[], bool]) -> str:
    """Make the archive, or go on with it; how it ended. Raises Stopped, and leaves it to be taken up again."""
    export = _begin(export_id)
    if export is None:
        return "gone"
    try:
        _await_sealing(export)
        parts = Parts(export, settings.EXPORT_MAX_MB * 1024**2)
        kept = export.kept or {"size": 0, "entries": []}
        parts.go_on(kept["size"])
        with Archive(parts, kept["entries"]) as target:
            records, manifest = make(export, target, Telling(export, parts, target, must_stop))
        _finish(export, parts.close(), parts.size, records, manifest)
    except Stopped:
        raise
    except Cancelled:
        _end_cancelled(export)
    except SealerAway as error:
        _fail_export(export, error.code, str(error))
    except TooLarge as error:
        _fail_export(export, "too_large", str(error))
    except TooSlow:
        _fail_export(export, "too_slow", "Finding the records took too long: choose a shorter time, or another filter.")
    except OperationalError as error:
        if getattr(error.__cause__, "sqlstate", None) != _DISK_FULL:
            raise
        _fail_export(export, "disk_full", "The disk of the database is full: nothing of this archive was kept.")
    except Exception:
        logger.exception("export %s failed", export_id)
        _fail_export(
            export, "internal_error", "Something went wrong that nobody foresaw; the log of the worker says more."
        )
    return str(Export.objects.filter(pk=export_id).values_list("state", flat=True).first() or "deleted")


def _begin(export_id: uuid.UUID) -> Export | None:
    with transaction.atomic():
        export = Export.objects.select_for_update().filter(pk=export_id).first()
        if export is None or export.is_finished:
            return None
        export.state, export.started_at = Export.State.RUNNING, export.started_at or timezone.now()
        export.attempts += 1
        export.records = export.kept["counted"]["records"] if export.kept else 0
        export.stage = "Going on where the worker before ended" if export.kept else "Beginning"
        export.save()
    return export


def _await_sealing(export: Export) -> None:
    """Wait until the export's own record is sealed, and so are those before it; not for ever."""
    statement = """
    SELECT 1 FROM audit_record JOIN audit_leaf ON record_id = id
    WHERE object_type = %s AND object_id = %s AND code = 'export_requested' LIMIT 1
    """
    until = time.monotonic() + _SEALED_SECONDS
    while time.monotonic() < until:
        with connection.cursor() as cursor:
            cursor.execute(statement, [Export._meta.label, str(export.pk)])
            if cursor.fetchone():
                return
        time.sleep(0.1)


def _finish(export: Export, digest: str, size: int, records: int, manifest: bytes) -> None:
    now = timezone.now()
    with transaction.atomic():
        changed = ours(export).update(
            state=Export.State.DONE,
            kept=None,
            stage="",
            records=records,
            size=size,
            digest=digest,
            manifest=manifest.hex(),
            finished_at=now,
            expires_at=now + timedelta(days=settings.EXPORT_DAYS),
        )
        if not changed:
            raise Cancelled
        count_ended("done", records=records, seconds=round((now - (export.started_at or now)).total_seconds()))
        record_export(
            export, "export_made", door="command", records=records, bytes=size, manifest=manifest.hex(), archive=digest
        )


def _end_cancelled(export: Export) -> None:
    with transaction.atomic():
        found = Export.objects.select_for_update().filter(pk=export.pk, attempts=export.attempts).first()
        if found is not None:
            end_unfinished(found, Export.State.CANCELLED)
            found.save()


def _fail_export(export: Export, code: str, message: str) -> None:
    with transaction.atomic():
        found = Export.objects.select_for_update().filter(pk=export.pk, attempts=export.attempts).first()
        if found is not None:
            end_failed(found, code=code, message=message)
            found.save()
