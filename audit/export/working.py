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
from django.db.models import QuerySet
from django.utils import timezone

from audit.export.asking import end_failed
from audit.export.lines import pages
from audit.export.models import Export, Part
from audit.export.parts import Parts, TooLarge
from audit.export.records import record_export
from audit.export.scope import rows_of, told
from audit.export.signing import SealerAway
from audit.export.targets import Archive, Target
from audit.export.writing import Form, write_export
from audit.patience import TooSlow
from audit.proofs.documents import keys
from audit.timeline import timeline_of

logger = logging.getLogger("audit.export")

_TELL_SECONDS = 0.5
_SEALED_SECONDS = 3.0
_DISK_FULL = "53100"


class Cancelled(Exception):
    """Somebody wants it no more, or has deleted it."""


class Stopped(Exception):
    """This worker has to end: another one goes on."""


class Telling:
    """Says how far an export is, at most twice a second, and hears that it is not wanted any more."""

    def __init__(self, export: Export, must_stop: Callable[[], bool]) -> None:
        self._export, self._must_stop = export, must_stop
        self._told = 0.0

    def records(self, number: int) -> None:
        """So many so far. Raises Cancelled and Stopped."""
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self.say(records=number)

    def say(self, **state: Any) -> None:
        """Write it down now. Raises Cancelled and Stopped."""
        if self._must_stop():
            raise Stopped
        if not _ours(self._export).update(**state):
            raise Cancelled
        self._told = time.monotonic()


def _ours(export: Export) -> QuerySet[Export]:
    """The row, unless it is not wanted any more, or another worker has taken it up."""
    return Export.objects.filter(pk=export.pk, cancel_asked=False, attempts=export.attempts)


# What makes the content of an archive: gives the records, and the manifest's SHA-256.
Maker = Callable[[Export, Target, Telling], tuple[int, bytes]]


def write_records_of(export: Export, target: Target, telling: Telling) -> tuple[int, bytes]:
    """The records of its scope."""
    rows = rows_of(export.scope, until=export.asked_at)
    expected = timeline_of(rows, None, export.asked_at)
    telling.say(stage="Reading records", expected=None if expected.begins or expected.too_slow else expected.total)
    form: Form = "csv" if export.form == Export.Form.CSV else "jsonl"
    written = write_export(
        target,
        pages(rows, payloads=export.payloads),
        form=form,
        scope=told(export.scope),
        by=export.asked_by,
        keys=keys(),
        tell=telling.records,
    )
    return written.counted.records, written.digest


def carry_out(export_id: uuid.UUID, make: Maker, must_stop: Callable[[], bool]) -> str:
    """Make the archive, from the beginning; how it ended. Raises Stopped, and leaves it to be taken up again."""
    export = _begin(export_id)
    if export is None:
        return "gone"
    try:
        _await_sealing(export)
        parts = Parts(export, settings.EXPORT_MAX_MB * 1024**2)
        with Archive(parts) as target:
            records, manifest = make(export, target, Telling(export, must_stop))
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
        # What an earlier attempt has left.
        Part.objects.filter(export=export).delete()
        export.state, export.started_at = Export.State.RUNNING, timezone.now()
        export.attempts += 1
        export.records, export.stage = 0, "Beginning"
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
        changed = _ours(export).update(
            state=Export.State.DONE,
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
        record_export(
            export, "export_made", door="command", records=records, bytes=size, manifest=manifest.hex(), archive=digest
        )


def _end_cancelled(export: Export) -> None:
    with transaction.atomic():
        found = Export.objects.select_for_update().filter(pk=export.pk, attempts=export.attempts).first()
        if found is not None:
            Part.objects.filter(export=found).delete()
            found.state, found.stage, found.finished_at = Export.State.CANCELLED, "", timezone.now()
            found.save()


def _fail_export(export: Export, code: str, message: str) -> None:
    with transaction.atomic():
        found = Export.objects.select_for_update().filter(pk=export.pk, attempts=export.attempts).first()
        if found is not None:
            end_failed(found, code=code, message=message)
            found.save()
