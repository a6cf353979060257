"""What the site's database role may do: work with every table, alter none, and only add to and read the ledger."""

from __future__ import annotations

from django.db.backends.utils import CursorWrapper
from psycopg import sql

# {role} may use everything that the migrations made, except for what must not change under the site.
_GRANTS = (
    "GRANT USAGE ON SCHEMA {schema} TO {role}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}",
    "GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {role}",
    "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {role}",
    "REVOKE INSERT, UPDATE, DELETE ON django_migrations FROM {role}",
    "REVOKE UPDATE, DELETE, TRUNCATE ON audit_record FROM {role}",
    "REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON audit_gap_drop, audit_gap_rule FROM {role}",
)


def grant_to_site(cursor: CursorWrapper, role: str) -> None:
    """Give `role` its privileges on the tables of the current schema. The cursor is the owner's. Safe to repeat."""
    cursor.execute("SELECT current_schema()")
    schema = cursor.fetchone()[0]
    for statement in _GRANTS:
        cursor.execute(sql.SQL(statement).format(schema=sql.Identifier(schema), role=sql.Identifier(role)))
    cursor.execute("SELECT relid::regclass::text FROM pg_partition_tree('audit_record') WHERE isleaf")
    for (partition,) in cursor.fetchall():
        # Rows come in through the parent; nobody but the owner touches a partition by its own name.
        cursor.execute(sql.SQL("REVOKE ALL ON {} FROM {}").format(sql.SQL(partition), sql.Identifier(role)))
