"""What goes back to an MCP client: lists from prepared bytes, greetings, results and refusals in its era's form."""

from __future__ import annotations

from typing import Any

import orjson

from access import policy
from access.models import Scope
from access.snapshot import Principal, Snapshot, ToolEntry
from gateway import wire
from gateway.calls import OURS, Answer, Refused
from gateway.wire import Message, WireError

_SERVER = {"name": "mcpsite", "title": "mcpsite", "version": "1"}
_CAPABILITIES = {"tools": {"listChanged": False}}
# A list may change with the next grant.
_LIST_TTL_MS = 5_000
_PAGE = 1_000
_RECORD, _CALL, CODE = f"{OURS}record", f"{OURS}call", f"{OURS}code"


# --- Lists -----------------------------------------------------------------------------------------------------------


def listed(message: Message, snapshot: Snapshot, principal: Principal, toolset: str | None) -> bytes:
    """A page of the tools that the principal may call, as a JSON-RPC response. Raises WireError for a bad cursor."""
    pages = _pages_for(snapshot, principal, toolset, message.modern)
    page = _cursor(message.params.get("cursor"), len(pages))
    return b'{"jsonrpc":"2.0","id":' + orjson.dumps(message.identifier) + b',"result":' + pages[page] + b"}"


def sees(snapshot: Snapshot, principal: Principal, toolset: str) -> bool:
    """Whether the principal may call anything of the toolset; if not, it must look as if there were none."""
    return bool(_visible(snapshot, principal, toolset))


def _key(principal: Principal, toolset: str | None) -> tuple[object, ...]:
    return principal.roles, principal.toolset, Scope.TOOLS in principal.scopes, toolset


def _visible(snapshot: Snapshot, principal: Principal, toolset: str | None) -> list[ToolEntry]:
    key = _key(principal, toolset)
    found: list[ToolEntry] | None = snapshot.lists.get(key)
    if found is None:
        found = policy.visible(snapshot, principal, toolset)
        if toolset is None or toolset in snapshot.toolsets:  # names that clients make up are not kept
            snapshot.lists[key] = found
    return found


def _pages_for(snapshot: Snapshot, principal: Principal, toolset: str | None, modern: bool) -> list[bytes]:
    key = (*_key(principal, toolset), modern)
    pages: list[bytes] | None = snapshot.lists.get(key)
    if pages is None:
        pages = snapshot.lists[key] = _pages(_visible(snapshot, principal, toolset), modern)
    return pages


def _pages(tools: list[ToolEntry], modern: bool) -> list[bytes]:
    pages = []
    for start in range(0, max(1, len(tools)), _PAGE):
        body = b'{"tools":[' + b",".join(tool.definition for tool in tools[start : start + _PAGE]) + b"]"
        if start + _PAGE < len(tools):
            body += b',"nextCursor":"%d"' % (start // _PAGE + 1)
        if modern:
            body += b',"resultType":"complete","ttlMs":%d,"cacheScope":"private","_meta":' % _LIST_TTL_MS
            body += orjson.dumps({wire.SERVER_INFO_KEY: _SERVER})
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
        "capabilities": _CAPABILITIES,
        "ttlMs": _LIST_TTL_MS,
        "cacheScope": "private",
        "_meta": {wire.SERVER_INFO_KEY: _SERVER},
    }
    return wire.result_body(message.identifier, result)


def initialized(message: Message) -> bytes:
    """The handshake of the older revisions: the version asked for when it is known, else the newest of them."""
    asked = message.params.get("protocolVersion")
    if not isinstance(asked, str):
        raise WireError(wire.INVALID_PARAMS, "initialize needs a protocolVersion.", status=200)
    version = asked if asked in wire.LEGACY else wire.LEGACY[0]
    result = {"protocolVersion": version, "capabilities": _CAPABILITIES, "serverInfo": _SERVER}
    return wire.result_body(message.identifier, result)


# --- Calls -----------------------------------------------------------------------------------------------------------


def answered(message: Message, answer: Answer) -> bytes:
    """The upstream's result with the ids under which the call is on record."""
    ours = {_RECORD: str(answer.record_id), _CALL: str(answer.call_id)}
    if answer.code != "ok":
        ours[CODE] = answer.code
    return _dressed(message, answer.body, answer.meta | ours)


def refused(message: Message, refusal: Refused) -> bytes:
    """A refusal as the protocol wants it: a result for the model to read, or a WireError for what is no result."""
    ids = {CODE: refusal.code}
    if refusal.record_id:
        ids[_RECORD] = str(refusal.record_id)
    if refusal.call_id:
        ids[_CALL] = str(refusal.call_id)
    if refusal.code in ("ledger_unavailable", "outcome_unknown"):
        raise WireError(wire.UNAVAILABLE, str(refusal), status=503, data=ids, retry_after=2)
    if refusal.code == "unknown_tool":
        status = 400 if message.modern else 200
        raise WireError(wire.INVALID_PARAMS, str(refusal), status=status, data=ids)
    result = {"content": [{"type": "text", "text": str(refusal)}], "isError": True}
    return _dressed(message, orjson.dumps(result), ids)


def _dressed(message: Message, body: bytes, meta: dict[str, Any]) -> bytes:
    """The response with that result, our words in its `_meta`, and what the client's era asks for."""
    if message.modern:
        kind, meta = b',"resultType":"complete"', meta | {wire.SERVER_INFO_KEY: _SERVER}
    else:
        kind, meta = b"", {name: value for name, value in meta.items() if name != wire.SERVER_INFO_KEY}
    head = b'{"jsonrpc":"2.0","id":' + orjson.dumps(message.identifier) + b',"result":'
    return head + body[:-1] + b',"_meta":' + orjson.dumps(meta) + kind + b"}}"
