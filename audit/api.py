"""The ledger by REST: read-only, page by page, newest first."""

from __future__ import annotations

from typing import Any

import django_filters  # type: ignore[import-untyped]
from rest_framework import serializers, viewsets

from audit.conditions import Tagged
from audit.doors import detail_of
from audit.models import Record


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


class RecordViewSet(Tagged, viewsets.ReadOnlyModelViewSet[Record]):
    """What happened: calls, refusals, changes, logins. A record is named by its `rid`."""

    queryset = Record.objects.defer("ct")
    serializer_class = RecordSerializer
    filterset_class = RecordFilter
    lookup_field = "rid"
    lookup_value_converter = "uuid"
    ordering = ("-id",)
