"""Processes hear of changed keys of model providers as of changes of policy: they mask them in what they write."""

from django.db import migrations

FORWARD = """
CREATE CONSTRAINT TRIGGER raise_policy_version AFTER INSERT OR UPDATE OF secrets ON agents_modelprovider
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION access_raise_policy_version()
"""


class Migration(migrations.Migration):
    """One more trigger."""

    dependencies = [("agents", "0001_initial"), ("access", "0002_policy_version")]

    operations = [migrations.RunSQL(FORWARD, "DROP TRIGGER raise_policy_version ON agents_modelprovider")]
