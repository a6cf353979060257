"""Erasure and search by REST. What a record keeps is read at the record (`audit.api`)."""

from __future__ import annotations

from typing import Any, ClassVar

from drf_spectacular.utils import extend_schema
from rest_framework import exceptions, serializers, viewsets
from rest_framework.request import Request
from rest_framework.response import Response

from audit.arguments import PERMISSION as MAY_READ
from audit.arguments import ReadingRefused, TooManyReadings
from audit.holds import Held
from audit.models import DataKey
from audit.privacy.erasure import PERMISSION as MAY_ERASE
from audit.privacy.erasure import ErasureRefused, Survey, erase, survey
from audit.privacy.occurrence import Finding, Question, Report, search
from audit.subjects import USER, UnknownSubject


class Refused(exceptions.APIException):
    """A refusal of a verb, with its stable code."""

    def __init__(self, refusal: Any) -> None:
        super().__init__(str(refusal), refusal.code)
        self.status_code = {"unknown_subject": 404, "held": 409, "too_many_readings": 429}.get(refusal.code, 400)


class ErasureSerializer(serializers.Serializer[Any]):
    """Whose data, and why. Without `confirm` it is only said how much there is."""

    kind = serializers.CharField(default=USER, max_length=40, help_text="`user`, or what policies call such a person.")
    value = serializers.CharField(max_length=500, trim_whitespace=False, help_text="User name, or value of it.")
    reason = serializers.CharField(required=False, allow_blank=True, default="", max_length=500)
    confirm = serializers.BooleanField(default=False, help_text="Erase, for ever.")


class SurveySerializer(serializers.Serializer[Any]):
    """How much there is, and whether it is erased now."""

    kind = serializers.CharField()
    keys = serializers.IntegerField(help_text="Keys that exist, or that were destroyed just now.")
    months = serializers.ListField(child=serializers.DateField())
    destroyed_before = serializers.IntegerField()
    erased = serializers.BooleanField()


class ErasureViewSet(viewsets.GenericViewSet[DataKey]):
    """Erasure of a person: the keys of what the ledger keeps of them are destroyed."""

    queryset = DataKey.objects.none()
    serializer_class = ErasureSerializer
    pagination_class = None
    filter_backends = ()
    action_permissions: ClassVar[Any] = {"create": MAY_ERASE}
    further_problems: ClassVar[Any] = {"create": (404, 409)}

    @extend_schema(
        summary="Erase what the ledger keeps of a person",
        request=ErasureSerializer,
        responses={200: SurveySerializer, 201: SurveySerializer},
    )
    def create(self, request: Request) -> Response:
        """Survey (200), or erase (201)."""
        asked = ErasureSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        given = asked.validated_data
        try:
            if not given["confirm"]:
                found = survey(given["kind"], given["value"], door="rest", request=request)
                return Response(_surveyed(found, erased=False))
            done = erase(given["kind"], given["value"], given["reason"], door="rest", request=request)
        except (UnknownSubject, ErasureRefused, Held) as refused:
            raise Refused(refused) from refused
        return Response(_surveyed(done, erased=True), status=201)


def _surveyed(found: Survey, *, erased: bool) -> dict[str, Any]:
    return {
        "kind": found.kind,
        "keys": found.keys,
        "months": [f"{month:%Y-%m-%d}" for month in found.months],
        "destroyed_before": found.destroyed,
        "erased": erased,
    }


class QuestionSerializer(serializers.Serializer[Any]):
    """One of `value`, `arguments` and `result`; a `tool` or a `record`."""

    value = serializers.CharField(required=False, trim_whitespace=False, max_length=1_000_000)
    argument = serializers.CharField(required=False, max_length=200, help_text="Name or JSON pointer; without: any.")
    arguments = serializers.CharField(
        required=False, trim_whitespace=False, max_length=1_000_000, help_text="Whole arguments, as JSON text."
    )
    result = serializers.CharField(
        required=False, trim_whitespace=False, max_length=1_000_000, help_text="A whole result, as JSON text."
    )
    tool = serializers.CharField(required=False, max_length=64)
    record = serializers.UUIDField(required=False, help_text="`rid` of one record.")
    since = serializers.DateTimeField(required=False)
    until = serializers.DateTimeField(required=False)
    reason = serializers.CharField(max_length=500)


class FindingSerializer(serializers.Serializer[Any]):
    """A record in which it occurs, or of which nobody can tell."""

    record = serializers.UUIDField()
    at = serializers.DateTimeField()
    verdict = serializers.ChoiceField(choices=("occurs", "undecidable"))
    why = serializers.CharField()


class ReportSerializer(serializers.Serializer[Any]):
    """Whether it occurs."""

    verdict = serializers.ChoiceField(choices=("occurs", "absent", "undecidable"))
    looked_at = serializers.IntegerField()
    complete = serializers.BooleanField(help_text="Whether every record was looked at that fits.")
    findings = FindingSerializer(many=True)


class OccurrenceViewSet(viewsets.GenericViewSet[DataKey]):
    """Whether a value occurs in calls, by recomputing commitments."""

    queryset = DataKey.objects.none()
    serializer_class = QuestionSerializer
    pagination_class = None
    filter_backends = ()
    action_permissions: ClassVar[Any] = {"create": MAY_READ}
    further_problems: ClassVar[Any] = {"create": (429,)}

    @extend_schema(
        summary="Ask whether a value occurs in calls", request=QuestionSerializer, responses={200: ReportSerializer}
    )
    def create(self, request: Request) -> Response:
        """Search, which is on record."""
        asked = QuestionSerializer(data=request.data)
        asked.is_valid(raise_exception=True)
        given = dict(asked.validated_data)
        reason, record = given.pop("reason"), given.pop("record", "")
        question = Question(**given, record=str(record))
        if wrong := question.wrong():
            raise serializers.ValidationError(wrong)
        try:
            report = search(question, reason, door="rest", request=request)
        except (ReadingRefused, TooManyReadings) as refused:
            raise Refused(refused) from refused
        return Response(_reported(report))


def _reported(report: Report) -> dict[str, Any]:
    return {
        "verdict": report.verdict.value,
        "looked_at": report.looked_at,
        "complete": report.complete,
        "findings": [_found(each) for each in report.findings],
    }


def _found(each: Finding) -> dict[str, Any]:
    return {"record": str(each.record.rid), "at": each.record.at, "verdict": each.verdict.value, "why": each.why}
