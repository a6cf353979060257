"""Try a tool in the admin: the call enters the one pipeline, and the page tells what each gate of it decided."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from asgiref.sync import async_to_sync
from django.contrib import admin
from django.core import signing
from django.core.cache import cache
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404
from django.template.response import TemplateResponse
from django.urls import reverse

from access import policy
from access.models import Role
from access.snapshot import Principal, Snapshot
from access.tokens import InvalidToken
from audit.caller import caller_of
from audit.models import Record
from gateway import task_admin  # noqa: F401 - registers its own model
from gateway.app import Gateway
from gateway.gates import Gate, explain, unknown_caller
from gateway.shown import Shown, pretty, shown
from gateway.terms import Answer, Call, Refused
from tools import clients, exact
from tools.arguments import (
    ARGUMENT,
    ROWS,
    Field,
    Inexpressible,
    arguments_of,
    draft_of,
    form_of,
    with_row,
    without_row,
)
from tools.models import Tool
from tools.nesting import is_writable

TRY, TRY_AS_ROLE = "tools.try_tool", "tools.try_tool_as_role"
_SALT = "gateway.admin.try"
_CONFIRM_SECONDS = 600
_LOADING = "The policy in force does not know you yet, or is not loaded. Try again in a few seconds."


@dataclass(slots=True)
class Asked:
    """What the page was sent: the arguments as a form or as JSON, and whose rights to use."""

    tool: Tool
    role: Role | None = None
    as_json: bool = False
    draft: Mapping[str, str] = field(default_factory=dict)
    text: str = "{}"
    errors: dict[str, str] = field(default_factory=dict)

    @property
    def form(self) -> Field:
        """The form with what was filled in."""
        return form_of(schema_of(self.tool), self.draft)

    def arguments(self) -> dict[str, Any] | None:
        """The arguments; None when something cannot be read, which `errors` then tells."""
        if not self.as_json:
            found, self.errors = arguments_of(self.form)
            return None if self.errors else found
        try:
            given = exact.taken(self.text or "{}")
        except ValueError as error:
            self.errors = {"text": f"This is not JSON: {error}."}
            return None
        if not isinstance(given, dict):
            self.errors = {"text": "Arguments are an object: { … }."}
            return None
        if not is_writable(given):
            self.errors = {"text": "This is nested too deeply."}
            return None
        return given

    def switch(self) -> None:
        """From the form to JSON or back, with what was filled in; stays where that cannot be done, and says why."""
        given = self.arguments()
        if given is None:
            return
        try:
            if self.as_json:
                self.draft = draft_of(schema_of(self.tool), given)
        except Inexpressible as error:
            self.errors = {"text": str(error)}
            return
        self.text, self.as_json = pretty(given), not self.as_json


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of a call, for the page."""

    gates: list[Gate]
    code: str
    message: str = ""
    result: Shown | None = None
    record_id: uuid.UUID | None = None
    call_id: uuid.UUID | None = None
    record: Record | None = None
    snippets: list[clients.Snippet] = field(default_factory=list)

    @property
    def succeeded(self) -> bool:
        """Whether the tool was called and reports no error."""
        return self.code == "ok"


def try_tool(request: HttpRequest, pk: uuid.UUID) -> HttpResponse:
    """The page of one tool: GET shows the form, POST changes it or makes the call."""
    tool = get_object_or_404(Tool.objects.select_related("source", "current"), pk=pk)
    if not request.user.has_perms(("tools.view_tool", TRY)):
        raise PermissionDenied
    if request.method != "POST":
        asked = Asked(tool)
        asked.as_json = asked.form.kind == "json"
        return _page(request, asked)
    asked = _asked(request, tool)
    do, _, more = request.POST.get("do", "").partition(":")
    match do:
        case "add":
            asked.draft = with_row(asked.draft, more)
        case "remove":
            asked.draft = without_row(asked.draft, more)
        case "switch":
            asked.switch()
        case "call":
            return _send(request, asked, more)
    return _page(request, asked)


def schema_of(tool: Tool) -> dict[str, Any]:
    """The input schema of the published definition; of a tool without one, an object that says nothing."""
    found = exact.taken(tool.current.definition).get("inputSchema") if tool.current else None
    return found if isinstance(found, dict) else {"type": "object"}


def _asked(request: HttpRequest, tool: Tool) -> Asked:
    sent = request.POST
    role = get_object_or_404(Role, pk=sent["role"]) if sent.get("role", "").isdecimal() else None
    if role is not None and not request.user.has_perm(TRY_AS_ROLE):
        raise PermissionDenied
    draft = {name: text for name, text in sent.items() if name.startswith((ARGUMENT, ROWS)) and isinstance(text, str)}
    return Asked(tool, role, sent.get("as_json") == "1", draft, sent.get("text", "{}"))


# --- The call ---------------------------------------------------------------------------------------------------------


