"""What the doctor looks at in the ledger: that it has room, is sealed, and is held outside; and that nothing waits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from audit import spool
from audit.outside.contradictions import unsettled
from audit.outside.models import SinkState
from audit.retention import partitions
from audit.sealing import evidence
from audit.sealing.keys import parse
from audit.sealing.kms import CannotSign, KmsSigner
from audit.sealing.progress import MOST_COUNTED, PROGRESS, Progress
from audit.streams.steering import ALARMS, standings
from audit.verify import parse_vkey
from mcpsite.check import Check, State, listed, question, rows
from mcpsite.witness_program import shortcomings

_LAG_SECONDS, _HEAD_SECONDS = 10.0, 120.0
_LONG_AGO, _LATELY, _RECONCILED = timedelta(days=30), timedelta(days=7), timedelta(minutes=5)
_WITNESS_AGE, _ANCHOR_AGE = timedelta(minutes=10), timedelta(hours=26)


def _partitions(name: str) -> Check:
    with question():
        found = partitions.ahead()
    if found >= partitions.FEWEST_AHEAD:
        return Check(name, State.OK, f"They are there for {found} months after this one.")
    said = f"They are there for {found} months after this one, and should be for {partitions.MONTHS_AHEAD}."
    advice = (
        "The job worker makes them every night: see that it runs (manage.py worker jobs), or run: manage.py retention"
    )
    return Check(name, State.WARN if found else State.FAIL, said, f"{advice} --partitions")


def _waiting(name: str) -> Check:
    if settings.LEDGER_SPOOL_DIR is None:
        return Check(name, State.WARN, "There is none: outcomes wait in memory only.", "Set LEDGER_SPOOL_DIR.")
    found = spool.waiting(settings.LEDGER_SPOOL_DIR)
    if found.aside:
        said = f"Parts of {listed(list(found.aside))} could not be read, and were set aside."
        advice = f"What could be read is in the ledger. Keep the files of {settings.LEDGER_SPOOL_DIR} for the auditor."
        return Check(name, State.WARN, said, advice)
    if found.records:
        advice = (
            "Its process writes them as soon as PostgreSQL takes them, and the next one those of a process that ended."
            " If they stay, see what the logs of the site say of the ledger."
        )
        said = f"{found.records:,} records wait there for PostgreSQL, since {found.since:%Y-%m-%d %H:%M:%S} UTC."
        return Check(name, State.WARN, said, advice)
    return Check(name, State.OK, f"It is empty: PostgreSQL has every record.{_last_drained()}")


def _last_drained() -> str:
    for at, records in rows(_LATEST, "records", "spool_drained", datetime.now(UTC) - _LONG_AGO):
        return f" {records} of a process that had ended were written at {at:%Y-%m-%d %H:%M:%S} UTC."
    return ""


_LATEST = """
SELECT at, detail::json ->> %s FROM audit_record WHERE code = %s AND at > %s ORDER BY at DESC LIMIT 1
"""


def _never_taken(name: str) -> Check:
    """Records that PostgreSQL would not take, whatever was tried: what they were is in the log and in the spool."""
    since = datetime.now(UTC) - _LONG_AGO
    ((number,),) = rows("SELECT count(*) FROM audit_record WHERE code = 'record_refused' AND at > %s", since)
    if not number:
        return Check(name, State.OK, f"PostgreSQL took every record of the last {_LONG_AGO.days} days.")
    ((at, reason),) = rows(_LATEST, "message", "record_refused", since)
    said = f"{number:,} records in {_LONG_AGO.days} days; the last at {at:%Y-%m-%d %H:%M:%S} UTC: {reason}"
    advice = "Each left a gap in the count of its writer, which the records `record_refused` name: tell the auditor."
    return Check(name, State.WARN, said, advice)


def _unknown(name: str) -> Check:
    """What the reconciler closed, and whether it is at work."""
    found = rows("SELECT at FROM audit_mark WHERE name = 'intents'")
    if not found or datetime.now(UTC) - found[0][0] > _RECONCILED:
        when = f"since {found[0][0]:%Y-%m-%d %H:%M:%S} UTC" if found else "yet"
        return Check(name, State.WARN, f"Open calls were not looked for {when}.", "See that the job worker runs.")
    ((number, last),) = rows(_CLOSED, datetime.now(UTC) - _LATELY)
    if not number:
        return Check(name, State.OK, f"Every call with effects of the last {_LATELY.days} days has its outcome.")
    closed = f"{number:,} calls of the last {_LATELY.days} days were closed as unknown"
    advice = "Ask at the upstream what became of them: see the records with the code `unknown`."
    return Check(name, State.WARN, f"{closed}, the last at {last:%Y-%m-%d %H:%M:%S} UTC.", advice)


_CLOSED = "SELECT count(*), max(at) FROM audit_record WHERE code = 'unknown' AND at > %s"


def _progress() -> Progress:
    return Progress.of(rows(PROGRESS)[0])


def _sealing(name: str) -> Check:
    found = _progress()
    advice = "See that the sealer runs (manage.py worker sealer), and what its log says."
    if found.number is None:
        return Check(name, State.FAIL, "Nothing was ever sealed.", advice)
    waiting = f"{MOST_COUNTED:,} or more" if found.waiting == MOST_COUNTED else f"{found.waiting:,}"
    if found.lag_seconds > _LAG_SECONDS or found.head_age_seconds > _HEAD_SECONDS:
        said = f"{waiting} records wait for their seal; the newest head is {found.head_age_seconds:.0f} s old."
        why = rows(_LATEST, "message", "ledger_not_sealed", found.sealed_at)
        return Check(name, State.FAIL, said, f"The sealer says: {why[0][1]}" if why else advice)
    return Check(name, State.OK, f"Head {found.number:,} is over {found.size:,} records; {waiting} wait for the next.")


def _refused(name: str) -> Check:
    found = _progress().refused
    if not found:
        return Check(name, State.OK, "Every record that was looked at is as its writer wrote it.")
    return Check(
        name,
        State.FAIL,
        f"{found:,} records are not as their writer wrote them, and were not sealed.",
        "Their ids stand in audit_refused. Either somebody changed or inserted them, or the sealer lacks one of"
        " ENCRYPTION_KEYS: add it, and start the sealer again.",
    )


def _keys(name: str) -> Check:
    found = rows("SELECT vkey, since, at FROM audit_key ORDER BY since DESC, at DESC")
    if not found:
        return Check(name, State.WARN, "No key has signed yet.", "See that the sealer runs.")
    vkey, since, at = found[0]
    key = parse_vkey(vkey)
    signed = len({each for each, *_ in found})
    said = f"{key.id.hex()} of {key.name} has signed since head {since:,} ({at:%Y-%m-%d}); {signed} in all."
    return Check(name, State.OK, said)


def signing_keys() -> Iterator[Check]:
    """Whether each key in AWS KMS may sign; for the sealer's environment only, since no other has these keys."""
    name = "Keys in KMS"
    try:
        found = [each for each in parse(settings.LEDGER_SIGNING_KEYS() or "") if isinstance(each, KmsSigner)]
    except ImproperlyConfigured as error:
        yield Check("Signing keys", State.FAIL, str(error), "Correct it, and start the sealer again.")
        return
    for each in found:
        try:
            each.examine()
        except CannotSign as error:
            yield Check(name, State.FAIL, str(error), "Nothing is sealed while the key that signs cannot be used.")
        else:
            yield Check(name, State.OK, f"{each.name} is the Ed25519 key {each.arn}, and may sign.")


