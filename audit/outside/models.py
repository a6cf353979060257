"""The tables of what is outside: cosignatures and anchors of heads, what contradicts the ledger, the state of sinks."""

from __future__ import annotations

from django.db import models

from audit.masked import MaskedTextField


class Cosignature(models.Model):
    """What a witness signed. Append-only."""

    pk = models.CompositePrimaryKey("head", "witness")
    head = models.BigIntegerField()
    witness = models.TextField()
    line = models.TextField()
    at = models.DateTimeField()

    class Meta:
        managed = False
        db_table = "audit_cosignature"
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.witness} on head {self.head}"


class Contradiction(models.Model):
    """A head that the ledger signed and does not stand by: a witness or an anchor has it. Append-only.

    It is settled by a head with a signed `break` that is later than the head in question.
    """

    class Code(models.TextChoices):
        """In which way they contradict each other."""

        BEHIND = "head_behind", "An older state was restored"
        FORKED = "head_forked", "Two different heads"
        INCONSISTENT = "head_inconsistent", "Other records than before"

    id = models.BigAutoField(primary_key=True)
    source = models.TextField()
    code = models.TextField(choices=Code.choices)
    head = models.BigIntegerField(help_text="Number of the head that the ledger does not stand by.")
    sealed_at = models.DateTimeField(help_text="When that head was signed.")
    note = models.TextField(help_text="The head as it was signed.")
    digest = models.BinaryField()
    at = models.DateTimeField()

    class Meta:
        managed = False
        db_table = "audit_contradiction"
        default_permissions = ("view",)
        # Here, since the admin cannot list the tables of heads and cosignatures.
        permissions = (
            ("view_head", "Can see signed heads and proofs"),
            ("add_cosignature", "Can sign heads as a witness"),
        )
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.source}: {self.get_code_display()}, head {self.head}"


class Anchor(models.Model):
    """A head that was written to a sink outside, with what the sink gave as a receipt. Append-only."""

    id = models.BigAutoField(primary_key=True)
    head = models.BigIntegerField()
    sink = models.TextField()
    receipt = models.TextField()
    at = models.DateTimeField()

    class Meta:
        managed = False
        db_table = "audit_anchor"
        default_permissions = ("view",)
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"head {self.head} in {self.sink}"


class SinkState(models.Model):
    """How a sink fares, so that one that is down is asked less and less often, and shown."""

    sink = models.TextField(primary_key=True)
    tried_at = models.DateTimeField()
    next_at = models.DateTimeField()
    failures = models.IntegerField()
    failing_since = models.DateTimeField(null=True)
    error = MaskedTextField()

    class Meta:
        managed = False
        db_table = "audit_sink"
        default_permissions = ()

    def __str__(self) -> str:
        return self.sink
