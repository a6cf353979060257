"""Retention by REST: classes, holds, months, archives, and the steps by which records leave."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

from django.core.exceptions import ValidationError as Invalid
from django.db.models import QuerySet
from django.http import Http404
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import exceptions, mixins, serializers, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from audit.conditions import Tagged
from audit.doors import RecordedViewSet
from audit.holds import release
from audit.retention import archiving, expiring
from audit.retention.models import STANDARD, Archive, Expiry, LegalHold, Month, RetentionClass
from audit.retention.state import STATES, State, state_of
from audit.retention.stores import StoreError


class NotNow(exceptions.APIException):
    """Not in the present state, or not by this person."""

    status_code = 409
    default_code = "conflict"


# --- Classes and holds ------------------------------------------------------------------------------------------------


class RetentionClassSerializer(serializers.ModelSerializer[RetentionClass]):
    """How long records are kept, and which."""

    class Meta:
        model = RetentionClass
        fields = ("id", "name", "description", "months", "kinds", "tools", "sources", "updated_at")
        read_only_fields = ("id", "updated_at")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """As the model has it."""
        _cleaned(RetentionClass, self.instance, attrs)
        old = self.instance.name if self.instance is not None else None
        new = attrs.get("name", old)
        if old not in (None, new) and STANDARD in (old, new):
            raise serializers.ValidationError({"name": "The standard class keeps its name."}, code="fixed")
        return attrs


def _cleaned(model: type[Any], instance: Any, attrs: dict[str, Any]) -> None:
    known = {} if instance is None else {each.name: getattr(instance, each.name) for each in instance._meta.fields}
    try:
        model(**{**known, **attrs}).clean()
    except Invalid as error:
        raise serializers.ValidationError(serializers.as_serializer_error(error)) from error


class RetentionClassViewSet(RecordedViewSet, viewsets.ModelViewSet[RetentionClass]):
    """Retention classes. The class `standard` covers what no other one does, and stays."""

    queryset = RetentionClass.objects.all()
    serializer_class = RetentionClassSerializer
    filterset_fields = ("name",)
    search_fields = ("name", "description")
    ordering = ("name",)

    def perform_destroy(self, instance: Any) -> None:
        """All but the standard class."""
        if instance.name == STANDARD:
            raise NotNow("The standard class cannot be deleted: what no other class covers would be kept for ever.")
        super().perform_destroy(instance)


class LegalHoldSerializer(serializers.ModelSerializer[LegalHold]):
    """A hold, and what became of it."""

    in_force = serializers.BooleanField(read_only=True)

    class Meta:
        model = LegalHold
        fields = (
            "id", "name", "matter", "scope", "value", "since", "until", "reason", "in_force",
            "placed_by", "placed_at", "released_by", "released_at", "release_reason",
        )  # fmt: skip
        read_only_fields = ("id", "placed_by", "placed_at", "released_by", "released_at", "release_reason")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """As the model has it."""
        _cleaned(LegalHold, None, attrs)
        return attrs

    def create(self, validated_data: dict[str, Any]) -> LegalHold:
        """By the caller."""
        placed_by = self.context["request"].user.get_username()
        return LegalHold.objects.create(**validated_data, placed_by=placed_by)


class ReasonSerializer(serializers.Serializer[Any]):
    """Why."""

    reason = serializers.CharField(max_length=2000, help_text="Why. It stands in the record.")


class LegalHoldViewSet(RecordedViewSet, viewsets.ModelViewSet[LegalHold]):
    """Legal holds. They are placed and released, never changed or deleted."""

    queryset = LegalHold.objects.all()
    serializer_class = LegalHoldSerializer
    http_method_names = ["get", "head", "options", "post"]
    filterset_fields = ("scope", "value")
    search_fields = ("name", "matter", "value")
    ordering = ("-placed_at", "id")
    action_permissions = {"release": "audit.release_legalhold"}
    further_problems = {"release": (409,)}

    @extend_schema(summary="Release a legal hold", request=ReasonSerializer, responses=LegalHoldSerializer)
    @action(detail=True, methods=["post"])
    def release(self, request: Request, pk: Any = None) -> Response:
        """End the hold: what it held may leave when its time is over."""
        hold, said = self.get_object(), ReasonSerializer(data=request.data)
        said.is_valid(raise_exception=True)
        try:
            release(hold, said.validated_data["reason"], door="rest", request=request)
        except Invalid as error:
            raise NotNow(" ".join(error.messages)) from error
        return Response(LegalHoldSerializer(hold).data)


# --- Archives and expiries --------------------------------------------------------------------------------------------


class ArchiveSerializer(serializers.ModelSerializer[Archive]):
    """A cold export of a month, and how far it is."""

    class Meta:
        model = Archive
        fields = (
            "id", "month", "state", "place", "total", "written", "bytes", "files", "resent", "first_seq", "last_seq",
            "manifest", "error", "asked_by", "asked_at", "finished_at",
        )  # fmt: skip
        read_only_fields = fields


class ReadBackSerializer(serializers.Serializer[Any]):
    """What was read back."""

    ok = serializers.BooleanField()
    message = serializers.CharField()
    records = serializers.IntegerField()


class ArchiveViewSet(Tagged, viewsets.ReadOnlyModelViewSet[Archive]):
    """Cold exports of months, newest first."""

    queryset = Archive.objects.all()
    serializer_class = ArchiveSerializer
    filterset_fields = ("state", "month")
    ordering = ("-asked_at", "id")
    action_permissions = {"check": "audit.archive_records"}

    @extend_schema(summary="Read an archive back", request=None, responses=ReadBackSerializer)
    @action(detail=True, methods=["post"])
    def check(self, request: Request, pk: Any = None) -> Response:
        """Read the whole export, and compare each record with what the ledger has sealed."""
        archive = self.get_object()
        if archive.state != Archive.State.VERIFIED:
            return Response({"ok": False, "message": "The export is not finished.", "records": 0})
        try:
            records = archiving.check(archive).records
        except (archiving.NotProven, StoreError) as error:
            return Response({"ok": False, "message": str(error), "records": 0})
        return Response({"ok": True, "message": "Each record is as it was sealed.", "records": records})


class ExpirySerializer(serializers.ModelSerializer[Expiry]):
    """Records of a month that are past their time, and what was decided about them."""

    due_at = serializers.SerializerMethodField(help_text="When it may be dropped; null until it is approved.")

    class Meta:
        model = Expiry
        fields = (
            "id", "month", "state", "records", "kept", "archive", "reason", "found_at", "proposed_by", "proposed_at",
            "approved_by", "approved_at", "gap", "due_at", "dropped_at", "withdrawn_by", "withdrawn_at", "stage",
            "problem",
        )  # fmt: skip
        read_only_fields = fields

    def get_due_at(self, expiry: Expiry) -> datetime | None:
        """The database's word."""
        return expiring.due_at(expiry)


