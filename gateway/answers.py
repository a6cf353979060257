"""What goes back to an MCP client: lists from prepared bytes, greetings, results and refusals in its era's form."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence, Set
from typing import Any

import orjson

from access import policy
from access.models import Scope
from access.offered import OfferedEntry
from access.snapshot import Principal, Snapshot, ToolEntry
from gateway import older, wire
from gateway.terms import OURS, Answer, Refused
from gateway.wire import Message, WireError
from tools import exact
from tools.connectors.base import Kind

SERVER = {"name": "mcpsite", "title": "mcpsite", "version": "1"}
_CAPABILITIES: dict[str, Any] = {
    "tools": {"listChanged": True},
    "prompts": {"listChanged": True},
    "resources": {"listChanged": True, "subscribe": True},
    "completions": {},
}
# The extension under which a call may become a task.
TASKS = "io.modelcontextprotocol/tasks"
# Method → what it lists, and under which name.
LISTS: dict[str, tuple[Kind, bytes]] = {
    "tools/list": ("tool", b"tools"),
    "prompts/list": ("prompt", b"prompts"),
    "resources/list": ("resource", b"resources"),
    "resources/templates/list": ("template", b"resourceTemplates"),
}
_KINDS: tuple[Kind, ...] = ("tool", "prompt", "resource", "template")
# A list may change with the next grant.
_LIST_TTL_MS = 5_000
_PAGE = 1_000
_RECORD, _CALL, CODE = f"{OURS}record", f"{OURS}call", f"{OURS}code"
# Names and URIs of a list whose server did not answer lately.
_LAST_KNOWN = f"{OURS}last_known"
Silent = Set[uuid.UUID]


# --- Lists -----------------------------------------------------------------------------------------------------------


def listed(message: Message, snapshot: Snapshot, principal: Principal, toolset: str | None) -> bytes:
    """A page of what the principal may use, as a JSON-RPC response. Raises WireError for a bad cursor."""
    pages = _pages_for(snapshot, principal, toolset, message)
    page = _cursor(message.params.get("cursor"), len(pages))
    return b'{"jsonrpc":"2.0","id":' + orjson.dumps(message.identifier) + b',"result":' + pages[page] + b"}"


def sees(snapshot: Snapshot, principal: Principal, toolset: str) -> bool:
    """Whether the principal may use anything of the toolset; if not, it must look as if there were none."""
    return any(_visible(snapshot, principal, toolset, kind) for kind in _KINDS)


def list_key(principal: Principal, toolset: str | None) -> tuple[object, ...]:
    """Who has the same key sees the same lists."""
    return principal.roles, principal.toolset, Scope.TOOLS in principal.scopes, toolset


def _visible(
    snapshot: Snapshot, principal: Principal, toolset: str | None, kind: Kind
) -> list[ToolEntry] | list[OfferedEntry]:
    key = (*list_key(principal, toolset), kind)
    found: list[ToolEntry] | list[OfferedEntry] | None = snapshot.lists.get(key)
    if found is None:
        if kind == "tool":
            found = policy.visible(snapshot, principal, toolset)
        else:
            found = policy.visible_offered(snapshot, principal, kind, toolset)
        if toolset is None or toolset in snapshot.toolsets:  # names that clients make up are not kept
            snapshot.lists[key] = found
    return found


def definitions(snapshot: Snapshot, principal: Principal, toolset: str | None, kind: Kind) -> list[bytes]:
    """What the list of that kind holds, as it is sent."""
    return [entry.definition for entry in _visible(snapshot, principal, toolset, kind)]


def _pages_for(snapshot: Snapshot, principal: Principal, toolset: str | None, message: Message) -> list[bytes]:
    kind, name = LISTS[message.method]
    key = (*list_key(principal, toolset), kind, message.modern)
    pages: list[bytes] | None = snapshot.lists.get(key)
    if pages is None:
        entries = _visible(snapshot, principal, toolset, kind)
        pages = snapshot.lists[key] = _pages(entries, name, message.modern, snapshot.silent)
    return pages


def _pages(entries: Sequence[ToolEntry | OfferedEntry], name: bytes, modern: bool, silent: Silent) -> list[bytes]:
    pages = []
    for start in range(0, max(1, len(entries)), _PAGE):
        page = entries[start : start + _PAGE]
        definitions = [entry.definition for entry in page]
        if name == b"tools" and not modern:
            definitions = [older.definition(each) for each in definitions]
        body = b'{"' + name + b'":[' + b",".join(definitions) + b"]"
        if start + _PAGE < len(entries):
            body += b',"nextCursor":"%d"' % (start // _PAGE + 1)
        meta: dict[str, Any] = {wire.SERVER_INFO_KEY: SERVER} if modern else {}
        if known := [entry.name for entry in page if entry.source.source.id in silent]:
            meta[_LAST_KNOWN] = known
        if modern:
            body += b',"resultType":"complete","ttlMs":%d,"cacheScope":"private"' % _LIST_TTL_MS
        if meta:
            body += b',"_meta":' + orjson.dumps(meta)
        pages.append(body + b"}")
    return pages


def _cursor(value: Any, pages: int) -> int:
    if value is None or value == "":
        return 0
    sound = isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) <= 6
    if not sound or not 0 < int(value) < pages:
        raise WireError(wire.INVALID_PARAMS, "This cursor is not one of ours: begin without one.", status=200)
    return int(value)


# --- Greetings -------------------------------------------------------------------------------------------------------


def discovered(message: Message) -> bytes:
    """The answer to server/discover (MCP 2026-07-28)."""
    result = {
        "resultType": "complete",
        "supportedVersions": [wire.MODERN, *wire.LEGACY],
        "capabilities": {**_CAPABILITIES, "extensions": {TASKS: {}}},
        "ttlMs": _LIST_TTL_MS,
        "cacheScope": "private",
        "_meta": {wire.SERVER_INFO_KEY: SERVER},
    }
    return wire.result_body(message.identifier, result)


def negotiated(message: Message) -> str:
    """The older revision to be spoken: the one asked for when it is known, else the newest. Raises WireError."""
    asked = message.params.get("protocolVersion")
    if not isinstance(asked, str):
        raise WireError(wire.INVALID_PARAMS, "initialize needs a protocolVersion.", status=200)
    return asked if asked in wire.LEGACY else wire.LEGACY[0]


def initialized(message: Message, revision: str, *, in_session: bool) -> bytes:
    """The answer to `initialize`. What needs a session is offered in one only."""
    capabilities = _CAPABILITIES | ({"logging": {}} if in_session else {})
    result = {"protocolVersion": revision, "capabilities": capabilities, "serverInfo": SERVER}
    return wire.result_body(message.identifier, result)


# --- Calls -----------------------------------------------------------------------------------------------------------


def answered(message: Message, answer: Answer) -> bytes:
    """The upstream's result with the ids under which the call is on record."""
    ours = {_RECORD: str(answer.record_id), _CALL: str(answer.call_id)}
    if answer.lacking is not None and message.modern:
        raise _lacking(answer.lacking, ours)
    if answer.code != "ok":
        ours[CODE] = answer.code
    body = answer.body if message.modern else older.result(answer.body)
    return _dressed(message, body, answer.meta | ours)


