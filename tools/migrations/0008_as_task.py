"""When a call of a tool becomes a task."""

from django.db import migrations, models

TRIGGER = (
    "CREATE CONSTRAINT TRIGGER raise_policy_version_of_tasks AFTER UPDATE OF as_task ON tools_tool"
    " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION access_raise_policy_version()"
)


class Migration(migrations.Migration):
    """One column, and the trigger that tells processes of its changes."""

    dependencies = [("tools", "0007_what_sources_offer"), ("access", "0002_policy_version")]

    operations = [
        migrations.AddField(
            "tool",
            "as_task",
            models.CharField(
                "as a task",
                choices=[
                    ("never", "Never"),
                    ("slow", "When it is slow"),
                    ("at_once", "Whenever the client can"),
                    ("always", "Always; refused to other clients"),
                ],
                default="slow",
                help_text="When a call at `/mcp` becomes a task, for clients that know tasks: its result is asked for later,"
                " and not lost with a connection. A task from the beginning may take `TASK_TIMEOUT_SECONDS`.",
                max_length=8,
            ),
        ),
        migrations.RunSQL(TRIGGER, "DROP TRIGGER raise_policy_version_of_tasks ON tools_tool"),
    ]
