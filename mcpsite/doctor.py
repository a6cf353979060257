"""Looks at the installation as an experienced operator would, and says what to do about what it finds.

Every check asks the real thing: PostgreSQL, Redis, the tables of the evidence. None changes anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.cache import caches
from django.db import DEFAULT_DB_ALIAS, Error, connection
from django.db.migrations.executor import MigrationExecutor
from redis.exceptions import RedisError

from audit.durability import SWITCHED_OFF, complaint
from mcpsite import ledger_checks
from mcpsite.check import Check, State, listed, rows
from mcpsite.dbroles import SEALED

_CLOCK_WARN_SECONDS, _CLOCK_FAIL_SECONDS = 1.0, 5.0

SEES_CHECKS = "audit.view_metrics"


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


# --- The engines -----------------------------------------------------------------------------------------------------


def _database(name: str) -> Check:
    ((version,),) = rows("SELECT split_part(current_setting('server_version'), ' ', 1)")
    return Check(name, State.OK, f"PostgreSQL {version} answers.")


def _durability(name: str) -> Check:
    found = complaint(each for (each,) in rows(SWITCHED_OFF))
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
    ((theirs,),) = rows("SELECT extract(epoch FROM clock_timestamp())::float")
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
            f"The site's role is {listed(lacking)} of the ledger as well.",
            f"Make the roles as in deploy/postgres/roles.sql, set {urls}, and run: manage.py migrate",
        )
    return Check(name, State.OK, "Owner, site, writer, sealer and reader are roles of their own.")


def _privileges(name: str) -> Check:
    tables = [each for (each,) in rows(_APPEND_ONLY)]
    excess = [
        f"{privilege} on {table}"
        for table, privilege, may in rows(_MAY, tables, ["UPDATE", "DELETE", "TRUNCATE"])
        if may and not settings.ONE_DATABASE_ROLE
    ]
    if settings.LEDGER_DATABASES["sealer"]["USER"] != settings.DATABASES[DEFAULT_DB_ALIAS]["USER"]:
        excess += [f"{privilege} on {table}" for table, privilege, may in rows(_MAY, list(SEALED), ["INSERT"]) if may]
    if excess:
        return Check(name, State.FAIL, f"The site's role has too much: {', '.join(excess)}.", "Run: manage.py migrate")
    unguarded = [each for (each,) in rows(_UNGUARDED)]
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


CHECKS: dict[str, Callable[[str], Check]] = {
    "Database": _database,
    "Durability": _durability,
    "Migrations": _migrations,
    "Database roles": _roles,
    "Privileges": _privileges,
    **ledger_checks.CHECKS,
    "Clock": _clock,
    "Redis": _redis,
}
