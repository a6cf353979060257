"""Who may do what: users, roles, grants and the tokens that stand for them."""

from __future__ import annotations

import uuid
from typing import ClassVar

from django.contrib.auth.models import AbstractUser, Group, UserManager
from django.contrib.postgres.fields import ArrayField
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q

from tools.models import Tool, Toolset, tag


class User(AbstractUser):
    """A person or a service account. Whatever calls a tool is a user with roles."""

    is_service = models.BooleanField(
        "service account", default=False, help_text="For programs: has tokens, cannot log in with a password."
    )
    generation = models.PositiveIntegerField(
        default=1, editable=False, help_text="Raised to make every JWT of this user invalid at once."
    )

    class Meta(AbstractUser.Meta):
        ordering = ("username",)


class ServiceAccountManager(UserManager["ServiceAccount"]):
    """Only service accounts."""

    def get_queryset(self) -> models.QuerySet[ServiceAccount]:
        """The users that are programs."""
        return super().get_queryset().filter(is_service=True)


class ServiceAccount(User):
    """A user that is a program."""

    objects = ServiceAccountManager()  # type: ignore[misc]

    class Meta:
        proxy = True
        ordering = ("username",)


class Role(Group):
    """A Django group plus grants: Django permissions rule admin and REST, grants rule the calls of tools."""

    description = models.TextField(blank=True, help_text="What people with this role do.")

    objects: ClassVar[models.Manager[Role]]  # type: ignore[assignment]

    class Meta:
        ordering = ("name",)


class Grant(models.Model):
    """Lets a role call a tool, or use whatever is in a toolset or has a tag: tools, prompts and resources."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    role = models.ForeignKey(Role, on_delete=models.CASCADE, related_name="grants")
    toolset = models.ForeignKey(Toolset, null=True, blank=True, on_delete=models.CASCADE, related_name="grants")
    tool = models.ForeignKey(Tool, null=True, blank=True, on_delete=models.CASCADE, related_name="grants")
    tag = models.CharField(max_length=32, blank=True, validators=[tag], help_text="Every tool that has this tag.")
    calls_per_minute = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(10_000_000)],
        help_text="Budget of each principal for each tool. Empty: the site's default. Of several grants the largest.",
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("role", "created_at")
        constraints = [
            models.CheckConstraint(
                name="grant_has_one_target",
                condition=Q(toolset__isnull=False, tool__isnull=True, tag="")
                | Q(toolset__isnull=True, tool__isnull=False, tag="")
                | Q(toolset__isnull=True, tool__isnull=True) & ~Q(tag=""),
                violation_error_message="Choose one of toolset, tool and tag.",
            ),
        ]

    def __str__(self) -> str:
        target = self.toolset or self.tool or f"tag {self.tag}"
        return f"{self.role} → {target}"


class Scope(models.TextChoices):
    """What a token may be used for; a role still has to allow it."""

    TOOLS = "tools", "List and call tools"
    READ = "read", "Read through REST"
    WRITE = "write", "Change through REST"


def default_scopes() -> list[str]:
    """A new token may call tools, no more."""
    return [Scope.TOOLS.value]


class ApiToken(models.Model):
    """A long-lived secret that stands for a user. Only its SHA-256 is kept; the prefix names it in records."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="api_tokens")
    name = models.CharField(max_length=80, help_text="Where it is used, e.g. `laptop` or `ci`.")
    prefix = models.CharField(max_length=16, unique=True, editable=False)
    digest = models.CharField(max_length=64, unique=True, editable=False)
    scopes = ArrayField(models.CharField(max_length=16, choices=Scope.choices), default=default_scopes)
    toolset = models.ForeignKey(
        Toolset,
        null=True,
        blank=True,
        on_delete=models.CASCADE,
        help_text="Narrows the token to the tools of this toolset.",
    )
    expires_at = models.DateTimeField(null=True, blank=True, help_text="Empty: never.")
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-created_at",)
        verbose_name = "API token"

    def __str__(self) -> str:
        return f"{self.prefix}… ({self.name})"


class TokenUse(models.Model):
    """When and from where a token was last used; apart from the token, so that use does not change policy."""

    token = models.OneToOneField(ApiToken, primary_key=True, on_delete=models.CASCADE, related_name="use")
    last_used_at = models.DateTimeField()
    last_address = models.CharField(max_length=64, blank=True)

    def __str__(self) -> str:
        return f"{self.token_id} at {self.last_used_at}"


class RevokedSession(models.Model):
    """A JWT session (one login and its refreshes) that was ended before its tokens expired."""

    sid = models.CharField(max_length=64, primary_key=True)
    expires_at = models.DateTimeField(db_index=True, help_text="When its last token expires, and this row can go.")

    class Meta:
        verbose_name = "ended session"

    def __str__(self) -> str:
        return self.sid


class SavedFilter(models.Model):
    """A list of the admin as somebody wants to see it again: search, filters and order under a name."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="saved_filters", verbose_name="owner")
    name = models.CharField(max_length=80)
    model = models.CharField(max_length=100, editable=False, help_text="Whose list it is, e.g. `tools.Tool`.")
    query = models.TextField(editable=False, help_text="The query string of the list, without a question mark.")
    shared = models.BooleanField(
        "for everybody", default=False, help_text="Everybody who may see the list finds it there."
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("name", "created_at")
        # Everybody in the admin has filters of their own: there is nothing to permit.
        default_permissions = ()
        constraints = [
            models.UniqueConstraint(
                fields=("user", "model", "name"),
                name="one_filter_of_a_name",
                violation_error_message="You have a filter of this name for the same list.",
            )
        ]

    def __str__(self) -> str:
        return self.name


class PolicyVersion(models.Model):
    """One row: the version of everything that decides calls, raised by the database with each change."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    version = models.BigIntegerField()

    def __str__(self) -> str:
        return str(self.version)
