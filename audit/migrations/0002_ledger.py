"""The table of the ledger: partitioned by month, append-only for everybody.

Triggers refuse UPDATE, DELETE and TRUNCATE whoever asks; the site's role has no privilege for them either. The function
that makes partitions runs with its owner's rights, so that the site can ask for the coming months without being able to
alter anything else.
"""

from django.db import migrations

FORWARD = """
CREATE TABLE audit_record (
    id            bigint GENERATED ALWAYS AS IDENTITY,
    rid           uuid NOT NULL,
    at            timestamptz NOT NULL,
    kind          text NOT NULL,
    call_id       uuid,
    writer_id     uuid NOT NULL,
    writer_seq    bigint,
    actor         text,
    actor_id      text,
    on_behalf_of  text,
    token         text,
    roles         text,
    door          text,
    client        text,
    address       text,
    connector     text,
    tool          text,
    effect        text,
    definition    bytea,
    policy_version bigint,
    decision      text,
    code          text NOT NULL,
    object_type   text,
    object_id     text,
    detail        text,
    trace_id      text,
    request_id    text,
    args_commit   bytea,
    result_commit bytea,
    result_bytes  bigint,
    upstream_us   bigint,
    total_us      bigint,
    ct            bytea,
    key_id        text,
    leaf          bytea NOT NULL,
    mac           bytea NOT NULL,
    PRIMARY KEY (id, at),
    CONSTRAINT audit_record_rid UNIQUE (rid, at)
) PARTITION BY RANGE (at);

CREATE INDEX audit_record_call ON audit_record (call_id) WHERE call_id IS NOT NULL;
CREATE INDEX audit_record_object ON audit_record (object_type, object_id, id) WHERE object_id IS NOT NULL;
CREATE INDEX audit_record_at ON audit_record USING brin (at);

CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'The ledger is append-only: % is refused.', TG_OP USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE TRIGGER audit_record_frozen BEFORE UPDATE OR DELETE ON audit_record
    FOR EACH ROW EXECUTE FUNCTION audit_refuse();
CREATE TRIGGER audit_record_kept BEFORE TRUNCATE ON audit_record
    FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();

CREATE FUNCTION audit_make_partitions(months integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    first date := date_trunc('month', now() AT TIME ZONE 'UTC')::date;
    month date;
    name text;
    made integer := 0;
    home text := %(schema)s;
BEGIN
    IF months NOT BETWEEN 0 AND 24 THEN
        RAISE EXCEPTION 'Between 0 and 24 months ahead can be prepared, not %.', months;
    END IF;
    PERFORM pg_advisory_xact_lock(7035916240);
    FOR step IN 0..months LOOP
        month := (first + make_interval(months => step))::date;
        name := format('audit_record_%s', to_char(month, 'YYYYMM'));
        CONTINUE WHEN to_regclass(format('%I.%I', home, name)) IS NOT NULL;
        EXECUTE format(
            'CREATE TABLE %I.%I PARTITION OF %I.audit_record FOR VALUES FROM (%L) TO (%L)',
            home, name, home, month || ' 00:00+00', (month + interval '1 month')::date || ' 00:00+00');
        EXECUTE format(
            'CREATE TRIGGER audit_record_kept BEFORE TRUNCATE ON %I.%I FOR EACH STATEMENT EXECUTE FUNCTION %I.audit_refuse()',
            home, name, home);
        made := made + 1;
    END LOOP;
    RETURN made;
END $$;
"""

BACKWARD = """
DROP FUNCTION audit_make_partitions(integer);
DROP TABLE audit_record;
DROP FUNCTION audit_refuse();
"""


def create(apps, schema_editor):
    """Create the ledger in the schema that the connection writes to, and its first partitions."""
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT current_schema()")
        schema = cursor.fetchone()[0].replace("'", "''")
        cursor.execute(FORWARD.replace("%(schema)s", f"'{schema}'"))
        cursor.execute("REVOKE ALL ON FUNCTION audit_make_partitions(integer) FROM PUBLIC")
        cursor.execute("SELECT audit_make_partitions(3)")


def remove(apps, schema_editor):
    """Drop the ledger with everything in it."""
    schema_editor.execute(BACKWARD)


class Migration(migrations.Migration):
    """Creates the ledger."""

    dependencies = [("audit", "0001_initial")]

    operations = [migrations.RunPython(create, remove)]
