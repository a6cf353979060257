"""People and service accounts by REST, under the same rules as in the admin (`access.privileges`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import django_filters  # type: ignore[import-untyped]
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import Group, Permission
from django.contrib.auth.password_validation import validate_password
from django.contrib.auth.validators import UnicodeUsernameValidator
from django.core.exceptions import ValidationError
from django.db.models import Prefetch
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import exceptions, serializers, viewsets
from rest_framework.validators import UniqueValidator

from access import tokens
from access.lists import FilterSet
from access.models import ServiceAccount, User
from access.privileges import check_groups, keep_a_superuser, may_manage, meaningful_permissions
from access.rest import Conflict
from audit.doors import RecordedViewSet

# What a password must not resemble.
_DESCRIPTIVE = ("username", "first_name", "last_name", "email")
# In one order, or the ETag would change by itself.
_ROLES = Prefetch("groups", Group.objects.order_by("name"))
_PRIVILEGES = ("is_staff", "is_superuser", "user_permissions")


@extend_schema_field(OpenApiTypes.STR)
class PermissionField(serializers.RelatedField[Permission, str, Any]):
    """A Django permission by its name, `app.codename`."""

    queryset = Permission.objects.select_related("content_type")
    default_error_messages = {"does_not_exist": "There is no permission “{value}”: give `app.codename`."}

    def to_internal_value(self, data: Any) -> Permission:
        """The permission of this name."""
        app, _, codename = data.partition(".") if isinstance(data, str) else ("", "", "")
        known = meaningful_permissions()
        found = known.filter(content_type__app_label=app, codename=codename).first()
        if found is None:
            self.fail("does_not_exist", value=str(data)[:80])
        return found

    def to_representation(self, value: Any) -> str:
        """Its name."""
        return f"{value.content_type.app_label}.{value.codename}"


class UserNameField(serializers.CharField):
    """A user name in its one normal form, so that what looks the same is the same."""

    def to_internal_value(self, data: Any) -> str:
        """The name as it is kept."""
        return str(User.normalize_username(super().to_internal_value(data)))


@contextmanager
def _at(field: str) -> Iterator[None]:
    """What a rule refuses is said at the field."""
    try:
        yield
    except ValidationError as error:
        said = [exceptions.ErrorDetail(each.messages[0], each.code or "invalid") for each in error.error_list]
        raise serializers.ValidationError({field: said}) from error


class _AccountSerializer(serializers.ModelSerializer[User]):
    username = UserNameField(
        max_length=150, validators=[UnicodeUsernameValidator(), UniqueValidator(User.objects.all())]
    )
    roles = serializers.SlugRelatedField(
        source="groups",
        slug_field="name",
        many=True,
        required=False,
        queryset=Group.objects.filter(role__isnull=False),
        help_text="Names of roles. Only those that the caller has can be given.",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Nobody gives what they do not have, and one superuser stays."""
        if "groups" in attrs:
            with _at("roles"):
                check_groups(self.context["request"].user, self.instance, attrs["groups"])
        leaves = attrs.get("is_active") is False or attrs.get("is_superuser") is False
        if leaves and self.instance is not None and self.instance.is_superuser and self.instance.is_active:
            with _at("is_active" if attrs.get("is_active") is False else "is_superuser"):
                keep_a_superuser([self.instance])
        return attrs


