from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("gateway", "0002_tasks"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AddIndex(
            model_name="task",
            index=models.Index(fields=["status", "-created_at", "-id"], name="gateway_task_of_status"),
        ),
        migrations.AddIndex(
            model_name="task",
            index=models.Index(fields=["tool", "-created_at", "-id"], name="gateway_task_of_tool"),
        ),
        migrations.AddIndex(
            model_name="task",
            index=models.Index(fields=["call_id"], name="gateway_task_of_call"),
        ),
    ]
