"""What is outside and contradicts the ledger, and how the sinks of anchors fare. The latter changes; the former stays."""

from django.db import migrations, models

FORWARD = """
CREATE TABLE audit_contradiction (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    source    text NOT NULL,
    code      text NOT NULL CHECK (code IN ('head_behind', 'head_forked', 'head_inconsistent')),
    head      bigint NOT NULL,
    sealed_at timestamptz NOT NULL,
    note      text NOT NULL,
    digest    bytea NOT NULL CHECK (length(digest) = 32),
    at        timestamptz NOT NULL DEFAULT now(),
    UNIQUE (source, digest)
);
CREATE TRIGGER audit_contradiction_frozen BEFORE UPDATE OR DELETE ON audit_contradiction
    FOR EACH ROW EXECUTE FUNCTION audit_refuse();
CREATE TRIGGER audit_contradiction_kept BEFORE TRUNCATE ON audit_contradiction
    FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse();
CREATE INDEX audit_head_break ON audit_head (sealed_at) WHERE position(E'\\nbreak ' in note) > 0;
CREATE INDEX audit_cosignature_witness ON audit_cosignature (witness, head);
CREATE TABLE audit_sink (
    sink       text PRIMARY KEY,
    tried_at   timestamptz NOT NULL,
    next_at    timestamptz NOT NULL,
    failures   integer NOT NULL DEFAULT 0,
    failing_since timestamptz,
    error      text NOT NULL DEFAULT ''
);
"""
BACKWARD = """
DROP TABLE audit_sink;
DROP INDEX audit_cosignature_witness;
DROP INDEX audit_head_break;
DROP TABLE audit_contradiction;
"""


class Migration(migrations.Migration):
    """Creates the tables; Django's state learns of all that is outside."""

    dependencies = [("audit", "0013_export")]

    operations = [
        migrations.RunSQL(FORWARD, BACKWARD),
        migrations.CreateModel(
            name="Cosignature",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey("head", "witness", blank=True, editable=False, primary_key=True, serialize=False),
                ),
                ("head", models.BigIntegerField()),
                ("witness", models.TextField()),
                ("line", models.TextField()),
                ("at", models.DateTimeField()),
            ],
            options={
                "db_table": "audit_cosignature",
                "default_permissions": (),
                "managed": False,
            },
        ),
        migrations.CreateModel(
            name="Contradiction",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("source", models.TextField()),
                (
                    "code",
                    models.TextField(
                        choices=[
                            ("head_behind", "An older state was restored"),
                            ("head_forked", "Two different heads"),
                            ("head_inconsistent", "Other records than before"),
                        ]
                    ),
                ),
                ("head", models.BigIntegerField(help_text="Number of the head that the ledger does not stand by.")),
                ("sealed_at", models.DateTimeField(help_text="When that head was signed.")),
                ("note", models.TextField(help_text="The head as it was signed.")),
                ("digest", models.BinaryField()),
                ("at", models.DateTimeField()),
            ],
            options={
                "db_table": "audit_contradiction",
                "ordering": ("-id",),
                "permissions": (
                    ("view_head", "Can see signed heads and proofs"),
                    ("add_cosignature", "Can sign heads as a witness"),
                ),
                "default_permissions": ("view",),
                "managed": False,
            },
        ),
        migrations.CreateModel(
            name="Anchor",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("head", models.BigIntegerField()),
                ("sink", models.TextField()),
                ("receipt", models.TextField()),
                ("at", models.DateTimeField()),
            ],
            options={
                "db_table": "audit_anchor",
                "ordering": ("-id",),
                "default_permissions": ("view",),
                "managed": False,
            },
        ),
        migrations.CreateModel(
            name="SinkState",
            fields=[
                ("sink", models.TextField(primary_key=True, serialize=False)),
                ("tried_at", models.DateTimeField()),
                ("next_at", models.DateTimeField()),
                ("failures", models.IntegerField()),
                ("failing_since", models.DateTimeField(null=True)),
                ("error", models.TextField()),
            ],
            options={"db_table": "audit_sink", "default_permissions": (), "managed": False},
        ),
    ]
