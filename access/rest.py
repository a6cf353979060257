"""How REST knows its callers, reads what they send, what it lets them do, and how it says no."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import orjson
from django.conf import settings
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import DatabaseError, DataError, IntegrityError, InterfaceError, InternalError, OperationalError
from django.db.models.deletion import ProtectedError, RestrictedError
from django.http import Http404, HttpRequest, JsonResponse
from rest_framework import exceptions, status
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.authentication import SessionAuthentication as DjangoSessionAuthentication
from rest_framework.parsers import JSONParser
from rest_framework.permissions import SAFE_METHODS, DjangoModelPermissions
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import as_serializer_error

from access import tokens
from access.models import Scope, User
from audit.caller import REQUEST_ID, address_of
from audit.changes import record_event
from audit.floods import source_of, turned_away
from audit.models import Record
from tools import exact
from tools.nesting import is_writable

logger = logging.getLogger(__name__)

PROBLEM_TYPE = "application/problem+json"
CHALLENGE = 'Bearer realm="mcpsite"'
ALL_SCOPES = frozenset(Scope.values)


# --- Who -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Credential:
    """What a bearer token allows. `label` names it in records; a JWT of a login allows everything its user may."""

    label: str
    scopes: frozenset[str] = field(default=ALL_SCOPES)
    toolset_id: Any = None


class BearerAuthentication(BaseAuthentication):
    """`Authorization: Bearer` with an API token (`mcps_…`) or a JWT. A bad one is refused, never taken as anonymous."""

    def authenticate(self, request: Request) -> tuple[User, Credential] | None:
        """The user and the credential, or None when the request carries no bearer token."""
        scheme, _, raw = get_authorization_header(request).strip().partition(b" ")
        if scheme.lower() != b"bearer":
            return None
        token = raw.strip().decode("latin-1")
        found = _known(token, address_of(request._request))
        if found is None:
            reason = tokens.why_refused(token) if token.startswith(tokens.PREFIX) else "unknown"
            raise token_refused(request, reason, token)
        return found

    def authenticate_header(self, request: Request) -> str:
        """The challenge of a 401 (RFC 6750, section 3)."""
        return CHALLENGE


def _known(raw: str, address: str | None) -> tuple[User, Credential] | None:
    if raw.startswith(tokens.PREFIX):
        token = tokens.find(raw)
        if token is None:
            return None
        tokens.note_use(token, address)
        return token.user, Credential(token.prefix, frozenset(token.scopes), token.toolset_id)
    try:
        claims = tokens.claims_of(raw)
        return tokens.user_of(claims), Credential(f"session {claims.session[:8]}")
    except tokens.InvalidToken:
        return None


def token_refused(request: Request, reason: str = "unknown", raw: str = "") -> exceptions.AuthenticationFailed:
    """The answer to a token that is not valid, which is on record."""
    _note_turned_away(request, reason, raw)
    return exceptions.AuthenticationFailed("The token is not valid.", code=tokens.InvalidToken.code)


def _note_turned_away(request: Request, reason: str, raw: str = "") -> None:
    """One record for each address and minute, which says how many more there were."""
    before = turned_away().take(source_of(address_of(request._request)))
    if before is None:
        return
    detail = {"reason": reason} | ({"unrecorded_before": before} if before else {})
    record_event(
        Record.Kind.AUTH,
        tokens.InvalidToken.code,
        door="rest",
        request=request._request,
        detail=detail,
        token=tokens.shown(raw),
        decision="deny",
    )


class SessionAuthentication(DjangoSessionAuthentication):
    """The admin's session, for the API pages in a browser; CSRF tokens are checked."""


class TooLarge(exceptions.APIException):
    """The body is larger than any request needs."""

    status_code = status.HTTP_413_REQUEST_ENTITY_TOO_LARGE
    default_code = "too_large"


