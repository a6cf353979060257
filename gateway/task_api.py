"""Tasks by REST."""

from __future__ import annotations

from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import exceptions, serializers, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from access.models import User
from access.rest import Conflict, ModelPermissions
from gateway.models import Task
from gateway.task_control import cancel_task, may_cancel, may_read, visible_tasks, without_contents


class CallTaskSerializer(serializers.ModelSerializer[Task]):
    """A task without what it was called with, and what came of it."""

    user = serializers.CharField(source="user.username", read_only=True, help_text="Who called.")
    status = serializers.CharField(
        read_only=True, help_text="`working`, `input_required`, `completed`, `failed` or `cancelled`."
    )
    call = serializers.UUIDField(source="call_id", read_only=True, help_text="Id of the call in the ledger.")

    class Meta:
        model = Task
        fields = (
            "id",
            "user",
            "tool",
            "effect",
            "call",
            "status",
            "code",
            "message",
            "attempts",
            "cancel_requested_at",
            "created_at",
            "updated_at",
            "expires_at",
        )
        read_only_fields = fields


class FullCallTaskSerializer(CallTaskSerializer):
    """A task with its arguments and its result, which are null for those who may not read them."""

    arguments = serializers.SerializerMethodField()
    result = serializers.SerializerMethodField(
        help_text="The result (MCP CallToolResult), or the error of a failed one."
    )

    class Meta(CallTaskSerializer.Meta):
        fields = (*CallTaskSerializer.Meta.fields, "arguments", "result")  # type: ignore[assignment]
        read_only_fields = fields  # type: ignore[assignment]

    @extend_schema_field(serializers.DictField(allow_null=True))
    def get_arguments(self, task: Task) -> Any:
        """What the tool was called with."""
        return task.request["arguments"] if self._readable(task) else None

    @extend_schema_field(serializers.DictField(allow_null=True))
    def get_result(self, task: Task) -> Any:
        """What came of it."""
        return task.result if self._readable(task) else None

    def _readable(self, task: Task) -> bool:
        return may_read(self.context["request"].user, task)


class OwnTasks(ModelPermissions):
    """Everybody sees the tasks of their own calls; whoever may view tasks sees all of them."""

    def has_permission(self, request: Request, view: Any) -> bool:
        """Whoever is known, within the scopes of the token; `get_queryset` does the rest."""
        return super().has_permission(request, view) or bool(request.user.is_authenticated)


class TaskViewSet(viewsets.ReadOnlyModelViewSet[Task]):
    """Calls at `/mcp` that became tasks, as long as they are kept."""

    queryset = Task.objects.select_related("user")
    serializer_class = CallTaskSerializer
    permission_classes = [OwnTasks]
    further_problems = {"cancel": (409,)}
    filterset_fields = ("status", "tool", "user__username", "code")
    ordering = ("-created_at", "-id")
    lookup_value_regex = "[A-Za-z0-9_-]{1,32}"

    def get_queryset(self) -> QuerySet[Task]:
        """All, or one's own."""
        tasks = visible_tasks(self.request.user, super().get_queryset())
        return without_contents(tasks) if self.action == "list" else tasks

    def get_serializer_class(self) -> Any:
        """With its contents, when it is one."""
        return CallTaskSerializer if self.action == "list" else FullCallTaskSerializer

    @extend_schema(request=None, responses=CallTaskSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: Any = None) -> Response:
        """Ask for its end, which comes within seconds."""
        task = self.get_object()
        if not may_cancel(request.user, task):
            raise exceptions.PermissionDenied("Only whose task it is may cancel it.")
        if task.is_finished:
            raise Conflict("The task has ended.", code="task_finished")
        assert isinstance(request.user, User), "nobody gets here without being known"
        task = cancel_task(task, actor=request.user, door="rest", request=request)
        return Response(CallTaskSerializer(task).data)