def used(message: Message, answer: Answer) -> bytes:
    """The upstream's result of what is no tool, likewise. Raises WireError with the upstream's refusal."""
    ids = {_RECORD: str(answer.record_id), _CALL: str(answer.call_id)}
    if answer.code == "ok":
        hints = b""
        if message.modern and message.method == "resources/read":
            hints = b',"ttlMs":%d,"cacheScope":"private"' % answer.ttl_ms
        return _dressed(message, answer.body, answer.meta | ids, hints)
    if answer.lacking is not None and message.modern:
        raise _lacking(answer.lacking, ids)
    error = exact.taken(answer.body)
    number, ids = error["code"], {**ids, CODE: answer.code}
    if number in (wire.INVALID_PARAMS, wire.RESOURCE_NOT_FOUND) and message.method == "resources/read":
        raise _no_resource(message, error["message"], ids)
    # Codes that are not of JSON-RPC itself mean something between the upstream and us only.
    known = wire.PARSE_ERROR <= number <= wire.INVALID_REQUEST
    raise WireError(number if known else wire.INTERNAL_ERROR, error["message"], status=200, data=ids)


def asked(message: Message, answer: Answer, state: str | None) -> bytes:
    """What the upstream asks for, with what the client is to send back besides (MCP 2026-07-28, patterns/mrtr)."""
    ours = {_RECORD: str(answer.record_id), _CALL: str(answer.call_id), CODE: answer.code}
    hints = b"" if state is None else b',"requestState":' + orjson.dumps(state)
    return _dressed(message, answer.body, answer.meta | ours, hints, b"input_required")


