"""What witnesses hand in by REST, and what is anchored where."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import exceptions, serializers, viewsets
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from audit.conditions import Tagged
from audit.outside import cosignatures
from audit.outside.contradictions import NotContradicted
from audit.outside.models import Anchor, Contradiction, Cosignature

_LONGEST_LINE, _LONGEST_NOTE, _MOST = 1_000, 20_000, 2**63 - 1


class NotCosigned(exceptions.APIException):
    """It is not signed by a witness."""

    status_code = 400
    default_code = cosignatures.Unsigned.code


class Stands(exceptions.APIException):
    """The ledger stands by what it is said to have given up."""

    status_code = 409
    default_code = NotContradicted.code


class CosignatureSerializer(serializers.Serializer[Any]):
    """The signature line of a witness on a head."""

    line = serializers.CharField(
        max_length=_LONGEST_LINE, help_text="`— <witness> <base64>`, as in C2SP tlog-cosignature, v1."
    )


class ContradictionSerializer(serializers.ModelSerializer[Contradiction]):
    """A head that the ledger signed and does not stand by."""

    code = serializers.ChoiceField(Contradiction.Code.choices)
    note = serializers.CharField(
        max_length=_LONGEST_NOTE, trim_whitespace=False, help_text="The head, signed by the ledger and by the witness."
    )

    class Meta:
        model = Contradiction
        fields = ("id", "source", "code", "head", "sealed_at", "note", "at")
        read_only_fields = ("id", "source", "head", "sealed_at", "at")


class AnchorSerializer(serializers.ModelSerializer[Anchor]):
    """A head in a sink outside, with the receipt of the sink."""

    class Meta:
        model = Anchor
        fields = ("id", "head", "sink", "receipt", "at")


class CosignaturesView(APIView):
    """Signatures of witnesses on one head."""

    queryset = Cosignature.objects.none()
    action_permissions = {None: "audit.add_cosignature"}
    further_problems = {"post": (404,)}

    @extend_schema(
        summary="Cosign a head",
        request=CosignatureSerializer,
        responses={200: CosignatureSerializer, 201: CosignatureSerializer},
        parameters=[OpenApiParameter("number", {"type": "integer", "minimum": 0, "maximum": _MOST}, "path")],
    )
    def post(self, request: Request, number: int) -> Response:
        """201 for a new signature of a witness of LEDGER_WITNESSES, 200 when it has signed the head before."""
        line = _valid(CosignatureSerializer, request)["line"]
        try:
            new = cosignatures.add(number, line) if number <= _MOST else None
        except cosignatures.Unsigned as error:
            raise NotCosigned(str(error)) from error
        if new is None:
            raise exceptions.NotFound("There is no such head.")
        return Response({"line": line}, status=201 if new else 200)


class ContradictionViewSet(Tagged, viewsets.ReadOnlyModelViewSet[Contradiction]):
    """What witnesses and anchors hold against the ledger, newest first."""

    queryset = Contradiction.objects.all()
    serializer_class = ContradictionSerializer
    ordering = ("-id",)
    action_permissions = {"create": "audit.add_cosignature"}
    further_problems = {"create": (409,)}
    http_method_names = ["get", "post", "head", "options"]

    @extend_schema(
        summary="Hold a head against the ledger",
        request=ContradictionSerializer,
        responses={200: ContradictionSerializer, 201: ContradictionSerializer},
    )
    def create(self, request: Request) -> Response:
        """201 when it is new, 200 when the witness has said so before, 409 when the ledger has this very head."""
        given = _valid(ContradictionSerializer, request)
        try:
            pk, new = cosignatures.contradict(given["code"], given["note"], request=request)
        except cosignatures.Unsigned as error:
            raise NotCosigned(str(error)) from error
        except NotContradicted as error:
            raise Stands(str(error)) from error
        found = Contradiction.objects.get(pk=pk)
        return Response(self.get_serializer(found).data, status=201 if new else 200)


class AnchorViewSet(Tagged, viewsets.ReadOnlyModelViewSet[Anchor]):
    """Heads that were written to sinks outside, newest first."""

    queryset = Anchor.objects.all()
    serializer_class = AnchorSerializer
    filterset_fields = ("sink",)
    ordering = ("-id",)


def _valid(serializer: type[serializers.BaseSerializer[Any]], request: Request) -> dict[str, Any]:
    given = serializer(data=request.data)
    given.is_valid(raise_exception=True)
    return dict(given.validated_data)
