"""What came of a call, in the bytes that its record commits to: the result, or the failure as one that says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gateway.facts import detail_of, passed_on
from gateway.terms import OURS, Call
from tools import exact
from tools.connectors.base import Result
from tools.connectors.mcp_input import INPUT_REQUIRED
from tools.nesting import is_writable

# What is kept of the message with which an upstream refuses a prompt or resource.
_LONGEST_MESSAGE = 1_000
_INTERNAL_ERROR = -32603
_APART = frozenset({"_meta", "resultType"})
_APART_OF_READS = _APART | {"ttlMs", "cacheScope"}
_APART_OF_QUESTIONS = _APART_OF_READS | {"requestState"}


class Outcome(NamedTuple):
    """What a call brought, ready to be committed to and sent."""

    body: bytes
    meta: dict[str, Any]
    code: str
    detail: str | None
    ttl_ms: int = 0
    state: str | None = None
    lacking: dict[str, Any] | None = None
    refusal: Mapping[str, Any] | None = None


def code_of(result: Result) -> str:
    """The stable word for how it ended."""
    code = "tool_error" if result.is_error else "ok"
    if result.content.get("resultType") == INPUT_REQUIRED:
        code = "input_required"
    return code


def outcome_of(call: Call, result: Result, code: str) -> Outcome:
    """Serialise the result apart from its `_meta`. Raises orjson.JSONEncodeError."""
    asks = code == INPUT_REQUIRED
    apart = _APART_OF_QUESTIONS if asks else _APART if call.kind == "tool" else _APART_OF_READS
    content = {name: value for name, value in result.content.items() if name not in apart}
    theirs = result.content.get("_meta")
    meta = {}
    if isinstance(theirs, dict):
        meta = {name: value for name, value in theirs.items() if not name.startswith(OURS)}
        exact.written([[meta]])  # it goes into the answer two levels further down
    # What was given answers is not to be cached (MCP 2026-07-28, server/utilities/caching).
    ttl = 0 if call.kind == "tool" or call.continuation is not None else result.content.get("ttlMs")
    ttl_ms = ttl if type(ttl) is int and ttl > 0 else 0
    state = result.content.get("requestState") if asks else None
    return Outcome(
        exact.written(content), meta, code, detail_of(call.notes, result.notes, passed_on(call)), ttl_ms, state
    )


def failed(call: Call, message: str, code: str, refusal: dict[str, Any] | None = None) -> Outcome:
    """The failure as a result that says so; of what is no tool as a JSON-RPC error, with the upstream's own code."""
    lacking = _lacking(refusal) if code == "capability_missing" else None
    if call.kind == "tool":
        return outcome_of(call, _failure(message), code)._replace(lacking=lacking, refusal=refusal)
    said = (refusal or {}).get("message")
    number = (refusal or {}).get("code")
    error = {
        "code": number if type(number) is int else _INTERNAL_ERROR,
        "message": said[:_LONGEST_MESSAGE] if isinstance(said, str) else message,
    }
    return Outcome(exact.written(error), {}, code, detail_of(call.notes, passed_on(call)), lacking=lacking)


def _lacking(refusal: dict[str, Any] | None) -> dict[str, Any]:
    """Which capabilities the client must declare, as the upstream says (MCP 2026-07-28, error -32021)."""
    data = (refusal or {}).get("data")
    required = data.get("requiredCapabilities") if isinstance(data, dict) else None
    return required if isinstance(required, dict) and is_writable(required) else {}


def _failure(message: str) -> Result:
    return Result({"content": [{"type": "text", "text": message}], "isError": True}, True)
