"""What the site says of itself by REST."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.permissions import BasePermission
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
