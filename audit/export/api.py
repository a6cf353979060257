"""Exports and evidence packs by REST: ask for one, follow it, download it."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponseBase
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import exceptions, mixins, serializers
from rest_framework.decorators import action
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from audit.arguments import PERMISSION
from audit.conditions import Guarded, checked
from audit.export.asking import ExportRefused, ask_for_export, cancel_export, delete_export, may_read
from audit.export.download import download
from audit.export.models import Export
from audit.export.scope import BadScope, read

_RECORDS = "audit.view_record"


class ExportNotMade(exceptions.APIException):
    """A refusal to make an export, with its stable code."""

    def __init__(self, refusal: ExportRefused) -> None:
        super().__init__(str(refusal), refusal.code)
        self.status_code = {"too_many_exports": 429, "exports_full": 409}.get(refusal.code, 400)


class NotReady(exceptions.APIException):
    """There is no archive to download."""

    status_code = 409
    default_code = "export_not_ready"
    default_detail = "There is no archive: it is not ready yet, it failed, or it has expired. `state` says which."


class ExportFinished(exceptions.APIException):
    """What is finished cannot be cancelled."""

    status_code = 409
    default_code = "export_finished"
    default_detail = "The export is finished."


class NoSuchRange(exceptions.APIException):
    """The archive is shorter than the range that was asked for."""

    status_code = 416
    default_code = "range_not_satisfiable"


class AnyContent(DefaultContentNegotiation):
    """Whatever a client accepts: an archive has one form. Refusals are JSON."""

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        """The first one, which is JSON."""
        return renderers[0], renderers[0].media_type


class ExportSerializer(serializers.ModelSerializer[Export]):
    """An export, and how far it is."""

    class Meta:
        model = Export
        fields = (
            "id",
            "form",
            "scope",
            "payloads",
            "reason",
            "asked_by",
            "asked_at",
            "state",
            "stage",
            "records",
            "expected",
            "size",
            "digest",
            "manifest",
            "problem",
            "started_at",
            "finished_at",
            "expires_at",
        )
        read_only_fields = fields


class NewExportSerializer(serializers.Serializer[Any]):
    """Which records, and in which form."""

    form = serializers.ChoiceField(choices=("jsonl", "csv"), default="jsonl")
    filters = serializers.DictField(
        child=serializers.CharField(),
        default=dict,
        help_text="As the list of records takes them: `since`, `until`, `kind`, `tool`, `actor`, …",
    )
    payloads = serializers.BooleanField(
        default=False, help_text="Whether arguments are decrypted; needs `audit.read_arguments` and a reason."
    )
    reason = serializers.CharField(required=False, allow_blank=True, max_length=500, default="")

    def validate_filters(self, given: dict[str, str]) -> dict[str, str]:
        """Those that there are."""
        try:
            return read(given)
        except BadScope as error:
            raise serializers.ValidationError({error.name[:80]: str(error)}) from error


class ArchiveViewSet(Guarded, mixins.ListModelMixin):
    """What exports and evidence packs have in common."""

    ordering = ("-asked_at", "-id")
    filterset_fields: tuple[str, ...] = ("state", "asked_by")
    http_method_names = ["get", "post", "delete", "head", "options"]
    further_problems = {"create": (409, 429), "cancel": (409,), "download": (409, 416)}

    def ask(self, request: Request, given: dict[str, Any]) -> Export:
        """Queue what was asked for. Raises ExportRefused."""
        raise NotImplementedError

    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Ask for one. It is made by the job worker; `Location` is where to follow it."""
        if not request.user.has_perm(_RECORDS):
            raise exceptions.PermissionDenied("It holds records, which your roles do not let you see.")
        given = checked(self.get_serializer(data=request.data)).validated_data
        try:
            export = self.ask(request, given)
        except ExportRefused as refusal:
            raise ExportNotMade(refusal) from refusal
        where = reverse(f"{self.basename}-detail", kwargs={"pk": export.pk}, request=request)
        return Response(ExportSerializer(export).data, status=202, headers={"Location": where})

    def perform_destroy(self, instance: Export) -> None:
        """Delete and record."""
        delete_export(instance, door="rest", request=self.request)

    @extend_schema(request=None, responses=ExportSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: Any = None) -> Response:
        """Stop it: one that waits at once, one that is under way within seconds."""
        export = self.get_object()
        if export.is_finished:
            raise ExportFinished
        return Response(ExportSerializer(cancel_export(export, door="rest", request=request)).data)

    @extend_schema(
        parameters=[OpenApiParameter("Range", OpenApiTypes.STR, OpenApiParameter.HEADER, description="`bytes=0-1023`")],
        responses={
            (200, "application/zip"): OpenApiResponse(OpenApiTypes.BINARY, "The archive."),
            (206, "application/zip"): OpenApiResponse(OpenApiTypes.BINARY, "The range."),
        },
    )
    @action(detail=True, methods=["get"], content_negotiation_class=AnyContent)
    def download(self, request: Request, pk: Any = None) -> HttpResponseBase:
        """The archive, whole or by a range; each download is on record."""
        export = self.get_object()
        require_reader(request.user, export)
        if export.state != Export.State.DONE:
            raise NotReady
        answer = download(request, export, "rest")
        if answer.status_code == NoSuchRange.status_code:
            raise NoSuchRange(f"The archive has {export.size} bytes.")
        return answer


def require_reader(user: Any, export: Export) -> None:
    """Refuse who may not see what the archive holds. Raises PermissionDenied."""
    if not may_read(user, export):
        raise exceptions.PermissionDenied("It holds what your roles do not let you see.")


class ExportViewSet(ArchiveViewSet):
    """Records to take away: JSON lines or CSV, with a signed manifest."""

    queryset = Export.objects.exclude(form=Export.Form.PACK)
    filterset_fields = ("form", "state", "asked_by")
    action_permissions = {"cancel": "audit.add_export", "download": "audit.view_export"}

    def get_serializer_class(self) -> Any:
        """What is sent has other fields than what is answered."""
        return NewExportSerializer if self.action == "create" else ExportSerializer

    @extend_schema(request=NewExportSerializer, responses={202: ExportSerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Ask for an export. It is made by the job worker; `Location` is where to follow it."""
        return super().create(request, *args, **kwargs)

    def ask(self, request: Request, given: dict[str, Any]) -> Export:
        """Queue it. Raises ExportRefused."""
        if given["payloads"] and not request.user.has_perm(PERMISSION):
            raise exceptions.PermissionDenied("Arguments of calls are not for your roles.")
        return ask_for_export(
            given["form"],
            given["filters"],
            user=request.user,
            door="rest",
            request=request,
            payloads=given["payloads"],
            reason=given["reason"],
        )
