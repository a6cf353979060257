"""The evidence by REST: heads, proofs, keys, and the program that checks them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import exceptions, serializers, viewsets
from rest_framework.decorators import action
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from audit import verify
from audit.api import HexField
from audit.models import Head, Record
from audit.proofs import documents
from audit.proofs.paths import TreeIncomplete

_MOST = 2**63 - 1
# What a witness may see, too.
SEE_HEADS = "audit.view_head"


class NotSealed(exceptions.APIException):
    """The record has no place in the tree yet."""

    status_code = 409
    default_code = documents.NotSealed.code


class Incomplete(exceptions.APIException):
    """What the proof is made of is not in the database any more."""

    status_code = 409
    default_code = TreeIncomplete.code


class Downward(exceptions.APIException):
    """A consistency proof leads from a head to a later one."""

    status_code = 400
    default_code = "wrong_order"
    default_detail = "`from` must not be greater than `to`: a head continues earlier ones only."


class HeadSerializer(serializers.ModelSerializer[Head]):
    """A signed head; `note` is what verifies, the other fields repeat it."""

    root: serializers.Field[Any, Any, Any, Any] = HexField(  # type: ignore[assignment]
        read_only=True, help_text="Of the tree, in hexadecimal digits."
    )
    note = serializers.SerializerMethodField(help_text="The signed note, with the lines of witnesses.")

    class Meta:
        model = Head
        fields = ("number", "size", "root", "sealed_at", "note")

    def get_note(self, head: Head) -> str:
        """The note of the sealer, and below the lines of witnesses."""
        notes = self.context.get("notes") or documents.cosigned([head])
        return str(notes[head.number])


class RecordDocumentSerializer(serializers.Serializer[Any]):
    """A record as JSON, see docs/evidence.md."""

    seq = serializers.IntegerField(help_text="Place in the tree.")
    id = serializers.IntegerField()
    leaf = serializers.CharField()
    record = serializers.DictField()


class ProofSerializer(serializers.Serializer[Any]):
    """That a record is in the tree of the newest head (RFC 6962, 2.1.1)."""

    format = serializers.ChoiceField([documents.PROOF])
    record = RecordDocumentSerializer()
    seq = serializers.IntegerField()
    path = serializers.ListField(child=serializers.CharField())
    head = serializers.CharField()
    keys = serializers.ListField(child=serializers.CharField())


class ConsistencySerializer(serializers.Serializer[Any]):
    """That the tree of one head continues that of another (RFC 6962, 2.1.2). `from` and `to` are their notes."""

    format = serializers.ChoiceField([documents.CONSISTENCY])
    to = serializers.CharField()
    path = serializers.ListField(child=serializers.CharField())
    keys = serializers.ListField(child=serializers.CharField())

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        """With `from`, which Python does not let stand as a name."""
        return {"from": serializers.CharField(), **super().get_fields()}


class KeysSerializer(serializers.Serializer[Any]):
    """The public keys that signed heads, the oldest first."""

    keys = serializers.ListField(child=serializers.CharField())


class Span(serializers.Serializer[Any]):
    """Two numbers of heads."""

    to = serializers.IntegerField(min_value=0, max_value=_MOST)

    def get_fields(self) -> dict[str, serializers.Field[Any, Any, Any, Any]]:
        """With `from`, which Python does not let stand as a name."""
        return {"from": serializers.IntegerField(min_value=0, max_value=_MOST), **super().get_fields()}


class HeadViewSet(viewsets.ReadOnlyModelViewSet[Head]):
    """Signed heads of the tree, newest first. A head is named by its number."""

    queryset = Head.objects.all()
    serializer_class = HeadSerializer
    lookup_field = "number"
    ordering = ("-number",)
    action_permissions = dict.fromkeys(("list", "retrieve", "newest"), SEE_HEADS)
    further_problems = {"newest": (404,)}

    def get_object(self) -> Head:
        """The head of that number; 404 also for what no head can be called."""
        number = self.kwargs["number"]
        if not (number.isascii() and number.isdecimal() and len(number) < 19):
            raise exceptions.NotFound
        return super().get_object()

    def paginate_queryset(self, queryset: Any) -> Any:
        """A page, for which the lines of witnesses are read at once."""
        self.page = super().paginate_queryset(queryset)
        return self.page

    def get_serializer_context(self) -> dict[str, Any]:
        """With the notes of a page."""
        page = getattr(self, "page", None)
        return {**super().get_serializer_context(), "notes": documents.cosigned(page) if page else None}

    @extend_schema(description="The newest head.", parameters=[])
    @action(detail=False, filter_backends=[], pagination_class=None)
    def newest(self, request: Request) -> Response:
        """The newest head; 404 before the first."""
        head = documents.newest_head()
        if head is None:
            raise exceptions.NotFound("There is no head yet: has the sealer run?")
        return Response(self.get_serializer(head).data)


class EvidenceView(APIView):
    """What whoever may see heads may see."""

    queryset = Record.objects.none()
    action_permissions: Mapping[str | None, str] = {None: SEE_HEADS}


class ProofView(EvidenceView):
    """The inclusion proof of one record, for whoever may see the record."""

    action_permissions = {}
    further_problems = {"get": (404, 409)}

    @extend_schema(responses=ProofSerializer, description="Proves that the record is in the tree of the newest head.")
    def get(self, request: Request, rid: Any) -> Response:
        """The document; 409 `not_sealed` for half a second after a record was written."""
        record = get_object_or_404(Record, rid=rid)
        try:
            document = documents.proof_of(record)
        except documents.NotSealed as error:
            raise NotSealed(str(error)) from error
        except TreeIncomplete as error:
            raise Incomplete(str(error)) from error
        name = f"proof-{record.rid}.json"
        return Response(document, headers={"Content-Disposition": f'attachment; filename="{name}"'})


class ConsistencyView(EvidenceView):
    """The consistency proof between two heads."""

    further_problems = {"get": (400, 404, 409)}

    @extend_schema(
        parameters=[
            OpenApiParameter(name, {"type": "integer", "minimum": 0, "maximum": _MOST}, required=True, description=what)
            for name, what in (("from", "Number of the earlier head."), ("to", "Number of the later head."))
        ],
        responses=ConsistencySerializer,
        description="Proves that the tree of one head continues that of an earlier one.",
    )
    def get(self, request: Request) -> Response:
        """The document; 404 where there is no such head."""
        span = Span(data=request.query_params.dict())
        span.is_valid(raise_exception=True)
        first, second = span.validated_data["from"], span.validated_data["to"]
        if first > second:
            raise Downward
        heads = {head.number: head for head in Head.objects.filter(number__in=(first, second))}
        if len(heads) < len({first, second}):
            raise exceptions.NotFound("There is no such head.")
        try:
            return Response(documents.consistency_of(heads[first], heads[second]))
        except TreeIncomplete as error:
            raise Incomplete(str(error)) from error


class KeysView(EvidenceView):
    """The public keys of the ledger."""

    @extend_schema(responses=KeysSerializer, description="The public keys that signed heads, the oldest first.")
    def get(self, request: Request) -> Response:
        """Compare them with those that you were given by another way."""
        return Response({"keys": documents.keys()})


class _AnyContent(BaseContentNegotiation):
    """Answers in its one form, whatever is asked for."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        """The first."""
        return parsers[0]

    def select_renderer(self, request: Request, renderers: Any, format_suffix: str | None = None) -> Any:
        """The first."""
        return renderers[0], renderers[0].media_type


class VerifierView(EvidenceView):
    """The program that verifies, for another machine."""

    content_negotiation_class = _AnyContent

    @extend_schema(
        responses={(200, "text/x-python"): OpenApiResponse(OpenApiTypes.STR, description="The program.")},
        description="`verify.py`: one file, which needs Python 3.11 and the package `cryptography`.",
    )
    def get(self, request: Request) -> HttpResponse:
        """The file that this installation runs itself."""
        text = Path(verify.__file__).read_bytes()
        headers = {"Content-Disposition": 'attachment; filename="verify.py"'}
        return HttpResponse(text, content_type="text/x-python; charset=utf-8", headers=headers)