class UserSerializer(_AccountSerializer):
    """A person. The password is written, never read."""

    password = serializers.CharField(
        write_only=True,
        required=False,
        max_length=1024,
        trim_whitespace=False,
        help_text="Ends all sessions of the user. A new user without one cannot log in.",
    )
    permissions = PermissionField(
        source="user_permissions",
        many=True,
        required=False,
        help_text="Django permissions besides those of the roles, as `app.codename`. For superusers to change.",
    )

    class Meta:
        model = User
        fields = (
            "id",
            "username",
            "first_name",
            "last_name",
            "email",
            "password",
            "is_active",
            "is_staff",
            "is_superuser",
            "roles",
            "permissions",
            "last_login",
            "date_joined",
        )
        read_only_fields = ("id", "last_login", "date_joined")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Privileges are for superusers to give, and a password must be a good one."""
        if not self.context["request"].user.is_superuser:
            self._refuse_privileges(attrs)
        if "password" in attrs:
            described = {
                name: value for name, value in attrs.items() if name in ("username", "email", "first_name", "last_name")
            }
            user = User(**{"username": getattr(self.instance, "username", ""), **described})
            with _at("password"):
                validate_password(attrs["password"], user)
            attrs["password"] = make_password(attrs["password"])
        elif self.instance is None:
            attrs["password"] = make_password(None)
        return super().validate(attrs)

    def _refuse_privileges(self, attrs: dict[str, Any]) -> None:
        given = {name: attrs[name] for name in _PRIVILEGES if name in attrs}
        held: dict[str, Any] = {"is_staff": False, "is_superuser": False, "user_permissions": set()}
        if self.instance is not None:
            held = {name: getattr(self.instance, name) for name in held}
            held["user_permissions"] = set(held["user_permissions"].all())
        if "user_permissions" in given:
            given["user_permissions"] = set(given["user_permissions"])
        public = {"user_permissions": "permissions"}
        refused = [public.get(name, name) for name, value in given.items() if value != held[name]]
        if refused:
            said = exceptions.ErrorDetail("Only a superuser gives or takes this.", code="superusers_only")
            raise serializers.ValidationError({name: [said] for name in refused})

    def save(self, **kwargs: Any) -> User:
        """Save; a new password ends all sessions."""
        known = self.instance is not None
        user = super().save(**kwargs)
        if known and "password" in self.validated_data:
            tokens.end_all_sessions(user)
        return user


class ServiceAccountSerializer(_AccountSerializer):
    """A program: it has roles and tokens, and no password."""

    class Meta:
        model = ServiceAccount
        fields = ("id", "username", "email", "is_active", "roles", "date_joined")
        read_only_fields = ("id", "date_joined")

    def create(self, validated_data: dict[str, Any]) -> User:
        """A program, whose password can never be right."""
        return super().create({**validated_data, "is_service": True, "password": make_password(None)})


class AccountFilter(FilterSet):
    """By role, and whether it is active."""

    role = django_filters.CharFilter(field_name="groups__name", help_text="Name of a role.")


class UserFilter(AccountFilter):
    """And by rank."""

    class Meta:
        model = User
        fields = ("username", "email", "is_active", "is_staff", "is_superuser")


class ServiceAccountFilter(AccountFilter):
    """And by name."""

    class Meta:
        model = ServiceAccount
        fields = ("username", "email", "is_active")


class _AccountViewSet(RecordedViewSet, viewsets.ModelViewSet[Any]):
    search_fields = ("username", "first_name", "last_name", "email")
    ordering = ("username",)
    ordering_fields = ("id", "date_joined")

    def admit(self, obj: User) -> None:
        """Only users who hold no more than the caller."""
        if not may_manage(self.request.user, obj):
            raise exceptions.PermissionDenied("You cannot change this user.", code="user_not_manageable")

    def perform_destroy(self, instance: Any) -> None:
        """Unless it is the last superuser."""
        try:
            keep_a_superuser([instance])
        except ValidationError as error:
            raise Conflict(error.messages[0], code=error.code) from error
        super().perform_destroy(instance)


class UserViewSet(_AccountViewSet):
    """People: who they are, what roles they have, and whether they may log in."""

    queryset = User.objects.filter(is_service=False).prefetch_related(_ROLES, "user_permissions__content_type")
    serializer_class = UserSerializer
    filterset_class = UserFilter


class ServiceAccountViewSet(_AccountViewSet):
    """Programs: what roles they have. Their tokens are made at `tokens/`."""

    queryset = ServiceAccount.objects.prefetch_related(_ROLES)
    serializer_class = ServiceAccountSerializer
    filterset_class = ServiceAccountFilter
