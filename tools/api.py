"""The catalogue by REST."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.db.models import QuerySet
from django.http import Http404
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import exceptions, serializers, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from audit.caller import caller_of
from audit.changes import record_event
from audit.doors import RecordedViewSet
from audit.models import Record
from tools import exact
from tools.configuration import Refused, configure, specify, stored_secrets
from tools.connectors.registry import connector_class, kinds
from tools.definitions import DefinitionRefused, publish
from tools.models import DataSource, Prompt, Resource, Synchronisation, Tool, Toolset
from tools.recording import PolicyRefused, checked
from tools.sync import check_source
from tools.synchronisation import SyncRefused, ask_for_sync, state_of


def _refuse(refused: Refused, place: str, secrets: frozenset[str] = frozenset()) -> exceptions.ValidationError:
    errors: dict[str, Any] = {}
    for name, said in refused.errors.items():
        errors.setdefault("secrets" if name in secrets else place, {})[name or "non_field_errors"] = said
    return exceptions.ValidationError(errors)


class _Recorded(serializers.Serializer[Any]):
    """What a tool and a data source have in common: their policy of recording."""

    recording = serializers.DictField(
        required=False,
        allow_null=True,
        help_text="What records keep and show: `arguments` (name or JSON pointer → `clear`, `last4`, `domain`,"
        " `length`, `encrypted` or `dropped`), `otherwise`, `subject` (`argument`, `kind`), `results_kb`.",
    )

    def validate_recording(self, value: Any) -> dict[str, Any] | None:
        """One that can be compiled."""
        try:
            return checked(value) or None
        except PolicyRefused as refused:
            raise serializers.ValidationError(str(refused)) from refused


class DataSourceSerializer(_Recorded, serializers.ModelSerializer[DataSource]):
    """A data source. Its secrets can be set and removed, never read."""

    kind = serializers.CharField(help_text="Which connector speaks to it; fixed once it is made.")
    options = serializers.DictField(default=dict, help_text="The connector's options, without secrets.")
    secrets = serializers.DictField(
        child=serializers.CharField(allow_null=True, trim_whitespace=False),
        write_only=True,
        required=False,
        help_text="By name. A secret that is not named is kept; null removes it.",
    )
    secrets_set = serializers.SerializerMethodField(help_text="Names of the secrets that have a value.")

    class Meta:
        model = DataSource
        fields = (
            "id",
            "name",
            "description",
            "kind",
            "options",
            "secrets",
            "secrets_set",
            "prefix",
            "timeout_seconds",
            "enabled",
            "recording",
            "checked_at",
            "check_ok",
            "check_message",
            "synced_at",
            "created_at",
            "updated_at",
        )
        read_only_fields = ("id", "checked_at", "check_ok", "check_message", "synced_at", "created_at", "updated_at")

    def get_secrets_set(self, source: DataSource) -> list[str]:
        """Names only."""
        return sorted(stored_secrets(source))

    def validate_kind(self, value: str) -> str:
        """One of the kinds that are installed, and the same for ever."""
        if value not in kinds():
            raise serializers.ValidationError(f"Choose one of {', '.join(kinds())}.", code="unknown_kind")
        if self.instance is not None and value != self.instance.kind:
            raise serializers.ValidationError("The kind is fixed: make another data source.", code="fixed")
        return value

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Let the connector check options and secrets together."""
        if self.instance is not None and not {"options", "secrets"} & set(attrs):
            return attrs
        trial = DataSource(kind=attrs.get("kind", getattr(self.instance, "kind", "")))
        if self.instance is not None:
            trial.options, trial.secrets = self.instance.options, stored_secrets(self.instance)
        secrets = attrs.pop("secrets", {})
        try:
            configure(trial, attrs.get("options", trial.options), secrets)
        except Refused as refused:
            raise _refuse(refused, "options", frozenset({*secrets, *(trial.secrets or {})})) from refused
        return {**attrs, "options": trial.options, "secrets": trial.secrets}


class CheckSerializer(serializers.Serializer[Any]):
    """Whether the source could be reached."""

    ok = serializers.BooleanField()
    message = serializers.CharField()


class SynchronisationSerializer(serializers.ModelSerializer[Synchronisation]):
    """The latest synchronisation of a data source, and how far it is."""

    state = serializers.SerializerMethodField(
        help_text="`waiting`, `running`, `done`, `failed`, `lost` (it ended without a word), or empty (there was none)."
    )
    found = serializers.DictField(
        read_only=True, help_text="Names of tools by what became of them; of those that were refused, the reason."
    )

    class Meta:
        model = Synchronisation
        fields = ("state", "asked_by", "asked_at", "started_at", "finished_at", "found", "error")
        read_only_fields = ("asked_by", "asked_at", "started_at", "finished_at", "error")

    @extend_schema_field({"type": "string", "enum": ["", "waiting", "running", "done", "failed", "lost"]})
    def get_state(self, latest: Synchronisation) -> str:
        """A word."""
        return state_of(latest)


