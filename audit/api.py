"""The ledger by REST: read-only, page by page, newest first."""

from __future__ import annotations

from typing import Any, ClassVar

import django_filters  # type: ignore[import-untyped]
from drf_spectacular.utils import extend_schema
from rest_framework import exceptions, serializers, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from audit.arguments import PERMISSION, ReadingRefused, TooManyReadings, open_arguments
from audit.conditions import Tagged
from audit.doors import detail_of
from audit.models import Record
from audit.opening import KeyDestroyed


class HexField(serializers.CharField):
    """Bytes as hexadecimal digits."""

    def to_representation(self, value: Any) -> str:
        """Two digits a byte."""
        return bytes(value).hex()


class RecordSerializer(serializers.ModelSerializer[Record]):
    """A record without what is encrypted."""

    definition = HexField(read_only=True, allow_null=True)
    args_commit = HexField(read_only=True, allow_null=True)
    result_commit = HexField(read_only=True, allow_null=True)
    leaf = HexField(read_only=True)
    detail = serializers.SerializerMethodField()

    class Meta:
        model = Record
        exclude = ("ct", "mac")

    def get_detail(self, record: Record) -> dict[str, Any] | None:
        """What the kind of event adds, e.g. the changes of a configuration."""
        return detail_of(record) or None


class RecordFilter(django_filters.FilterSet):  # type: ignore[misc]
    """Exact values, and a time from (`since`, inclusive) and to (`until`, exclusive)."""

    since = django_filters.IsoDateTimeFilter(field_name="at", lookup_expr="gte")
    until = django_filters.IsoDateTimeFilter(field_name="at", lookup_expr="lt")
    kind = django_filters.ChoiceFilter(choices=Record.Kind.choices)
    decision = django_filters.ChoiceFilter(choices=Record.Decision.choices)
    code = django_filters.CharFilter()
    tool = django_filters.CharFilter()
    actor = django_filters.CharFilter()
    connector = django_filters.CharFilter()
    trace_id = django_filters.CharFilter()
    object_type = django_filters.CharFilter()
    object_id = django_filters.CharFilter()
    call_id = django_filters.UUIDFilter()
    rid = django_filters.UUIDFilter()

    class Meta:
        model = Record
        fields: tuple[str, ...] = ()


class ReadingSerializer(serializers.Serializer[Any]):
    """Why somebody reads what is encrypted."""

    reason = serializers.CharField(max_length=500, help_text="It stands in the record of the reading.")


class KeptSerializer(serializers.Serializer[Any]):
    """What the record keeps; null where it keeps nothing. Known secrets are shown as `[secret]`."""

    arguments = serializers.CharField(allow_null=True, source="text", help_text="JSON, indented.")
    arguments_partial = serializers.BooleanField(source="partial", help_text="Some were dropped by policy.")
    arguments_proven = serializers.BooleanField(source="proven", help_text="They are what the record commits to.")
    result = serializers.CharField(allow_null=True, help_text="JSON, indented, unless it was cut.")
    result_partial = serializers.BooleanField(help_text="It was cut, or secrets in it were masked.")
    result_proven = serializers.BooleanField(help_text="It is what the record commits to.")
    masked = serializers.BooleanField()


class Gone(exceptions.APIException):
    """What the record kept was erased."""

    status_code = 410
    default_code = KeyDestroyed.code


class Unreadable(exceptions.APIException):
    """No key of ours opens it."""

    status_code = 409
    default_code = "decryption_failed"


class NotRead(exceptions.APIException):
    """Nothing is shown to this reader now."""

    def __init__(self, refused: ReadingRefused) -> None:
        super().__init__(str(refused), refused.code)
        self.status_code = 429 if isinstance(refused, TooManyReadings) else 400


class RecordViewSet(Tagged, viewsets.ReadOnlyModelViewSet[Record]):
    """What happened: calls, refusals, changes, logins. A record is named by its `rid`."""

    queryset = Record.objects.defer("ct")
    serializer_class = RecordSerializer
    filterset_class = RecordFilter
    lookup_field = "rid"
    lookup_value_converter = "uuid"
    ordering = ("-id",)
    action_permissions: ClassVar[Any] = {"reading": PERMISSION}
    further_problems: ClassVar[Any] = {"reading": (409, 410, 429)}

    @extend_schema(summary="Read what a record keeps encrypted", request=ReadingSerializer, responses=KeptSerializer)
    @action(detail=True, methods=["post"])
    def reading(self, request: Request, rid: Any = None) -> Response:
        """Arguments and result, as far as they were kept. That they were read, and why, is recorded first."""
        asked = ReadingSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        try:
            opened = open_arguments(request, self.get_object(), asked.validated_data["reason"], "rest")
        except ReadingRefused as refused:
            raise NotRead(refused) from refused
        if opened.problem:
            raise (Gone if opened.erased else Unreadable)(opened.problem)
        return Response(KeptSerializer(opened).data, headers={"Cache-Control": "no-store"})