def _send(request: HttpRequest, asked: Asked, confirmation: str) -> HttpResponse:
    arguments = asked.arguments()
    if arguments is None:
        return _page(request, asked)
    gateway, snapshot = _gateway(request)
    entry = snapshot.tools.get(asked.tool.name) if snapshot else None
    if (
        entry is not None
        and entry.effect != Tool.Effect.READ
        and not _is_confirmed(request, asked, arguments, confirmation)
    ):
        return _page(request, asked, confirmation=_to_confirm(request, asked, arguments), arguments=pretty(arguments))
    return _page(request, asked, trial=_tried(request, asked, arguments, gateway, snapshot))


def _tried(
    request: HttpRequest, asked: Asked, arguments: dict[str, Any], gateway: Gateway | None, snapshot: Snapshot | None
) -> Trial:
    snippets = clients.calls(asked.tool.name, arguments)
    principal = _principal(request, asked, snapshot)
    if gateway is None or snapshot is None or principal is None:
        return Trial(unknown_caller(_LOADING), "policy_unavailable", _LOADING, snippets=snippets)
    as_role = asked.role.name if asked.role else None
    caller = caller_of(request)
    call = Call(
        principal=principal,
        tool=asked.tool.name,
        arguments=arguments,
        raw=exact.written(arguments),
        door="admin",
        client=caller.client,
        address=caller.address,
        request_id=caller.request_id,
        notes={"tried_as_role": as_role},
    )
    came: Answer | Refused
    try:
        came = async_to_sync(gateway.pipeline.call)(call)
    except Refused as refused:
        came = refused
    gates = explain(asked.tool, snapshot, principal, came if isinstance(came, Refused) else None, as_role)
    return _trial(gates, came, snippets)


def _principal(request: HttpRequest, asked: Asked, snapshot: Snapshot | None) -> Principal | None:
    try:
        own = policy.principal_of_user(snapshot, int(request.user.pk or 0)) if snapshot else None
    except InvalidToken:
        return None
    return policy.as_role(own, asked.role.pk, asked.role.name) if own and asked.role else own


def _trial(gates: list[Gate], came: Answer | Refused, snippets: list[clients.Snippet]) -> Trial:
    record = Record.objects.filter(rid=came.record_id).defer("ct").first() if came.record_id else None
    if isinstance(came, Refused):
        return Trial(gates, came.reason, str(came), None, came.record_id, came.call_id, record, snippets)
    result = shown(exact.taken(came.body))
    return Trial(gates, came.code, "", result, came.record_id, came.call_id, record, snippets)


def _gateway(request: HttpRequest) -> tuple[Gateway | None, Snapshot | None]:
    gateway: Gateway | None = getattr(request, "scope", {}).get("mcpsite.gateway")
    return gateway, gateway.feed.current if gateway else None


# --- Confirmation of effects ------------------------------------------------------------------------------------------


def _what(request: HttpRequest, asked: Asked, arguments: dict[str, Any]) -> list[Any]:
    digest = hashlib.sha256(exact.written(arguments)).hexdigest()
    return [request.user.pk, str(asked.tool.pk), asked.role.pk if asked.role else None, digest]


def _to_confirm(request: HttpRequest, asked: Asked, arguments: dict[str, Any]) -> str:
    """Stands for exactly this call by this user, once."""
    return signing.dumps([*_what(request, asked, arguments), uuid.uuid4().hex], salt=_SALT)


def _is_confirmed(request: HttpRequest, asked: Asked, arguments: dict[str, Any], sent: str) -> bool:
    try:
        *what, once = signing.loads(sent, salt=_SALT, max_age=_CONFIRM_SECONDS)
    except signing.BadSignature:
        return False
    return what == _what(request, asked, arguments) and cache.add(f"tried:{once}", 1, _CONFIRM_SECONDS)


# --- The page ---------------------------------------------------------------------------------------------------------


def _page(request: HttpRequest, asked: Asked, **more: Any) -> HttpResponse:
    tool = asked.tool
    definition = exact.taken(tool.current.definition) if tool.current else {}
    context = {
        **admin.site.each_context(request),
        "title": f"Try {tool.name}",
        "doing": "Try",
        "opts": Tool._meta,
        "original": tool,
        "tool": tool,
        "tool_url": reverse("admin:tools_tool_change", args=(tool.pk,)),
        "description": str(definition.get("description", ""))[:2000],
        "reads": tool.effect == Tool.Effect.READ,
        "asked": asked,
        "form": asked.form,
        "roles": _roles(request, tool),
        "may_see_records": request.user.has_perm("audit.view_record"),
        **more,
    }
    request.current_app = admin.site.name
    return TemplateResponse(request, "admin/try_tool.html", context)


def _roles(request: HttpRequest, tool: Tool) -> list[tuple[str, list[Role]]]:
    """The roles to choose from, those first that a grant lets call the tool; none without the permission."""
    if not request.user.has_perm(TRY_AS_ROLE):
        return []
    _, snapshot = _gateway(request)
    grants = snapshot.grants if snapshot else {}
    every = list(Role.objects.order_by("name"))
    may = [role for role in every if tool.name in grants.get(role.pk, {})]
    return [("With a grant for this tool", may), ("Without one", [role for role in every if role not in may])]
