"""Call a tool by REST: the same pipeline, behind DRF's authentication. And the metrics, behind a guard of their own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from hmac import compare_digest
from typing import Any

from asgiref.sync import async_to_sync
from django.conf import settings
from django.contrib.auth.models import AnonymousUser
from django.db import DatabaseError
from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse, extend_schema
from rest_framework import exceptions, serializers
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.permissions import BasePermission, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from access import policy
from access.models import Scope
from access.rest import CHALLENGE, BearerAuthentication, SessionAuthentication, Unavailable, require_scope
from access.snapshot import Principal, Snapshot, ToolEntry
from access.tokens import InvalidToken
from audit.caller import REQUEST_ID, address_of
from gateway.app import Gateway
from gateway.idempotency import KeyRefused, claim, finish, give_up, key_of, release
from gateway.models import KeyedCall
from gateway.terms import Answer, Call, Refused
from gateway.wire import TRACEPARENT
from tools import exact

logger = logging.getLogger(__name__)


class ArgumentsSerializer(serializers.Serializer[dict[str, Any]]):
    """What a call takes."""

    arguments = serializers.DictField(
        required=False, help_text="The tool's arguments, as its input schema describes them."
    )


class AnswerSerializer(serializers.Serializer[dict[str, Any]]):
    """What a call gives back."""

    record = serializers.UUIDField(help_text="Id of the record in the ledger.")
    call = serializers.UUIDField(help_text="Id of the call: intent and outcome share it.")
    code = serializers.CharField(help_text="`ok`, or the stable word for what went wrong outside.")
    result = serializers.DictField(help_text="The tool's result (MCP CallToolResult), as its source gave it.")


_STATUSES = {
    "unknown_tool": 404,
    "budget_exhausted": 429,
    "too_many_refusals": 429,
    "invalid_arguments": 400,
    "invalid_idempotency_key": 400,
    "idempotency_in_progress": 409,
    "idempotency_key_reused": 422,
}


class CallRefused(exceptions.APIException):
    """A refusal of the pipeline, as a problem with the same stable code, and the ids under which it is on record."""

    def __init__(self, refusal: Refused) -> None:
        super().__init__(str(refusal), refusal.code)
        self.status_code = _STATUSES.get(refusal.code, 503)
        self.wait = refusal.retry_after
        ids = {"call": refusal.call_id, "record": refusal.record_id}
        self.members = {name: str(value) for name, value in ids.items() if value}


class CallNotRepeated(exceptions.APIException):
    """A key that cannot be used like this, as a problem."""

    def __init__(self, refusal: KeyRefused) -> None:
        super().__init__(str(refusal), refusal.code)
        self.status_code = _STATUSES.get(refusal.code, 409)
        self.wait = 1 if refusal.code == "idempotency_in_progress" else None
        self.members = {"call": str(refusal.call_id)} if refusal.call_id else {}


_TEXT = OpenApiTypes.STR
TRACE = OpenApiParameter("traceparent", _TEXT, OpenApiParameter.HEADER, description="W3C trace context.")
_CALL_HEADERS = [
    OpenApiParameter(
        "Idempotency-Key",
        _TEXT,
        OpenApiParameter.HEADER,
        description="A string in quotes: however often the call is sent under it, the tool is called once.",
        examples=[OpenApiExample("A UUID", '"8e03978e-40d5-43e8-bc93-6894a57f9324"')],
    ),
    TRACE,
    OpenApiParameter(
        "Idempotent-Replayed",
        _TEXT,
        OpenApiParameter.HEADER,
        response=[200],
        description="`true` when the answer is that of an earlier call.",
    ),
]


class CallToolView(APIView):
    """Call one tool. A tool that is not granted looks as if it did not exist."""

    permission_classes = [IsAuthenticated]
    required_scope = Scope.TOOLS
    further_problems = {"post": (409, 422, 429)}
    further_headers = {
        "RateLimit-Policy": {"schema": {"type": "string"}, "description": "Calls (`q`) per seconds (`w`)."},
        "RateLimit": {
            "schema": {"type": "string"},
            "description": "Calls left (`r`), seconds until all are back (`t`).",
        },
    }
    _limits: dict[str, str] = {}

    @extend_schema(
        operation_id="tools_call",
        summary="Call a tool",
        request=ArgumentsSerializer,
        responses={200: AnswerSerializer, 404: OpenApiResponse(description="No such tool, or it is not granted.")},
        parameters=_CALL_HEADERS,
        examples=[
            OpenApiExample("A call", {"arguments": {"timezone": "Europe/Berlin"}}, request_only=True),
            OpenApiExample(
                "Its answer",
                {
                    "record": "01a20766-a1d4-7553-b427-cd96665a9a88",
                    "call": "01a20766-a1c3-7691-98a6-582beacc9f40",
                    "code": "ok",
                    "result": {"content": [{"type": "text", "text": "08:51"}], "isError": False},
                },
                response_only=True,
                status_codes=["200"],
            ),
        ],
    )
    def post(self, request: Request, name: str) -> Response:
        """Enter the pipeline with the arguments of the body."""
        require_scope(request, self.required_scope)
        gateway, snapshot = _gateway(request)
        given = ArgumentsSerializer(data=request.data)
        given.is_valid(raise_exception=True)
        call = _call(request, snapshot, name, given.validated_data.get("arguments", {}))
        found = policy.find(snapshot, call.principal, name, None)
        header = request.headers.get("Idempotency-Key")
        try:
            # What is not granted is not kept either: the pipeline refuses it, and says so in the ledger.
            key = None if header is None or found is None else key_of(header)
            if key is None or found is None:
                return Response(_carried_out(gateway, call))
            return _once(gateway, call, key, repeatable=found[0].effect == "read")
        except KeyRefused as refusal:
            raise CallNotRepeated(refusal) from refusal
        except Refused as refusal:
            raise CallRefused(refusal) from refusal
        finally:
            if found is not None:
                self._limits = _limits(gateway, call.principal, *found)

    def finalize_response(self, request: Request, response: Any, *args: Any, **kwargs: Any) -> Any:
        """With what is left of the budget."""
        response = super().finalize_response(request, response, *args, **kwargs)
        for name, value in self._limits.items():
            response[name] = value
        return response


def _call(request: Request, snapshot: Snapshot, name: str, arguments: dict[str, Any]) -> Call:
    return Call(
        principal=_principal(request, snapshot),
        tool=name,
        arguments=arguments,
        raw=exact.written(arguments),
        door="rest",
        client=request.META.get("HTTP_USER_AGENT", "")[:200] or None,
        address=address_of(request),
        request_id=request.META.get(REQUEST_ID),
        traceparent=traceparent_of(request),
    )


def _carried_out(gateway: Gateway, call: Call) -> dict[str, Any]:
    """The body of the answer. Raises Refused."""
    answer: Answer = async_to_sync(gateway.pipeline.call)(call)
    result = exact.taken(answer.body)
    if answer.meta:
        result["_meta"] = answer.meta
    return {"record": str(answer.record_id), "call": str(answer.call_id), "code": answer.code, "result": result}


def _once(gateway: Gateway, call: Call, key: str, *, repeatable: bool) -> Response:
    """The answer of the first call with this key. Raises Refused and KeyRefused."""
    claimed = claim(call.principal.user_id, call.tool, key, call.arguments, repeatable=repeatable)
    if claimed.state == KeyedCall.State.FINISHED:
        return Response(claimed.answer, headers={"Idempotent-Replayed": "true"})
    try:
        body = _carried_out(gateway, call._replace(call_id=claimed.call_id))
    except Refused as refusal:
        with _as_it_stands(claimed):
            give_up(claimed) if refusal.code == "outcome_unknown" else release(claimed)
        raise
    with _as_it_stands(claimed):
        finish(claimed, body)
    return Response(body)


@contextmanager
def _as_it_stands(claimed: KeyedCall) -> Iterator[None]:
    """What became of the call is on record and goes out, even if a repetition will hear that nothing is known of it."""
    try:
        yield
    except DatabaseError:
        logger.exception("what became of the call %s could not be kept for its repetition", claimed.call_id)


def _limits(gateway: Gateway, principal: Principal, tool: ToolEntry, per_minute: int) -> dict[str, str]:
    """What is left of the budget, as draft-ietf-httpapi-ratelimit-headers says it."""
    left, seconds = gateway.budgets.left(principal.user_id, tool.id, per_minute)
    return {
        "RateLimit-Policy": f'"calls";q={per_minute};w=60',
        "RateLimit": f'"calls";r={left};t={seconds}',
    }


def traceparent_of(request: Request) -> str | None:
    """The W3C trace context of the request, when it is well-formed."""
    value = request.headers.get("traceparent", "")
    return value if TRACEPARENT.fullmatch(value) else None


def _gateway(request: Request) -> tuple[Gateway, Snapshot]:
    gateway: Gateway | None = getattr(request._request, "scope", {}).get("mcpsite.gateway")
    snapshot = gateway.feed.current if gateway is not None else None
    if gateway is None or snapshot is None:
        raise Unavailable("The policy is not loaded. Try again in a few seconds.", code="policy_unavailable")
    return gateway, snapshot


def _principal(request: Request, snapshot: Snapshot) -> Principal:
    scheme, _, raw = get_authorization_header(request).strip().partition(b" ")
    try:
        if scheme.lower() == b"bearer":
            return policy.principal_of(snapshot, raw.strip().decode("latin-1"))
        return policy.principal_of_user(snapshot, int(request.user.pk or 0))
    except InvalidToken as error:
        # The database knows the token already, but the policy in force here does not yet: a moment's difference.
        raise Unavailable("The policy is being loaded. Try again in a second.", code="policy_unavailable") from error


# --- Metrics ---------------------------------------------------------------------------------------------------------


class MetricsTokenAuthentication(BaseAuthentication):
    """`Authorization: Bearer` with METRICS_TOKEN: asks no database, so that metrics are there when that is away."""

    def authenticate(self, request: Request) -> tuple[AnonymousUser, str] | None:
        """Nobody in particular, with the word for why they may read; None for any other credential."""
        scheme, _, raw = get_authorization_header(request).strip().partition(b" ")
        token = settings.METRICS_TOKEN
        if scheme.lower() != b"bearer" or not token or not compare_digest(raw.strip(), token.encode()):
            return None
        return AnonymousUser(), "METRICS_TOKEN"

    def authenticate_header(self, request: Request) -> str:
        """The challenge of a 401 (RFC 6750, section 3)."""
        return CHALLENGE


class MayReadMetrics(BasePermission):
    """METRICS_TOKEN, or a user with the permission `audit.view_metrics`, whose token may read all there is."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        """Whether the request may go on; raises PermissionDenied for a token that was not made for this."""
        if isinstance(request.successful_authenticator, MetricsTokenAuthentication):
            return True
        require_scope(request, Scope.READ)
        if getattr(request.auth, "toolset_id", None) is not None:
            raise exceptions.PermissionDenied("This token is narrowed to a toolset.", code="insufficient_scope")
        return bool(request.user.has_perm("audit.view_metrics"))


class AnyAccept(BaseContentNegotiation):
    """Who scrapes names formats that no renderer of ours has; the view chooses among them."""

    def select_parser(self, request: Any, parsers: Any) -> Any:
        """The only one."""
        return parsers[0]

    def select_renderer(self, request: Any, renderers: Any, format_suffix: Any = None) -> Any:
        """JSON, which problems are written in."""
        return renderers[0], renderers[0].media_type


class MetricsView(APIView):
    """What Prometheus reads: the sum over all processes."""

    authentication_classes = [MetricsTokenAuthentication, BearerAuthentication, SessionAuthentication]
    permission_classes = [MayReadMetrics]
    content_negotiation_class = AnyAccept

    @extend_schema(exclude=True)
    def get(self, request: Request) -> HttpResponse:
        """The metrics of this moment, in Prometheus's text format or as OpenMetrics."""
        gateway: Gateway | None = getattr(request._request, "scope", {}).get("mcpsite.gateway")
        if gateway is None:
            raise Unavailable("This process carries out no calls, so it has no metrics.")
        text, content_type = async_to_sync(gateway.metrics.scrape)(request.headers.get("Accept", ""))
        return HttpResponse(text, content_type=content_type, headers={"Cache-Control": "no-store"})
