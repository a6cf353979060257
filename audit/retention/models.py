"""What people decide about how long records are kept, and how far the months are that go."""

from __future__ import annotations

import uuid
from typing import Any, NoReturn

from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.db.models import Q
from django.utils import timezone

from audit.masked import MaskedTextField

STANDARD = "standard"
_LONGEST_MONTHS = 1200


def _names(help_text: str) -> Any:
    return ArrayField(models.CharField(max_length=200), default=list, blank=True, help_text=help_text)


class RetentionClass(models.Model):
    """How many months records of some kind are kept. The class `standard` is for all that no other class covers."""

    name = models.CharField(
        max_length=48,
        unique=True,
        validators=[RegexValidator(r"^[a-z][a-z0-9-]*\Z", "Small letters, digits and hyphens, a letter first.")],
    )
    description = models.CharField(max_length=200, blank=True)
    months = models.PositiveIntegerField(
        "months to keep",
        validators=[MinValueValidator(1), MaxValueValidator(_LONGEST_MONTHS)],
        help_text="Counted from the end of the month in which the record was written.",
    )
    kinds = _names("Kinds of records, separated by commas: `config, auth, system`. Empty: every kind.")
    tools = _names("Names of tools, separated by commas. Empty: every tool, and records without one.")
    sources = _names("Names of data sources, separated by commas. Empty: every source, and records without one.")
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        verbose_name = "retention class"
        verbose_name_plural = "retention classes"
        ordering = ("name",)
        constraints = [models.CheckConstraint(condition=Q(months__gte=1), name="retention_of_a_month_at_least")]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """The standard class covers what is left, every other one says what it covers."""
        from audit.models import Record  # below, since the records' module imports this one

        covers = bool(self.kinds or self.tools or self.sources)
        if self.name == STANDARD and covers:
            raise ValidationError("The standard class covers all that no other class does: leave the lists empty.")
        if self.name != STANDARD and not covers:
            raise ValidationError("Say what the class covers: kinds, tools or data sources.")
        unknown = sorted(set(self.kinds) - set(Record.Kind.values))
        if unknown:
            known = ", ".join(Record.Kind.values)
            raise ValidationError({"kinds": f"There is no kind {', '.join(unknown)}: choose of {known}."})


class LegalHold(models.Model):
    """While it is in force, nothing in its scope is dropped or erased."""

    class Scope(models.TextChoices):
        """What is held. The value names it, unless it is everything or a period."""

        EVERYTHING = "everything", "Everything"
        PRINCIPAL = "principal", "Records of a principal"
        TOOL = "tool", "Calls of a tool"
        SOURCE = "source", "Calls to a data source"
        PERIOD = "period", "Everything in a period"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=80, unique=True)
    matter = models.CharField(max_length=200, help_text="What it is for: a case number, an investigation.")
    scope = models.CharField(max_length=16, choices=Scope.choices)
    value = models.CharField(
        max_length=200, blank=True, help_text="The user name of the principal, or the name of the tool or data source."
    )
    since = models.DateTimeField(null=True, blank=True, help_text="Only records from this time on. Empty: all before.")
    until = models.DateTimeField(null=True, blank=True, help_text="Only records before this time. Empty: all to come.")
    reason = models.TextField(max_length=2000, help_text="Why it is needed. Stands in the record.")
    placed_by = models.CharField(max_length=150, editable=False)
    placed_at = models.DateTimeField(default=timezone.now, editable=False)
    released_by = models.CharField(max_length=150, blank=True, editable=False)
    released_at = models.DateTimeField(null=True, editable=False)
    release_reason = models.TextField(blank=True, editable=False)

    class Meta:
        verbose_name = "legal hold"
        ordering = ("released_at", "-placed_at")
        # What is held does not change: a hold is released, and another one placed.
        default_permissions = ("add", "view")
        permissions = (("release_legalhold", "Can release legal holds"),)

    def __str__(self) -> str:
        return self.name

    @property
    def in_force(self) -> bool:
        """Whether it holds anything now."""
        return self.released_at is None

    def clean(self) -> None:
        """A scope and the value or period that it needs, and no other."""
        named = self.scope in (self.Scope.PRINCIPAL, self.Scope.TOOL, self.Scope.SOURCE)
        if named and not self.value.strip():
            raise ValidationError({"value": "Name the principal, the tool or the data source that is held."})
        if not named and self.value:
            raise ValidationError({"value": "This scope has no name: leave it empty, or choose another scope."})
        if self.scope == self.Scope.EVERYTHING and (self.since or self.until):
            raise ValidationError({"scope": "For everything in a period choose the scope of that name."})
        if self.scope == self.Scope.PERIOD and not (self.since or self.until):
            raise ValidationError({"since": "Say from when, until when, or both."})
        if self.since and self.until and self.since >= self.until:
            raise ValidationError({"until": "The period ends before it begins."})