class DataSourceViewSet(RecordedViewSet, viewsets.ModelViewSet[DataSource]):
    """Where tools come from."""

    queryset = DataSource.objects.all()
    serializer_class = DataSourceSerializer
    filterset_fields = ("kind", "enabled", "name")
    search_fields = ("name", "description")
    ordering = ("name",)
    ordering_fields = ("created_at", "updated_at")
    action_permissions = {"test": "tools.sync_datasource", "sync": "tools.sync_datasource"}
    further_problems = {"sync": (409,)}

    @extend_schema(summary="Test the connection of a data source", request=None, responses=CheckSerializer)
    @action(detail=True, methods=["post"])
    def test(self, request: Request, pk: Any = None) -> Response:
        """Connect once and say what was found."""
        source = self.get_object()
        try:
            outcome = check_source(source)
        except DataSource.DoesNotExist as error:
            raise Http404 from error  # deleted while it was tested
        said = {"action": "test", "label": str(source), "ok": outcome.ok, "message": outcome.message}
        record_event(
            Record.Kind.CONFIG,
            "test",
            door="rest",
            request=request,
            about=source,
            detail=said,
        )
        return Response(CheckSerializer(outcome).data)

    @extend_schema(summary="Synchronise a data source", request=None, responses={202: SynchronisationSerializer})
    @action(detail=True, methods=["post"])
    def sync(self, request: Request, pk: Any = None) -> Response:
        """Ask for a job that brings the source's tools up to date. GET at the same address tells how far it is."""
        source = self.get_object()
        try:
            ask_for_sync(source, caller_of(request), "rest")
        except SyncRefused as refused:
            raise SyncNotBegun(str(refused)) from refused
        return Response(SynchronisationSerializer(_latest(source)).data, status=202)

    @extend_schema(summary="Show the latest synchronisation of a data source", responses=SynchronisationSerializer)
    @sync.mapping.get
    def latest_sync(self, request: Request, pk: Any = None) -> Response:
        """How far it is, and what was found."""
        return Response(SynchronisationSerializer(_latest(self.get_object())).data)


def _latest(source: DataSource) -> Synchronisation:
    return Synchronisation.objects.filter(source=source).first() or Synchronisation(source=source)


class SyncNotBegun(exceptions.APIException):
    """A synchronisation is under way already, or of no use."""

    status_code = 409
    default_code = "sync_refused"


class ToolSerializer(_Recorded, serializers.ModelSerializer[Tool]):
    """A tool: what people decide about it, and its current definition."""

    source = serializers.SlugRelatedField(  # type: ignore[assignment]
        slug_field="name", queryset=DataSource.objects.all()
    )
    definition = serializers.SerializerMethodField()
    fingerprint = serializers.CharField(source="current.fingerprint", read_only=True, allow_null=True, default=None)
    spec = serializers.DictField(
        required=False, help_text="For tools that are written by hand: what the connector needs."
    )

    class Meta:
        model = Tool
        fields = (
            "id",
            "name",
            "source",
            "effect",
            "as_task",
            "tags",
            "enabled",
            "recording",
            "spec",
            "definition",
            "fingerprint",
            "created_at",
            "updated_at",
        )
        read_only_fields = ("id", "created_at", "updated_at")

    @extend_schema_field(serializers.DictField(allow_null=True))
    def get_definition(self, tool: Tool) -> Any:
        """The tool object of tools/list."""
        return None if tool.current is None else exact.taken(tool.current.definition)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """The source is fixed; only tools that are written by hand have a spec to give."""
        source: DataSource = attrs.get("source") or self.instance.source  # type: ignore[union-attr]
        if self.instance is not None and source != self.instance.source:
            raise serializers.ValidationError({"source": "A tool stays with its data source."}, code="fixed")
        if connector_class(source.kind).discovers:
            if self.instance is None or "spec" in attrs:
                raise serializers.ValidationError({"source": "The tools of this source come by synchronising it."})
        elif self.instance is None or "spec" in attrs or "name" in attrs:
            self._specify(source, attrs)
        return attrs

    def _specify(self, source: DataSource, attrs: dict[str, Any]) -> None:
        trial = Tool(source=source, name=str(attrs.get("name") or getattr(self.instance, "name", "")))
        try:
            specify(trial, attrs.get("spec", getattr(self.instance, "spec", {})))
        except Refused as refused:
            raise _refuse(refused, "spec") from refused
        attrs["spec"] = trial.spec

    def save(self, **kwargs: Any) -> Tool:
        """Save and publish, both or neither."""
        with transaction.atomic():
            tool = super().save(**kwargs)
            try:
                publish(tool)
            except DefinitionRefused as error:
                raise serializers.ValidationError({"spec": str(error)}, code="definition_refused") from error
        return tool


