"""What the database roles may do: the site works with every table and alters none; the ledger's are narrower.

Nobody but the owner of the schema can change or delete evidence, and he has to switch triggers off for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from django.db.backends.utils import CursorWrapper
from psycopg import sql

# What the sealer alone makes, where it has a role of its own.
SEALED = ("audit_leaf", "audit_node", "audit_head", "audit_key", "audit_refused", "audit_signature")
_SITE = (
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}",
    "GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {role}",
    "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {role}",
    "REVOKE INSERT, UPDATE, DELETE ON django_migrations FROM {role}",
    "REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON audit_gap_drop, audit_gap_rule FROM {role}",
)
_WRITER = ("GRANT INSERT ON audit_record, audit_dek TO {role}",)
_SEALER = (
    # Its own events are records too, written in the transaction of what they tell.
    "GRANT SELECT, INSERT ON audit_record, audit_cosignature, audit_anchor TO {role}",
    f"GRANT SELECT, INSERT ON {', '.join(SEALED)} TO {{role}}",
    "GRANT SELECT ON audit_signing_request TO {role}",
    "GRANT SELECT ON SEQUENCE audit_record_id_seq TO {role}",
)
_APPEND_ONLY = """
SELECT DISTINCT t.tgrelid::regclass::text FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
JOIN pg_class c ON c.oid = t.tgrelid
WHERE p.proname = 'audit_refuse' AND NOT c.relispartition AND c.relnamespace = current_schema()::regnamespace
"""
_EVIDENCE = """
SELECT c.oid::regclass::text FROM pg_class c WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
AND c.relnamespace = current_schema()::regnamespace AND c.relname LIKE 'audit\\_%' AND c.relname <> 'audit_dek'
"""
_PARTITIONS = "SELECT relid::regclass::text FROM pg_partition_tree('audit_record') WHERE isleaf"


class NoSuchRole(Exception):
    """A role that a URL names is not there; the text is a sentence for people."""


@dataclass(frozen=True, slots=True)
class Roles:
    """The roles besides the owner, by name. None of the ledger's: the site does that work as well."""

    site: str
    writer: str | None = None
    sealer: str | None = None
    reader: str | None = None


def grant(cursor: CursorWrapper, roles: Roles) -> None:
    """Give each role its privileges in the current schema, and take what it must not have. The cursor is the owner's.

    Safe to repeat. Raises NoSuchRole.
    """
    cursor.execute("SELECT current_schema()")
    schema = cursor.fetchone()[0]
    for role, statements in _statements(cursor, roles):
        _refuse_missing(cursor, role)
        for statement in ("GRANT USAGE ON SCHEMA {schema} TO {role}", *statements):
            cursor.execute(sql.SQL(statement).format(schema=sql.Identifier(schema), role=sql.Identifier(role)))


def _statements(cursor: CursorWrapper, roles: Roles) -> Iterator[tuple[str, tuple[str, ...]]]:
    frozen = ", ".join(_names(cursor, _APPEND_ONLY))
    # Rows come in through the parent; nobody but the owner touches a partition by its own name.
    partitions = f"REVOKE ALL ON {', '.join(_names(cursor, _PARTITIONS))} FROM {{role}}"
    kept = f"REVOKE UPDATE, DELETE, TRUNCATE ON {frozen} FROM {{role}}"
    sealed = (f"REVOKE INSERT ON {', '.join(SEALED)} FROM {{role}}",) if roles.sealer else ()
    yield roles.site, (*_SITE, kept, partitions, *sealed)
    if roles.writer:
        yield roles.writer, _WRITER
    if roles.sealer:
        yield roles.sealer, _SEALER
    if roles.reader:
        yield roles.reader, (f"GRANT SELECT ON {', '.join(_names(cursor, _EVIDENCE))} TO {{role}}",)


def _names(cursor: CursorWrapper, query: str) -> list[str]:
    cursor.execute(query)
    return sorted(name for (name,) in cursor.fetchall())


def _refuse_missing(cursor: CursorWrapper, role: str) -> None:
    cursor.execute("SELECT count(*) FROM pg_roles WHERE rolname = %s", [role])
    if not cursor.fetchone()[0]:
        raise NoSuchRole(
            f"There is no database role {role}, which a URL of the settings names: make it as in"
            " deploy/postgres/roles.sql, or unset that URL."
        )