class CertificateSerializer(serializers.Serializer[Any]):
    """A gap certificate as it was signed; `note` is empty while the sealer has not answered."""

    certificate = serializers.CharField()
    note = serializers.CharField()


class ExpiryViewSet(Tagged, viewsets.ReadOnlyModelViewSet[Expiry]):
    """What is due, proposed, approved and dropped, newest first."""

    queryset = Expiry.objects.all()
    serializer_class = ExpirySerializer
    filterset_fields = ("state", "month")
    ordering = ("-found_at", "id")
    action_permissions = dict.fromkeys(("propose", "approve", "withdraw", "drop"), expiring.PERMISSION)
    further_problems = dict.fromkeys(("propose", "approve", "withdraw", "drop"), (409,))

    def _answer(self, act: Any, *given: Any, **named: Any) -> Response:
        try:
            return Response(ExpirySerializer(act(self.get_object(), *given, **named)).data)
        except expiring.ExpiryRefused as refused:
            raise NotNow(str(refused)) from refused

    @extend_schema(summary="Propose that records leave", request=ReasonSerializer, responses=ExpirySerializer)
    @action(detail=True, methods=["post"])
    def propose(self, request: Request, pk: Any = None) -> Response:
        """One person's word. The month has to be exported before."""
        said = ReasonSerializer(data=request.data)
        said.is_valid(raise_exception=True)
        reason = said.validated_data["reason"]
        return self._answer(expiring.propose, request.user, reason, door="rest", request=request)

    @extend_schema(summary="Approve that records leave", request=None, responses=ExpirySerializer)
    @action(detail=True, methods=["post"])
    def approve(self, request: Request, pk: Any = None) -> Response:
        """The word of another person than the one who proposed it."""
        return self._answer(expiring.approve, request.user, door="rest", request=request)

    @extend_schema(summary="Withdraw a proposal", request=None, responses=ExpirySerializer)
    @action(detail=True, methods=["post"])
    def withdraw(self, request: Request, pk: Any = None) -> Response:
        """Approved or not: the records stay."""
        return self._answer(expiring.withdraw, request.user, door="rest", request=request)

    @extend_schema(summary="Drop what was approved", request=None, responses={202: ExpirySerializer})
    @action(detail=True, methods=["post"])
    def drop(self, request: Request, pk: Any = None) -> Response:
        """Once it has waited: a job does it now, and `stage` says how far it is. Unasked, one does within minutes."""
        answer = self._answer(expiring.ask_to_drop, request.user, door="rest")
        answer.status_code = 202
        return answer

    @extend_schema(summary="Get the gap certificate", responses=CertificateSerializer)
    @action(detail=True, methods=["get"])
    def certificate(self, request: Request, pk: Any = None) -> Response:
        """The text that two persons stand for, with the signature of the sealer."""
        found = expiring.certificate(self.get_object())
        if found is None:
            raise Http404
        return Response({"certificate": found[0], "note": found[1]})


