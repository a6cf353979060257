"""How far a month is on its way out of the ledger, in words for people and programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime

from django.db.models import Q, QuerySet
from django.utils import timezone

from audit.holds import in_force
from audit.retention.archiving import month_begins, month_ends
from audit.retention.expiring import OPEN
from audit.retention.models import STANDARD, Archive, Expiry, LegalHold, Month, RetentionClass

# Word → (label, colour of the badge).
STATES = {
    "open": ("Open", "grey"),
    "ahead": ("Prepared", "grey"),
    "exportable": ("Not exported", "grey"),
    "exporting": ("Being exported", "blue"),
    "failed": ("Export failed", "red"),
    "exported": ("Exported", "green"),
    "proposed": ("Proposed", "orange"),
    "approved": ("Approved", "orange"),
    "reduced": ("Partly dropped", "grey"),
    "dropped": ("Dropped", "grey"),
}


@dataclass(frozen=True, slots=True)
class State:
    """A month with its newest export and its open or newest expiry."""

    month: Month
    archive: Archive | None
    expiry: Expiry | None
    leaves_at: datetime | None

    @property
    def word(self) -> str:
        """A key of `STATES`."""
        if not self.month.present:
            return "dropped"
        if self.expiry is not None and self.expiry.state in (Expiry.State.PROPOSED, Expiry.State.APPROVED):
            return str(self.expiry.state)
        now = timezone.now()
        if month_ends(self.month.month) > now:
            return "open" if month_begins(self.month.month) <= now else "ahead"
        if self.month.dropped and not self.due:
            return "reduced"
        return _BY_ARCHIVE[self.archive.state] if self.archive else "exportable"

    @property
    def label(self) -> str:
        """For people."""
        return STATES[self.word][0]

    @property
    def colour(self) -> str:
        """Of the badge."""
        return STATES[self.word][1]

    @property
    def due(self) -> int:
        """How many records are past their time and still there."""
        return self.expiry.records if self.expiry is not None and self.expiry.state in OPEN else 0


_BY_ARCHIVE: dict[str, str] = {
    Archive.State.WAITING: "exporting",
    Archive.State.RUNNING: "exporting",
    Archive.State.VERIFIED: "exported",
    Archive.State.FAILED: "failed",
}


def states_of(months: Iterable[Month]) -> list[State]:
    """The states of the months, in two queries and one for the standard class."""
    wanted = list(months)
    dates = [each.month for each in wanted]
    # The later in a list wins: what is verified over what failed, what is open over what is closed.
    archives = {each.month: each for each in Archive.objects.filter(month__in=dates).order_by("asked_at")}
    archives |= {
        each.month: each
        for each in Archive.objects.filter(month__in=dates, state=Archive.State.VERIFIED).order_by("asked_at")
    }
    expiries = {each.month: each for each in Expiry.objects.filter(month__in=dates).order_by("found_at")}
    expiries |= {each.month: each for each in Expiry.objects.filter(month__in=dates, state__in=OPEN)}
    standard = RetentionClass.objects.filter(name=STANDARD).values_list("months", flat=True).first()
    return [
        State(each, archives.get(each.month), expiries.get(each.month), leaving_at(each.month, standard))
        for each in wanted
    ]


def state_of(month: Month) -> State:
    """The state of one."""
    return states_of([month])[0]


def leaving_at(month: date, months: int | None) -> datetime | None:
    """When records of the month are past a class of so many months; None without a class."""
    if months is None:
        return None
    year, index = divmod(month.year * 12 + month.month + months, 12)
    return month_ends(month).replace(year=year, month=index + 1)


def holds_over(month: date) -> QuerySet[LegalHold]:
    """The holds in force that may hold records of the month."""
    begin, end = month_begins(month), month_ends(month)
    return in_force().filter(Q(since=None) | Q(since__lt=end), Q(until=None) | Q(until__gt=begin))
