"""What somebody asked to take away from the ledger, how far it is, and the archive in parts."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.utils import timezone

from audit.entry import uuid7
from audit.masked import MaskedTextField


class Export(models.Model):
    """An archive that a job makes. The parts live in the database: every process can read them, and none leaves a file.

    `scope` is what was asked for, as `audit.export.scope` or `audit.packs.scope` reads it. `kept` says from where
    another worker can go on.
    """

    class Form(models.TextChoices):
        """What the archive holds."""

        JSONL = "jsonl", "JSON lines"
        CSV = "csv", "CSV"
        PACK = "pack", "Evidence pack"

    class State(models.TextChoices):
        """How far it is."""

        WAITING = "waiting", "Waiting"
        RUNNING = "running", "Under way"
        DONE = "done", "Ready"
        FAILED = "failed", "Failed"
        CANCELLED = "cancelled", "Cancelled"
        EXPIRED = "expired", "Expired"

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    form = models.TextField(choices=Form.choices)
    scope = models.JSONField(default=dict)
    payloads = models.BooleanField("with arguments", default=False)
    reason = models.TextField(blank=True, default="")
    asked_by = models.TextField("asked for by")
    asked_by_id = models.TextField(editable=False)
    asked_at = models.DateTimeField("asked for", default=timezone.now)
    state = models.TextField(choices=State.choices, default=State.WAITING)
    stage = models.TextField(blank=True, default="")
    cancel_asked = models.BooleanField(default=False)
    attempts = models.PositiveSmallIntegerField(default=0)
    job_id = models.BigIntegerField(null=True, editable=False)
    kept = models.JSONField(null=True, editable=False)
    records = models.BigIntegerField(default=0)
    expected = models.BigIntegerField(null=True)
    size = models.BigIntegerField("bytes", default=0)
    digest = models.TextField("SHA-256 of the archive", blank=True, default="")
    manifest = models.TextField("SHA-256 of the manifest", blank=True, default="")
    problem = MaskedTextField(blank=True, default="")
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField(null=True)

    class Meta:
        default_permissions = ("view", "add", "delete")
        ordering = ("-asked_at", "-id")
        indexes = (models.Index(fields=("-asked_at", "-id"), name="audit_export_asked"),)

    def __str__(self) -> str:
        return f"{self.get_form_display()} of {self.asked_at:%Y-%m-%d %H:%M}"

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will happen to it but its expiry."""
        return self.state not in (self.State.WAITING, self.State.RUNNING)

    @property
    def filename(self) -> str:
        """As it is downloaded."""
        what = "evidence" if self.form == self.Form.PACK else "export"
        return f"mcpsite-{what}-{self.asked_at:%Y%m%d-%H%M}-{str(self.id)[-8:]}.zip"


class Part(models.Model):
    """A piece of the archive. All but the last are of one size."""

    export = models.ForeignKey(Export, models.CASCADE, related_name="parts")
    number = models.IntegerField()
    data = models.BinaryField()

    class Meta:
        default_permissions = ()
        constraints = (models.UniqueConstraint(fields=("export", "number"), name="audit_part_number"),)

    def __str__(self) -> str:
        return f"{self.export_id}, part {self.number}"


class _Packs(models.Manager["EvidencePack"]):
    def get_queryset(self) -> models.QuerySet[EvidencePack]:
        return super().get_queryset().filter(form=Export.Form.PACK)


class EvidencePack(Export):
    """An archive for an auditor: what happened in a period, who could do what, and what proves it."""

    objects: ClassVar[Any] = _Packs()

    class Meta:
        proxy = True
        default_permissions = ("view", "add", "delete")
        verbose_name = "evidence pack"
