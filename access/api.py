"""Logins, roles, grants and tokens by REST."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import Permission
from django.db import transaction
from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiResponse, extend_schema, extend_schema_view
from rest_framework import exceptions, serializers, viewsets
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from access import tokens
from access.attempts import WINDOW_SECONDS, TooManyAttempts
from access.login import LoginRefused, log_in, record_auth, record_token
from access.models import ApiToken, Grant, Role, Scope, User
from access.privileges import assignable_permissions, manageable, may_edit_role, may_manage
from access.rest import CHALLENGE, token_refused
from access.user_api import PermissionField
from audit.changes import differences, stored
from audit.conditions import Guarded
from audit.doors import RecordedViewSet
from tools.models import Tool, Toolset

# --- Sessions of JWTs ------------------------------------------------------------------------------------------------


class CredentialsSerializer(serializers.Serializer[Any]):
    """A person's user name and password."""

    username = serializers.CharField(max_length=150)
    password = serializers.CharField(max_length=1024, trim_whitespace=False, write_only=True)


class PairSerializer(serializers.Serializer[Any]):
    """An access token for requests, and a refresh token for the next pair."""

    access = serializers.CharField()
    refresh = serializers.CharField()


class RefreshSerializer(serializers.Serializer[Any]):
    """A refresh token."""

    refresh = serializers.CharField(max_length=4096)


class VerifySerializer(serializers.Serializer[Any]):
    """An access token."""

    token = serializers.CharField(max_length=4096)


