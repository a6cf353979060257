"""Looks at the installation as an experienced operator would, and says what to do about what it finds.

Every check asks the real thing: PostgreSQL, Redis, the tables of the evidence. None changes anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from django.conf import settings
from django.core.cache import caches
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, Error, connection, transaction
from django.db.migrations.executor import MigrationExecutor
from redis.exceptions import RedisError

from audit.durability import SWITCHED_OFF, complaint
from audit.sealing import evidence
from audit.sealing.keys import parse
from audit.sealing.kms import CannotSign, KmsSigner
from audit.sealing.progress import MOST_COUNTED, PROGRESS, Progress
from audit.verify import parse_vkey
from mcpsite.dbroles import SEALED

_PATIENCE_MS = 5_000
_LAG_SECONDS, _HEAD_SECONDS = 10.0, 120.0
_WITNESS_AGE, _ANCHOR_AGE = timedelta(minutes=10), timedelta(hours=26)
_CLOCK_WARN_SECONDS, _CLOCK_FAIL_SECONDS = 1.0, 5.0
_MONTHS_AHEAD = 2

SEES_CHECKS = "audit.view_metrics"


class State(StrEnum):
    """How it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, how it is, and what to do where it is not as it should be."""

    name: str
    state: State
    found: str
    advice: str = ""


def examine() -> list[Check]:
    """All checks, in the order of their dependence; one that cannot be made has failed."""
    return [_made(name, check) for name, check in CHECKS.items()]


def worst(checks: list[Check]) -> State:
    """The state of the whole."""
    states = {check.state for check in checks}
    return State.FAIL if State.FAIL in states else State.WARN if State.WARN in states else State.OK


def _made(name: str, check: Callable[[str], Check]) -> Check:
    try:
        return check(name)
    except (Error, RedisError, OSError) as error:
        return Check(name, State.FAIL, str(error).partition("\n")[0], "Look at what it needs, and at the logs.")


@contextmanager
def _question() -> Iterator[Any]:
    """A cursor that does not wait long for anybody."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL statement_timeout = {_PATIENCE_MS}")
        yield cursor


def _rows(query: str, *values: Any) -> list[tuple[Any, ...]]:
    with _question() as cursor:
        cursor.execute(query, list(values))
        found: list[tuple[Any, ...]] = cursor.fetchall()
        return found


# --- The engines -----------------------------------------------------------------------------------------------------


def _database(name: str) -> Check:
    ((version,),) = _rows("SELECT split_part(current_setting('server_version'), ' ', 1)")
    return Check(name, State.OK, f"PostgreSQL {version} answers.")


def _durability(name: str) -> Check:
    found = complaint(each for (each,) in _rows(SWITCHED_OFF))
    if found:
        return Check(name, State.FAIL, found, "Until then the sealer stops, and the site is not ready.")
    return Check(name, State.OK, "What is committed is on disk: fsync, full_page_writes and synchronous_commit are on.")


def _migrations(name: str) -> Check:
    executor = MigrationExecutor(connection)
    missing = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if missing:
        return Check(name, State.FAIL, f"{len(missing)} migrations are to be applied.", "Run: manage.py migrate")
    return Check(name, State.OK, "All are applied.")


def _clock(name: str) -> Check:
    before = time.time()
    ((theirs,),) = _rows("SELECT extract(epoch FROM clock_timestamp())::float")
    away = abs(theirs - (before + time.time()) / 2)
    state = State.OK if away < _CLOCK_WARN_SECONDS else State.WARN if away < _CLOCK_FAIL_SECONDS else State.FAIL
    advice = (
        "" if state == State.OK else "Times of records come from this machine: let both follow the same NTP servers."
    )
    return Check(name, state, f"{away:.2f} s between this machine and PostgreSQL.", advice)


def _redis(name: str) -> Check:
    began = time.perf_counter()
    cache: Any = caches["default"]
    cache.client.get_client().ping()
    return Check(name, State.OK, f"It answers, in {(time.perf_counter() - began) * 1000:.1f} ms.")


# --- The database roles ----------------------------------------------------------------------------------------------


def _roles(name: str) -> Check:
    if settings.ONE_DATABASE_ROLE:
        return Check(
            name,
            State.WARN,
            "One role owns the schema and serves requests: triggers are all that keeps the ledger from it.",
            "Set DATABASE_OWNER_URL, and give DATABASE_URL a role that owns nothing.",
        )
    site = settings.DATABASES[DEFAULT_DB_ALIAS]["USER"]
    lacking = [each for each, database in settings.LEDGER_DATABASES.items() if database["USER"] == site]
    if lacking:
        urls = ", ".join(f"LEDGER_{each.upper()}_URL" for each in lacking)
        return Check(
            name,
            State.WARN,
            f"The site's role is {_listed(lacking)} of the ledger as well.",
            f"Make the roles as in deploy/postgres/roles.sql, set {urls}, and run: manage.py migrate",
        )
    return Check(name, State.OK, "Owner, site, writer, sealer and reader are roles of their own.")


def _privileges(name: str) -> Check:
    tables = [each for (each,) in _rows(_APPEND_ONLY)]
    excess = [
        f"{privilege} on {table}"
        for table, privilege, may in _rows(_MAY, tables, ["UPDATE", "DELETE", "TRUNCATE"])
        if may and not settings.ONE_DATABASE_ROLE
    ]
    if settings.LEDGER_DATABASES["sealer"]["USER"] != settings.DATABASES[DEFAULT_DB_ALIAS]["USER"]:
        excess += [f"{privilege} on {table}" for table, privilege, may in _rows(_MAY, list(SEALED), ["INSERT"]) if may]
    if excess:
        return Check(name, State.FAIL, f"The site's role has too much: {', '.join(excess)}.", "Run: manage.py migrate")
    unguarded = [each for (each,) in _rows(_UNGUARDED)]
    if unguarded:
        return Check(
            name,
            State.FAIL,
            f"Triggers that keep evidence from being changed are switched off: {', '.join(unguarded)}.",
            "Find out who did that, run the verifier, and switch them on: ALTER TABLE … ENABLE TRIGGER ALL.",
        )
    return Check(name, State.OK, f"The site can change none of {len(tables)} append-only tables; all triggers are on.")


