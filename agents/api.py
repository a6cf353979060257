"""Agents, their runs and model providers by REST."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpResponseBase, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema, extend_schema_field
from rest_framework import exceptions, serializers, viewsets
from rest_framework.decorators import action
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from access.models import Role, User
from access.rest import BearerAuthentication, Conflict, ModelPermissions
from agents.accounts import check_role, delete_agent, keep_account, may_edit_agent, may_edit_provider
from agents.configuration import Refused, api_key_of, check_provider, set_api_key
from agents.events import MOST_STREAMS, events, followed, has_too_many, step_body
from agents.models import LONGEST_INPUT, Agent, ModelProvider, Run
from agents.providers import ask_to_test, record_test
from agents.runs import WITHHELD, RunRefused, cancel_run, may_read, start_run
from audit.doors import RecordedViewSet
from gateway.api import TRACE, traceparent_of
from tools.models import Toolset

# What somebody is told to wait who follows too many runs.
_STREAM_SECONDS = 10


class RunNotStarted(exceptions.APIException):
    """A refusal to start a run, with its stable code."""

    def __init__(self, refusal: RunRefused) -> None:
        super().__init__(str(refusal), refusal.code)
        self.status_code = 429 if refusal.code == "too_many_runs" else 409


def _require(allowed: bool) -> None:
    if not allowed:
        raise exceptions.PermissionDenied(
            "It holds a role that you do not have: whoever changes it could use that role.", code="not_yours_to_change"
        )


def _user(request: Request) -> User:
    user = request.user
    assert isinstance(user, User), "nobody gets here without being known"
    return user


# --- Model providers -------------------------------------------------------------------------------------------------


class ModelProviderSerializer(serializers.ModelSerializer[ModelProvider]):
    """A model provider. Its key can be set and removed, never read."""

    api_key = serializers.CharField(
        write_only=True,
        required=False,
        allow_null=True,
        max_length=2000,
        help_text="Not named: it is kept. Null: it is removed.",
    )
    api_key_set = serializers.SerializerMethodField(help_text="Whether there is a key.")

    class Meta:
        model = ModelProvider
        fields = (
            "id",
            "name",
            "description",
            "kind",
            "model",
            "base_url",
            "api_key",
            "api_key_set",
            "temperature",
            "max_output_tokens",
            "timeout_seconds",
            "script",
            "enabled",
            "checked_at",
            "check_ok",
            "check_message",
            "created_at",
            "updated_at",
        )
        read_only_fields = ("id", "checked_at", "check_ok", "check_message", "created_at", "updated_at")

    def get_api_key_set(self, provider: ModelProvider) -> bool:
        """Only whether."""
        return api_key_of(provider) is not None

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """All of it together."""
        given = "api_key" in attrs
        key = attrs.pop("api_key", None)
        trial = ModelProvider(**{name: getattr(self.instance, name) for name in _SETTINGS} if self.instance else {})
        set_api_key(trial, key if given else api_key_of(self.instance) if self.instance else None)
        for name, value in attrs.items():
            setattr(trial, name, value)
        try:
            check_provider(trial, self.instance, given)
        except Refused as refused:
            raise serializers.ValidationError(refused.errors) from refused
        return {**attrs, "secrets": trial.secrets} if given else attrs


_SETTINGS = ("kind", "model", "base_url", "script")


class TestedSerializer(serializers.Serializer[Any]):
    """Whether the model answered."""

    ok = serializers.BooleanField()
    message = serializers.CharField()


class ModelProviderViewSet(RecordedViewSet, viewsets.ModelViewSet[ModelProvider]):
    """Where language models are reached."""

    queryset = ModelProvider.objects.all()
    serializer_class = ModelProviderSerializer
    filterset_fields = ("kind", "enabled", "name")
    search_fields = ("name", "description", "model")
    ordering = ("name",)
    http_method_names = ["get", "post", "patch", "delete", "head", "options"]
    action_permissions = {"test": "agents.test_modelprovider"}

    def perform_update(self, serializer: Any) -> None:
        """Only by who could change the agents that follow it."""
        _require(may_edit_provider(self.request.user, serializer.instance))
        super().perform_update(serializer)

    @extend_schema(request=None, responses=TestedSerializer)
    @action(detail=True, methods=["post"])
    def test(self, request: Request, pk: Any = None) -> Response:
        """Have the agent worker ask the model for one word, and say what came of it."""
        provider = self.get_object()
        outcome = ask_to_test(provider)
        record_test(provider, outcome, door="rest", request=request)
        return Response(TestedSerializer(outcome).data)


# --- Agents ----------------------------------------------------------------------------------------------------------


class AgentSerializer(serializers.ModelSerializer[Agent]):
    """An agent. What it names, it names by name."""

    provider = serializers.SlugRelatedField(slug_field="name", queryset=ModelProvider.objects.all())
    role = serializers.SlugRelatedField(slug_field="name", queryset=Role.objects.all())
    toolset = serializers.SlugRelatedField(
        slug_field="name", queryset=Toolset.objects.all(), allow_null=True, required=False
    )
    account = serializers.CharField(source="account.username", read_only=True, help_text="The user that it calls as.")

    class Meta:
        model = Agent
        fields = (
            "id",
            "name",
            "description",
            "instructions",
            "provider",
            "role",
            "toolset",
            "enabled",
            "max_model_calls",
            "max_tool_calls",
            "max_seconds",
            "max_tokens",
            "account",
            "created_at",
            "updated_at",
        )
        read_only_fields = ("id", "account", "created_at", "updated_at")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Its role is one that the caller may give."""
        if "role" in attrs:
            try:
                check_role(self.context["request"].user, self.instance, attrs["role"])
            except ValidationError as error:
                raise serializers.ValidationError({"role": error.messages}, code=error.code or "invalid") from error
        return attrs

    def create(self, validated_data: dict[str, Any]) -> Agent:
        """With its account."""
        return self._saved(Agent(), validated_data)

    def update(self, instance: Agent, validated_data: dict[str, Any]) -> Agent:
        """With its account."""
        return self._saved(instance, validated_data)

    def _saved(self, agent: Agent, values: dict[str, Any]) -> Agent:
        for name, value in values.items():
            setattr(agent, name, value)
        try:
            keep_account(agent, door="rest", request=self.context["request"])
        except ValidationError as error:
            raise serializers.ValidationError({"name": error.messages}, code=error.code or "invalid") from error
        agent.save()
        return agent


