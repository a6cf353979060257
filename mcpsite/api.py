"""What the site says of itself by REST."""

from __future__ import annotations

import functools
import zlib
from dataclasses import asdict
from typing import Any

import orjson
from django.http import HttpResponse
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.renderers import (
    OpenApiJsonRenderer,
    OpenApiJsonRenderer2,
    OpenApiYamlRenderer,
    OpenApiYamlRenderer2,
)
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularAPIView
from rest_framework import serializers
from rest_framework.permissions import BasePermission, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from mcpsite.doctor import SEES_CHECKS, examine, worst


class MaySeeChecks(BasePermission):
    """Who may see the metrics."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        """Whether the user has it."""
        return request.user.has_perm(SEES_CHECKS)


class DoctorCheckSerializer(serializers.Serializer[Any]):
    """One check."""

    name = serializers.CharField()
    state = serializers.CharField(help_text="`ok`, `warn` or `fail`.")
    found = serializers.CharField(help_text="What was found.")
    advice = serializers.CharField(allow_blank=True, help_text="What to do about it.")


class DoctorSerializer(serializers.Serializer[Any]):
    """The installation as it is now."""

    state = serializers.CharField(help_text="The worst of the checks.")
    checks = DoctorCheckSerializer(many=True)


class DoctorView(APIView):
    """`GET /api/v1/doctor/`."""

    permission_classes = (MaySeeChecks,)

    @extend_schema(operation_id="doctor", responses=DoctorSerializer)
    def get(self, request: Request) -> Response:
        """Examine the installation: database roles, durability, sealing, keys, witnesses, clock, Redis.

        Needs the permission `audit.view_metrics`.
        """
        checks = examine()
        return Response({"state": worst(checks), "checks": [asdict(each) for each in checks]})


class SchemaView(SpectacularAPIView):
    """`GET /api/v1/schema/`: as JSON, unless YAML is asked for."""

    permission_classes = (IsAuthenticated,)
    renderer_classes = [OpenApiJsonRenderer, OpenApiJsonRenderer2, OpenApiYamlRenderer, OpenApiYamlRenderer2]

    def _get_schema_response(self, request: Request) -> HttpResponse:
        if "json" not in request.accepted_renderer.format:
            return super()._get_schema_response(request)  # type: ignore[no-untyped-call, no-any-return]
        headers = {"Content-Disposition": 'inline; filename="mcpsite-openapi.json"'}
        return HttpResponse(zlib.decompress(described()), request.accepted_media_type, headers=headers)


@functools.cache
def described() -> bytes:
    """The description of the API as compressed JSON, made once: it takes a quarter of a second and nine megabytes."""
    made = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    return zlib.compress(orjson.dumps(made, default=str))
