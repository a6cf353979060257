"""What the API's description says of every operation: how it authenticates, refuses, tags and limits.

The classes of authentication register by being imported.
"""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ResolvedComponent

from access.rest import PROBLEM_TYPE, problem_body
from audit.conditions import Guarded, Tagged


class BearerScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """API tokens and JWTs."""

    target_class = "access.rest.BearerAuthentication"
    name = "bearer"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """RFC 6750."""
        return {
            "type": "http",
            "scheme": "bearer",
            "description": "An API token (`mcps_…`) or the access token of a session.",
        }


class SessionScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """The admin's session."""

    target_class = "access.rest.SessionAuthentication"
    name = "session"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """A cookie; changes need the CSRF token."""
        return {"type": "apiKey", "in": "cookie", "name": "sessionid"}


_SAID = {
    "304": "It has not changed since the ETag of `If-None-Match`.",
    "400": "The request cannot be understood, or some of it is not valid; `errors` says what.",
    "401": "No credential, or not a valid one.",
    "403": "The roles or the scopes of the token do not allow it.",
    "404": "There is nothing at this address that the caller may see.",
    "406": "There is no such form of the answer: accept JSON.",
    "409": "Sound, but not in the present state.",
    "410": "It was erased.",
    "412": "The object is not in the state that `If-Match` asks for.",
    "413": "The body is larger than any request needs.",
    "415": "The body is not JSON.",
    "416": "There is no such range.",
    "422": "The `Idempotency-Key` was used for a call with other arguments.",
    "429": "Too much at once: wait for `Retry-After`.",
    "503": "PostgreSQL, the ledger or the policy is away: wait for `Retry-After`.",
}
_SUMMARIES = {
    "list": "List {name}s",
    "retrieve": "Show one {name}",
    "create": "Make {article} {name}",
    "update": "Replace {article} {name}",
    "partial_update": "Change {article} {name}",
    "destroy": "Delete {article} {name}",
}
# Where Django's name of a model is not what people say here.
_NAMES = {
    "tools.DataSource": "data source",
    "access.ApiToken": "API token",
    "access.ServiceAccount": "service account",
    "agents.ModelProvider": "model provider",
    "audit.Record": "ledger record",
    "audit.EvidencePack": "evidence pack",
}
_TEXT = {"type": "string"}
_REQUEST_ID = {
    "X-Request-Id": {"schema": _TEXT, "required": True, "description": "Stands in the records of the request as well."}
}
_TAG = {"ETag": {"schema": _TEXT, "description": "Strong validator of the object."}}
_LOCATION = {"Location": {"schema": {"type": "string", "format": "uri"}, "description": "Address of the object."}}
_WAIT = {"Retry-After": {"schema": {"type": "integer", "minimum": 0}, "description": "Seconds to wait."}}
_CHALLENGE = {"WWW-Authenticate": {"schema": _TEXT, "required": True, "description": "The challenge (RFC 6750)."}}
_HEADERS: dict[str, dict[str, Any]] = {"401": _CHALLENGE, "429": _WAIT, "503": _WAIT, "304": _TAG}

_ERROR = {
    "type": "object",
    "required": ["code", "detail"],
    "properties": {"code": _TEXT, "detail": _TEXT},
}
_PROBLEM = {
    "type": "object",
    "description": "RFC 9457. `code` is stable, `detail` is for people.",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": _TEXT,
        "status": {"type": "integer"},
        "detail": _TEXT,
        "code": {"type": "string", "pattern": "^[a-z][a-z0-9_]*$"},
        "request_id": {"type": ["string", "null"]},
        "errors": {
            "type": "object",
            "description": "What is wrong with each field, by its name; with dots for fields within fields.",
            "additionalProperties": {"type": "array", "items": _ERROR},
        },
        "call": {"type": "string", "format": "uuid", "description": "Id of a refused call."},
        "record": {"type": "string", "format": "uuid", "description": "Id of its record."},
    },
}
# The code that each refusal has most often, for the examples.
_CODES = {
    "400": "invalid",
    "401": "not_authenticated",
    "403": "permission_denied",
    "404": "not_found",
    "406": "not_acceptable",
    "409": "conflict",
    "410": "erased",
    "412": "precondition_failed",
    "413": "too_large",
    "415": "unsupported_media_type",
    "416": "range_not_satisfiable",
    "422": "idempotency_key_reused",
    "429": "throttled",
    "503": "database_unavailable",
}
# Refused before the view is asked, whose headers are not there yet.
_EARLY = frozenset({"401", "406", "413", "415"})


