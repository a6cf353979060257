"""Retention classes, legal holds, archives, and the steps by which records of a month expire."""

import django.contrib.postgres.fields
import django.core.validators
import django.db.models.deletion
import django.utils.timezone
import uuid
from django.db import migrations, models

CLASSES = (
    ("standard", 24, [], "Everything that no other class covers."),
    ("security", 84, ["config", "auth", "system"], "Who changed what, who logged in, what the system did."),
)


def add_classes(apps, schema_editor):
    """The two classes that every installation begins with."""
    model = apps.get_model("audit", "RetentionClass")
    for name, months, kinds, description in CLASSES:
        made = model(name=name, months=months, kinds=kinds, description=description)
        made.save(using=schema_editor.connection.alias)


class Migration(migrations.Migration):

    dependencies = [
        ('audit', '0007_evidence'),
    ]

    operations = [
        migrations.CreateModel(
            name='Month',
            fields=[
                ('month', models.DateField(primary_key=True, serialize=False)),
                ('bytes', models.BigIntegerField(help_text='Size on disk with indexes.')),
                ('estimate', models.BigIntegerField(help_text='About how many records, as of the last analysis.', verbose_name='records')),
                ('present', models.BooleanField(help_text='Whether it has a partition.')),
                ('dropped', models.BigIntegerField(help_text='Records that went under gap certificates.')),
            ],
            options={
                'db_table': 'audit_month',
                'ordering': ('-month',),
                'managed': False,
                'default_permissions': ('view',),
            },
        ),
        migrations.CreateModel(
            name='LegalHold',
            fields=[
                ('id', models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ('name', models.CharField(max_length=80, unique=True)),
                ('matter', models.CharField(help_text='What it is for: a case number, an investigation.', max_length=200)),
                ('scope', models.CharField(choices=[('everything', 'Everything'), ('principal', 'Records of a principal'), ('tool', 'Calls of a tool'), ('source', 'Calls to a data source'), ('period', 'Everything in a period')], max_length=16)),
                ('value', models.CharField(blank=True, help_text='The user name of the principal, or the name of the tool or data source.', max_length=200)),
                ('since', models.DateTimeField(blank=True, help_text='Only records from this time on. Empty: all before.', null=True)),
                ('until', models.DateTimeField(blank=True, help_text='Only records before this time. Empty: all to come.', null=True)),
                ('reason', models.TextField(help_text='Why it is needed. Stands in the record.', max_length=2000)),
                ('placed_by', models.CharField(editable=False, max_length=150)),
                ('placed_at', models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ('released_by', models.CharField(blank=True, editable=False, max_length=150)),
                ('released_at', models.DateTimeField(editable=False, null=True)),
                ('release_reason', models.TextField(blank=True, editable=False)),
            ],
            options={
                'verbose_name': 'legal hold',
                'ordering': ('released_at', '-placed_at'),
                'permissions': (('release_legalhold', 'Can release legal holds'),),
                'default_permissions': ('add', 'view'),
            },
        ),
        migrations.CreateModel(
            name='Archive',
            fields=[
                ('id', models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ('month', models.DateField(help_text='The first day of the month.')),
                ('place', models.TextField(help_text='Folder of the export: a file: or s3: URL.')),
                ('state', models.CharField(choices=[('waiting', 'Waiting'), ('running', 'Being written'), ('verified', 'Verified'), ('failed', 'Failed')], default='waiting', max_length=16)),
                ('asked_by', models.CharField(blank=True, max_length=150)),
                ('asked_at', models.DateTimeField(default=django.utils.timezone.now)),
                ('beat_at', models.DateTimeField(help_text='When its job last gave a sign of life.', null=True)),
                ('finished_at', models.DateTimeField(null=True)),
                ('total', models.BigIntegerField(default=0, help_text='Records that the month has.')),
                ('written', models.BigIntegerField(default=0, help_text='Records that are written and stored so far.')),
                ('bytes', models.BigIntegerField(default=0)),
                ('files', models.IntegerField(default=0)),
                ('resent', models.IntegerField(default=0, help_text='Files that were there already and not sent again.')),
                ('first_seq', models.BigIntegerField(null=True)),
                ('last_seq', models.BigIntegerField(null=True)),
                ('manifest', models.CharField(blank=True, help_text='SHA-256 of manifest.json.', max_length=64)),
                ('error', models.TextField(blank=True)),
            ],
            options={
                'verbose_name': 'archive',
                'ordering': ('-month', '-asked_at'),
                'permissions': (('archive_records', 'Can export months of the ledger to the archive'),),
                'default_permissions': ('view',),
                'constraints': [models.UniqueConstraint(condition=models.Q(('state__in', ('waiting', 'running'))), fields=('month',), name='one_archive_under_way_per_month')],
            },
        ),
        migrations.CreateModel(
            name='RetentionClass',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(max_length=48, unique=True, validators=[django.core.validators.RegexValidator('^[a-z][a-z0-9-]*\\Z', 'Small letters, digits and hyphens, a letter first.')])),
                ('description', models.CharField(blank=True, max_length=200)),
                ('months', models.PositiveIntegerField(help_text='Counted from the end of the month in which the record was written.', validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(1200)], verbose_name='months to keep')),
                ('kinds', django.contrib.postgres.fields.ArrayField(base_field=models.CharField(max_length=200), blank=True, default=list, help_text='Kinds of records, separated by commas: `config, auth, system`. Empty: every kind.', size=None)),
                ('tools', django.contrib.postgres.fields.ArrayField(base_field=models.CharField(max_length=200), blank=True, default=list, help_text='Names of tools, separated by commas. Empty: every tool, and records without one.', size=None)),
                ('sources', django.contrib.postgres.fields.ArrayField(base_field=models.CharField(max_length=200), blank=True, default=list, help_text='Names of data sources, separated by commas. Empty: every source, and records without one.', size=None)),
                ('updated_at', models.DateTimeField(auto_now=True)),
            ],
            options={
                'verbose_name': 'retention class',
                'verbose_name_plural': 'retention classes',
                'ordering': ('name',),
                'constraints': [models.CheckConstraint(condition=models.Q(('months__gte', 1)), name='retention_of_a_month_at_least')],
            },
        ),
        migrations.CreateModel(
            name='Expiry',
            fields=[
                ('id', models.UUIDField(default=uuid.uuid4, editable=False, primary_key=True, serialize=False)),
                ('month', models.DateField(help_text='The first day of the month.')),
                ('state', models.CharField(choices=[('due', 'Due'), ('proposed', 'Proposed'), ('approved', 'Approved'), ('dropped', 'Dropped'), ('withdrawn', 'Withdrawn')], default='due', max_length=16)),
                ('records', models.BigIntegerField(help_text='Records that are past their time.')),
                ('kept', models.BigIntegerField(help_text='Records of the month that stay.')),
                ('removed', models.CharField(help_text='SHA-256 of the bits that say which records go.', max_length=64)),
                ('found_at', models.DateTimeField(default=django.utils.timezone.now)),
                ('reason', models.TextField(blank=True, max_length=2000)),
                ('proposed_by', models.CharField(blank=True, max_length=150)),
                ('proposed_by_id', models.CharField(blank=True, max_length=40)),
                ('proposed_at', models.DateTimeField(null=True)),
                ('approved_by', models.CharField(blank=True, max_length=150)),
                ('approved_by_id', models.CharField(blank=True, max_length=40)),
                ('approved_at', models.DateTimeField(null=True)),
                ('gap', models.BigIntegerField(help_text='Number of the gap certificate.', null=True)),
                ('dropped_at', models.DateTimeField(null=True)),
                ('withdrawn_by', models.CharField(blank=True, max_length=150)),
                ('withdrawn_at', models.DateTimeField(null=True)),
                ('problem', models.TextField(blank=True, help_text='Why the last attempt to drop it failed.')),
                ('archive', models.ForeignKey(null=True, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='audit.archive')),
            ],
            options={
                'verbose_name': 'expiry',
                'verbose_name_plural': 'expiries',
                'ordering': ('-month', '-found_at'),
                'permissions': (('expire_records', 'Can propose and approve that expired records are dropped'),),
                'default_permissions': ('view',),
                'constraints': [models.UniqueConstraint(condition=models.Q(('state__in', ('due', 'proposed', 'approved'))), fields=('month',), name='one_open_expiry_per_month'), models.CheckConstraint(condition=models.Q(models.Q(('state__in', ('approved', 'dropped')), _negated=True), models.Q(('proposed_by_id', models.F('approved_by_id')), _negated=True), _connector='OR'), name='expiry_of_two_persons')],
            },
        ),
        migrations.RunPython(add_classes, migrations.RunPython.noop),
    ]
