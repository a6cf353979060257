"""What calls by REST leave behind besides their records: the answers to calls that carried a key."""

from __future__ import annotations

import uuid

from django.db import models

from access.models import User
from keyring.fields import EncryptedJSONField


class KeyedCall(models.Model):
    """A call with an `Idempotency-Key`, so that sending it again does not call the tool again."""

    class State(models.TextChoices):
        """How far it came."""

        RUNNING = "running", "Under way, or its process died"
        FINISHED = "finished", "Answered"
        UNKNOWN = "unknown", "Called, with an outcome that could not be recorded"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="+")
    tool = models.CharField(max_length=64)
    key = models.CharField(max_length=64, help_text="SHA-256 of the key.")
    request = models.CharField(max_length=64, help_text="Keyed hash of the arguments.")
    repeatable = models.BooleanField(help_text="Whether the tool only reads, so that calling it again does no harm.")
    state = models.CharField(max_length=8, choices=State.choices, default=State.RUNNING)
    call_id = models.UUIDField()
    answer = EncryptedJSONField(null=True)
    started_at = models.DateTimeField()
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=("user", "tool", "key"), name="one_call_per_key")]

    def __str__(self) -> str:
        return f"{self.tool} {self.call_id} {self.state}"
