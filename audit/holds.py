"""Legal holds: while one is in force, nothing in its scope is dropped or erased."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from audit.caller import stated
from audit.changes import record_change, stored
from audit.models import Record
from audit.retention.models import LegalHold

# The triggers of audit_legalhold and audit_drop_expired() take the same lock.
_LOCK = 7_035_916_242
Scope = LegalHold.Scope


class Held(Exception):
    """Something is held, and so cannot be dropped or erased; the message names the holds."""

    code = "held"

    def __init__(self, holds: list[LegalHold]) -> None:
        self.holds = holds
        super().__init__(f"Held by {', '.join(f'{each.name} ({each.matter})' for each in holds)}.")


def in_force() -> QuerySet[LegalHold]:
    """The holds that hold something now."""
    return LegalHold.objects.filter(released_at=None)


def held(
    principal: str, since: datetime | None = None, until: datetime | None = None, *, actor_id: str = ""
) -> list[LegalHold]:
    """The holds in force over any record of the principal from `since` to before `until`, where None has no bound.

    With `actor_id`, records under former names of the account count as well, and so does for whom it acted.
    Inside a transaction no hold can be placed or released until its end, so that what is decided on this stays right.
    """
    if connection.in_atomic_block:
        take_turns()
    overlapping = Q()
    if since is not None:
        overlapping &= Q(until=None) | Q(until__gt=since)
    if until is not None:
        overlapping &= Q(since=None) | Q(since__lt=until)
    holds = in_force().filter(overlapping).order_by("placed_at")
    own = Q(actor=principal) | Q(on_behalf_of=principal)
    rows = Record.objects.filter(own | Q(actor_id=actor_id) if actor_id else own).order_by()
    return [
        each for each in holds if _concerns(each, principal, _between(rows, (since, each.since), (until, each.until)))
    ]


def take_turns() -> None:
    """Wait for whoever places a hold or drops records, and keep others from it until the end of the transaction."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])


def _between(rows: QuerySet[Record], begins: Iterable[datetime | None], ends: Iterable[datetime | None]) -> Any:
    for first in begins:
        rows = rows if first is None else rows.filter(at__gte=first)
    for last in ends:
        rows = rows if last is None else rows.filter(at__lt=last)
    return rows


def _concerns(hold: LegalHold, principal: str, rows: QuerySet[Record]) -> bool:
    """Whether the hold is over the principal, or over one of these records of it."""
    match hold.scope:
        case Scope.PRINCIPAL:
            other = Q(actor=hold.value) | Q(on_behalf_of=hold.value)
            return hold.value == principal or rows.filter(other).exists()
        case Scope.TOOL:
            return rows.filter(tool=hold.value).exists()
        case Scope.SOURCE:
            return rows.filter(connector=hold.value).exists()
    return True


def release(hold: LegalHold, reason: str, *, door: str, request: Any = None, actor: Any = None) -> None:
    """End the hold and record who did and why. Raises ValidationError when it is released already."""
    if not stated(reason):
        raise ValidationError({"reason": "Say why the hold is released."})
    with transaction.atomic():
        current = LegalHold.objects.select_for_update().get(pk=hold.pk)
        if not current.in_force:
            raise ValidationError(f"{current} was released already, by {current.released_by}.")
        before = stored(current)
        user = actor if actor is not None else getattr(request, "user", None)
        current.released_by = user.get_username() if user is not None else door
        current.released_at = timezone.now()
        current.release_reason = stated(reason)
        current.save()
        record_change(
            action="update", obj=current, before=before, after=stored(current), door=door, request=request, actor=actor
        )
    hold.refresh_from_db()