class TaskSerializer(serializers.Serializer[Any]):
    """What an agent is asked to do."""

    input = serializers.CharField(max_length=LONGEST_INPUT, help_text="The task, in words.")


class StepSerializer(serializers.Serializer[Any]):
    """One step of a run."""

    number = serializers.IntegerField()
    kind = serializers.ChoiceField(choices=("model", "tool"))
    tool = serializers.CharField(allow_null=True)
    tool_call = serializers.CharField(allow_null=True, help_text="The model's id of the call.")
    content = serializers.DictField(help_text="`text` and `calls` of the model, or `arguments` and `result` of a tool.")
    code = serializers.CharField(help_text="As in the record.")
    call = serializers.UUIDField(allow_null=True, help_text="Id of the call in the ledger.")
    record = serializers.UUIDField(allow_null=True, help_text="Id of the record in the ledger.")
    input_tokens = serializers.IntegerField()
    output_tokens = serializers.IntegerField()
    started_at = serializers.DateTimeField()
    finished_at = serializers.DateTimeField()


class RunSerializer(serializers.ModelSerializer[Run]):
    """A run without its contents."""

    agent = serializers.CharField(source="agent.name", read_only=True)
    trace_id = serializers.CharField(read_only=True, help_text="Of all records that the run caused.")

    class Meta:
        model = Run
        fields = (
            "id",
            "agent",
            "on_behalf_of",
            "status",
            "code",
            "message",
            "model",
            "scripted",
            "model_calls",
            "tool_calls",
            "input_tokens",
            "output_tokens",
            "tokens_estimated",
            "trace_id",
            "created_at",
            "started_at",
            "finished_at",
        )
        read_only_fields = fields


class FullRunSerializer(RunSerializer):
    """A run with its task, its answer and its steps."""

    input = serializers.CharField(read_only=True)
    output = serializers.CharField(read_only=True, allow_null=True)
    steps = serializers.SerializerMethodField()

    class Meta(RunSerializer.Meta):
        fields = (*RunSerializer.Meta.fields, "input", "output", "steps")  # type: ignore[assignment]
        read_only_fields = fields  # type: ignore[assignment]

    @extend_schema_field(StepSerializer(many=True))
    def get_steps(self, run: Run) -> list[dict[str, Any]]:
        """In order."""
        return [step_body(step, self._whole(run)) for step in run.steps.order_by("number")]

    def to_representation(self, run: Run) -> dict[str, Any]:
        """Without its contents, for whom they are not."""
        shown = super().to_representation(run)
        if not self._whole(run):
            shown |= {name: WITHHELD for name in ("input", "output") if shown[name] is not None}
        return shown

    def _whole(self, run: Run) -> bool:
        return may_read(self.context["request"].user, run)