class Archive(models.Model):
    """A cold export of one month: where it is, how far it is, and whether it was read back and found whole."""

    class State(models.TextChoices):
        """How far it is. Only what is verified lets a month go."""

        WAITING = "waiting", "Waiting"
        RUNNING = "running", "Being written"
        VERIFIED = "verified", "Verified"
        FAILED = "failed", "Failed"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    month = models.DateField(help_text="The first day of the month.")
    place = models.TextField(help_text="Folder of the export: a file: or s3: URL.")
    state = models.CharField(max_length=16, choices=State.choices, default=State.WAITING)
    asked_by = models.CharField(max_length=150, blank=True)
    asked_at = models.DateTimeField(default=timezone.now)
    beat_at = models.DateTimeField(null=True, help_text="When its job last gave a sign of life.")
    finished_at = models.DateTimeField(null=True)
    total = models.BigIntegerField(default=0, help_text="Records that the month has.")
    written = models.BigIntegerField(default=0, help_text="Records that are written and stored so far.")
    bytes = models.BigIntegerField(default=0)
    files = models.IntegerField(default=0)
    resent = models.IntegerField(default=0, help_text="Files that were there already and not sent again.")
    first_seq = models.BigIntegerField(null=True)
    last_seq = models.BigIntegerField(null=True)
    manifest = models.CharField(max_length=64, blank=True, help_text="SHA-256 of manifest.json.")
    error = MaskedTextField(blank=True)

    class Meta:
        verbose_name = "archive"
        ordering = ("-month", "-asked_at")
        default_permissions = ("view",)
        permissions = (("archive_records", "Can export months of the ledger to the archive"),)
        constraints = [
            models.UniqueConstraint(
                fields=("month",),
                condition=Q(state__in=("waiting", "running")),
                name="one_archive_under_way_per_month",
            )
        ]

    def __str__(self) -> str:
        return f"archive of {self.month:%Y-%m}"


class Expiry(models.Model):
    """Records of a month that are past their time: found by the job, proposed by one person, approved by another."""

    class State(models.TextChoices):
        """How far it is."""

        DUE = "due", "Due"
        PROPOSED = "proposed", "Proposed"
        APPROVED = "approved", "Approved"
        DROPPED = "dropped", "Dropped"
        WITHDRAWN = "withdrawn", "Withdrawn"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    month = models.DateField(help_text="The first day of the month.")
    state = models.CharField(max_length=16, choices=State.choices, default=State.DUE)
    records = models.BigIntegerField(help_text="Records that are past their time.")
    kept = models.BigIntegerField(help_text="Records of the month that stay.")
    removed = models.CharField(max_length=64, help_text="SHA-256 of the bits that say which records go.")
    found_at = models.DateTimeField(default=timezone.now)
    archive = models.ForeignKey(Archive, null=True, on_delete=models.PROTECT, related_name="+")
    reason = models.TextField(blank=True, max_length=2000)
    proposed_by = models.CharField(max_length=150, blank=True)
    proposed_by_id = models.CharField(max_length=40, blank=True)
    proposed_at = models.DateTimeField(null=True)
    approved_by = models.CharField(max_length=150, blank=True)
    approved_by_id = models.CharField(max_length=40, blank=True)
    approved_at = models.DateTimeField(null=True)
    gap = models.BigIntegerField(null=True, help_text="Number of the gap certificate.")
    dropped_at = models.DateTimeField(null=True)
    withdrawn_by = models.CharField(max_length=150, blank=True)
    withdrawn_at = models.DateTimeField(null=True)
    stage = models.CharField(max_length=40, blank=True, help_text="What a job is doing to drop it.")
    problem = MaskedTextField(blank=True, help_text="Why the last attempt to drop it failed.")

    class Meta:
        verbose_name = "expiry"
        verbose_name_plural = "expiries"
        ordering = ("-month", "-found_at")
        default_permissions = ("view",)
        permissions = (("expire_records", "Can propose and approve that expired records are dropped"),)
        constraints = [
            models.UniqueConstraint(
                fields=("month",),
                condition=Q(state__in=("due", "proposed", "approved")),
                name="one_open_expiry_per_month",
            ),
            models.CheckConstraint(
                condition=~Q(state__in=("approved", "dropped")) | ~Q(proposed_by_id=models.F("approved_by_id")),
                name="expiry_of_two_persons",
            ),
        ]

    def __str__(self) -> str:
        return f"expiry of {self.month:%Y-%m}"


class Month(models.Model):
    """A month of the ledger as the database has it: the view `audit_month`."""

    month = models.DateField(primary_key=True)
    bytes = models.BigIntegerField(help_text="Size on disk with indexes.")
    estimate = models.BigIntegerField("records", help_text="About how many records, as of the last analysis.")
    present = models.BooleanField(help_text="Whether it has a partition.")
    dropped = models.BigIntegerField(help_text="Records that went under gap certificates.")

    class Meta:
        managed = False
        db_table = "audit_month"
        ordering = ("-month",)
        default_permissions = ("view",)

    def __str__(self) -> str:
        return f"{self.month:%B %Y}"

    def save(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: months are what the ledger has."""
        raise TypeError("A month of the ledger is not written.")
