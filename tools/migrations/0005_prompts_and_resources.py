"""Prompts and resources of upstream MCP servers, in the catalogue and in toolsets."""

import uuid

import django.contrib.postgres.fields
import django.core.validators
import django.db.models.deletion
from django.db import migrations, models

# table → columns whose change matters to calls (None: all)
WATCHED = {
    "tools_prompt": ("source_id", "name", "source_name", "definition", "tags", "enabled", "missing"),
    "tools_resource": ("source_id", "uri", "is_template", "definition", "tags", "enabled", "missing"),
    "tools_toolset_prompts": None,
    "tools_toolset_resources": None,
}


def _triggers():
    for table, columns in WATCHED.items():
        of = f" OF {', '.join(columns)}" if columns else ""
        yield (
            f"CREATE CONSTRAINT TRIGGER raise_policy_version AFTER INSERT OR DELETE OR UPDATE{of} ON {table} "
            "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION access_raise_policy_version()"
        )


def _common():
    tag = django.core.validators.RegexValidator(
        "^[a-z0-9][a-z0-9_-]{0,31}\\Z", "Use 1 to 32 lower-case letters, digits, hyphens and underscores."
    )
    return [
        ("id", models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
        ("definition", models.TextField(editable=False, help_text="The object of the source's list as JSON, verbatim.")),
        ("fingerprint", models.CharField(editable=False, help_text="SHA-256 over the definition.", max_length=64)),
        (
            "tags",
            django.contrib.postgres.fields.ArrayField(
                models.CharField(max_length=32, validators=[tag]),
                blank=True,
                default=list,
                help_text="For grants by tag.",
                size=None,
            ),
        ),
        ("enabled", models.BooleanField(default=True, help_text="When off, it looks as if it did not exist.")),
        (
            "missing",
            models.BooleanField(
                default=False, editable=False, help_text="The source does not offer it any more; it cannot be used."
            ),
        ),
        ("created_at", models.DateTimeField(auto_now_add=True)),
        ("updated_at", models.DateTimeField(auto_now=True)),
        (
            "source",
            models.ForeignKey(
                editable=False,
                on_delete=django.db.models.deletion.CASCADE,
                related_name="%(class)ss",
                to="tools.datasource",
            ),
        ),
    ]


class Migration(migrations.Migration):
    """Two tables, two more parts of toolsets, and the triggers that tell processes of their changes."""

    dependencies = [("tools", "0004_recording"), ("access", "0002_policy_version")]

    operations = [
        migrations.CreateModel(
            "Prompt",
            [
                *_common(),
                (
                    "name",
                    models.CharField(
                        editable=False,
                        help_text="The name that clients see.",
                        max_length=64,
                        unique=True,
                        validators=[
                            django.core.validators.RegexValidator(
                                "^[A-Za-z0-9_-]{1,64}\\Z", "Use 1 to 64 letters, digits, underscores and hyphens."
                            )
                        ],
                    ),
                ),
                ("source_name", models.CharField(editable=False, help_text="Its name at the source.", max_length=128)),
            ],
            {"ordering": ("name",)},
        ),
        migrations.CreateModel(
            "Resource",
            [
                *_common(),
                (
                    "uri",
                    models.CharField(
                        "URI",
                        editable=False,
                        help_text="Of a template with its placeholders (RFC 6570).",
                        max_length=1024,
                        unique=True,
                    ),
                ),
                ("is_template", models.BooleanField(default=False, editable=False)),
            ],
            {"ordering": ("uri",)},
        ),
        migrations.AddField(
            "toolset", "prompts", models.ManyToManyField(blank=True, related_name="toolsets", to="tools.prompt")
        ),
        migrations.AddField(
            "toolset", "resources", models.ManyToManyField(blank=True, related_name="toolsets", to="tools.resource")
        ),
        migrations.RunSQL(
            [*_triggers()], [f"DROP TRIGGER raise_policy_version ON {table}" for table in WATCHED]
        ),
    ]