class AgentViewSet(RecordedViewSet, viewsets.ModelViewSet[Agent]):
    """Agents. An agent is named by its name."""

    queryset = Agent.objects.select_related("provider", "role", "toolset", "account")
    serializer_class = AgentSerializer
    filterset_fields = ("enabled", "provider__name", "role__name")
    search_fields = ("name", "description")
    ordering = ("name",)
    lookup_field = "name"
    lookup_value_regex = "[a-z0-9-]{1,40}"
    http_method_names = ["get", "post", "patch", "delete", "head", "options"]
    action_permissions = {"runs": "agents.run_agent"}
    further_problems = {"runs": (409, 429)}

    def perform_update(self, serializer: Any) -> None:
        """Only by who could hold its role."""
        _require(may_edit_agent(self.request.user, serializer.instance))
        super().perform_update(serializer)

    def perform_destroy(self, instance: Any) -> None:
        """With its account."""
        _require(may_edit_agent(self.request.user, instance))
        with transaction.atomic():
            delete_agent(instance, door="rest", request=self.request)

    @extend_schema(request=TaskSerializer, responses={202: RunSerializer}, parameters=[TRACE])
    @action(detail=True, methods=["post"])
    def runs(self, request: Request, name: str = "") -> Response:
        """Start a run. It is carried out by the agent worker; `Location` is where to follow it."""
        given = TaskSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        try:
            run = start_run(
                self.get_object(),
                given.validated_data["input"],
                starter=_user(request),
                door="rest",
                request=request,
                traceparent=traceparent_of(request),
            )
        except RunRefused as refusal:
            raise RunNotStarted(refusal) from refusal
        where = reverse("run-detail", kwargs={"pk": run.pk}, request=request)
        return Response(RunSerializer(run).data, status=202, headers={"Location": where})


# --- Runs ------------------------------------------------------------------------------------------------------------


class OwnRuns(ModelPermissions):
    """Everybody sees the runs that they started; whoever may view runs sees all of them."""

    def has_permission(self, request: Request, view: Any) -> bool:
        """Whoever is known, within the scopes of the token; `get_queryset` does the rest."""
        return super().has_permission(request, view) or bool(request.user.is_authenticated)


class AnyContent(DefaultContentNegotiation):
    """Whatever a client accepts: there is one form. Refusals are JSON."""

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        """The first one, which is JSON."""
        return renderers[0], renderers[0].media_type


class RunViewSet(viewsets.ReadOnlyModelViewSet[Run]):
    """What agents were asked, and what they did."""

    queryset = Run.objects.select_related("agent")
    serializer_class = RunSerializer
    permission_classes = [OwnRuns]
    further_problems = {"cancel": (409,)}
    filterset_fields = ("status", "agent__name", "on_behalf_of", "code")
    ordering = ("-created_at", "-id")

    def get_queryset(self) -> QuerySet[Run]:
        """All, or one's own."""
        found = super().get_queryset()
        user = self.request.user
        return found if user.has_perm("agents.view_run") else found.filter(started_by=user.pk)

    def get_serializer_class(self) -> Any:
        """With its contents, when it is one."""
        return RunSerializer if self.action == "list" else FullRunSerializer

    def _may_still_follow(self) -> bool:
        """Whether the caller of now would be let in again: a stream outlives tokens, users and permissions."""
        try:
            BearerAuthentication().authenticate(self.request)
        except exceptions.AuthenticationFailed:
            return False
        user = User.objects.filter(pk=_user(self.request).pk, is_active=True).first()
        mine = Run.objects.filter(pk=self.kwargs["pk"], started_by=user)
        return user is not None and (user.has_perm("agents.view_run") or mine.exists())

    @extend_schema(request=None, responses=RunSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: Any = None) -> Response:
        """Stop the run: one that waits at once, one that is under way within seconds."""
        run = self.get_object()
        if run.started_by_id != request.user.pk and not request.user.has_perm("agents.cancel_run"):
            raise exceptions.PermissionDenied("Only who started a run may cancel it.")
        if run.is_finished:
            raise Conflict("The run is finished.", code="run_finished")
        run = cancel_run(run, actor=_user(request), door="rest", request=request)
        return Response(RunSerializer(run).data)

    @extend_schema(
        parameters=[
            OpenApiParameter(
                "Last-Event-ID", OpenApiTypes.INT, OpenApiParameter.HEADER, description="Go on after this step."
            )
        ],
        responses={(200, "text/event-stream"): OpenApiResponse(OpenApiTypes.STR, "Server-sent events.")},
    )
    @action(detail=True, methods=["get"], content_negotiation_class=AnyContent)
    def events(self, request: Request, pk: Any = None) -> HttpResponseBase:
        """Follow the run as it happens: `step`, `delta`, `calling`, `status`, and `end` as the last event."""
        run = self.get_object()
        reader = _user(request).pk
        if has_too_many(reader):
            message = f"At most {MOST_STREAMS} runs can be followed at the same time: end another stream first."
            raise exceptions.Throttled(_STREAM_SECONDS, message, code="too_many_streams")
        seen = request.headers.get("Last-Event-ID", "0")
        after = int(seen) if seen.isascii() and seen.isdecimal() and len(seen) < 9 else 0
        told = events(run.pk, after, self._may_still_follow, whole=may_read(request.user, run))
        stream = StreamingHttpResponse(followed(reader, told), content_type="text/event-stream")
        # Proxies that would gather the answer are told not to (nginx).
        stream["Cache-Control"], stream["X-Accel-Buffering"] = "no-store", "no"
        return stream
