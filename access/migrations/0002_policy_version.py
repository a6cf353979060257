"""The policy version: raised by the database, once a transaction, whenever something that decides calls has changed.

Deferred to the commit, so that the one row is locked for the shortest time and last, and so that the version is raised
together with the change that it stands for. `NOTIFY mcpsite_policy` tells every process.
"""

from django.db import migrations

# table → columns whose change matters (None: all)
WATCHED = {
    "access_user": ("username", "is_active", "generation", "is_service"),
    "access_user_groups": None,
    "access_role": None,
    "auth_group": ("name",),
    "access_grant": None,
    "access_apitoken": None,
    "access_revokedsession": None,
    "tools_datasource": ("name", "kind", "options", "secrets", "timeout_seconds", "enabled"),
    "tools_tool": ("source_id", "name", "effect", "tags", "enabled", "current_id"),
    "tools_toolset": ("name",),
    "tools_toolset_tools": None,
    "tools_egressrule": None,
}

FUNCTION = """
INSERT INTO access_policyversion (id, version) VALUES (1, 1);

CREATE FUNCTION access_raise_policy_version() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    raised bigint;
BEGIN
    IF current_setting('mcpsite.raised_in', true) IS NOT DISTINCT FROM pg_current_xact_id()::text THEN
        RETURN NULL;
    END IF;
    PERFORM set_config('mcpsite.raised_in', pg_current_xact_id()::text, true);
    UPDATE access_policyversion SET version = version + 1 WHERE id = 1 RETURNING version INTO raised;
    PERFORM pg_notify('mcpsite_policy', raised::text);
    RETURN NULL;
END $$;
"""


def _triggers():
    for table, columns in WATCHED.items():
        of = f" OF {', '.join(columns)}" if columns else ""
        yield (
            f"CREATE CONSTRAINT TRIGGER raise_policy_version AFTER INSERT OR DELETE OR UPDATE{of} ON {table} "
            "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION access_raise_policy_version()"
        )


class Migration(migrations.Migration):
    """Adds the version row, the function and one trigger a table."""

    dependencies = [("access", "0001_initial"), ("tools", "0001_initial"), ("auth", "0012_alter_user_first_name_max_length")]

    operations = [
        migrations.RunSQL(
            [FUNCTION, *_triggers()],
            [
                *(f"DROP TRIGGER raise_policy_version ON {table}" for table in WATCHED),
                "DROP FUNCTION access_raise_policy_version()",
                "DELETE FROM access_policyversion",
            ],
        )
    ]
