"""Erases what the ledger keeps of a person: their data keys are destroyed, and no record is touched.

Afterwards nobody can read what was encrypted with them, and leaf, MAC and tree verify as before. What stands in the
clear stays: user names, and what a policy shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from audit.caller import stated
from audit.changes import record_event, type_of
from audit.datakeys import Subject
from audit.export.asking import give_up_decrypted
from audit.holds import Held, held, in_force, take_turns
from audit.models import DataKey, Record
from audit.subjects import USER, subject_of

PERMISSION = "audit.erase_subject"


class ErasureRefused(ValueError):
    """Nothing was erased; the message says why."""

    code = "erasure_refused"


@dataclass(frozen=True, slots=True)
class Survey:
    """What there is of a subject: keys that exist, the months that they are for, and how many are destroyed already."""

    kind: str
    subject: Subject
    keys: int
    months: tuple[date, ...]
    destroyed: int

    @property
    def period(self) -> str:
        """From the first month to the last, for people."""
        if not self.months:
            return ""
        first, last = (f"{month:%B %Y}" for month in (self.months[0], self.months[-1]))
        return first if first == last else f"{first} to {last}"


def survey(kind: str, value: str, *, door: str, request: Any = None, actor: Any = None) -> Survey:
    """What erasing would concern. Raises UnknownSubject.

    Of others than users it also says whether the value occurs in calls, so that it was asked is recorded.
    """
    with transaction.atomic():
        found = _survey(kind, subject_of(kind, value))
        if kind != USER:
            detail = {"label": f"whether a {kind} occurs", "reason": "before an erasure", "keys": found.keys}
            _record("value_sought", found, detail, door, request, actor)
    return found


def _keys(subject: Subject) -> QuerySet[DataKey]:
    return DataKey.objects.filter(subject_kind=subject.kind, subject=subject.value)


def _survey(kind: str, subject: Subject) -> Survey:
    months = _keys(subject).filter(destroyed_at=None).order_by("month").values_list("month", flat=True)
    found = list(months)
    gone = _keys(subject).exclude(destroyed_at=None).count()
    return Survey(kind, subject, len(found), tuple(sorted(set(found))), gone)


def erase(kind: str, value: str, reason: str, *, door: str, request: Any = None, actor: Any = None) -> Survey:
    """Destroy every key of the subject, and record who did it and why. What it came to is returned.

    Exports that hold decrypted arguments, of whomever, are deleted along with them.

    Raises UnknownSubject, ErasureRefused when there is no reason or nothing to erase, and `audit.holds.Held`.
    """
    if not stated(reason):
        raise ErasureRefused("Say why: the reason stands in the record of the erasure.")
    with transaction.atomic():
        subject = subject_of(kind, value)
        list(_keys(subject).filter(destroyed_at=None).select_for_update().values_list("pk"))
        found = _survey(kind, subject)
        if not found.keys:
            raise ErasureRefused("There is nothing to erase: no key of this subject exists.")
        _refuse_if_held(found, value)
        _record_erasure(found, value, stated(reason), door, request, actor)
        who = actor if actor is not None else getattr(request, "user", None)
        by = who.get_username() if who is not None else door
        rows = _keys(subject).filter(destroyed_at=None)
        rows.update(wrapped=None, destroyed_at=timezone.now(), destroyed_by=by, reason=stated(reason))
        give_up_decrypted(door=door, request=request, actor=actor)
    return found


def _refuse_if_held(found: Survey, value: str) -> None:
    """A key does not say whose calls of which tool it was used for: of others than users, every hold of the time
    counts.
    """
    since, until = _start(found.months[0]), _start(_following(found.months[-1]))
    if found.kind == USER:
        holds = held(value, since, until, actor_id=found.subject.value)
    else:
        take_turns()
        overlaps = (hold for hold in in_force() if (hold.until or until) > since and (hold.since or since) < until)
        holds = list(overlaps)
    if holds:
        raise Held(holds)


def _start(month: date) -> datetime:
    return datetime(month.year, month.month, 1, tzinfo=UTC)


def _following(month: date) -> date:
    return date(month.year + month.month // 12, month.month % 12 + 1, 1)


def _record_erasure(found: Survey, value: str, reason: str, door: str, request: Any, actor: Any) -> None:
    """Of a value of an argument the record has the keyed hash only."""
    label = value if found.kind == USER else f"{found.kind} {found.subject.value[:12]}"
    detail = {
        "label": label,
        "reason": reason,
        "keys": found.keys,
        "months": [f"{month:%Y-%m}" for month in found.months],
    }
    _record("subject_erased", found, detail, door, request, actor)


def _record(code: str, found: Survey, detail: dict[str, Any], door: str, request: Any, actor: Any) -> None:
    record_event(
        Record.Kind.SYSTEM,
        code,
        door=door,
        request=request,
        actor=actor,
        object_type=type_of(DataKey),
        object_id=f"{found.subject.kind}:{found.subject.value}",
        detail=detail,
    )
