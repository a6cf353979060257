"""Evidence packs by REST."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from audit.export.api import ArchiveViewSet, ExportSerializer
from audit.export.asking import ask_for_export
from audit.export.models import EvidencePack, Export
from audit.export.scope import BadScope
from audit.packs.scope import ALL, MOST_SAMPLES, SAMPLES, USUAL_SAMPLES, read


class NewPackSerializer(serializers.Serializer[Any]):
    """Which period and scope, and how samples are chosen."""

    since = serializers.DateTimeField(help_text="The period begins, inclusive.")
    until = serializers.DateTimeField(required=False, help_text="It ends, exclusive. Default: now.")
    as_of = serializers.DateTimeField(required=False, help_text="Who could call what at this time. Default: `until`.")
    sources = serializers.ListField(child=serializers.CharField(max_length=150), required=False, max_length=200)
    tools = serializers.ListField(child=serializers.CharField(max_length=150), required=False, max_length=200)
    roles = serializers.ListField(child=serializers.CharField(max_length=150), required=False, max_length=200)
    samples = serializers.IntegerField(
        min_value=1, max_value=MOST_SAMPLES, default=USUAL_SAMPLES, help_text="Of each kind."
    )
    seed = serializers.RegexField(r"^[A-Za-z0-9._-]{1,64}$", required=False, help_text="Default: a random one.")
    records = serializers.ChoiceField(choices=(SAMPLES, ALL), default=SAMPLES)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """All of it together."""
        given = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in attrs.items()}
        try:
            return read(given)
        except BadScope as error:
            raise serializers.ValidationError({error.name: str(error)}) from error


class EvidencePackViewSet(ArchiveViewSet):
    """A period of the ledger with all that is asked around it: one signed archive that opens offline."""

    queryset = EvidencePack.objects.all()
    action_permissions = {"cancel": "audit.add_evidencepack", "download": "audit.view_evidencepack"}

    def get_serializer_class(self) -> Any:
        """What is sent has other fields than what is answered."""
        return NewPackSerializer if self.action == "create" else ExportSerializer

    @extend_schema(request=NewPackSerializer, responses={202: ExportSerializer})
    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Ask for an evidence pack. It is made by the job worker; `Location` is where to follow it."""
        return super().create(request, *args, **kwargs)

    def ask(self, request: Request, given: dict[str, Any]) -> Export:
        """Queue it. Raises ExportRefused."""
        return ask_for_export(Export.Form.PACK, given, user=request.user, door="rest", request=request)
