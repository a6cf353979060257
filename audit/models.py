"""The records of the ledger, as Django reads them. Nothing here writes: `audit.ledger` is the only writer."""

from __future__ import annotations

from typing import Any, NoReturn

from django.db import models
from django.db.models.functions import Now

from audit.export.models import EvidencePack as EvidencePack
from audit.export.models import Export as Export
from audit.export.models import Part as Part
from keyring.fields import EncryptedJSONField


class RecordQuerySet(models.QuerySet["Record"]):
    """Read-only: the database would refuse the rest."""

    def update(self, **kwargs: Any) -> NoReturn:
        """Refused."""
        raise TypeError("A record of the ledger cannot be changed.")

    def delete(self) -> NoReturn:
        """Refused."""
        raise TypeError("A record of the ledger cannot be deleted.")


class Record(models.Model):
    """One thing that happened. The table is partitioned by month of `at`, append-only by triggers and privileges.

    `leaf` is the SHA-256 that sealing commits to; `audit.ledger` documents what enters it.
    """

    class Kind(models.TextChoices):
        """What sort of event the record tells of."""

        CALL = "call", "Call of a tool that only reads"
        INTENT = "intent", "Intent to call a tool that has effects"
        OUTCOME = "outcome", "Outcome of an intent"
        DENIED = "denied", "Refused call"
        INVALID = "invalid", "Call with bad input"
        CONFIG = "config", "Change of configuration"
        AUTH = "auth", "Login or token"
        AGENT = "agent", "Run of an agent"
        SYSTEM = "system", "Event of the system"

    class Decision(models.TextChoices):
        """What the control plane decided."""

        ALLOW = "allow", "Allowed"
        DENY = "deny", "Denied"

    id = models.BigIntegerField(primary_key=True)
    rid = models.UUIDField("record id")
    at = models.DateTimeField("time")
    kind = models.TextField(choices=Kind.choices)
    call_id = models.UUIDField("call id", null=True)
    writer_id = models.UUIDField("writer")
    writer_seq = models.BigIntegerField("writer's sequence number", null=True)
    actor = models.TextField("actor", null=True, help_text="User name of the principal.")
    actor_id = models.TextField(null=True)
    on_behalf_of = models.TextField(null=True)
    token = models.TextField(null=True, help_text="Prefix of the API token, or the JWT's session.")
    roles = models.TextField(null=True, help_text="The principal's roles at that moment, separated by commas.")
    door = models.TextField(null=True, help_text="Where it came in: mcp, rest, admin, agent, command.")
    client = models.TextField(null=True)
    address = models.TextField(null=True)
    connector = models.TextField("data source", null=True)
    tool = models.TextField(null=True)
    effect = models.TextField(null=True)
    definition = models.BinaryField("fingerprint of the definition", null=True)
    policy_version = models.BigIntegerField(null=True)
    decision = models.TextField(choices=Decision.choices, null=True)
    code = models.TextField(help_text="`ok`, or the stable word for what went wrong.")
    object_type = models.TextField(null=True)
    object_id = models.TextField(null=True)
    detail = models.TextField(null=True, help_text="JSON, as it was committed.")
    trace_id = models.TextField(null=True)
    request_id = models.TextField(null=True)
    args_commit = models.BinaryField("commitment to the arguments", null=True)
    result_commit = models.BinaryField("commitment to the result", null=True)
    result_bytes = models.BigIntegerField(null=True)
    upstream_us = models.BigIntegerField("time in the upstream, µs", null=True)
    total_us = models.BigIntegerField("time until recording, µs", null=True)
    ct = models.BinaryField("encrypted salt and arguments", null=True)
    key_id = models.TextField(null=True)
    shown = models.TextField("arguments shown", null=True, help_text="JSON of what the tool's policy shows of them.")
    leaf = models.BinaryField()
    mac = models.BinaryField()

    objects = RecordQuerySet.as_manager()

    class Meta:
        db_table = "audit_record"
        ordering = ("-id",)
        default_permissions = ("view",)
        permissions = (
            ("view_metrics", "Can read the metrics at /metrics"),
            ("read_arguments", "Can read the arguments of calls"),
            ("erase_subject", "Can erase what the ledger keeps of a person"),
        )

    def __str__(self) -> str:
        return f"{self.kind} {self.tool or self.object_type or ''} {self.code}".strip()

    def save(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: `audit.ledger` is the only writer."""
        raise TypeError("A record is written by audit.ledger only.")

    def delete(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        raise TypeError("A record of the ledger cannot be deleted.")


class DataKey(models.Model):
    """A key that encrypts what records keep of one subject and month. Without `wrapped` it is destroyed, for ever.

    Writers of the ledger insert them (`audit.datakeys`); here they are read, wrapped anew and destroyed.
    """

    id = models.UUIDField(primary_key=True)
    subject_kind = models.TextField(help_text="`user`, or what the policy of a tool calls such a subject.")
    subject = models.TextField(help_text="The id of the user, or the keyed hash of the value of an argument.")
    month = models.DateField()
    wrapped = EncryptedJSONField(null=True)
    created_at = models.DateTimeField(db_default=Now())
    destroyed_at = models.DateTimeField(null=True)
    destroyed_by = models.TextField(null=True)
    reason = models.TextField(null=True)

    class Meta:
        db_table = "audit_dek"
        ordering = ("month",)
        default_permissions = ()
        verbose_name = "data key"
        verbose_name_plural = "privacy"

    def __str__(self) -> str:
        return f"{self.subject_kind} {self.subject[:12]}, {self.month:%Y-%m}"


class SubjectHashKey(models.Model):
    """The one key under which values of arguments become subjects, so that the table of keys holds no value."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    key = EncryptedJSONField()

    class Meta:
        db_table = "audit_subject_hash_key"
        default_permissions = ()
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="one_subject_hash_key")]

    def __str__(self) -> str:
        return "key of subjects"


