"""Streams by REST, and the ledger for who fetches it in its sealed order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import orjson
from asgiref.sync import sync_to_async
from django.db import connection
from django.http import HttpResponseBase, StreamingHttpResponse
from drf_spectacular.utils import extend_schema, extend_schema_serializer
from rest_framework import exceptions, serializers, viewsets
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from audit.conditions import checked
from audit.doors import RecordedViewSet
from audit.models import Record
from audit.streams import sealed
from audit.streams.models import Stream
from audit.streams.options import Refused, configure, secret_names, stored_secrets
from audit.streams.sealed import EVERYTHING, Sealed
from audit.streams.steering import acknowledge_gap, ask_to_test, begin, record_test, rewind, standings

MOST_PULLED = 1_000
LONGEST_WAIT = 8
_LOOK_SECONDS = 0.5


# --- Streams ---------------------------------------------------------------------------------------------------------

_CHECKED = ("name", "kind", "address", "kinds", "decisions", "tools")


class StreamSerializer(serializers.ModelSerializer[Stream]):
    """A stream. Its secrets can be set and removed, never read."""

    options = serializers.DictField(required=False, help_text="Options of the kind: see the guide on streams.")
    secrets = serializers.DictField(
        child=serializers.CharField(allow_null=True, max_length=100_000),
        write_only=True,
        required=False,
        help_text="By name. Not named: it is kept. Null: it is removed.",
    )
    secrets_set = serializers.SerializerMethodField(help_text="Which secrets have a value.")

    class Meta:
        model = Stream
        fields = (
            "id",
            "name",
            "description",
            "kind",
            "address",
            "options",
            "secrets",
            "secrets_set",
            "kinds",
            "decisions",
            "tools",
            "alarm_minutes",
            "enabled",
            "created_at",
            "updated_at",
        )
        read_only_fields = ("id", "created_at", "updated_at")

    def get_secrets_set(self, stream: Stream) -> list[str]:
        """Only their names."""
        known = stored_secrets(stream)
        return [name for name in secret_names(stream.kind) if name in known]

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """All of it together."""
        before: Stream | None = self.instance
        trial = Stream(**{name: getattr(before, name) for name in (*_CHECKED, "secrets")} if before else {})
        trial.pk = before.pk if before else trial.pk
        options = attrs.pop("options", before.options if before else {})
        secrets = attrs.pop("secrets", {})
        for name, value in attrs.items():
            setattr(trial, name, value)
        try:
            configure(trial, before, options, secrets)
        except Refused as refused:
            raise serializers.ValidationError(_placed(refused, trial.kind)) from refused
        return {**attrs, "options": trial.options, "secrets": trial.secrets}

    def create(self, validated_data: dict[str, Any]) -> Stream:
        """With its place: from now on."""
        stream = super().create(validated_data)
        begin(stream)
        return stream


def _placed(refused: Refused, kind: str) -> dict[str, Any]:
    """Each error under the field in which it was given."""
    fields = set(StreamSerializer.Meta.fields)
    found: dict[str, Any] = {}
    for name, said in refused.errors.items():
        if name in fields:
            found[name] = [said]
        else:
            found.setdefault("secrets" if name in secret_names(kind) else "options", {})[name or "options"] = [said]
    return found


class StreamStandingSerializer(serializers.Serializer[Any]):
    """How far a stream is."""

    cursor = serializers.IntegerField(help_text="The sealed place of the first record that is not acknowledged.")
    sent = serializers.IntegerField(help_text="How many messages were acknowledged.")
    lag_records = serializers.IntegerField()
    lag_seconds = serializers.FloatField(help_text="Age of the first record that is not acknowledged.")
    alarm = serializers.CharField(help_text="gap, lagging or failing; empty when all is well.")
    missed = serializers.IntegerField(help_text="Records that were gone before they could be sent.")
    acknowledged_at = serializers.DateTimeField(allow_null=True)
    failing_since = serializers.DateTimeField(allow_null=True)
    failed_at = serializers.DateTimeField(allow_null=True)
    error = serializers.CharField()


class StreamMoveSerializer(serializers.Serializer[Any]):
    """From when on it should send."""

    to = serializers.DateTimeField(help_text="Records from this time on are sent, once more if they were sent before.")


class StreamMovedSerializer(serializers.Serializer[Any]):
    """From which place to which."""

    before = serializers.IntegerField()
    after = serializers.IntegerField()


class StreamTestedSerializer(serializers.Serializer[Any]):
    """Whether the receiver took the test message."""

    ok = serializers.BooleanField()
    message = serializers.CharField()


class StreamMissedSerializer(serializers.Serializer[Any]):
    """How many records the gap had."""

    missed = serializers.IntegerField()


class StreamViewSet(RecordedViewSet, viewsets.ModelViewSet[Stream]):
    """Where the ledger is forwarded to."""

    queryset = Stream.objects.all()
    serializer_class = StreamSerializer
    filterset_fields = ("kind", "enabled", "name")
    search_fields = ("name", "description", "address")
    ordering = ("name",)
    http_method_names = ["get", "post", "patch", "delete", "head", "options"]
    action_permissions = {
        "test": "audit.test_stream",
        "rewind": "audit.rewind_stream",
        "acknowledge": "audit.rewind_stream",
        "state": "audit.view_stream",
    }

    @extend_schema(request=None, responses=StreamStandingSerializer)
    @action(detail=True, methods=["get"])
    def state(self, request: Request, pk: Any = None) -> Response:
        """How far it is, and how it fares."""
        stream = self.get_object()
        now, kept = standings()[stream.pk], stream.state
        names = ("cursor", "missed", "acknowledged_at", "failing_since", "failed_at", "error")
        found = {name: getattr(kept, name) for name in names}
        found |= {name: getattr(now, name) for name in ("sent", "lag_records", "lag_seconds", "alarm")}
        return Response(StreamStandingSerializer(found).data)

    @extend_schema(request=None, responses=StreamTestedSerializer)
    @action(detail=True, methods=["post"])
    def test(self, request: Request, pk: Any = None) -> Response:
        """Have the worker send a test message, and say what came of it."""
        stream = self.get_object()
        tested = ask_to_test(stream, request.user.get_username())
        record_test(stream, tested, door="rest", request=request)
        return Response(StreamTestedSerializer(tested).data)

    @extend_schema(request=StreamMoveSerializer, responses=StreamMovedSerializer)
    @action(detail=True, methods=["post"])
    def rewind(self, request: Request, pk: Any = None) -> Response:
        """Set the place to a time, back or ahead."""
        stream = self.get_object()
        given = checked(StreamMoveSerializer(data=request.data)).validated_data
        return Response(StreamMovedSerializer(rewind(stream, given["to"], door="rest", request=request)).data)

    @extend_schema(request=None, responses=StreamMissedSerializer)
    @action(detail=True, methods=["post"])
    def acknowledge(self, request: Request, pk: Any = None) -> Response:
        """Take note of a gap: its alarm ends."""
        missed = acknowledge_gap(self.get_object(), door="rest", request=request)
        return Response({"missed": missed})


# --- Pulling ---------------------------------------------------------------------------------------------------------


class AheadOfLedger(exceptions.APIException):
    """What was read before is not there: the database was set back."""

    status_code = 409
    default_code = "ahead_of_ledger"
    default_detail = "The ledger ends before this place: you have read more than there is. Was an older state restored?"


class PullSerializer(serializers.Serializer[Any]):
    """Where to go on, and how far."""

    after = serializers.IntegerField(
        default=-1,
        min_value=-1,
        max_value=2**62,
        help_text="The `next` of the answer before. Not given: the beginning.",
    )
    limit = serializers.IntegerField(default=500, min_value=1, max_value=MOST_PULLED)
    wait = serializers.IntegerField(
        default=0, min_value=0, max_value=LONGEST_WAIT, help_text="Seconds to wait where there is nothing new."
    )


@extend_schema_serializer(many=False)
class PulledSerializer(serializers.Serializer[Any]):
    """Records in the order in which they were sealed."""

    records = serializers.ListField(
        child=serializers.DictField(), help_text="With `type`: `record`, or `gap` where records are gone."
    )
    next = serializers.IntegerField(help_text="Ask for what comes `after` it.")
    sealed = serializers.IntegerField(help_text="How many records are sealed.")


class PullViewSet(viewsets.GenericViewSet[Record]):
    """The ledger, to be fetched from a place on."""

    queryset = Record.objects.none()
    serializer_class = PulledSerializer
    pagination_class = None
    filter_backends = ()
    action_permissions = {"list": "audit.pull_records"}
    further_problems = {"list": (400, 409)}

    @extend_schema(parameters=[PullSerializer], responses={200: PulledSerializer})
    def list(self, request: Request) -> HttpResponseBase:
        """What was sealed after a place. Nothing is missed: records are sealed in one dense order that only grows."""
        given = checked(PullSerializer(data=request.query_params.dict())).validated_data
        after, limit = given["after"], given["limit"]
        found = pulled(after, limit)
        if after >= found["sealed"]:
            raise AheadOfLedger
        if found["next"] > after or not given["wait"]:
            return Response(found)
        # Who waits holds neither a thread nor a connection to the database.
        return StreamingHttpResponse(_later(after, limit, given["wait"]), content_type="application/json")


def pulled(after: int, limit: int) -> dict[str, Any]:
    """The answer for who has read all up to the place `after`."""
    with connection.cursor() as cursor:
        end = sealed.size(cursor)
        stretch = sealed.read(cursor, after + 1, EVERYTHING, limit, end)
    items = [
        {"type": "record", **item.body()}
        if isinstance(item, Sealed)
        else {"type": "gap", "first_seq": item.first_seq, "last_seq": item.last_seq, "records": item.count}
        for item in stretch.found
    ]
    return {"records": items, "next": stretch.end - 1, "sealed": end}


def _pulled_and_let_go(after: int, limit: int) -> dict[str, Any]:
    try:
        return pulled(after, limit)
    finally:
        connection.close()


async def _later(after: int, limit: int, seconds: int) -> AsyncIterator[bytes]:
    until = time.monotonic() + seconds
    found = await sync_to_async(_pulled_and_let_go)(after, limit)
    while found["next"] <= after and time.monotonic() < until:
        await asyncio.sleep(_LOOK_SECONDS)
        found = await sync_to_async(_pulled_and_let_go)(after, limit)
    yield orjson.dumps(found)
