"""What calls leave behind besides their records: the answers to calls that carried a key, and tasks."""

from __future__ import annotations

import uuid

from django.db import models

from access.models import User
from audit.masked import MaskedTextField
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


class Task(models.Model):
    """A call that its client asks for later (Tasks extension of MCP 2026-07-28). Written by `gateway.task_rows`."""

    class Status(models.TextChoices):
        """The words of the protocol."""

        WORKING = "working", "Working"
        INPUT_REQUIRED = "input_required", "Waits for input"
        COMPLETED = "completed", "Completed"
        FAILED = "failed", "Failed"
        CANCELLED = "cancelled", "Cancelled"

    UNFINISHED = (Status.WORKING, Status.INPUT_REQUIRED)

    # 192 random bits.
    id = models.CharField(max_length=32, primary_key=True)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="+")
    token = models.CharField(max_length=64, help_text="What the records of the call name of the token.")
    token_id = models.UUIDField(null=True)
    tool = models.CharField(max_length=64)
    effect = models.CharField(max_length=16)
    call_id = models.UUIDField("call id")
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.WORKING)
    code = models.CharField(max_length=64, help_text="`ok`, or the stable word for what went wrong.")
    message = MaskedTextField(blank=True)
    request = EncryptedJSONField(help_text="Arguments, and what else the call has to know to be begun anew.")
    questions = EncryptedJSONField(null=True, help_text="What the client is asked: key → request.")
    answers = EncryptedJSONField(null=True, help_text="What it answered, until the worker has taken it.")
    result = EncryptedJSONField(null=True, help_text="The result, or the error.")
    asked = models.PositiveIntegerField(default=0, help_text="Questions so far: no key is used twice.")
    worker = models.CharField(max_length=16, help_text="The web worker that carries it out.")
    heartbeat_at = models.DateTimeField()
    attempts = models.PositiveSmallIntegerField(default=1)
    cancel_requested_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField()
    updated_at = models.DateTimeField()
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        default_permissions = ("view",)
        permissions = [("cancel_task", "Can cancel tasks of others")]
        ordering = ("-created_at", "-id")
        indexes = [
            models.Index(fields=("-created_at", "-id"), name="gateway_task_newest"),
            models.Index(fields=("user", "-created_at", "-id"), name="gateway_task_of_user"),
            models.Index(fields=("status", "-created_at", "-id"), name="gateway_task_of_status"),
            models.Index(fields=("tool", "-created_at", "-id"), name="gateway_task_of_tool"),
            models.Index(fields=("call_id",), name="gateway_task_of_call"),
            models.Index(
                fields=("heartbeat_at",),
                name="gateway_task_unfinished",
                condition=models.Q(status__in=("working", "input_required")),
            ),
        ]

    def __str__(self) -> str:
        return f"Task of {self.tool}"

    @property
    def is_finished(self) -> bool:
        """Whether nothing of it changes any more."""
        return self.status not in self.UNFINISHED