class ToolViewSet(RecordedViewSet, viewsets.ModelViewSet[Tool]):
    """What can be called. A tool is named by its name."""

    queryset = Tool.objects.select_related("source", "current")
    serializer_class = ToolSerializer
    filterset_fields = ("effect", "as_task", "enabled", "source__name")
    search_fields = ("name",)
    ordering = ("name",)
    ordering_fields = ("created_at", "updated_at")
    lookup_field = "name"
    lookup_value_regex = "[A-Za-z0-9_-]{1,64}"
    keeps_to_toolset = True

    def get_queryset(self) -> QuerySet[Tool]:
        """All, or those of the toolset that the token is narrowed to."""
        narrowed = getattr(self.request.auth, "toolset_id", None)
        return super().get_queryset() if narrowed is None else super().get_queryset().filter(toolsets=narrowed)


_OFFERED = ("id", "source", "tags", "enabled", "missing", "definition", "fingerprint", "created_at", "updated_at")


class _Offered(serializers.ModelSerializer[Any]):
    """What prompts and resources have in common: tags and whether it is on can be changed."""

    source: Any = serializers.SlugRelatedField(slug_field="name", read_only=True)
    definition = serializers.SerializerMethodField(help_text="The object of the list, as clients get it.")

    @extend_schema_field(serializers.DictField())
    def get_definition(self, offered: Any) -> Any:
        """As the source gave it, but for the prefix of a prompt's name."""
        return exact.taken(offered.definition)


class PromptSerializer(_Offered):
    """A prompt of an upstream MCP server."""

    class Meta:
        model = Prompt
        fields = ("name", "source_name", *_OFFERED)
        read_only_fields = tuple(set(fields) - {"tags", "enabled"})


class ResourceSerializer(_Offered):
    """A resource of an upstream MCP server, or a template of many."""

    class Meta:
        model = Resource
        fields = ("uri", "is_template", *_OFFERED)
        read_only_fields = tuple(set(fields) - {"tags", "enabled"})


class _OfferedViewSet(RecordedViewSet, viewsets.ModelViewSet[Any]):
    """They come and go by synchronising their source."""

    http_method_names = ["get", "head", "options", "put", "patch"]
    keeps_to_toolset = True

    def get_queryset(self) -> QuerySet[Any]:
        """All, or those of the toolset that the token is narrowed to."""
        narrowed = getattr(self.request.auth, "toolset_id", None)
        return super().get_queryset() if narrowed is None else super().get_queryset().filter(toolsets=narrowed)


class PromptViewSet(_OfferedViewSet):
    """Prompts of upstream MCP servers."""

    queryset = Prompt.objects.select_related("source")
    serializer_class = PromptSerializer
    filterset_fields = ("enabled", "missing", "source__name")
    search_fields = ("name",)
    ordering = ("name",)
    ordering_fields = ("created_at", "updated_at")


class ResourceViewSet(_OfferedViewSet):
    """Resources of upstream MCP servers, and templates of them."""

    queryset = Resource.objects.select_related("source")
    serializer_class = ResourceSerializer
    filterset_fields = ("enabled", "missing", "is_template", "source__name")
    search_fields = ("uri",)
    ordering = ("uri",)
    ordering_fields = ("created_at", "updated_at")


class ToolsetSerializer(serializers.ModelSerializer[Toolset]):
    """A selection of tools and prompts, by their names, and of resources, by their URIs."""

    tools = serializers.SlugRelatedField(slug_field="name", many=True, queryset=Tool.objects.all(), required=False)
    prompts = serializers.SlugRelatedField(slug_field="name", many=True, queryset=Prompt.objects.all(), required=False)
    resources = serializers.SlugRelatedField(
        slug_field="uri", many=True, queryset=Resource.objects.all(), required=False
    )

    class Meta:
        model = Toolset
        fields = ("id", "name", "title", "description", "tools", "prompts", "resources", "created_at", "updated_at")
        read_only_fields = ("id", "created_at", "updated_at")


class ToolsetViewSet(RecordedViewSet, viewsets.ModelViewSet[Toolset]):
    """Named selections of tools, prompts and resources."""

    queryset = Toolset.objects.prefetch_related("tools", "prompts", "resources")
    serializer_class = ToolsetSerializer
    filterset_fields = ("name",)
    search_fields = ("name", "title")
    ordering = ("name",)
    ordering_fields = ("created_at", "updated_at")
