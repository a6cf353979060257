"""How records of a month leave: found by the job, exported, proposed by one person, approved by another, dropped later.

The database has the last word (`audit_drop_expired`). What is checked here as well gives people a sentence in time, and
is what a database cannot check: that the export is still whole.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from contextlib import contextmanager, suppress
from datetime import date, datetime, timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import DatabaseError, connection, transaction
from django.db.models import Q
from django.utils import timezone
from procrastinate.contrib.django import app
from procrastinate.exceptions import AlreadyEnqueued

from audit.caller import stated
from audit.changes import record_event, type_of
from audit.models import Record
from audit.retention import gaps
from audit.retention.archiving import NotProven, Proven, check, month_ends
from audit.retention.models import STANDARD, Archive, Expiry, Month, RetentionClass
from audit.retention.stores import StoreError
from audit.sealing.requests import request_signature, signature_of
from audit.verify import time_text

logger = logging.getLogger("audit.expiring")

PERMISSION = "audit.expire_records"
TASK = "audit.drop"
State = Expiry.State
OPEN = (State.DUE, State.PROPOSED, State.APPROVED)
_APART = timedelta(days=30)


class ExpiryRefused(Exception):
    """Records cannot leave like this; the message says why."""

    code = "expiry_refused"


# --- Finding ----------------------------------------------------------------------------------------------------------


def find() -> list[Expiry]:
    """Note every month of which something is past its time, and take back what is not any more. Returns what is new."""
    made = []
    for month in _candidates():
        open_one = Expiry.objects.filter(month=month, state__in=OPEN).first()
        if open_one is not None and open_one.state != State.DUE:
            continue
        selection = gaps.select(month)
        if selection is None:
            Expiry.objects.filter(month=month, state=State.DUE).delete()
        elif open_one is None:
            made.append(_found(selection))
        elif open_one.removed != selection.digest:
            _note(open_one, selection)
            open_one.save()
    return made


def _candidates() -> Iterable[date]:
    """Months that are over for longer than the shortest class, and have a partition."""
    shortest = min(RetentionClass.objects.values_list("months", flat=True), default=None)
    if shortest is None or not RetentionClass.objects.filter(name=STANDARD).exists():
        return []
    today = timezone.now().date()
    index = today.year * 12 + today.month - 1 - shortest
    latest = date(index // 12, index % 12 + 1, 1)
    return Month.objects.filter(present=True, month__lt=latest).order_by("month").values_list("month", flat=True)


def _found(selection: gaps.Selection) -> Expiry:
    with transaction.atomic():
        expiry = Expiry(month=selection.month)
        _note(expiry, selection)
        expiry.save()
        _record(expiry, code="expiry_due", door="job")
    return expiry


def _note(expiry: Expiry, selection: gaps.Selection) -> None:
    expiry.records, expiry.kept, expiry.removed = selection.records, selection.kept, selection.digest


# --- Two persons ------------------------------------------------------------------------------------------------------


def propose(expiry: Expiry, user: Any, reason: str, *, door: str, request: Any = None) -> Expiry:
    """One person's word that the records may leave. Raises ExpiryRefused."""
    _check_person(user)
    if not stated(reason):
        raise ExpiryRefused("Say why the records may leave: it stands in the certificate.")
    with transaction.atomic():
        expiry = _locked(expiry, State.DUE)
        archive = _archive_of(expiry.month)
        selection = _selection(expiry)
        _note(expiry, selection)
        expiry.state, expiry.archive, expiry.reason = State.PROPOSED, archive, stated(reason)
        expiry.proposed_by, expiry.proposed_by_id = user.get_username(), str(user.pk)
        expiry.proposed_at, expiry.problem = timezone.now(), ""
        expiry.save()
        _record(expiry, code="expiry_proposed", door=door, request=request, actor=user)
    return expiry


def approve(expiry: Expiry, user: Any, *, door: str, request: Any = None) -> Expiry:
    """The word of another person: the certificate is made, and the sealer asked to sign it. Raises ExpiryRefused."""
    _check_person(user)
    with transaction.atomic():
        expiry = _locked(expiry, State.PROPOSED)
        if expiry.proposed_by_id == str(user.pk):
            raise ExpiryRefused("You have proposed it yourself: somebody else has to approve it.")
        _check_apart(expiry.proposed_by_id, str(user.pk))
        if expiry.archive is None:
            raise ExpiryRefused("There is no export.")
        selection = _selection(expiry)
        if (selection.digest, selection.records) != (expiry.removed, expiry.records):
            raise ExpiryRefused(
                "What may leave has changed since it was proposed: a class, a hold or the records. Withdraw it, and"
                " propose it anew."
            )
        expiry.state = State.APPROVED
        expiry.approved_by, expiry.approved_by_id = user.get_username(), str(user.pk)
        expiry.approved_at = timezone.now()
        expiry.gap = _certify(expiry, selection, expiry.archive)
        expiry.save()
        _record(expiry, code="expiry_approved", door=door, request=request, actor=user)
    return expiry