class _Public(APIView):
    """Open to everybody: what is sent is itself the credential."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    def get_authenticate_header(self, request: Request) -> str:
        """What makes a refusal a 401."""
        return CHALLENGE

    def body(self, request: Request, serializer: type[serializers.Serializer[Any]]) -> dict[str, Any]:
        """The checked body of the request."""
        given = serializer(data=request.data)
        given.is_valid(raise_exception=True)
        return dict(given.validated_data)


class ObtainView(_Public):
    """Begin a session."""

    further_problems = {"post": (401, 429)}

    @extend_schema(summary="Begin a session", request=CredentialsSerializer, responses=PairSerializer, tags=["auth"])
    def post(self, request: Request) -> Response:
        """A pair of tokens for a user name and a password. Programs use API tokens instead."""
        given = self.body(request, CredentialsSerializer)
        try:
            user = log_in(request._request, given["username"], given["password"], door="rest")
        except TooManyAttempts as refused:
            raise exceptions.Throttled(WINDOW_SECONDS, str(refused), code=refused.code) from refused
        except LoginRefused as refused:
            raise exceptions.AuthenticationFailed(str(refused), code=refused.code) from refused
        return Response(tokens.obtain(user))


class RefreshView(_Public):
    """Go on with a session."""

    further_problems = {"post": (401,)}

    @extend_schema(summary="Go on with a session", request=RefreshSerializer, responses=PairSerializer, tags=["auth"])
    def post(self, request: Request) -> Response:
        """A new pair for a refresh token, which is thereby used up. Using it again ends the session."""
        try:
            pair = tokens.refresh(self.body(request, RefreshSerializer)["refresh"])
        except tokens.ReusedToken as refused:
            session = f"session {refused.session[:8]}"
            record_auth(request, "refresh_reused", door="rest", actor=refused.user, token=session)
            raise exceptions.AuthenticationFailed("The token is not valid.", code=refused.code) from refused
        except tokens.InvalidToken as refused:
            raise token_refused(request) from refused
        claims = tokens.claims_of(pair["access"])
        user = User.objects.get(pk=claims.user_id)
        record_auth(request, "token_refreshed", door="rest", actor=user, token=f"session {claims.session[:8]}")
        return Response(pair)


class VerifyView(_Public):
    """Ask whether an access token is still good."""

    further_problems = {"post": (401,)}

    @extend_schema(
        summary="Check an access token",
        request=VerifySerializer,
        responses=OpenApiResponse(description="It is valid."),
        tags=["auth"],
    )
    def post(self, request: Request) -> Response:
        """200 for a valid access token, 401 for any other."""
        try:
            tokens.user_of(tokens.claims_of(self.body(request, VerifySerializer)["token"]))
        except tokens.InvalidToken as refused:
            raise token_refused(request) from refused
        return Response({})


class RevokeView(_Public):
    """End a session."""

    further_problems = {"post": (401,)}

    @extend_schema(
        summary="End a session",
        request=RefreshSerializer,
        responses=OpenApiResponse(description="It is ended."),
        tags=["auth"],
    )
    def post(self, request: Request) -> Response:
        """Refuse the session of this refresh token from now on, with every access token of it."""
        try:
            with transaction.atomic():
                claims = tokens.revoke_session(self.body(request, RefreshSerializer)["refresh"])
                user = User.objects.filter(pk=claims.user_id).first()
                record_auth(request, "logout", door="rest", actor=user, token=f"session {claims.session[:8]}")
        except tokens.InvalidToken as refused:
            raise token_refused(request) from refused
        return Response({})


# --- Roles, grants, tokens -------------------------------------------------------------------------------------------


class RoleSerializer(serializers.ModelSerializer[Role]):
    """A role: what may be done in the admin and by REST. What may be called is said by its grants."""

    permissions = PermissionField(
        many=True,
        required=False,
        help_text="Django permissions, as `app.codename`. Only those that the caller has can be given.",
    )

    class Meta:
        model = Role
        fields = ("id", "name", "description", "permissions")
        read_only_fields = ("id",)

    def validate_permissions(self, wanted: list[Permission]) -> list[Permission]:
        """Nobody gives what they do not have."""
        foreign = set(wanted) - set(assignable_permissions(self.context["request"].user))
        if foreign:
            names = ", ".join(sorted(each.codename for each in foreign))
            raise serializers.ValidationError(f"You do not have these yourself: {names}.", code="not_yours_to_give")
        return wanted


class RoleViewSet(RecordedViewSet, viewsets.ModelViewSet[Role]):
    """Who may do what, by name."""

    queryset: QuerySet[Role] = QuerySet(Role).prefetch_related("permissions__content_type")
    serializer_class = RoleSerializer
    filterset_fields = ("name",)
    search_fields = ("name", "description")
    ordering = ("name",)
    ordering_fields = ("id",)

    def admit(self, obj: Role) -> None:
        """Only a role that the caller may edit."""
        _editable(self.request, obj)


def _editable(request: Request, role: Role) -> None:
    if not may_edit_role(request.user, role):
        raise exceptions.PermissionDenied("You cannot change this role.", code="role_not_editable")


class GrantSerializer(serializers.ModelSerializer[Grant]):
    """One toolset, tool or tag that a role may call."""

    role = serializers.SlugRelatedField(slug_field="name", queryset=Role.objects.all())
    toolset = serializers.SlugRelatedField(
        slug_field="name", queryset=Toolset.objects.all(), allow_null=True, required=False
    )
    tool = serializers.SlugRelatedField(slug_field="name", queryset=Tool.objects.all(), allow_null=True, required=False)

    class Meta:
        model = Grant
        fields = ("id", "role", "toolset", "tool", "tag", "calls_per_minute", "created_at")
        read_only_fields = ("id", "created_at")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Exactly one target."""
        chosen = [attrs.get(name, getattr(self.instance, name, None)) for name in ("toolset", "tool", "tag")]
        if sum(map(bool, chosen)) != 1:
            raise serializers.ValidationError("Choose one of toolset, tool and tag.", code="one_target")
        return attrs


