"""Names one more kind of record. Nothing changes in the database: the kind is a text there."""

from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('audit', '0002_ledger'),
    ]

    operations = [
        migrations.AlterField(
            model_name='record',
            name='kind',
            field=models.TextField(choices=[('call', 'Call of a tool that only reads'), ('intent', 'Intent to call a tool that has effects'), ('outcome', 'Outcome of an intent'), ('denied', 'Refused call'), ('invalid', 'Call with bad input'), ('config', 'Change of configuration'), ('auth', 'Login or token'), ('agent', 'Run of an agent'), ('system', 'Event of the system')]),
        ),
    ]
