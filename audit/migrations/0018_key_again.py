"""Lets a key sign again that had handed over to another one: from a file to KMS, and back."""

from django.db import migrations

FORWARD = "ALTER TABLE audit_key DROP CONSTRAINT audit_key_pkey, ADD PRIMARY KEY (vkey, since)"


class Migration(migrations.Migration):
    """A key has a row for each time that it took over."""

    dependencies = [("audit", "0017_export_kept")]

    operations = [migrations.RunSQL(FORWARD, migrations.RunSQL.noop)]