class GrantViewSet(RecordedViewSet, viewsets.ModelViewSet[Grant]):
    """What roles may call."""

    queryset = Grant.objects.select_related("role", "toolset", "tool")
    serializer_class = GrantSerializer
    filterset_fields = ("role__name", "toolset__name", "tool__name", "tag")
    search_fields = ("role__name", "tag")
    ordering = ("created_at",)

    def admit(self, obj: Grant) -> None:
        """Only of a role that the caller may edit."""
        _editable(self.request, obj.role)

    def perform_create(self, serializer: Any) -> None:
        """Only into a role that the caller may edit."""
        _editable(self.request, serializer.validated_data["role"])
        super().perform_create(serializer)

    def perform_update(self, serializer: Any) -> None:
        """Only into a role that the caller may edit."""
        _editable(self.request, serializer.validated_data.get("role", serializer.instance.role))
        super().perform_update(serializer)


class TokenSerializer(serializers.ModelSerializer[ApiToken]):
    """An API token without its secret."""

    user = serializers.SlugRelatedField(slug_field="username", queryset=User.objects.filter(is_active=True))
    toolset = serializers.SlugRelatedField(
        slug_field="name", queryset=Toolset.objects.all(), allow_null=True, required=False
    )
    scopes = serializers.MultipleChoiceField(choices=Scope.choices)
    last_used_at = serializers.DateTimeField(source="use.last_used_at", read_only=True, default=None, allow_null=True)

    class Meta:
        model = ApiToken
        fields = (
            "id",
            "user",
            "name",
            "prefix",
            "scopes",
            "toolset",
            "expires_at",
            "revoked_at",
            "last_used_at",
            "created_at",
        )
        read_only_fields = ("id", "prefix", "revoked_at", "created_at")

    def to_representation(self, instance: ApiToken) -> dict[str, Any]:
        """With the scopes in one order."""
        return {**super().to_representation(instance), "scopes": sorted(instance.scopes)}


class IssuedTokenSerializer(TokenSerializer):
    """A new API token with its secret, which is shown this once."""

    secret = serializers.CharField(read_only=True)

    class Meta(TokenSerializer.Meta):
        fields = (*TokenSerializer.Meta.fields, "secret")  # type: ignore[assignment]


@extend_schema_view(destroy=extend_schema(summary="Revoke an API token"))
class TokenViewSet(Guarded, viewsets.ReadOnlyModelViewSet[ApiToken]):
    """Make, list and revoke API tokens. Deleting one revokes it: what it did stays explained."""

    queryset = ApiToken.objects.select_related("user", "toolset", "use")
    serializer_class = TokenSerializer
    filterset_fields = ("user__username", "toolset__name")
    search_fields = ("name", "prefix")
    ordering = ("prefix",)
    ordering_fields = ("created_at",)
    http_method_names = ["get", "post", "delete", "head", "options"]
    action_permissions = {"destroy": "access.change_apitoken"}

    def get_queryset(self) -> QuerySet[ApiToken]:
        """Tokens of users whom the caller may manage."""
        return super().get_queryset().filter(user__in=manageable(self.request.user).values("pk"))

    @extend_schema(request=TokenSerializer, responses={201: IssuedTokenSerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Issue a token. The answer is the only place where its secret is ever shown."""
        given = self.get_serializer(data=request.data)
        given.is_valid(raise_exception=True)
        values = {**given.validated_data, "scopes": sorted(given.validated_data["scopes"])}
        user = values.pop("user")
        if not may_manage(request.user, user):
            raise exceptions.PermissionDenied("You cannot make tokens for this user.", code="user_not_manageable")
        try:
            with transaction.atomic():
                token, secret = tokens.issue(user, **values)
                record_token(request, token, "token_created", differences({}, stored(token)), door="rest")
        except ValueError as error:
            raise exceptions.ValidationError({"expires_at": [str(error)]}) from error
        response = self.answer(self.get_queryset().get(pk=token.pk), 201)
        response.data["secret"] = secret
        response["Cache-Control"] = "no-store"
        response["Location"] = request.build_absolute_uri(self.address_of(token))
        return response

    def perform_destroy(self, instance: ApiToken) -> None:
        """Revoke, and record it."""
        with transaction.atomic():
            before = stored(instance)
            tokens.revoke(instance)
            if changes := differences(before, stored(instance)):
                record_token(self.request, instance, "token_revoked", changes, door="rest")
