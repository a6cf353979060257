"""Where the ledger is forwarded to, and how far that is."""

from __future__ import annotations

import uuid

from django.contrib.postgres.fields import ArrayField
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models

from audit.masked import MaskedTextField
from keyring.fields import EncryptedJSONField

slug = RegexValidator(r"^[a-z0-9][a-z0-9-]{0,47}\Z", "Use 1 to 48 lower-case letters, digits and hyphens.")


def _words(help_text: str) -> ArrayField[list[str], list[str]]:
    return ArrayField(models.CharField(max_length=200), default=list, blank=True, help_text=help_text)


class Stream(models.Model):
    """One receiver of the ledger's records, in the order in which they are sealed."""

    class Kind(models.TextChoices):
        """How the receiver is spoken to."""

        SYSLOG = "syslog-tls", "Syslog over TLS"
        WEBHOOK = "webhook", "Webhook"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=48, unique=True, validators=[slug], help_text="Stable name, e.g. `siem`.")
    description = models.TextField(blank=True, help_text="What an administrator should know about the receiver.")
    kind = models.CharField(max_length=16, choices=Kind.choices, help_text="Fixed once it is made.")
    address = models.CharField(
        max_length=500,
        help_text="Of syslog `siem.example.com:6514`, of a webhook its URL. Inside addresses need an egress rule.",
    )
    options = models.JSONField(default=dict, blank=True, help_text="Options of the kind, without secrets.")
    secrets = EncryptedJSONField(null=True)
    kinds = _words("Only records of these kinds. Empty: all.")
    decisions = _words("Only records with these decisions: `allow`, `deny`. Empty: all.")
    tools = _words("Only records that name one of these tools. Empty: all, also those that name none.")
    alarm_minutes = models.PositiveIntegerField(
        default=15,
        validators=[MinValueValidator(1), MaxValueValidator(10_080)],
        help_text="An alarm is raised when a record has waited longer than this, in minutes.",
    )
    enabled = models.BooleanField(default=True, help_text="When off, nothing is sent; the place is kept.")
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        app_label = "audit"
        ordering = ("name",)
        permissions = [
            ("test_stream", "Can send test messages to streams"),
            ("rewind_stream", "Can set the place of streams"),
            ("pull_records", "Can pull the ledger's records in their sealed order"),
        ]

    def __str__(self) -> str:
        return self.name


class StreamState(models.Model):
    """How far a stream is. The one process that leads it writes it; people ask through `audit.streams.steering`.

    `cursor` is the sealed place (`audit_leaf.seq`) of the first record that is not acknowledged, `number` what the next
    message is counted as. From `resend_cursor` and `resend_number` a new connection starts, since a receiver without
    acknowledgements may have lost what came last. `pending` is a batch under way: it is repeated exactly as it was.
    """

    stream = models.OneToOneField(Stream, primary_key=True, on_delete=models.CASCADE, related_name="state")
    cursor = models.BigIntegerField(default=0)
    number = models.BigIntegerField(default=1)
    resend_cursor = models.BigIntegerField(default=0)
    resend_number = models.BigIntegerField(default=1)
    pending = models.JSONField(null=True)
    filters = models.JSONField(null=True, help_text="The filter under which the messages to repeat were counted.")
    acknowledged_at = models.DateTimeField(null=True)
    failing_since = models.DateTimeField(null=True)
    failed_at = models.DateTimeField(null=True)
    error = MaskedTextField(longest=500, blank=True)
    missed = models.BigIntegerField(default=0, help_text="Records that were gone before they could be sent.")
    test_asked_at = models.DateTimeField(null=True)
    tested_at = models.DateTimeField(null=True)
    test_ok = models.BooleanField(null=True)
    test_message = MaskedTextField(blank=True)
    alarm = models.CharField(max_length=16, blank=True, help_text="The alarm that was last put on record.")

    class Meta:
        app_label = "audit"
        default_permissions = ()

    def __str__(self) -> str:
        return f"state of {self.stream_id}"
