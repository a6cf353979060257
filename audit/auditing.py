"""What an auditor wants to know first: whether the ledger can be trusted, and where to look."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.core.cache import cache
from django.db import connection
from django.utils import timezone

from audit.doors import detail_of
from audit.filters import TOPICS
from audit.models import Record, SinkState, Stream, StreamState
from audit.outside.contradictions import unsettled
from audit.patience import TooSlow, at_most
from audit.selections import VIEWS, View
from audit.streams.steering import alarmed

LATELY, LONG_AGO = timedelta(days=7), timedelta(days=30)
_VERDICTS = ("ledger_verified", "ledger_faulty")
# Later than this a head is overdue: one is made within a second of a record, and every minute when there is none.
OVERDUE = timedelta(minutes=3)
_MOST_COUNTED = 10_000
_PATIENCE_MS = 2_000
_KEPT_SECONDS = 30


def counts() -> dict[str, str]:
    """View → how many records of the last week, at most ten thousand of each are counted."""
    found: dict[str, str] | None = cache.get("audit.auditing")
    if found is None:
        since = timezone.now() - LATELY
        found = {view.name: _count(view, since) for view in VIEWS}
        cache.set("audit.auditing", found, _KEPT_SECONDS)
    return found


def _count(view: View, since: datetime) -> str:
    rows = Record.objects.filter(at__gte=since)
    for name, value in view.query:
        if name == "topic":
            rows = rows.filter(TOPICS[value][1])
        elif name != "last":
            rows = rows.filter(**{name: value})
    try:
        with at_most(_PATIENCE_MS):
            number = rows.order_by()[: _MOST_COUNTED + 1].count()
    except TooSlow:
        return "many"
    return f"{number:,}" if number <= _MOST_COUNTED else f"> {_MOST_COUNTED:,}"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that has to be right. `state` is good, bad or open (nothing is known, or nothing is set up)."""

    name: str
    state: str
    said: str
    note: str


@dataclass(frozen=True, slots=True)
class _Head:
    number: int
    size: int
    sealed_at: datetime


def checks() -> list[Check]:
    """The trust in the ledger, part by part."""
    head = _newest_head()
    return [
        _verified(),
        _sealing(head),
        _waiting(),
        _witnesses(head),
        _anchors(),
        _contradictions(),
        _open_intents(),
        _streams(),
    ]


def _row(sql: str) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()


def _newest_head() -> _Head | None:
    row = _row("SELECT number, size, sealed_at FROM audit_head ORDER BY number DESC LIMIT 1")
    return _Head(*row) if row else None


def _verified() -> Check:
    latest = Record.objects.filter(kind=Record.Kind.SYSTEM, code__in=_VERDICTS, at__gte=timezone.now() - LONG_AGO)
    found = latest.order_by("-at", "-id").first()
    if found is None:
        return Check("Verified", "open", "Not lately", "The job worker verifies every night: nothing is on record")
    late = timezone.now() - found.at > timedelta(hours=49)
    said = str(detail_of(found).get("verdict") or ("OK" if found.code == "ledger_verified" else "Faulty"))
    state = "bad" if found.code == "ledger_faulty" else "open" if late else "good"
    return Check("Verified", state, said, f"By this installation itself, {found.at:%Y-%m-%d %H:%M:%S} UTC")


def _sealing(head: _Head | None) -> Check:
    if head is None:
        return Check("Sealing", "bad", "Nothing is sealed yet", "No head was ever signed: does the sealer run?")
    late = timezone.now() - head.sealed_at > OVERDUE
    note = f"Head {head.number:,} over {head.size:,} records, signed {head.sealed_at:%Y-%m-%d %H:%M:%S} UTC"
    return Check("Sealing", "bad" if late else "good", "Overdue" if late else "Up to date", note)


_UNSEALED = """
    SELECT count(*), min(at) FROM (
        SELECT at FROM audit_record r WHERE id > (SELECT coalesce(max(low_water), 0) FROM audit_head)
            AND NOT EXISTS (SELECT FROM audit_leaf l WHERE l.record_id = r.id) LIMIT 10001) AS waiting
"""