def _lacking(required: dict[str, Any], ids: dict[str, Any]) -> WireError:
    """MCP 2026-07-28, basic, "Error Codes"."""
    names = ", ".join(sorted(map(str, required)))[:200] or "which one, it does not say"
    said = f"The upstream needs a capability that the client did not declare: {names}."
    data = {"requiredCapabilities": required, **ids, CODE: "capability_missing"}
    return WireError(wire.MISSING_CAPABILITY, said, data=data)


def _no_resource(message: Message, said: str, ids: dict[str, Any]) -> WireError:
    """MCP 2026-07-28, server/resources, "Error Handling"; older clients know a code of its own."""
    data = {"uri": message.params.get("uri"), **ids}
    if message.modern:
        return WireError(wire.INVALID_PARAMS, said, status=200, data=data)
    return WireError(wire.RESOURCE_NOT_FOUND, said, status=200, data=data)


def refused(message: Message, refusal: Refused) -> bytes:
    """A refusal as the protocol wants it: a result for the model to read, or a WireError for what is no result."""
    ids = {CODE: refusal.code}
    if refusal.record_id:
        ids[_RECORD] = str(refusal.record_id)
    if refusal.call_id:
        ids[_CALL] = str(refusal.call_id)
    if refusal.code in ("ledger_unavailable", "outcome_unknown"):
        raise WireError(wire.UNAVAILABLE, str(refusal), status=503, data=ids, retry_after=2)
    if message.method == "resources/read" and refusal.code == "unknown_resource":
        raise _no_resource(message, "Resource not found", ids)
    if refusal.code == "task_required" and message.modern:
        needed: dict[str, Any] = {"requiredCapabilities": {"extensions": {TASKS: {}}}}
        raise WireError(wire.MISSING_CAPABILITY, str(refusal), data=needed | ids)
    if refusal.code.startswith("unknown_"):
        status = 400 if message.modern else 200
        raise WireError(wire.INVALID_PARAMS, str(refusal), status=status, data=ids)
    if message.method != "tools/call":
        raise WireError(wire.UNAVAILABLE, str(refusal), status=200, data=ids)
    result = {"content": [{"type": "text", "text": str(refusal)}], "isError": True}
    return _dressed(message, orjson.dumps(result), ids)


def too_many_refusals(wait_seconds: float, identifier: wire.Id) -> WireError:
    """What is said in place of another refusal that cannot be put on record now."""
    said = f"Too many calls of yours are refused. Try again in {wait_seconds:.1f} s."
    data, later = {CODE: "too_many_refusals"}, math.ceil(wait_seconds)
    return WireError(wire.UNAVAILABLE, said, status=429, data=data, identifier=identifier, retry_after=later)


def _dressed(
    message: Message, body: bytes, meta: dict[str, Any], hints: bytes = b"", kind_of: bytes = b"complete"
) -> bytes:
    """The response with that result, our words in its `_meta`, and what the client's era asks for."""
    if message.modern:
        kind, meta = b',"resultType":"' + kind_of + b'"' + hints, meta | {wire.SERVER_INFO_KEY: SERVER}
    else:
        kind, meta = b"", {name: value for name, value in meta.items() if name != wire.SERVER_INFO_KEY}
    head = b'{"jsonrpc":"2.0","id":' + orjson.dumps(message.identifier) + b',"result":'
    # In one go: results can be long.
    begun = (b"{",) if body == b"{}" else (memoryview(body)[:-1], b",")
    return b"".join((head, *begun, b'"_meta":', exact.written(meta), kind, b"}}"))


# --- Tasks -----------------------------------------------------------------------------------------------------------


def inlined(answer: Answer) -> bytes:
    """The result that a task ended with: the same that the call would have been answered with."""
    ids = ids_of(answer.call_id, None if answer.code == "ok" else answer.code, answer.record_id)
    begun = (b"{",) if answer.body == b"{}" else (memoryview(answer.body)[:-1], b",")
    return b"".join((*begun, b'"resultType":"complete","_meta":', exact.written(answer.meta | ids), b"}"))


def ids_of(call_id: uuid.UUID | None, code: str | None, record_id: uuid.UUID | None = None) -> dict[str, str]:
    """Our words about a call, as far as there are any."""
    found = {_RECORD: record_id, _CALL: call_id, CODE: code}
    return {name: str(value) for name, value in found.items() if value is not None}


def signed() -> dict[str, Any]:
    """The `_meta` of a modern result that says whose it is."""
    return {"_meta": {wire.SERVER_INFO_KEY: SERVER}}
