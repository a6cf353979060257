"""Heads, as Django reads them."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """Describes the table that is there."""

    dependencies = [("audit", "0015_streams")]

    operations = [
        migrations.CreateModel(
            name="Head",
            fields=[
                ("number", models.BigIntegerField(primary_key=True, serialize=False)),
                ("size", models.BigIntegerField(verbose_name="leaves")),
                ("root", models.BinaryField()),
                ("previous", models.BinaryField(verbose_name="hash of the head before")),
                ("sealed_at", models.DateTimeField(verbose_name="sealed")),
                ("low_water", models.BigIntegerField()),
                ("note", models.TextField()),
            ],
            options={
                "db_table": "audit_head",
                "ordering": ("-number",),
                "managed": False,
                "default_permissions": (),
            },
        ),
    ]