# --- Months -----------------------------------------------------------------------------------------------------------


class MonthSerializer(serializers.ModelSerializer[Month]):
    """A month of the ledger. `estimate` is about how many records it has, `bytes` their size with indexes."""

    month = serializers.SerializerMethodField()
    state = serializers.SerializerMethodField()
    due = serializers.SerializerMethodField(help_text="Records that are past their time and still there.")
    leaves_at = serializers.SerializerMethodField(help_text="When the standard class ends.")
    archive = serializers.SerializerMethodField(help_text="Its newest export, verified if there is one.")
    expiry = serializers.SerializerMethodField(help_text="What is under way to drop it, or the last that was.")

    class Meta:
        model = Month
        fields = ("month", "state", "estimate", "bytes", "present", "dropped", "due", "leaves_at", "archive", "expiry")
        read_only_fields = fields

    def _state(self, month: Any) -> State:
        if not hasattr(month, "found"):
            month.found = state_of(month)
        found: State = month.found
        return found

    @extend_schema_field({"type": "string", "pattern": r"^\d{4}-\d{2}$"})
    def get_month(self, month: Month) -> str:
        """Year and month."""
        return f"{month.month:%Y-%m}"

    @extend_schema_field({"type": "string", "enum": list(STATES)})
    def get_state(self, month: Month) -> str:
        """A word."""
        return self._state(month).word

    def get_due(self, month: Month) -> int:
        """How many."""
        return self._state(month).due

    def get_leaves_at(self, month: Month) -> datetime | None:
        """The first moment."""
        return self._state(month).leaves_at

    @extend_schema_field({"type": ["string", "null"], "format": "uuid"})
    def get_archive(self, month: Month) -> str | None:
        """Its id."""
        found = self._state(month).archive
        return None if found is None else str(found.pk)

    @extend_schema_field({"type": ["string", "null"], "format": "uuid"})
    def get_expiry(self, month: Month) -> str | None:
        """Its id."""
        found = self._state(month).expiry
        return None if found is None else str(found.pk)


_MONTH = OpenApiParameter("month", {"type": "string", "pattern": r"^\d{4}-\d{2}$"}, OpenApiParameter.PATH)


class MonthViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, viewsets.GenericViewSet[Month]):
    """The months that the ledger has or had, newest first. A month is named as in `2024-11`."""

    queryset = Month.objects.all()
    serializer_class = MonthSerializer
    ordering = ("-month",)
    lookup_field = "month"
    action_permissions = {"export": "audit.archive_records"}
    further_problems = {"export": (409,)}

    def get_object(self) -> Month:
        """By year and month."""
        try:
            wanted = date.fromisoformat(f"{self.kwargs['month']}-01")
        except ValueError as error:
            raise Http404 from error
        rows: QuerySet[Month] = self.get_queryset()
        found = rows.filter(month=wanted).first()
        if found is None:
            raise Http404
        self.check_object_permissions(self.request, found)
        return found

    @extend_schema(parameters=[_MONTH])
    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """One month."""
        return super().retrieve(request, *args, **kwargs)

    @extend_schema(summary="Export a month", request=None, parameters=[_MONTH], responses={202: ArchiveSerializer})
    @action(detail=True, methods=["post"])
    def export(self, request: Request, month: str = "") -> Response:
        """Begin a cold export, or go on with one that failed. The archive says how far it is."""
        try:
            archive = archiving.ask(self.get_object().month, door="rest", request=request)
        except archiving.ArchiveRefused as refused:
            raise NotNow(str(refused)) from refused
        return Response(ArchiveSerializer(archive).data, status=202)


__all__ = [
    "ArchiveViewSet",
    "ExpiryViewSet",
    "LegalHoldViewSet",
    "MonthViewSet",
    "RetentionClassViewSet",
]