def _witnesses(name: str) -> Check:
    signed = {each.name: each.at for each in evidence.witnesses()}
    expected = sorted({each.name for each in settings.LEDGER_WITNESSES} | set(signed))
    lacking = " ".join(shortcomings(expected))
    if not expected:
        return Check(name, State.WARN, "No witness signs heads.", f"{lacking} See docs/auditor.md.")
    late = _late(expected, signed, _WITNESS_AGE)
    if late:
        said = f"No signature for {_WITNESS_AGE / timedelta(minutes=1):.0f} minutes from {listed(late)}."
        return Check(
            name, State.FAIL if late == expected else State.WARN, said, "See that they run, and what they say."
        )
    return Check(
        name, State.WARN if lacking else State.OK, f"{listed(expected)} signed within the last minutes.", lacking
    )


def _anchors(name: str) -> Check:
    written = {each.name: each.at for each in evidence.sinks()}
    expected = sorted(each.name for each in settings.LEDGER_ANCHORS)
    if not expected:
        return Check(name, State.WARN, "Heads are written to no place outside.", "Set LEDGER_ANCHORS.")
    failing = dict(SinkState.objects.filter(sink__in=expected, failures__gt=0).values_list("sink", "error"))
    late = _late(expected, written, _ANCHOR_AGE)
    if late or failing:
        said = (
            f"Nothing was written for {_ANCHOR_AGE / timedelta(hours=1):.0f} hours to {listed(late)}."
            if late
            else f"The last attempt failed at {listed(sorted(failing))}."
        )
        return Check(name, State.WARN, said, " ".join(failing.values()) or "See that the job worker runs.")
    return Check(name, State.OK, f"Recent heads are in {listed(expected)}.")


def _late(expected: list[str], seen: dict[str, datetime], longest: timedelta) -> list[str]:
    oldest = datetime.now(UTC) - longest
    return [each for each in expected if each not in seen or seen[each] < oldest]


def _contradictions(name: str) -> Check:
    with question():
        found = unsettled()
    if not found:
        return Check(name, State.OK, "Nobody holds a head that the ledger does not stand by.")
    source, code, head, since = found[0]
    said = f"{len(found)} are open; the newest: {source} holds head {head:,} ({code}, {since:%Y-%m-%d %H:%M} UTC)."
    advice = (
        "An older state was restored, or the ledger was changed: run the verifier. What explains a restore that was"
        " meant: manage.py ledger accept-restore --reason '…'"
    )
    return Check(name, State.FAIL, said, advice)


def _streams(name: str) -> Check:
    with question():
        found = [each for each in standings().values() if each.enabled]
    alarmed = [each for each in found if each.alarm]
    if not alarmed:
        return Check(
            name, State.OK, f"{len(found)} forward the ledger, without an alarm." if found else "There are none."
        )
    said = " ".join(f"{each.name}: {ALARMS[each.alarm]}" for each in alarmed)
    return Check(name, State.FAIL, said, "See its page under Streams, and that the job worker runs.")


CHECKS: dict[str, Callable[[str], Check]] = {
    "Partitions": _partitions,
    "Spool": _waiting,
    "Records never taken": _never_taken,
    "Unknown outcomes": _unknown,
    "Sealing": _sealing,
    "Refused records": _refused,
    "Signing keys": _keys,
    "Witnesses": _witnesses,
    "Anchors": _anchors,
    "Contradictions": _contradictions,
    "Streams": _streams,
}
