"""Indexes for reading the ledger by time, and the permission to read the arguments of calls.

Each begins with what is filtered by and goes on in the order of the list (`at`, `id`), so that a page costs the same
with a thousand records and with a hundred million. What most calls have in common (`ok`, `call`, no detail) is left out
where that can be, so that writing their records stays cheap. Ids of requests are random: a BRIN index of Bloom filters
is a hundredth of the work for the writer. What is included is what the timeline counts, so that it reads no table. The
index over time replaces one that could not order.

Building them takes about four seconds a million records, for which the ledger waits.
"""

from django.db import migrations

FORWARD = """
DROP INDEX audit_record_at;
CREATE INDEX audit_record_time ON audit_record (at, id) INCLUDE (kind, decision, code, door);
CREATE INDEX audit_record_tool ON audit_record (tool, at, id) INCLUDE (kind, decision, code) WHERE tool IS NOT NULL;
CREATE INDEX audit_record_actor ON audit_record (actor, at, id) INCLUDE (kind, decision, code) WHERE actor IS NOT NULL;
CREATE INDEX audit_record_connector ON audit_record (connector, at, id) INCLUDE (kind, decision, code)
    WHERE connector IS NOT NULL;
CREATE INDEX audit_record_code ON audit_record (code, at, id) INCLUDE (kind, decision)
    WHERE code NOT IN ('ok', 'intended');
CREATE INDEX audit_record_kind ON audit_record (kind, at, id) INCLUDE (decision, code)
    WHERE kind NOT IN ('call', 'intent', 'outcome');
CREATE INDEX audit_record_denied ON audit_record (at, id) INCLUDE (kind, decision, code) WHERE decision = 'deny';
CREATE INDEX audit_record_trace ON audit_record (trace_id, at, id) WHERE trace_id IS NOT NULL;
CREATE INDEX audit_record_request ON audit_record USING brin (request_id text_bloom_ops)
    WITH (pages_per_range = 16, autosummarize = on);
CREATE INDEX audit_record_words ON audit_record USING gin (to_tsvector('simple', left(detail, 8000)))
    WHERE detail IS NOT NULL;
"""

BACKWARD = """
DROP INDEX audit_record_time, audit_record_tool, audit_record_actor, audit_record_connector, audit_record_code,
    audit_record_kind, audit_record_denied, audit_record_trace, audit_record_request, audit_record_words;
CREATE INDEX audit_record_at ON audit_record USING brin (at);
"""


class Migration(migrations.Migration):
    """Indexes, and a permission."""

    dependencies = [("audit", "0004_metrics_permission")]

    operations = [
        migrations.RunSQL(FORWARD, BACKWARD),
        migrations.AlterModelOptions(
            name="record",
            options={
                "default_permissions": ("view",),
                "ordering": ("-id",),
                "permissions": (
                    ("view_metrics", "Can read the metrics at /metrics"),
                    ("read_arguments", "Can read the arguments of calls"),
                ),
            },
        ),
    ]
