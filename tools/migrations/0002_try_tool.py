"""Trying tools in the admin: one's own rights, or those of any role. `call_tool`, which nothing asked for, becomes it."""

from typing import Any

from django.db import migrations


def _rename(before: str, after: str, name: str) -> Any:
    def run(apps: Any, schema_editor: Any) -> None:
        rows = apps.get_model("auth", "Permission").objects.using(schema_editor.connection.alias)
        rows.filter(content_type__app_label="tools", codename=before).update(codename=after, name=name)

    return run


class Migration(migrations.Migration):
    """Keeps the permission with those who hold it."""

    dependencies = [("tools", "0001_initial"), ("auth", "0012_alter_user_first_name_max_length")]
    operations = [
        migrations.AlterModelOptions(
            name="tool",
            options={
                "ordering": ("name",),
                "permissions": [
                    ("try_tool", "Can try tools in the admin, with their own rights"),
                    ("try_tool_as_role", "Can try tools in the admin with the rights of any role"),
                ],
            },
        ),
        migrations.RunPython(
            _rename("call_tool", "try_tool", "Can try tools in the admin, with their own rights"),
            _rename("try_tool", "call_tool", "Can call tools from the admin"),
        ),
    ]