class Mark(models.Model):
    """How far somebody has come who goes along the ledger; it can be begun anew, and decides nothing."""

    name = models.TextField(primary_key=True)
    low = models.BigIntegerField(default=0, help_text="Everything up to this record is done.")
    high = models.BigIntegerField(default=0, help_text="The newest record that was seen.")
    found = models.BigIntegerField(default=0, help_text="What came of it so far.")
    at = models.DateTimeField(auto_now=True)

    class Meta:
        db_table = "audit_mark"
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.name} up to {self.low}"


class Configured(models.Model):
    """The settings that a process was last started with; one row."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    values = models.JSONField(default=dict)
    at = models.DateTimeField(auto_now=True)

    class Meta:
        default_permissions = ()
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="one_configuration")]

    def __str__(self) -> str:
        return "settings"


# The tables beside the records; named here so that Django finds them.
from audit.outside.models import Anchor, Contradiction, Cosignature, SinkState  # noqa: E402
from audit.retention.models import Archive, Expiry, LegalHold, Month, RetentionClass  # noqa: E402
from audit.streams.models import Stream, StreamState  # noqa: E402

__all__ = [
    "Anchor",
    "Archive",
    "Configured",
    "Contradiction",
    "Cosignature",
    "DataKey",
    "Expiry",
    "LegalHold",
    "Mark",
    "Month",
    "Record",
    "RecordQuerySet",
    "RetentionClass",
    "SinkState",
    "Stream",
    "StreamState",
    "SubjectHashKey",
]


class Head(models.Model):
    """A signed head of the tree (docs/evidence.md). The sealer makes them; the columns repeat what `note` says."""

    number = models.BigIntegerField(primary_key=True)
    size = models.BigIntegerField("leaves")
    root = models.BinaryField()
    previous = models.BinaryField("hash of the head before")
    sealed_at = models.DateTimeField("sealed")
    low_water = models.BigIntegerField()
    note = models.TextField()

    class Meta:
        managed = False
        db_table = "audit_head"
        ordering = ("-number",)
        default_permissions = ()

    def __str__(self) -> str:
        return f"head {self.number}"

    def save(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: the sealer makes heads."""
        raise TypeError("A head is made by the sealer only.")

    def delete(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        raise TypeError("A head of the ledger cannot be deleted.")