_GUARDS = """
FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_class c ON c.oid = t.tgrelid
WHERE p.proname = 'audit_refuse' AND NOT c.relispartition AND c.relnamespace = current_schema()::regnamespace
"""
_APPEND_ONLY = f"SELECT DISTINCT c.relname {_GUARDS} ORDER BY 1"
_UNGUARDED = f"SELECT t.tgname {_GUARDS} AND t.tgenabled = 'D' ORDER BY 1"
_MAY = """
SELECT name, privilege, has_table_privilege(name, privilege)
FROM unnest(%s::text[]) AS name, unnest(%s::text[]) AS privilege
"""


# --- The ledger ------------------------------------------------------------------------------------------------------


def _partitions(name: str) -> Check:
    names = {each for (each,) in _rows("SELECT relid::regclass::text FROM pg_partition_tree('audit_record')")}
    now = datetime.now(UTC)
    months = [(now.year * 12 + now.month - 1 + step) for step in range(_MONTHS_AHEAD + 1)]
    missing = [f"{month // 12}-{month % 12 + 1:02}" for month in months if _partition(month) not in names]
    if missing:
        state = State.FAIL if len(missing) >= _MONTHS_AHEAD else State.WARN
        advice = "The job worker makes them daily: see that it runs (manage.py worker jobs)."
        return Check(name, state, f"There is none for {', '.join(missing)}.", advice)
    return Check(name, State.OK, f"They are there for this month and the next {_MONTHS_AHEAD}.")


def _partition(month: int) -> str:
    return f"audit_record_{month // 12}{month % 12 + 1:02}"


def _progress() -> Progress:
    return Progress.of(_rows(PROGRESS)[0])


def _sealing(name: str) -> Check:
    found = _progress()
    advice = "See that the sealer runs (manage.py worker sealer), and what its log says."
    if found.number is None:
        return Check(name, State.FAIL, "Nothing was ever sealed.", advice)
    waiting = f"{MOST_COUNTED:,} or more" if found.waiting == MOST_COUNTED else f"{found.waiting:,}"
    if found.lag_seconds > _LAG_SECONDS or found.head_age_seconds > _HEAD_SECONDS:
        said = f"{waiting} records wait for their seal; the newest head is {found.head_age_seconds:.0f} s old."
        why = _rows(_WHY_NOT_SEALED, found.sealed_at)
        return Check(name, State.FAIL, said, f"The sealer says: {why[0][0]}" if why else advice)
    return Check(name, State.OK, f"Head {found.number:,} is over {found.size:,} records; {waiting} wait for the next.")


_WHY_NOT_SEALED = """
SELECT detail::json ->> 'message' FROM audit_record WHERE code = 'ledger_not_sealed' AND at > %s
ORDER BY at DESC LIMIT 1
"""


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
    rows = _rows("SELECT vkey, since, at FROM audit_key ORDER BY since DESC, at DESC")
    if not rows:
        return Check(name, State.WARN, "No key has signed yet.", "See that the sealer runs.")
    vkey, since, at = rows[0]
    key = parse_vkey(vkey)
    said = f"{key.id.hex()} of {key.name} has signed since head {since:,} ({at:%Y-%m-%d}); {len(rows)} in all."
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
    advice = "Only a witness elsewhere is sure to notice an older database: docs/auditor.md says how to run one."
    if not expected:
        return Check(name, State.WARN, "No witness signs heads.", advice)
    late = _late(expected, signed, _WITNESS_AGE)
    if late:
        said = f"No signature for {_WITNESS_AGE / timedelta(minutes=1):.0f} minutes from {_listed(late)}."
        return Check(name, State.FAIL if late == expected else State.WARN, said, "See that they run.")
    return Check(name, State.OK, f"{_listed(expected)} signed within the last minutes.")


def _anchors(name: str) -> Check:
    written = {each.name: each.at for each in evidence.sinks()}
    expected = sorted(each.name for each in settings.LEDGER_ANCHORS)
    if not expected:
        return Check(name, State.WARN, "Heads are written to no place outside.", "Set LEDGER_ANCHORS.")
    late = _late(expected, written, _ANCHOR_AGE)
    if late:
        said = f"Nothing was written for {_ANCHOR_AGE / timedelta(hours=1):.0f} hours to {_listed(late)}."
        return Check(name, State.WARN, said, "See what the sinks say, and that the job worker runs.")
    return Check(name, State.OK, f"Recent heads are in {_listed(expected)}.")


def _late(expected: list[str], seen: dict[str, datetime], longest: timedelta) -> list[str]:
    oldest = datetime.now(UTC) - longest
    return [each for each in expected if each not in seen or seen[each] < oldest]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


CHECKS: dict[str, Callable[[str], Check]] = {
    "Database": _database,
    "Durability": _durability,
    "Migrations": _migrations,
    "Database roles": _roles,
    "Privileges": _privileges,
    "Partitions": _partitions,
    "Sealing": _sealing,
    "Refused records": _refused,
    "Signing keys": _keys,
    "Witnesses": _witnesses,
    "Anchors": _anchors,
    "Clock": _clock,
    "Redis": _redis,
}
