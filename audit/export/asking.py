"""Asking for an export, and giving it up: each in one transaction with its job and its record."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Sum
from django.utils import timezone
from procrastinate.contrib.django import app
from procrastinate.contrib.django.models import ProcrastinateJob

from audit.arguments import PERMISSION
from audit.caller import stated
from audit.export.gauges import count_ended
from audit.export.models import Export, Part
from audit.export.records import record_export
from audit.export.scope import Scope

TASK = "audit.export"
# Workers give a sign of life every ten seconds.
LOST_SECONDS = 30
_OPEN = ("todo", "doing")
_MOST_UNFINISHED = 5
_MOST_ATTEMPTS = 3


class ExportRefused(Exception):
    """It cannot be asked for; `code` is the stable word for why, the text is for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def ask_for_export(
    form: Export.Form | str,
    scope: Scope | dict[str, Any],
    *,
    user: Any,
    door: str,
    request: Any = None,
    payloads: bool = False,
    reason: str = "",
) -> Export:
    """Queue an export. Raises ExportRefused."""
    if payloads and not stated(reason):
        raise ExportRefused("reason_required", "Give a reason: the export holds arguments of calls in plain text.")
    with transaction.atomic():
        unfinished = Export.objects.filter(asked_by_id=str(user.pk), state__in=_UNFINISHED).select_for_update()
        if len(unfinished) >= _MOST_UNFINISHED:
            raise ExportRefused(
                "too_many_exports",
                f"{_MOST_UNFINISHED} exports of yours are not finished: wait for one of them, or cancel.",
            )
        _require_room()
        export = Export(
            form=form,
            scope=dict(scope),
            payloads=payloads,
            reason=reason.strip(),
            asked_by=user.get_username(),
            asked_by_id=str(user.pk),
        )
        export.job_id = _queue(export)
        export.save(force_insert=True)
        record_export(export, "export_requested", door=door, request=request, actor=user, reason=export.reason)
    return export


_UNFINISHED = (Export.State.WAITING, Export.State.RUNNING)


def _require_room() -> None:
    kept = Export.objects.filter(state=Export.State.DONE).aggregate(size=Sum("size"))["size"] or 0
    if kept >= settings.EXPORT_TOTAL_MB * 1024**2:
        raise ExportRefused(
            "exports_full",
            f"The exports that are kept have reached {settings.EXPORT_TOTAL_MB:,} MB: delete some of them first.",
        )


def _queue(export: Export) -> int:
    # One at a time: they read much, and nobody waits for them as for a page.
    return app.configure_task(TASK, lock=TASK, allow_unknown=False).defer(export_id=str(export.pk))


def may_read(user: Any, export: Export) -> bool:
    """Whether the user may see what the archive holds."""
    return bool(user.has_perm("audit.view_record") and (not export.payloads or user.has_perm(PERMISSION)))


def cancel_export(export: Export, *, door: str, request: Any = None, actor: Any = None) -> Export:
    """End an export that waits, or have the worker end one that is under way. What is finished stays as it is."""
    with transaction.atomic():
        export = Export.objects.select_for_update().get(pk=export.pk)
        if export.is_finished or export.cancel_asked:
            return export
        export.cancel_asked = True
        record_export(export, "export_cancelled", door=door, request=request, actor=actor)
        if export.state == Export.State.WAITING:
            end_unfinished(export, Export.State.CANCELLED)
        export.save()
    return export


def delete_export(export: Export, *, door: str, request: Any = None) -> None:
    """Delete the archive and what is known of it but for the ledger. One that is under way is cancelled first."""
    with transaction.atomic():
        record_export(export, "export_deleted", door=door, request=request, bytes=export.size)
        export.delete()


def give_up_decrypted(*, door: str, request: Any = None, actor: Any = None) -> int:
    """End every export of decrypted arguments, under way or kept: nobody has noted of whom they are. Returns how many.

    For an erasure, in its transaction.
    """
    found = list(Export.objects.select_for_update().filter(payloads=True, state__in=(*_UNFINISHED, Export.State.DONE)))
    for export in found:
        if export.state != Export.State.DONE:
            cancel_export(export, door=door, request=request, actor=actor)
            continue
        Part.objects.filter(export=export).delete()
        export.state, export.problem = Export.State.EXPIRED, "Deleted, since a person was erased: ask for it anew."
        export.save()
        record_export(export, "export_expired", door=door, request=request, actor=actor, bytes=export.size)
    return len(found)


def expire() -> int:
    """Delete the archives past their time; their rows stay. Returns how many."""
    due = Export.objects.filter(state=Export.State.DONE, expires_at__lt=timezone.now())
    done = 0
    for export in due:
        with transaction.atomic():
            Part.objects.filter(export=export).delete()
            Export.objects.filter(pk=export.pk).update(state=Export.State.EXPIRED)
            record_export(export, "export_expired", door="command", bytes=export.size)
        done += 1
    return done


def worker_is_gone(export: Export) -> bool:
    """Whether one that is under way has no worker that gives signs of life: within a minute another one goes on."""
    if export.state != Export.State.RUNNING:
        return False
    alive = timezone.now() - timedelta(seconds=LOST_SECONDS)
    job = ProcrastinateJob.objects.filter(pk=export.job_id, status="doing", worker__last_heartbeat__gt=alive)
    return not job.exists()


def restart_lost() -> int:
    """Queue those again whose worker has died, three times at most; then they have failed. Returns how many."""
    lost = 0
    for export in Export.objects.filter(state__in=_UNFINISHED):
        if ProcrastinateJob.objects.filter(pk=export.job_id, status__in=_OPEN).exists():
            continue
        with transaction.atomic():
            found = Export.objects.select_for_update().get(pk=export.pk)
            if found.is_finished or found.job_id != export.job_id:
                continue
            if found.cancel_asked:
                end_unfinished(found, Export.State.CANCELLED)
            elif found.attempts >= _MOST_ATTEMPTS:
                end_failed(found, "worker_lost", f"Its worker ended in the middle of it, {found.attempts} times.")
            else:
                found.state, found.job_id = Export.State.WAITING, _queue(found)
                found.stage = "Its worker ended: waiting for another one"
            found.save()
        lost += 1
    return lost


def end_unfinished(export: Export, state: Export.State) -> None:
    """Set what an export says that ended without an archive, and drop what there is of one. The caller saves."""
    export.state, export.finished_at, export.stage, export.kept = state, timezone.now(), "", None
    Part.objects.filter(export=export).delete()
    count_ended(state.value)


def end_failed(export: Export, code: str, message: str) -> None:
    """Set what a failed export says, without what it has of an archive, and record it. The caller saves."""
    end_unfinished(export, Export.State.FAILED)
    export.problem = message
    record_export(export, "export_failed", door="command", outcome=code, message=message)