class Parser(JSONParser):
    """JSON in one reading only: no key twice, no NaN, nothing deeper than can be written again, no NUL in a text."""

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        """The value. Raises ParseError and TooLarge."""
        raw = stream.read(settings.MCP_MAX_BODY_BYTES + 1)
        if len(raw) > settings.MCP_MAX_BODY_BYTES:
            raise TooLarge(f"The body is larger than {settings.MCP_MAX_BODY_BYTES} bytes.")
        try:
            value = exact.taken(raw)
        except ValueError as error:
            raise exceptions.ParseError(f"The body is not JSON: {error}") from error
        if not is_writable(value):
            raise exceptions.ParseError("The body is nested too deeply, or holds what JSON cannot.")
        _refuse_long_numbers(value)
        if b"\\u0000" in raw and _holds_nul(value):
            raise exceptions.ParseError("A text holds the character NUL, which cannot be stored.")
        json.loads(raw, object_pairs_hook=_without_doubles)
        return value


def _refuse_long_numbers(value: Any) -> None:
    """Not all that is kept could keep them."""
    try:
        orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise exceptions.ParseError("A whole number has more than 64 bits: send it as a text.") from error


def _without_doubles(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise exceptions.ParseError(f"The key “{double[:80]}” occurs twice in one object: which one counts?")


def _holds_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, Mapping):
        return any(map(_holds_nul, value)) or any(map(_holds_nul, value.values()))
    return isinstance(value, list) and any(map(_holds_nul, value))


# --- What ------------------------------------------------------------------------------------------------------------


def require_scope(request: Request, scope: str) -> None:
    """Refuse a token that was not made for this use; 403 `insufficient_scope`."""
    credential = request.auth
    if isinstance(credential, Credential) and scope not in credential.scopes:
        raise exceptions.PermissionDenied(f"This token lacks the scope “{scope}”.", code="insufficient_scope")


class ModelPermissions(DjangoModelPermissions):
    """The caller's Django permissions (view, add, change, delete), and the scopes of the token.

    A view may name other permissions for its actions (`action_permissions`) and another scope (`required_scope`). A
    token that is narrowed to a toolset reaches only views that say they keep to it (`keeps_to_toolset`).
    """

    perms_map = {
        **DjangoModelPermissions.perms_map,
        "GET": ["%(app_label)s.view_%(model_name)s"],
        "HEAD": ["%(app_label)s.view_%(model_name)s"],
    }

    def has_permission(self, request: Request, view: Any) -> bool:
        """Whether the request may go on; raises PermissionDenied where there is more to say than no."""
        if not request.user.is_authenticated:
            return False
        if request.method not in view.allowed_methods:
            raise exceptions.MethodNotAllowed(str(request.method))
        default = Scope.READ if request.method in SAFE_METHODS else Scope.WRITE
        require_scope(request, getattr(view, "required_scope", default))
        narrowed = getattr(request.auth, "toolset_id", None) is not None
        if narrowed and not (request.method in SAFE_METHODS and getattr(view, "keeps_to_toolset", False)):
            raise exceptions.PermissionDenied("This token is narrowed to a toolset.", code="insufficient_scope")
        named = getattr(view, "action_permissions", {}).get(getattr(view, "action", None))
        return bool(request.user.has_perm(named)) if named else super().has_permission(request, view)


# --- No --------------------------------------------------------------------------------------------------------------


class ProblemResponse(Response):
    """An RFC 9457 answer; a browser gets the same content in DRF's page."""

    @property
    def rendered_content(self) -> Any:
        """The body; it calls itself a problem where it is JSON."""
        if self.accepted_renderer.format == "json":
            self.content_type = PROBLEM_TYPE
        return super().rendered_content


def problem_body(code: str, http_status: int, detail: str, request_id: str | None) -> dict[str, Any]:
    """The members that every problem has (RFC 9457, section 3.1); `code` is stable, `detail` is for people."""
    return {
        "type": f"urn:mcpsite:problem:{code}",
        "title": HTTPStatus(http_status).phrase,
        "status": http_status,
        "detail": detail,
        "code": code,
        "request_id": request_id,
    }


def problem_page(request: HttpRequest, http_status: int, code: str, detail: str) -> JsonResponse:
    """The same answer for what fails outside of DRF."""
    body = problem_body(code, http_status, detail, request.META.get(REQUEST_ID))
    return JsonResponse(body, status=http_status, content_type=PROBLEM_TYPE)


