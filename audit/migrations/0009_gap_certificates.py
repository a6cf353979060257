"""How records leave the ledger: under a certificate of two persons, by a function that checks it with its owner's rights.

The site's role cannot drop a partition, nor say that one was dropped. `audit_drop_expired` does both, after it has seen
that the certificate is signed, was approved by somebody else than who proposed it, has waited, and that each of its
records is past its time and not held at this moment. What stays of the month is copied into a new partition, which takes
the place of the old one: ids and leaves are the same, and everybody finds them where they were.
"""

from django.db import migrations

TABLES = ("audit_gap", "audit_gap_withdrawal", "audit_gap_drop")

FORWARD = """
CREATE TABLE audit_gap (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    month          date NOT NULL CHECK (extract(day FROM month) = 1),
    first_seq      bigint NOT NULL,
    last_seq       bigint NOT NULL CHECK (last_seq >= first_seq),
    records        bigint NOT NULL CHECK (records > 0),
    removed        bytea NOT NULL CHECK (length(removed) = (last_seq - first_seq) / 8 + 1),
    proposed_by_id text NOT NULL CHECK (proposed_by_id <> ''),
    approved_by_id text NOT NULL CHECK (approved_by_id NOT IN ('', proposed_by_id)),
    body           text NOT NULL,
    request        uuid NOT NULL UNIQUE REFERENCES audit_signing_request,
    at             timestamptz NOT NULL
);
CREATE INDEX audit_gap_range ON audit_gap (first_seq, last_seq);
CREATE TABLE audit_gap_withdrawal (
    gap bigint PRIMARY KEY REFERENCES audit_gap,
    by  text NOT NULL,
    at  timestamptz NOT NULL
);
CREATE TABLE audit_gap_drop (
    gap     bigint PRIMARY KEY REFERENCES audit_gap,
    removed bigint NOT NULL,
    kept    bigint NOT NULL,
    at      timestamptz NOT NULL
);
CREATE TABLE audit_gap_rule (
    alone   boolean PRIMARY KEY DEFAULT true CHECK (alone),
    waiting interval NOT NULL CHECK (waiting >= interval '0')
);
INSERT INTO audit_gap_rule (waiting) VALUES (interval '24 hours');

-- The time of a certificate is the database's, whoever writes it.
CREATE FUNCTION audit_stamp() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.at := clock_timestamp();
    RETURN NEW;
END $$;

-- Placing a hold and dropping records take turns.
CREATE FUNCTION audit_take_turns() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(7035916242);
    RETURN NULL;
END $$;
CREATE TRIGGER audit_legalhold_turn BEFORE INSERT OR UPDATE OR DELETE ON audit_legalhold
    FOR EACH STATEMENT EXECUTE FUNCTION audit_take_turns();
CREATE TRIGGER audit_retentionclass_turn BEFORE INSERT OR UPDATE OR DELETE ON audit_retentionclass
    FOR EACH STATEMENT EXECUTE FUNCTION audit_take_turns();

CREATE FUNCTION audit_month_begins(month date) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS
$$ SELECT month::timestamp AT TIME ZONE 'UTC' $$;

CREATE FUNCTION audit_month_ends(month date) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS
$$ SELECT (month + interval '1 month') AT TIME ZONE 'UTC' $$;

-- The sealed records of a month that are past the time of every class that covers them, and that no hold keeps.
CREATE FUNCTION audit_expired(wanted date) RETURNS TABLE (seq bigint, id bigint)
LANGUAGE sql STABLE SET search_path = {schema}, pg_temp AS $$
    WITH classes AS MATERIALIZED (
        SELECT name, kinds, tools, sources, (wanted + make_interval(months => months::int + 1)) AT TIME ZONE 'UTC' <= now() AS past
        FROM audit_retentionclass
    )
    SELECT l.seq, r.id
    FROM audit_record r JOIN audit_leaf l ON l.record_id = r.id AND l.leaf = r.leaf
    WHERE r.at >= audit_month_begins(wanted) AND r.at < audit_month_ends(wanted)
      AND coalesce(
        (SELECT bool_and(c.past) FROM classes c WHERE c.name <> 'standard'
            AND (c.kinds = '{}' OR r.kind = ANY (c.kinds))
            AND (c.tools = '{}' OR r.tool = ANY (c.tools))
            AND (c.sources = '{}' OR r.connector = ANY (c.sources))),
        (SELECT c.past FROM classes c WHERE c.name = 'standard'),
        false)
      AND NOT EXISTS (
        SELECT FROM audit_legalhold h WHERE h.released_at IS NULL
            AND (h.since IS NULL OR r.at >= h.since) AND (h.until IS NULL OR r.at < h.until)
            AND CASE h.scope WHEN 'principal' THEN h.value IN (r.actor, r.on_behalf_of)
                             WHEN 'tool' THEN h.value = r.tool
                             WHEN 'source' THEN h.value = r.connector
                             ELSE true END)
$$;

-- How many records of a month there are, how many of them the sealer has not seen, and where the sealed ones stand.
CREATE FUNCTION audit_month_count(wanted date)
RETURNS TABLE (records bigint, unsealed bigint, first_seq bigint, last_seq bigint)
LANGUAGE sql STABLE SET search_path = {schema}, pg_temp AS $$
    SELECT count(*), count(*) FILTER (WHERE l.seq IS NULL), min(l.seq), max(l.seq)
    FROM audit_record r LEFT JOIN audit_leaf l ON l.record_id = r.id AND l.leaf = r.leaf
    WHERE r.at >= audit_month_begins(wanted) AND r.at < audit_month_ends(wanted)
$$;

CREATE FUNCTION audit_drop_expired(certificate bigint) RETURNS TABLE (removed bigint, kept bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp SET lock_timeout = '5s' AS $$
DECLARE
    gap audit_gap;
    body json;
    bits bytea;
    old text;
    new text;
    before bigint;
    stays bigint;
    goes bigint;
    unsealed bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(7035916242);
    SELECT * INTO gap FROM audit_gap WHERE id = certificate;
    IF gap.id IS NULL THEN
        RAISE EXCEPTION 'There is no gap certificate %.', certificate;
    END IF;
    body := gap.body::json;
    old := format('audit_record_%s', to_char(gap.month, 'YYYYMM'));
    new := old || '_next';
    -- Detached from its row, so that it is read once and not for each record.
    bits := substring(gap.removed FROM 1);

    IF EXISTS (SELECT FROM audit_gap_drop d WHERE d.gap = certificate) THEN
        RAISE EXCEPTION 'Gap certificate % was carried out already.', certificate;
    END IF;
    IF EXISTS (SELECT FROM audit_gap_withdrawal w WHERE w.gap = certificate) THEN
        RAISE EXCEPTION 'Gap certificate % was withdrawn.', certificate;
    END IF;
    IF gap.proposed_by_id = gap.approved_by_id
        OR (body #>> '{proposed,id}', body #>> '{approved,id}') IS DISTINCT FROM (gap.proposed_by_id, gap.approved_by_id)
    THEN
        RAISE EXCEPTION 'Gap certificate % is not of two persons.', certificate;
    END IF;
    IF (body ->> 'month', body ->> 'first_seq', body ->> 'last_seq', body ->> 'records', body ->> 'removed_sha256')
        IS DISTINCT FROM (to_char(gap.month, 'YYYY-MM'), gap.first_seq::text, gap.last_seq::text, gap.records::text,
                          encode(sha256(bits), 'hex'))
    THEN
        RAISE EXCEPTION 'Gap certificate % does not say what its row says.', certificate;
    END IF;
    IF coalesce(body #>> '{archive,manifest}', '') !~ '^[0-9a-f]{64}$' THEN
        RAISE EXCEPTION 'Gap certificate % names no archive.', certificate;
    END IF;
    IF NOT EXISTS (
        SELECT FROM audit_signing_request q JOIN audit_signature s ON s.request = q.id
        WHERE q.id = gap.request AND q.purpose = 'gap' AND q.digest = sha256(convert_to(gap.body, 'UTF8'))
    ) THEN
        RAISE EXCEPTION 'Gap certificate % is not signed by the sealer.', certificate;
    END IF;
    IF gap.at + (SELECT waiting FROM audit_gap_rule) > clock_timestamp() THEN
        RAISE EXCEPTION 'Gap certificate % has to wait until %.', certificate,
            to_char((gap.at + (SELECT waiting FROM audit_gap_rule)) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI "UTC"');
    END IF;
    IF audit_month_ends(gap.month) > now() OR to_regclass(format('%I.%I', {home}, old)) IS NULL THEN
        RAISE EXCEPTION 'There is no partition of a past month %.', to_char(gap.month, 'YYYY-MM');
    END IF;

    EXECUTE format('LOCK TABLE %I IN SHARE MODE', old);
    SELECT m.records, m.unsealed INTO before, unsealed FROM audit_month_count(gap.month) m;
    IF unsealed > 0 THEN
        RAISE EXCEPTION '% records of % are not sealed: nothing of it is dropped.', unsealed, to_char(gap.month, 'YYYY-MM');
    END IF;
    SELECT count(*) INTO goes FROM audit_expired(gap.month) e
    WHERE CASE WHEN e.seq BETWEEN gap.first_seq AND gap.last_seq THEN get_bit(bits, e.seq - gap.first_seq) = 1 ELSE false END;
    IF goes <> gap.records THEN
        RAISE EXCEPTION 'Of the % records of gap certificate % only % may go: the others are held, kept for longer, or missing.',
            gap.records, certificate, goes;
    END IF;

    EXECUTE format('CREATE TABLE %I (LIKE %I INCLUDING ALL EXCLUDING IDENTITY)', new, old);
    EXECUTE format(
        'INSERT INTO %I SELECT r.* FROM %I r JOIN audit_leaf l ON l.record_id = r.id AND l.leaf = r.leaf'
        ' WHERE CASE WHEN l.seq BETWEEN $1 AND $2 THEN get_bit($3, l.seq - $1) = 0 ELSE true END', new, old)
    USING gap.first_seq, gap.last_seq, bits;
    GET DIAGNOSTICS stays = ROW_COUNT;
    IF before - stays <> gap.records THEN
        RAISE EXCEPTION '% records would go, and gap certificate % is for %.', before - stays, certificate, gap.records;
    END IF;
    EXECUTE format('ALTER TABLE %I ADD CONSTRAINT audit_in_month CHECK (at >= %L AND at < %L)', new,
        audit_month_begins(gap.month), audit_month_ends(gap.month));
    EXECUTE format('ANALYZE %I', new);

    -- From here on nobody writes or reads the ledger, so everything long is behind us. Whoever waits for this lock holds
    -- up all others: it is asked for in short turns, shorter than the patience of a call.
    PERFORM set_config('lock_timeout', '50ms', true);
    FOR turn IN 1..40 LOOP
        BEGIN
            LOCK TABLE ONLY audit_record IN ACCESS EXCLUSIVE MODE;
            EXIT;
        EXCEPTION WHEN lock_not_available THEN
            IF turn = 40 THEN
                RAISE EXCEPTION 'The ledger was in use all the time: try again when no long query reads it.';
            END IF;
            PERFORM pg_sleep(0.1);
        END;
    END LOOP;
    EXECUTE format('ALTER TABLE audit_record DETACH PARTITION %I', old);
    EXECUTE format('DROP TABLE %I', old);
    IF stays = 0 THEN
        EXECUTE format('DROP TABLE %I', new);
    ELSE
        EXECUTE format('ALTER TABLE %I RENAME TO %I', new, old);
        EXECUTE format('ALTER TABLE audit_record ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', old,
            audit_month_begins(gap.month), audit_month_ends(gap.month));
        EXECUTE format('ALTER TABLE %I DROP CONSTRAINT audit_in_month', old);
        EXECUTE format(
            'CREATE TRIGGER audit_record_kept BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()', old);
    END IF;
    INSERT INTO audit_gap_drop (gap, removed, kept, at) VALUES (certificate, gap.records, stays, clock_timestamp());
    RETURN QUERY SELECT gap.records, stays;
END $$;

-- The months that the ledger has or had.
CREATE VIEW audit_month AS
WITH present AS (
    SELECT to_date(right(c.relname, 6), 'YYYYMM') AS month, pg_total_relation_size(c.oid) AS bytes,
           greatest(c.reltuples, 0)::bigint AS estimate
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'audit_record'::regclass AND c.relname ~ '^audit_record_[0-9]{6}$'
), gone AS (
    SELECT g.month, sum(d.removed)::bigint AS dropped FROM audit_gap_drop d JOIN audit_gap g ON g.id = d.gap GROUP BY g.month
)
SELECT month, coalesce(bytes, 0) AS bytes, coalesce(estimate, 0) AS estimate, p.month IS NOT NULL AS present,
       coalesce(dropped, 0) AS dropped
FROM present p FULL JOIN gone g USING (month);

CREATE TRIGGER audit_gap_stamped BEFORE INSERT ON audit_gap FOR EACH ROW EXECUTE FUNCTION audit_stamp();
CREATE TRIGGER audit_gap_withdrawal_stamped BEFORE INSERT ON audit_gap_withdrawal
    FOR EACH ROW EXECUTE FUNCTION audit_stamp();
"""