def withdraw(expiry: Expiry, user: Any, *, door: str, request: Any = None) -> Expiry:
    """Take back a proposal, approved or not. One person is enough for that. Raises ExpiryRefused."""
    _check_person(user)
    with transaction.atomic():
        expiry = _locked(expiry, State.PROPOSED, State.APPROVED)
        if expiry.gap is not None:
            with connection.cursor() as cursor:
                cursor.execute(
                    "INSERT INTO audit_gap_withdrawal (gap, by) VALUES (%s, %s)", [expiry.gap, user.get_username()]
                )
        expiry.state = State.WITHDRAWN
        expiry.withdrawn_by, expiry.withdrawn_at = user.get_username(), timezone.now()
        expiry.save()
        _record(expiry, code="expiry_withdrawn", door=door, request=request, actor=user)
    return expiry


def _check_person(user: Any) -> None:
    if user is None or not user.is_active or getattr(user, "is_service", False):
        raise ExpiryRefused("Only people propose and approve, not programs.")
    if not user.has_perm(PERMISSION):
        raise ExpiryRefused("You lack the permission to propose and approve that expired records are dropped.")


def _check_apart(one: str, other: str) -> None:
    """Whoever makes an account, gives it a role or sets its password can act with it: those are no two persons."""
    pairs = Q(object_id=one, actor_id=other) | Q(object_id=other, actor_id=one)
    changed = Record.objects.filter(pairs, kind=Record.Kind.CONFIG, object_type=type_of(get_user_model()))
    if changed.filter(at__gte=timezone.now() - _APART).exists():
        raise ExpiryRefused(
            f"One of the two of you made or changed the account of the other within the last {_APART.days} days:"
            " a third person has to approve it."
        )


def _locked(expiry: Expiry, *states: str) -> Expiry:
    current = Expiry.objects.select_for_update().get(pk=expiry.pk)
    if current.state not in states:
        raise ExpiryRefused(f"It is {current.get_state_display().lower()} now.")
    return current


def _selection(expiry: Expiry) -> gaps.Selection:
    if unsealed := gaps.count(expiry.month).unsealed:
        raise ExpiryRefused(f"{unsealed} records of the month are not sealed: is the sealer running?")
    selection = gaps.select(expiry.month)
    if selection is None:
        raise ExpiryRefused("Nothing of this month may leave now: a class or a hold keeps it.")
    return selection


def _archive_of(month: date) -> Archive:
    found = Archive.objects.filter(month=month, state=Archive.State.VERIFIED).order_by("-finished_at").first()
    if found is None:
        raise ExpiryRefused("Export the month first, and have it verified: what left the ledger is only there.")
    return found


def _certify(expiry: Expiry, selection: gaps.Selection, archive: Archive) -> int:
    text = gaps.body(
        selection,
        archive={"place": archive.place, "manifest": archive.manifest, "records": archive.written},
        reason=expiry.reason,
        people={
            "proposed": _person(expiry.proposed_by, expiry.proposed_by_id, expiry.proposed_at),
            "approved": _person(expiry.approved_by, expiry.approved_by_id, expiry.approved_at),
        },
        hours=waiting().total_seconds() / 3600,
    )
    request = request_signature(gaps.PURPOSE, hashlib.sha256(text.encode()).digest())
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO audit_gap (month, first_seq, last_seq, records, removed, proposed_by_id, approved_by_id, body,"
            " request) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s) RETURNING id",
            [
                selection.month,
                selection.first_seq,
                selection.last_seq,
                selection.records,
                selection.bits,
                expiry.proposed_by_id,
                expiry.approved_by_id,
                text,
                request,
            ],
        )
        number: int = cursor.fetchone()[0]
    return number


def _person(name: str, key: str, at: datetime | None) -> dict[str, str]:
    return {"by": name, "id": key, "at": time_text(at or timezone.now())}


# --- Dropping ---------------------------------------------------------------------------------------------------------