def problem(exc: Exception, context: Mapping[str, Any]) -> Response | None:
    """DRF's exception handler: refusals and failures that have a name, as problems. None leaves it to the 500 page."""
    known = _api_exception(exc)
    if known is None:
        return None
    if isinstance(known, exceptions.NotAuthenticated):
        _note_nobody(context["request"])
    headers = {}
    if challenge := getattr(known, "auth_header", None):
        headers["WWW-Authenticate"] = challenge
    if wait := getattr(known, "wait", None):
        headers["Retry-After"] = str(math.ceil(wait))
    request_id = context["request"].META.get(REQUEST_ID)
    if isinstance(known, exceptions.ValidationError):
        body = problem_body("invalid", known.status_code, "Some fields are not valid.", request_id)
        body["errors"] = _field_errors(known.get_full_details())
    else:
        codes = known.get_codes()
        code = codes if isinstance(codes, str) else known.default_code
        body = problem_body(code, known.status_code, str(known.detail), request_id)
    body.update(getattr(known, "members", {}))
    return ProblemResponse(body, status=known.status_code, headers=headers)


def _note_nobody(request: Request) -> None:
    """Record that somebody came without a token. The refusal stands also when the database is away."""
    try:
        _note_turned_away(request, "none")
    except DatabaseError as error:
        logger.warning("a request without a token is not on record: %s", str(error).partition("\n")[0])


class Unavailable(exceptions.APIException):
    """Something that this request needs does not answer."""

    status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    default_code = "unavailable"
    default_detail = "The site cannot answer at this moment."
    wait = 1


class Conflict(exceptions.APIException):
    """The request is sound, but not in the present state."""

    status_code = status.HTTP_409_CONFLICT
    default_code = "conflict"
    default_detail = "Something else depends on it."


# PostgreSQL, appendix A: read_only_sql_transaction, as on a standby, or where an operator has switched writing off.
_READ_ONLY = "25006"


def _api_exception(exc: Exception) -> exceptions.APIException | None:
    match exc:
        case exceptions.APIException():
            return exc
        case Http404():
            return exceptions.NotFound()
        case PermissionDenied():
            return exceptions.PermissionDenied(str(exc) or None)
        case ValidationError():
            return exceptions.ValidationError(as_serializer_error(exc))
        case ProtectedError() | RestrictedError():
            return Conflict("Something else depends on it.", code="in_use")
        case IntegrityError():
            logger.warning("a change was refused by the database: %s", exc)
            return Conflict("Somebody else changed the same at this moment. Read it again, then decide anew.")
        case DataError():
            logger.warning("the database cannot use a value: %s", exc)
            return exceptions.ParseError("A value is beyond what can be stored.", code="bad_request")
        case OperationalError() | InterfaceError():
            logger.error("the database does not answer: %s", exc)
            return Unavailable("The database does not answer.", code="database_unavailable")
        case InternalError() if getattr(exc.__cause__, "sqlstate", None) == _READ_ONLY:
            logger.error("the database does not write: %s", exc)
            return Unavailable("The database can only be read at this moment.", code="database_unavailable")
    return None


def _field_errors(details: Any, prefix: str = "") -> dict[str, list[dict[str, str]]]:
    """Field (nested ones with dots) → its errors; what concerns the whole is under `non_field_errors`."""
    if isinstance(details, Mapping) and "message" not in details:
        found: dict[str, list[dict[str, str]]] = {}
        for name, inner in details.items():
            found.update(_field_errors(inner, f"{prefix}.{name}" if prefix else str(name)))
        return found
    errors = details if isinstance(details, Sequence) and not isinstance(details, str) else [details]
    if any(isinstance(error, Mapping) and "message" not in error for error in errors):
        return _field_errors({str(place): error for place, error in enumerate(errors) if error}, prefix)
    named = [{"code": str(error["code"]), "detail": str(error["message"])} for error in errors]
    return {prefix or "non_field_errors": named}
