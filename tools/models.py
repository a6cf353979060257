"""The catalogue: where data comes from, which tools there are, and how they are grouped."""

from __future__ import annotations

import ipaddress
import re
import uuid

from django.contrib.postgres.fields import ArrayField
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models

from audit.masked import MaskedTextField
from keyring.fields import EncryptedJSONField

slug = RegexValidator(r"^[a-z0-9][a-z0-9-]{0,47}\Z", "Use 1 to 48 lower-case letters, digits and hyphens.")
# MCP 2026-07-28, server/tools, "Tool Names": kept to what every client accepts.
tool_name = RegexValidator(r"^[A-Za-z0-9_-]{1,64}\Z", "Use 1 to 64 letters, digits, underscores and hyphens.")
tag = RegexValidator(r"^[a-z0-9][a-z0-9_-]{0,31}\Z", "Use 1 to 32 lower-case letters, digits, hyphens and underscores.")


class DataSource(models.Model):
    """One connection to the outside world: a database, a service, an upstream MCP server."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(
        max_length=48, unique=True, validators=[slug], help_text="Stable name, e.g. `support-desk`."
    )
    description = models.TextField(blank=True, help_text="What an administrator should know about it.")
    kind = models.CharField(max_length=32, help_text="Which connector speaks to it.")
    options = models.JSONField(default=dict, blank=True, help_text="The connector's options, without secrets.")
    secrets = EncryptedJSONField(null=True)
    prefix = models.CharField(
        max_length=24,
        blank=True,
        validators=[RegexValidator(r"^[A-Za-z0-9_-]{0,24}\Z", "Use letters, digits, underscores and hyphens.")],
        help_text="Put before the names of new tools and prompts, so that two sources can offer the same name.",
    )
    timeout_seconds = models.PositiveIntegerField(
        default=30,
        validators=[MinValueValidator(1), MaxValueValidator(600)],
        help_text="Deadline of one call, in seconds.",
    )
    enabled = models.BooleanField(default=True, help_text="When off, what it offers looks as if it did not exist.")
    recording = models.JSONField(
        "what is recorded",
        null=True,
        blank=True,
        help_text="What records keep and show of the arguments of its tools, where a tool does not say otherwise.",
    )
    checked_at = models.DateTimeField(null=True, editable=False)
    check_ok = models.BooleanField("last check", null=True, editable=False)
    check_message = MaskedTextField(blank=True, editable=False)
    synced_at = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ("name",)
        permissions = [("sync_datasource", "Can test and synchronise data sources")]

    def __str__(self) -> str:
        return self.name


class Synchronisation(models.Model):
    """The latest synchronisation of a data source: who asked for it, how far it is, and what was found."""

    source = models.OneToOneField(DataSource, primary_key=True, on_delete=models.CASCADE, related_name="latest_sync")
    asked_by = models.CharField(max_length=150, blank=True)
    asked_at = models.DateTimeField(null=True)
    job_id = models.BigIntegerField(null=True, help_text="The background job that does it; empty where none was asked.")
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    found = models.JSONField(default=dict, help_text="Names of tools by what became of them.")
    error = MaskedTextField(blank=True, help_text="Why it failed; empty when it did not.")

    class Meta:
        default_permissions = ()

    def __str__(self) -> str:
        return f"latest synchronisation of {self.source_id}"


class Tool(models.Model):
    """Something that can be called. What it looks like to clients is its current version's definition."""

    class Effect(models.TextChoices):
        """What a call may do. An administrator says so; upstream hints only prefill it."""

        READ = "read", "Reads only"
        WRITE = "write", "Writes"
        DESTRUCTIVE = "destructive", "Destroys"

    class AsTask(models.TextChoices):
        """When a call at /mcp becomes a task (the Tasks extension of MCP 2026-07-28), which clients ask for later."""

        NEVER = "never", "Never"
        SLOW = "slow", "When it is slow"
        AT_ONCE = "at_once", "Whenever the client can"
        ALWAYS = "always", "Always; refused to other clients"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    source = models.ForeignKey(DataSource, on_delete=models.CASCADE, related_name="tools")
    name = models.CharField(max_length=64, unique=True, validators=[tool_name], help_text="The name that clients see.")
    spec = models.JSONField(default=dict, help_text="What the connector needs to carry out a call.")
    effect = models.CharField(
        max_length=16,
        choices=Effect.choices,
        default=Effect.WRITE,
        help_text="Calls of tools with effects leave an intent in the ledger before they start.",
    )
    tags = ArrayField(
        models.CharField(max_length=32, validators=[tag]), default=list, blank=True, help_text="For grants by tag."
    )
    enabled = models.BooleanField(default=True, help_text="When off, the tool looks as if it did not exist.")
    as_task = models.CharField(
        "as a task",
        max_length=8,
        choices=AsTask.choices,
        default=AsTask.SLOW,
        help_text="When a call at `/mcp` becomes a task, for clients that know tasks: its result is asked for later,"
        " and not lost with a connection. A task from the beginning may take `TASK_TIMEOUT_SECONDS`.",
    )
    recording = models.JSONField(
        "what is recorded", null=True, blank=True, help_text="What records keep and show of its arguments and results."
    )
    current = models.ForeignKey("ToolVersion", null=True, on_delete=models.RESTRICT, related_name="+", editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ("name",)
        permissions = [
            ("try_tool", "Can try tools in the admin, with their own rights"),
            ("try_tool_as_role", "Can try tools in the admin with the rights of any role"),
        ]

    def __str__(self) -> str:
        return self.name


class ToolVersion(models.Model):
    """One state of a tool's definition, kept for ever: records name it by its fingerprint."""

    tool = models.ForeignKey(Tool, on_delete=models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    definition = models.TextField(help_text="The tool object of tools/list as JSON, verbatim.")
    spec = models.JSONField(default=dict)
    fingerprint = models.CharField(max_length=64, help_text="SHA-256 over definition and spec.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("tool", "-number")
        constraints = [models.UniqueConstraint(fields=("tool", "number"), name="one_number_per_tool")]

    def __str__(self) -> str:
        return f"{self.tool_id} v{self.number} {self.fingerprint[:12]}"


class Offered(models.Model):
    """What is common to prompts and resources: an upstream offers them, and people decide who may use them."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    source = models.ForeignKey(DataSource, on_delete=models.CASCADE, related_name="%(class)ss", editable=False)
    definition = models.TextField(editable=False, help_text="The object of the source's list as JSON, verbatim.")
    fingerprint = models.CharField(max_length=64, editable=False, help_text="SHA-256 over the definition.")
    tags = ArrayField(
        models.CharField(max_length=32, validators=[tag]), default=list, blank=True, help_text="For grants by tag."
    )
    enabled = models.BooleanField(default=True, help_text="When off, it looks as if it did not exist.")
    missing = models.BooleanField(
        default=False, editable=False, help_text="The source does not offer it any more; it cannot be used."
    )
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        abstract = True


class Prompt(Offered):
    """A prompt of an upstream MCP server."""

    name = models.CharField(
        max_length=64, unique=True, validators=[tool_name], editable=False, help_text="The name that clients see."
    )
    source_name = models.CharField(max_length=128, editable=False, help_text="Its name at the source.")

    class Meta:
        ordering = ("name",)
        # They come by synchronising only.
        default_permissions = ("view", "change", "delete")

    def __str__(self) -> str:
        return self.name


class Resource(Offered):
    """A resource of an upstream MCP server, or a template of many."""

    uri = models.CharField(
        "URI", max_length=1024, unique=True, editable=False, help_text="Of a template with its placeholders (RFC 6570)."
    )
    is_template = models.BooleanField(default=False, editable=False)

    class Meta:
        ordering = ("uri",)
        # They come by synchronising only.
        default_permissions = ("view", "change", "delete")

    def __str__(self) -> str:
        return self.uri


class Toolset(models.Model):
    """A named selection of tools, prompts and resources, served at `/mcp/<name>` and granted as one."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=48, unique=True, validators=[slug], help_text="Part of the URL: `/mcp/<name>`.")
    title = models.CharField(max_length=120, blank=True)
    description = models.TextField(blank=True)
    tools = models.ManyToManyField(Tool, related_name="toolsets", blank=True)
    prompts = models.ManyToManyField(Prompt, related_name="toolsets", blank=True)
    resources = models.ManyToManyField(Resource, related_name="toolsets", blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ("name",)

    def __str__(self) -> str:
        return self.name


def validate_network(value: str) -> None:
    """A CIDR network (`10.0.0.0/8`, `127.0.0.1/32`) or the folder of a unix socket (`unix:/run/postgresql`)."""
    if re.fullmatch(r"unix:/[^\0\n]{1,200}", value):
        return
    try:
        ipaddress.ip_network(value)
    except ValueError as error:
        raise ValidationError(f"Give a network such as 10.1.0.0/16, or unix:/path. ({error})") from error


class EgressRule(models.Model):
    """An address inside that connectors may reach, although addresses inside are refused as a rule."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    network = models.CharField(
        max_length=210,
        validators=[validate_network],
        help_text="`10.1.0.0/16`, `127.0.0.1/32` or `unix:/run/postgresql`.",
    )
    port = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(65535)],
        help_text="Empty: every port.",
    )
    note = models.CharField(max_length=200, help_text="Why this is allowed.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("network", "port")
        constraints = [
            models.UniqueConstraint(fields=("network", "port"), name="one_rule_per_address", nulls_distinct=False),
        ]

    def __str__(self) -> str:
        return f"{self.network}{f':{self.port}' if self.port else ''}"