def waiting() -> timedelta:
    """How long a certificate waits, as the database will have it."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT waiting FROM audit_gap_rule")
        found: timedelta = cursor.fetchone()[0]
    return found


def due_at(expiry: Expiry) -> datetime | None:
    """When an approved expiry may be carried out; None while it is not approved."""
    if expiry.gap is None:
        return None
    with connection.cursor() as cursor:
        cursor.execute("SELECT at + waiting FROM audit_gap, audit_gap_rule WHERE id = %s", [expiry.gap])
        found: datetime = cursor.fetchone()[0]
    return found


def certificate(expiry: Expiry) -> tuple[str, str] | None:
    """The text of the certificate and its signed note, which is empty while the sealer has not answered."""
    if expiry.gap is None:
        return None
    with connection.cursor() as cursor:
        cursor.execute("SELECT body, request FROM audit_gap WHERE id = %s", [expiry.gap])
        text, request = cursor.fetchone()
    return text, signature_of(request) or ""


def ask_to_drop(expiry: Expiry, actor: Any, *, door: str) -> Expiry:
    """Have a job drop it now, in the name of `actor`; `stage` says how far it is. Raises ExpiryRefused."""
    _check_person(actor)
    _check_due(expiry)
    job = app.configure_task(TASK, queueing_lock=f"{TASK}.{expiry.pk}", allow_unknown=False)
    with suppress(AlreadyEnqueued), transaction.atomic():
        Expiry.objects.filter(pk=expiry.pk, state=State.APPROVED).update(stage="Waiting for the job worker", problem="")
        job.defer(expiry_id=str(expiry.pk), actor=str(actor.pk), door=door)
    expiry.refresh_from_db()
    return expiry


def drop(expiry: Expiry, *, door: str, request: Any = None, actor: Any = None) -> Expiry:
    """Read the export back, then have the database carry out the certificate. Raises ExpiryRefused.

    The records leave and that they did is recorded, in one transaction, or nothing happens.
    """
    if actor is not None:
        _check_person(actor)
    try:
        _check_due(expiry)
        _say(expiry, "Reading the export back")
        _check_export(expiry)
        _say(expiry, "Dropping the records")
        with transaction.atomic():
            expiry = _locked(expiry, State.APPROVED)
            _carry_out(expiry, door, request, actor)
    except ExpiryRefused as refused:
        Expiry.objects.filter(pk=expiry.pk, state=State.APPROVED).update(problem=str(refused), stage="")
        raise
    return expiry


def _say(expiry: Expiry, stage: str) -> None:
    Expiry.objects.filter(pk=expiry.pk, state=State.APPROVED).update(stage=stage)


def _check_due(expiry: Expiry) -> None:
    due = due_at(expiry)
    if due is None:
        raise ExpiryRefused("It is not approved.")
    if due > timezone.now():
        raise ExpiryRefused(f"It has to wait until {due:%Y-%m-%d %H:%M} UTC, so that others can object.")


def _check_export(expiry: Expiry) -> None:
    if expiry.archive is None:
        raise ExpiryRefused("There is no export.")
    try:
        proven = check(expiry.archive)
    except (NotProven, StoreError) as error:
        raise ExpiryRefused(f"The export is not whole any more, so nothing is dropped. {error}") from error
    if missing := _not_in(proven, expiry):
        raise ExpiryRefused(f"{missing} of the records are not in the export, so nothing is dropped.")


def _not_in(proven: Proven, expiry: Expiry) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT first_seq, removed FROM audit_gap WHERE id = %s", [expiry.gap])
        first, removed = cursor.fetchone()
    return sum(
        1
        for place, byte in enumerate(bytes(removed))
        if byte
        for bit in range(8)
        if byte >> bit & 1 and not proven.has(first + 8 * place + bit)
    )


def _carry_out(expiry: Expiry, door: str, request: Any, actor: Any) -> None:
    with _refusals(), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT removed, kept FROM audit_drop_expired(%s)", [expiry.gap])
        expiry.records, expiry.kept = cursor.fetchone()
    expiry.state, expiry.dropped_at, expiry.problem, expiry.stage = State.DROPPED, timezone.now(), "", ""
    expiry.save()
    _record(expiry, code="records_dropped", door=door, request=request, actor=actor)


@contextmanager
def _refusals() -> Any:
    """What the function of the database says, as a sentence for people."""
    try:
        yield
    except DatabaseError as error:
        state = getattr(error.__cause__, "sqlstate", "")
        if state not in ("P0001", "55P03"):
            raise
        raise ExpiryRefused(str(error).partition("\n")[0]) from error


def carry_out_due() -> list[Expiry]:
    """Drop what two persons have approved and what has waited. Returns what was dropped."""
    done = []
    for expiry in Expiry.objects.filter(state=State.APPROVED).order_by("approved_at"):
        due = due_at(expiry)
        if due is None or due > timezone.now():
            continue
        try:
            done.append(drop(expiry, door="job"))
        except ExpiryRefused as refused:
            logger.warning("%s was not carried out: %s", expiry, refused)
    return done


# --- Telling ----------------------------------------------------------------------------------------------------------


def _record(expiry: Expiry, *, code: str, door: str, request: Any = None, actor: Any = None) -> None:
    detail = {
        "label": str(expiry),
        "month": f"{expiry.month:%Y-%m}",
        "records": expiry.records,
        "kept": expiry.kept,
        **({"reason": expiry.reason} if expiry.reason else {}),
        **({"proposed_by": expiry.proposed_by} if expiry.proposed_by else {}),
        **({"approved_by": expiry.approved_by} if expiry.approved_by else {}),
        **({"certificate": expiry.gap} if expiry.gap is not None else {}),
        **({"archive": expiry.archive.place} if expiry.archive else {}),
    }
    record_event(
        Record.Kind.SYSTEM,
        code,
        door=door,
        request=request,
        actor=actor,
        about=expiry,
        detail=detail,
    )


def is_over(month: date) -> bool:
    """Whether the month has ended."""
    return month_ends(month) <= timezone.now()


def waiting_hours_wanted() -> int:
    """What `GAP_WAITING_HOURS` says; `migrate` writes it where the site cannot change it."""
    return int(settings.GAP_WAITING_HOURS)
