"""Who asks on its own: models that can be asked, agents with a role, their runs, and what happened in them."""

from __future__ import annotations

import os
import uuid

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxLengthValidator, MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models

from access.models import Role
from audit.masked import MaskedTextField
from keyring.fields import EncryptedJSONField
from tools.models import Toolset, slug

# Short enough for the name of the service account, `agent-<name>`, and what goes with it.
agent_name = RegexValidator(r"^[a-z0-9][a-z0-9-]{0,39}\Z", "Use 1 to 40 lower-case letters, digits and hyphens.")
LONGEST_INPUT = 32_000


def _limit(help_text: str, default: int, minimum: int, maximum: int) -> models.PositiveIntegerField[int, int]:
    bounds = [MinValueValidator(minimum), MaxValueValidator(maximum)]
    return models.PositiveIntegerField(default=default, validators=bounds, help_text=help_text)


class ModelProvider(models.Model):
    """Where a language model is reached, and as whom."""

    class Kind(models.TextChoices):
        """Which protocol is spoken; the words are those of LangChain's `init_chat_model`, but for the last."""

        OPENAI = "openai", "OpenAI-compatible server"
        ANTHROPIC = "anthropic", "Anthropic"
        GOOGLE = "google_genai", "Google Gemini"
        MISTRAL = "mistralai", "Mistral AI"
        SCRIPTED = "scripted", "Scripted, no AI"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(max_length=48, unique=True, validators=[slug], help_text="Stable name, e.g. `local-llm`.")
    description = models.TextField(blank=True)
    kind = models.CharField(max_length=32, choices=Kind.choices, help_text="Fixed once it is made.")
    model = models.CharField(max_length=200, blank=True, help_text="As the provider calls it, e.g. `qwen3:8b`.")
    base_url = models.CharField(
        "base URL",
        max_length=500,
        blank=True,
        help_text="Of an OpenAI-compatible server, e.g. `http://10.1.0.7:11434/v1`. Inside addresses need an egress"
        " rule. Empty: OpenAI itself.",
    )
    secrets = EncryptedJSONField(null=True)
    temperature = models.FloatField(
        null=True,
        blank=True,
        validators=[MinValueValidator(0.0), MaxValueValidator(2.0)],
        help_text="0 to 2. Empty: the model's own.",
    )
    max_output_tokens = _limit("Longest answer of the model, in tokens.", 4096, 16, 200_000)
    timeout_seconds = _limit("How long the model may keep silent, in seconds.", 60, 1, 600)
    script = models.TextField(
        blank=True,
        validators=[MaxLengthValidator(20_000)],
        help_text="For a scripted model: its steps, as YAML. What can stand there is in the documentation.",
    )
    enabled = models.BooleanField(default=True, help_text="When off, runs of its agents fail.")
    checked_at = models.DateTimeField(null=True, editable=False)
    check_ok = models.BooleanField("last check", null=True, editable=False)
    check_message = MaskedTextField(longest=1000, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ("name",)
        permissions = [("test_modelprovider", "Can test model providers")]

    def __str__(self) -> str:
        return self.name

    @property
    def is_scripted(self) -> bool:
        """Whether no language model is asked."""
        return self.kind == self.Kind.SCRIPTED


class Agent(models.Model):
    """Instructions, a model to follow them, and a role that says which tools it may call.

    It calls as a service account of its own (`agents.accounts`), whose only role is the agent's.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    name = models.CharField(
        max_length=40, unique=True, validators=[agent_name], help_text="Stable name, e.g. `support-triage`."
    )
    description = models.TextField(blank=True, help_text="What it is for: people see this before they run it.")
    instructions = models.TextField(
        validators=[MaxLengthValidator(20_000)], help_text="What the model is told before anything else."
    )
    provider = models.ForeignKey(ModelProvider, on_delete=models.PROTECT, related_name="agents")
    role = models.ForeignKey(
        Role, on_delete=models.PROTECT, related_name="agents", help_text="Which tools it may call. You must have it."
    )
    toolset = models.ForeignKey(
        Toolset,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="agents",
        help_text="Narrows it to the tools of this toolset. Empty: every tool of its role.",
    )
    enabled = models.BooleanField(default=True, help_text="When off, it cannot be run, and its runs end.")
    max_model_calls = _limit("How often a run may ask the model.", 12, 1, 200)
    max_tool_calls = _limit("How many tools a run may call.", 24, 0, 500)
    max_seconds = _limit("How long a run may take, in seconds.", 300, 5, 3600)
    max_tokens = _limit("How many tokens a run may use, in and out together.", 100_000, 100, 10_000_000)
    account = models.OneToOneField(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="agent", editable=False
    )
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        ordering = ("name",)
        permissions = [("run_agent", "Can run agents")]

    def __str__(self) -> str:
        return self.name


class Run(models.Model):
    """One task given to an agent. All that it causes has one trace id: that of who started it, or the run's own."""

    class Status(models.TextChoices):
        """Where it is."""

        QUEUED = "queued", "Queued"
        RUNNING = "running", "Running"
        SUCCEEDED = "succeeded", "Succeeded"
        FAILED = "failed", "Failed"
        CANCELLED = "cancelled", "Cancelled"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    agent = models.ForeignKey(Agent, on_delete=models.CASCADE, related_name="runs")
    started_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="agent_runs"
    )
    on_behalf_of = models.CharField(max_length=150, help_text="User name of who started it.")
    status = models.CharField(max_length=16, choices=Status.choices, default=Status.QUEUED)
    code = models.CharField(max_length=40, blank=True, help_text="`ok`, or the stable word for why it failed.")
    message = MaskedTextField(blank=True, help_text="The same for people.")
    input = EncryptedJSONField()
    output = EncryptedJSONField(null=True)
    model = models.CharField(max_length=200, blank=True, help_text="The model that was asked.")
    scripted = models.BooleanField(default=False, help_text="Whether no AI was asked.")
    model_calls = models.PositiveIntegerField(default=0)
    tool_calls = models.PositiveIntegerField(default=0)
    input_tokens = models.PositiveBigIntegerField(default=0)
    output_tokens = models.PositiveBigIntegerField(default=0)
    tokens_estimated = models.BooleanField(default=False, help_text="Whether the provider did not say how many.")
    traceparent = models.CharField(max_length=55, blank=True, editable=False, help_text="W3C trace of who started it.")
    job_id = models.BigIntegerField(null=True)
    heartbeat_at = models.DateTimeField(null=True)
    cancel_requested_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)

    class Meta:
        ordering = ("-created_at", "-id")
        default_permissions = ("view",)
        permissions = [("cancel_run", "Can cancel runs of others")]
        indexes = [
            models.Index(fields=("-created_at", "-id"), name="run_newest_first"),
            models.Index(
                fields=("status",), name="run_unfinished", condition=models.Q(status__in=("queued", "running"))
            ),
        ]

    def __str__(self) -> str:
        return f"{self.agent.name} {str(self.pk)[:8]}"

    @property
    def is_finished(self) -> bool:
        """Whether nothing more will happen."""
        return self.status not in (self.Status.QUEUED, self.Status.RUNNING)

    @property
    def trace_id(self) -> str:
        """The W3C trace id that its records carry."""
        return self.traceparent[3:35] or self.pk.hex

    def child_trace(self) -> str:
        """The `traceparent` of a call of the run, with a span of its own."""
        return f"00-{self.trace_id}-{os.urandom(8).hex()}-{self.traceparent[53:55] or '01'}"

    @property
    def tokens(self) -> int:
        """In and out together."""
        return self.input_tokens + self.output_tokens


