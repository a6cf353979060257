"""The evidence beside the records: leaves in their order, nodes of the Merkle tree, signed heads and what follows from them.

All of it is append-only, as the records are. `docs/evidence.md` describes the formats.
"""

from django.db import migrations

FORWARD = """
CREATE TABLE audit_leaf (
    seq       bigint PRIMARY KEY,
    record_id bigint NOT NULL UNIQUE,
    at        timestamptz NOT NULL,
    leaf      bytea NOT NULL CHECK (length(leaf) = 32)
);
CREATE TABLE audit_node (
    height smallint NOT NULL CHECK (height IN (8, 16, 24, 32, 40)),
    index  bigint NOT NULL,
    hash   bytea NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (height, index)
);
CREATE TABLE audit_head (
    number    bigint PRIMARY KEY,
    size      bigint NOT NULL,
    root      bytea NOT NULL CHECK (length(root) = 32),
    previous  bytea NOT NULL CHECK (length(previous) = 32),
    sealed_at timestamptz NOT NULL,
    low_water bigint NOT NULL,
    note      text NOT NULL
);
CREATE INDEX audit_head_size ON audit_head (size, number);
CREATE TABLE audit_cosignature (
    head    bigint NOT NULL REFERENCES audit_head,
    witness text NOT NULL,
    line    text NOT NULL,
    at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (head, witness)
);
CREATE TABLE audit_anchor (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    head    bigint NOT NULL REFERENCES audit_head,
    sink    text NOT NULL,
    receipt text NOT NULL,
    at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX audit_anchor_sink ON audit_anchor (sink, head);
CREATE TABLE audit_signing_request (
    id      uuid PRIMARY KEY,
    purpose text NOT NULL CHECK (purpose ~ '^[a-z-]{1,40}$'),
    digest  bytea NOT NULL CHECK (length(digest) = 32),
    at      timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE audit_signature (
    request uuid PRIMARY KEY REFERENCES audit_signing_request,
    note    text NOT NULL,
    at      timestamptz NOT NULL DEFAULT now()
);
"""
TABLES = (
    "audit_leaf",
    "audit_node",
    "audit_head",
    "audit_cosignature",
    "audit_anchor",
    "audit_signing_request",
    "audit_signature",
)
_GUARDS = """
CREATE TRIGGER {table}_frozen BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION audit_refuse();
CREATE TRIGGER {table}_kept BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
"""


class Migration(migrations.Migration):
    """Creates the tables of the evidence."""

    dependencies = [("audit", "0006_doors")]

    operations = [
        migrations.RunSQL(
            FORWARD + "".join(_GUARDS.format(table=table) for table in TABLES),
            "".join(f"DROP TABLE {table};" for table in reversed(TABLES)),
        )
    ]
