"""Keys of subjects and months, which can be destroyed but not deleted, and the arguments that a policy shows."""

import django.db.models.functions.datetime
from django.db import migrations, models

import keyring.fields

FORWARD = """
ALTER TABLE audit_record ADD COLUMN shown text;

CREATE TABLE audit_dek (
    id           uuid PRIMARY KEY,
    subject_kind text NOT NULL,
    subject      text NOT NULL,
    month        date NOT NULL,
    wrapped      bytea,
    created_at   timestamptz NOT NULL DEFAULT statement_timestamp(),
    destroyed_at timestamptz,
    destroyed_by text,
    reason       text,
    CHECK ((wrapped IS NULL) = (destroyed_at IS NOT NULL))
);
CREATE INDEX audit_dek_subject ON audit_dek (subject_kind, subject, month);
CREATE INDEX audit_dek_destroyed ON audit_dek (destroyed_at) WHERE destroyed_at IS NOT NULL;

CREATE FUNCTION audit_dek_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR OLD.wrapped IS NULL
        OR (NEW.id, NEW.subject_kind, NEW.subject, NEW.month, NEW.created_at)
           IS DISTINCT FROM (OLD.id, OLD.subject_kind, OLD.subject, OLD.month, OLD.created_at) THEN
        RAISE EXCEPTION 'A data key is wrapped anew or destroyed: % is refused.', TG_OP
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER audit_dek_frozen BEFORE UPDATE OR DELETE ON audit_dek
    FOR EACH ROW EXECUTE FUNCTION audit_dek_refuse();
"""
BACKWARD = """
DROP TABLE audit_dek;
DROP FUNCTION audit_dek_refuse();
ALTER TABLE audit_record DROP COLUMN shown;
"""
STATE = [
    migrations.AddField(
        "record",
        "shown",
        models.TextField(
            "arguments shown", null=True, help_text="JSON of what the tool's policy shows of them."
        ),
    ),
    migrations.AlterModelOptions(
        "record",
        {
            "default_permissions": ("view",),
            "ordering": ("-id",),
            "permissions": (
                ("view_metrics", "Can read the metrics at /metrics"),
                ("read_arguments", "Can read the arguments of calls"),
                ("erase_subject", "Can erase what the ledger keeps of a person"),
            ),
        },
    ),
    migrations.CreateModel(
        "DataKey",
        [
            ("id", models.UUIDField(primary_key=True, serialize=False)),
            ("subject_kind", models.TextField(help_text="`user`, or what the policy of a tool calls such a subject.")),
            ("subject", models.TextField(help_text="The id of the user, or the keyed hash of the value of an argument.")),
            ("month", models.DateField()),
            ("wrapped", keyring.fields.EncryptedJSONField(editable=False, null=True)),
            ("created_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ("destroyed_at", models.DateTimeField(null=True)),
            ("destroyed_by", models.TextField(null=True)),
            ("reason", models.TextField(null=True)),
        ],
        {"db_table": "audit_dek", "ordering": ("month",), "default_permissions": (), "verbose_name": "data key", "verbose_name_plural": "privacy"},
    ),
]


class Migration(migrations.Migration):
    """Creates the table of keys, and one column."""

    dependencies = [("audit", "0009_gap_certificates")]

    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[migrations.RunSQL(FORWARD, BACKWARD)], state_operations=STATE
        ),
        migrations.CreateModel(
            "SubjectHashKey",
            [
                ("id", models.SmallIntegerField(default=1, primary_key=True, serialize=False)),
                ("key", keyring.fields.EncryptedJSONField(editable=False)),
            ],
            {
                "db_table": "audit_subject_hash_key",
                "default_permissions": (),
                "constraints": [
                    models.CheckConstraint(condition=models.Q(("id", 1)), name="one_subject_hash_key")
                ],
            },
        ),
    ]
