"""What records keep and show of arguments and results, at the tool and as a default at its source."""

from django.db import migrations, models

TRIGGER = (
    "CREATE CONSTRAINT TRIGGER raise_policy_version_of_recording AFTER UPDATE OF recording ON {table}"
    " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION access_raise_policy_version()"
)
TABLES = ("tools_datasource", "tools_tool")


class Migration(migrations.Migration):
    """Two columns, and the triggers that tell processes of their changes."""

    dependencies = [("tools", "0003_synchronisation"), ("access", "0002_policy_version")]

    operations = [
        migrations.AddField(
            "datasource",
            "recording",
            models.JSONField(
                "what is recorded",
                blank=True,
                null=True,
                help_text="What records keep and show of the arguments of its tools, where a tool does not say otherwise.",
            ),
        ),
        migrations.AddField(
            "tool",
            "recording",
            models.JSONField(
                "what is recorded",
                blank=True,
                null=True,
                help_text="What records keep and show of its arguments and results.",
            ),
        ),
        migrations.RunSQL(
            [TRIGGER.format(table=table) for table in TABLES],
            [f"DROP TRIGGER raise_policy_version_of_recording ON {table}" for table in TABLES],
        ),
    ]
