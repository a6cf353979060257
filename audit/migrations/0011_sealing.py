"""What the sealer needs beside its tree: the keys that ever signed, and the records that it would not seal.

A request for a signature carries a MAC, so that the sealer does not sign for somebody who only has the database.
"""

from django.db import migrations

FORWARD = """
CREATE TABLE audit_key (
    vkey  text PRIMARY KEY,
    since bigint NOT NULL,
    at    timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE audit_refused (
    record_id bigint PRIMARY KEY,
    reason    text NOT NULL CHECK (reason IN ('changed', 'forged')),
    at        timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE audit_signing_request ADD COLUMN mac bytea NOT NULL CHECK (length(mac) = 32);
CREATE INDEX audit_signing_request_at ON audit_signing_request (at);
"""
TABLES = ("audit_key", "audit_refused")
_GUARDS = """
CREATE TRIGGER {table}_frozen BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION audit_refuse();
CREATE TRIGGER {table}_kept BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
"""
BACKWARD = """
DROP INDEX audit_signing_request_at;
ALTER TABLE audit_signing_request DROP COLUMN mac;
DROP TABLE audit_refused;
DROP TABLE audit_key;
"""


class Migration(migrations.Migration):
    """Creates the tables of the sealer."""

    dependencies = [("audit", "0010_datakeys")]

    operations = [migrations.RunSQL(FORWARD + "".join(_GUARDS.format(table=table) for table in TABLES), BACKWARD)]
