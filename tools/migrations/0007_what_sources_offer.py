"""Prompts and resources come by synchronising only: nobody can add one. What a switch and a prefix are about is more."""

import django.core.validators
from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('tools', '0006_silent_sources'),
    ]

    operations = [
        migrations.AlterModelOptions(
            name='prompt',
            options={'default_permissions': ('view', 'change', 'delete'), 'ordering': ('name',)},
        ),
        migrations.AlterModelOptions(
            name='resource',
            options={'default_permissions': ('view', 'change', 'delete'), 'ordering': ('uri',)},
        ),
        migrations.AlterField(
            model_name='datasource',
            name='enabled',
            field=models.BooleanField(default=True, help_text='When off, what it offers looks as if it did not exist.'),
        ),
        migrations.AlterField(
            model_name='datasource',
            name='prefix',
            field=models.CharField(blank=True, help_text='Put before the names of new tools and prompts, so that two sources can offer the same name.', max_length=24, validators=[django.core.validators.RegexValidator('^[A-Za-z0-9_-]{0,24}\\Z', 'Use letters, digits, underscores and hyphens.')]),
        ),
    ]
