"""How far those have come that go along the ledger."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """A table of marks."""

    dependencies = [("audit", "0011_sealing")]

    operations = [
        migrations.CreateModel(
            name="Mark",
            fields=[
                ("name", models.TextField(primary_key=True, serialize=False)),
                ("low", models.BigIntegerField(default=0, help_text="Everything up to this record is done.")),
                ("high", models.BigIntegerField(default=0, help_text="The newest record that was seen.")),
                ("found", models.BigIntegerField(default=0, help_text="What came of it so far.")),
                ("at", models.DateTimeField(auto_now=True)),
            ],
            options={"db_table": "audit_mark", "default_permissions": ()},
        ),
    ]
