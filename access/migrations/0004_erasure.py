"""Processes hear of destroyed keys as they hear of changes of policy, and make new ones."""

from django.db import migrations

FORWARD = """
CREATE CONSTRAINT TRIGGER raise_policy_version AFTER UPDATE OF destroyed_at ON audit_dek
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION access_raise_policy_version()
"""


class Migration(migrations.Migration):
    """One more trigger."""

    dependencies = [("access", "0003_saved_filters"), ("audit", "0010_datakeys")]

    operations = [migrations.RunSQL(FORWARD, "DROP TRIGGER raise_policy_version ON audit_dek")]
