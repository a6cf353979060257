"""One more way into the ledger: by the door, but for the one that most calls come through."""

from django.db import migrations

FORWARD = """
CREATE INDEX audit_record_door ON audit_record (door, at, id) INCLUDE (kind, decision, code) WHERE door <> 'mcp'
"""


class Migration(migrations.Migration):
    """An index."""

    dependencies = [("audit", "0005_paths_through_the_ledger")]

    operations = [migrations.RunSQL(FORWARD, "DROP INDEX audit_record_door")]
