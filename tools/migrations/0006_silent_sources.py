"""Processes hear of it when a data source falls silent or answers again: lists say so."""

from django.db import migrations

# A check writes the column each time; only a turn is news.
FORWARD = """
CREATE CONSTRAINT TRIGGER raise_policy_version_of_silence AFTER UPDATE OF check_ok ON tools_datasource
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN ((OLD.check_ok IS FALSE) IS DISTINCT FROM (NEW.check_ok IS FALSE))
    EXECUTE FUNCTION access_raise_policy_version()
"""


class Migration(migrations.Migration):
    """One trigger."""

    dependencies = [("tools", "0005_prompts_and_resources"), ("access", "0002_policy_version")]

    operations = [
        migrations.RunSQL(FORWARD, "DROP TRIGGER raise_policy_version_of_silence ON tools_datasource"),
    ]