BACKWARD = """
DROP VIEW audit_month;
DROP FUNCTION audit_drop_expired(bigint), audit_month_count(date), audit_expired(date), audit_month_ends(date),
    audit_month_begins(date);
DROP TRIGGER audit_legalhold_turn ON audit_legalhold;
DROP TRIGGER audit_retentionclass_turn ON audit_retentionclass;
DROP FUNCTION audit_take_turns();
DROP TABLE audit_gap_rule, audit_gap_drop, audit_gap_withdrawal, audit_gap;
DROP FUNCTION audit_stamp();
"""
_GUARDS = """
CREATE TRIGGER {table}_frozen BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION audit_refuse();
CREATE TRIGGER {table}_kept BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
"""


def create(apps, schema_editor):
    """Create everything in the schema that the connection writes to."""
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT quote_ident(current_schema()), quote_literal(current_schema())")
        schema, home = cursor.fetchone()
        cursor.execute(FORWARD.replace("{schema}", schema).replace("{home}", home))
        cursor.execute("".join(_GUARDS.format(table=table) for table in TABLES))
        cursor.execute("REVOKE ALL ON FUNCTION audit_drop_expired(bigint) FROM PUBLIC")


def remove(apps, schema_editor):
    """Drop it all; what was dropped under certificates does not come back."""
    schema_editor.execute(BACKWARD)


class Migration(migrations.Migration):
    """Creates the certificates, and the only way by which records leave."""

    dependencies = [("audit", "0008_retention")]

    operations = [migrations.RunPython(create, remove)]