def _waiting() -> Check:
    try:
        with at_most(_PATIENCE_MS):
            number, oldest = _row(_UNSEALED)
    except TooSlow:
        return Check("Not sealed yet", "bad", "Many", "More records wait than can be counted while you wait")
    if not number:
        return Check("Not sealed yet", "good", "None", "Every record has its place in the tree")
    seconds = (timezone.now() - oldest).total_seconds()
    said = f"{number:,}" if number <= _MOST_COUNTED else f"> {_MOST_COUNTED:,}"
    state = "bad" if seconds > OVERDUE.total_seconds() else "good"
    return Check("Not sealed yet", state, said, f"The oldest was written {seconds:,.0f} s ago")


# Of the newest ones only: there is one for each head.
_COSIGNED = """
    SELECT count(DISTINCT witness), max(head), max(at)
    FROM (SELECT * FROM audit_cosignature ORDER BY head DESC LIMIT 50) AS newest
"""
_ANCHORED = """
    SELECT count(DISTINCT sink), max(head), max(at)
    FROM (SELECT * FROM audit_anchor ORDER BY id DESC LIMIT 50) AS newest
"""


def _witnesses(head: _Head | None) -> Check:
    number, newest, at = _row(_COSIGNED)
    if head is None or not number:
        return Check("Witnesses", "open", "None", "Nobody outside co-signs: who holds database and keys can rewrite it")
    late = timezone.now() - at > timedelta(hours=1)
    note = f"Head {newest:,} was co-signed {at:%Y-%m-%d %H:%M:%S} UTC"
    return Check("Witnesses", "bad" if late else "good", f"{number}", note)


def _anchors() -> Check:
    number, newest, at = _row(_ANCHORED)
    failing = list(SinkState.objects.filter(failing_since__isnull=False).values_list("sink", flat=True))
    if failing:
        return Check("Anchors", "bad", "Failing", f"{', '.join(failing)} does not take heads")
    if not number:
        return Check("Anchors", "open", "None", "No head was written outside of the database")
    return Check("Anchors", "good", f"{number}", f"Head {newest:,} was anchored {at:%Y-%m-%d %H:%M:%S} UTC")


def _contradictions() -> Check:
    found = unsettled()
    if not found:
        return Check("Contradictions", "good", "None", "No witness and no anchor holds another ledger against this one")
    source, code, head, _ = found[0]
    return Check("Contradictions", "bad", f"{len(found)}", f"{source}: {code.replace('_', ' ')}, head {head:,}")


_OPEN = """
    SELECT count(*), min(at) FROM (
        SELECT at FROM audit_record i WHERE kind = 'intent' AND at > now() - interval '1 day'
            AND at < now() - interval '2 minutes' AND NOT EXISTS (
                SELECT FROM audit_record o WHERE o.call_id = i.call_id AND (o.kind = 'outcome' OR (
                    o.kind = 'intent' AND o.code IN ('input_required', 'answered')
                    AND o.at > now() - interval '12 minutes'))) LIMIT 10001) AS waiting
"""


def _open_intents() -> Check:
    try:
        with at_most(_PATIENCE_MS):
            number, oldest = _row(_OPEN)
    except TooSlow:
        return Check("Open intents", "open", "Unknown", "There are more calls than can be compared while you wait")
    if not number:
        return Check("Open intents", "good", "None", "Every call with effects of the last day has an outcome")
    return Check("Open intents", "bad", f"{number:,}", f"Without outcome, the first since {oldest:%Y-%m-%d %H:%M} UTC")


def _streams() -> Check:
    on = Stream.objects.filter(enabled=True).count()
    bad = [each.name for each in alarmed()]
    if bad:
        return Check("Streams", "bad", f"{len(bad)} with an alarm", ", ".join(bad))
    if not on:
        return Check("Streams", "open", "None", "Nothing is forwarded to a SIEM")
    retrying = StreamState.objects.filter(stream__enabled=True, failing_since__isnull=False).count()
    note = f"{retrying} of them cannot deliver just now, and try again" if retrying else "All deliver in time"
    return Check("Streams", "open" if retrying else "good", f"{on}", note)