class Step(models.Model):
    """One thing that happened in a run, complete: an answer of the model or a call of a tool. Never changed.

    `content` of a model's step is `{"text", "calls": [{"id", "tool", "arguments"}]}`, of a tool's step
    `{"arguments", "result"}`.
    """

    class Kind(models.TextChoices):
        """Whose doing it was."""

        MODEL = "model", "Model"
        TOOL = "tool", "Tool"

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    run = models.ForeignKey(Run, on_delete=models.CASCADE, related_name="steps")
    number = models.PositiveIntegerField()
    kind = models.CharField(max_length=8, choices=Kind.choices)
    content = EncryptedJSONField()
    tool = models.CharField(max_length=200, blank=True)
    tool_call = models.CharField(max_length=200, blank=True, help_text="The model's id of the call.")
    call_id = models.UUIDField(null=True, help_text="Of the call in the ledger.")
    record_id = models.UUIDField(null=True, help_text="Of the record in the ledger.")
    code = models.CharField(max_length=40, blank=True)
    input_tokens = models.PositiveIntegerField(default=0)
    output_tokens = models.PositiveIntegerField(default=0)
    started_at = models.DateTimeField()
    finished_at = models.DateTimeField()

    class Meta:
        ordering = ("run", "number")
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=("run", "number"), name="one_number_per_run")]

    def __str__(self) -> str:
        return f"{self.number}. {self.tool or self.kind}"


def validate_input(text: str) -> str:
    """The task as it is kept. Raises ValidationError when it is empty or too long."""
    text = text.strip()
    if not text:
        raise ValidationError("Say what the agent shall do.")
    if len(text) > LONGEST_INPUT:
        raise ValidationError(f"This is too long: at most {LONGEST_INPUT} characters.")
    return text