class Schema(AutoSchema):
    """An operation with all of its refusals and headers.

    A view says in `further_problems` (action, or method in lower case → statuses) what its own refusals are.
    """

    def get_operation(self, *args: Any, **kwargs: Any) -> dict[str, Any] | None:
        """The operation as OpenAPI; None for one that is not described."""
        operation = super().get_operation(*args, **kwargs)
        if operation is None:
            return None
        responses = operation["responses"]
        for status in self._refusals(operation):
            responses[status] = self._refusal(responses.get(status, {}), status)
        for status, response in sorted(responses.items()):
            response["headers"] = {**_REQUEST_ID, **self._headers(status), **response.get("headers", {})}
        operation["responses"] = dict(sorted(responses.items()))
        operation.setdefault("parameters", []).extend(self._conditions())
        return operation

    def get_summary(self) -> str | None:
        """What the operation does, in a few words."""
        given = super().get_summary()
        model = getattr(getattr(self.view, "queryset", None), "model", None)
        if given or model is None or self._action not in _SUMMARIES:
            return given or self._first_sentence()
        name = _NAMES.get(model._meta.label, model._meta.verbose_name)
        return _SUMMARIES[self._action].format(name=name, article="an" if name[0].lower() in "aeio" else "a")

    def _first_sentence(self) -> str | None:
        said = (self.get_description() or "").strip().partition("\n")[0]
        return said.partition(". ")[0].rstrip(".") or None

    def _insert_field_validators(self, field: Any, schema: dict[str, Any]) -> None:
        super()._insert_field_validators(field, schema)  # type: ignore[no-untyped-call]
        if {"type": "string", "maxLength": 0} in schema.get("oneOf", ()):
            schema["anyOf"] = schema.pop("oneOf")  # the pattern may allow what is empty as well

    @property
    def _action(self) -> str:
        return getattr(self.view, "action", None) or self.method.lower()

    def _refusals(self, operation: dict[str, Any]) -> set[str]:
        found = {"406", "503"}
        guarded = isinstance(self.view, Guarded) and self._action in ("create", "update", "partial_update", "destroy")
        if operation.get("security") != [{}] and operation.get("security"):
            found |= {"401", "403"}
        if "requestBody" in operation:
            found |= {"400", "413", "415"}
        if self._is_list_view():
            found.add("400")
        if "{" in self.path:
            found.add("404")
        if guarded:
            found |= {"409", *(["412"] if self._action != "create" else [])}
        if isinstance(self.view, Tagged) and self._action == "retrieve":
            found.add("304")
        further = getattr(self.view, "further_problems", {})
        return found | {str(status) for status in further.get(self._action, ())}

    def _refusal(self, response: dict[str, Any], status: str) -> dict[str, Any]:
        if status == "304":
            return {"description": _SAID[status]}
        component = ResolvedComponent("Problem", "schemas", schema=_PROBLEM, object="Problem")  # type: ignore[no-untyped-call]
        self.registry.register_on_missing(component)
        said = response.get("description") or _SAID[status]
        example = problem_body(_CODES[status], int(status), said, "df1e1734e63a4a5f8c6b7342ab83866f")
        return {
            **response,
            "description": said,
            "content": {PROBLEM_TYPE: {"schema": component.ref, "example": example}},
        }

    def _headers(self, status: str) -> dict[str, Any]:
        found: dict[str, Any] = dict(_HEADERS.get(status, {}))
        if isinstance(self.view, Tagged) and status in ("200", "201") and not self._is_list_view():
            found |= _TAG if self._action in ("retrieve", "create", "update", "partial_update") else {}
        if isinstance(self.view, Guarded) and status == "201":
            found |= _LOCATION
        further: dict[str, Any] = getattr(self.view, "further_headers", {})
        return found if status in _EARLY else found | further

    def _conditions(self) -> list[dict[str, Any]]:
        names = {"retrieve": "If-None-Match", "update": "If-Match", "partial_update": "If-Match", "destroy": "If-Match"}
        name = names.get(self._action)
        if name is None or not isinstance(self.view, Tagged):
            return []
        said = "ETags, or `*`: " + (
            "304 if the object has one of them." if name[3] == "N" else "412 if it has none of them."
        )
        return [{"name": name, "in": "header", "required": False, "schema": _TEXT, "description": said}]
