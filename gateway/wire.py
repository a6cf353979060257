"""JSON-RPC over streamable HTTP, of both eras of MCP, on one URL: bytes to a request, and what goes back.

Which era a request is of is told by its header, or by its `_meta` (MCP 2026-07-28, basic/transports). The modern era
(2026-07-28) carries everything in each request; the older revisions begin with `initialize`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from tools import exact
from tools.mirrored import value_at

MODERN = "2026-07-28"
LEGACY = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
_ASSUMED = "2025-03-26"
_META = "io.modelcontextprotocol/"
_VERSION_KEY, _CAPABILITIES_KEY, _CLIENT_KEY, _LOG_LEVEL_KEY = (
    f"{_META}protocolVersion",
    f"{_META}clientCapabilities",
    f"{_META}clientInfo",
    f"{_META}logLevel",
)
SERVER_INFO_KEY = f"{_META}serverInfo"
SUBSCRIPTION_KEY = f"{_META}subscriptionId"

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS, INTERNAL_ERROR = -32700, -32600, -32601, -32602, -32603
HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION = -32020, -32021, -32022
UNAVAILABLE = -32010
# Of revisions before 2026-07-28.
RESOURCE_NOT_FOUND = -32002

_NAMED = {
    "tools/call": "name",
    "prompts/get": "name",
    "resources/read": "uri",
    **dict.fromkeys(("tasks/get", "tasks/update", "tasks/cancel"), "taskId"),
}
_ROUTING = (b"mcp-protocol-version", b"mcp-method", b"mcp-name")
# Of these, too, readers would take different ones.
_SINGLE = (b"host", b"origin", b"authorization", b"content-type", b"mcp-session-id", b"last-event-id")
_NUMBER = re.compile(r"-?[0-9]{1,40}(?:\.[0-9]{1,40})?(?:[eE][+-]?[0-9]{1,3})?")
_SENTINEL = re.compile(r"=\?base64\?(.*)\?=", re.DOTALL)
_LONGEST_ID, _LEAST_ID, _GREATEST_ID = 256, -(2**63), 2**64 - 1
# The revision that has batches, and how long we take them.
BATCHING, _LONGEST_BATCH = "2025-03-26", 20
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

# Of the `_meta` of a request: what is about its way to us, and what is told elsewhere.
_OF_ONE_WAY, _TOLD_ELSEWHERE = (_META, "mcpsite/"), frozenset({"progressToken", "traceparent"})

Id = str | int | None
_NOTHING: Mapping[str, Any] = {}


class WireError(Exception):
    """A request that cannot be served: the JSON-RPC error and the HTTP status that go back."""

    def __init__(
        self,
        code: int,
        message: str,
        *,
        status: int = 400,
        data: Any = None,
        identifier: Id = None,
        retry_after: int = 0,
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.status, self.data = code, message, status, data
        self.identifier, self.retry_after = identifier, retry_after


class Message(NamedTuple):
    """One message of a client. `identifier` is None for a notification.

    `method` is empty for a response, and `params` is then the whole of it.
    """

    method: str
    params: dict[str, Any]
    identifier: Id
    modern: bool
    version: str
    client: str | None
    # What the client declared that it can be asked for. That of older revisions is told once, with `initialize`.
    capabilities: Mapping[str, Any] = _NOTHING

    @property
    def wants_news(self) -> bool:
        """Whether the client may want to hear of the request before its answer."""
        meta = self.params.get("_meta")
        return isinstance(meta, dict) and ("progressToken" in meta or _LOG_LEVEL_KEY in meta)

    @property
    def progress_token(self) -> Id:
        """Under which the client wants to hear of progress (basic/utilities/progress)."""
        token = self._meta.get("progressToken")
        return token if isinstance(token, str) or type(token) is int else None

    @property
    def log_level(self) -> str | None:
        """The least level of log messages that the client wants about this request (MCP 2026-07-28, logging)."""
        level = self._meta.get(_LOG_LEVEL_KEY)
        return level if isinstance(level, str) else None

    @property
    def _meta(self) -> Mapping[str, Any]:
        meta = self.params.get("_meta")
        return meta if isinstance(meta, dict) else _NOTHING

    @property
    def traceparent(self) -> str | None:
        """The W3C trace context of the request, when it is well-formed."""
        value = self._meta.get("traceparent")
        return value if isinstance(value, str) and TRACEPARENT.fullmatch(value) else None

    @property
    def extra(self) -> dict[str, Any]:
        """What the client says in `_meta` to whoever answers (basic, "General fields"), `baggage` too."""
        meta = self._meta
        return {name: meta[name] for name in meta if not name.startswith(_OF_ONE_WAY) and name not in _TOLD_ELSEWHERE}


Headers = Mapping[bytes, bytes]


def headers_of(raw: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Header names (lower case) to stripped values; lists in several lines are joined (RFC 9110, section 5.2).

    Raises WireError where a header that has one value occurs twice: readers would differ.
    """
    found: dict[bytes, bytes] = {}
    for name, value in raw:
        found[name] = _joined(name, found[name], value) if name in found else value.strip()
    return found


def _joined(name: bytes, before: bytes, value: bytes) -> bytes:
    if name in _SINGLE:
        raise WireError(INVALID_REQUEST, f"The header {name.decode('latin-1')} occurs twice.")
    if name in _ROUTING or name.startswith(b"mcp-param-"):
        raise WireError(HEADER_MISMATCH, f"The header {name.decode('latin-1')} occurs twice.")
    return b"%b, %b" % (before, value.strip())


def read(body: bytes, headers: Headers) -> Any:
    """The JSON of a message, or of several where the revision has batches. Raises WireError."""
    try:
        content = exact.read(body)
    except ValueError as error:
        raise WireError(PARSE_ERROR, f"The body is not JSON that reads in one way only: {error}"[:500]) from error
    if isinstance(content, list):
        _check_batch(content, headers)
    return content


def _check_batch(messages: list[Any], headers: Headers) -> None:
    if (_header(headers, b"mcp-protocol-version") or _ASSUMED) != BATCHING:
        raise WireError(INVALID_REQUEST, f"Only revision {BATCHING} has batches: send one message in each request.")
    if not 0 < len(messages) <= _LONGEST_BATCH:
        raise WireError(INVALID_REQUEST, f"A batch has at least one message, and at most {_LONGEST_BATCH}.")
    if any(isinstance(each, dict) and each.get("method") == "initialize" for each in messages):
        raise WireError(INVALID_REQUEST, "initialize comes alone, not in a batch.")


def message_of(message: Any, headers: Headers) -> Message:
    """The message with that content, checked against its headers. Raises WireError."""
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        raise WireError(INVALID_REQUEST, 'A message is an object with "jsonrpc": "2.0".')
    identifier = _identifier(message)
    try:
        return _message(message, identifier, headers)
    except WireError as error:
        # The id of a response is ours: with it, the client would take the error for an answer to a request of its own.
        error.identifier = identifier if "method" in message else None
        raise


def identifier_of(content: Any) -> Id:
    """The id of a request of which nothing else is looked at; None where it has none that could be answered to."""
    if not isinstance(content, dict) or "method" not in content:
        return None
    try:
        return _identifier(content)
    except WireError:
        return None


def _identifier(message: dict[str, Any]) -> Id:
    if "id" not in message:
        return None
    value: Id = message["id"]
    if is_id(value):
        return value
    said = f"An id is a whole number of at most 64 bits or a string of at most {_LONGEST_ID} characters."
    raise WireError(INVALID_REQUEST, said)


def is_id(value: Any) -> bool:
    """Whether it can be the id of a request."""
    if isinstance(value, str):
        return len(value) <= _LONGEST_ID
    return type(value) is int and _LEAST_ID <= value <= _GREATEST_ID


def _message(message: dict[str, Any], identifier: Id, headers: Headers) -> Message:
    method, params = message.get("method", ""), message.get("params", {})
    if not isinstance(method, str) or bool(method) is ("result" in message or "error" in message):
        raise WireError(INVALID_REQUEST, "A message has a method, or is a response with a result or an error.")
    if not method:
        _check_response(message)
        params = message
    if not isinstance(params, dict):
        raise WireError(INVALID_PARAMS, "params must be an object.")
    meta = params.get("_meta", {})
    if not isinstance(meta, dict):
        raise WireError(INVALID_PARAMS, "params._meta must be an object.")
    header = _header(headers, b"mcp-protocol-version")
    if header in LEGACY or (header is None and _VERSION_KEY not in meta):
        if meta.get(_VERSION_KEY, header) != header:
            raise WireError(HEADER_MISMATCH, f"The header says revision {header}, the body another one.")
        return Message(method, params, identifier, False, header or _ASSUMED, _client(params.get("clientInfo")))
    return _modern(method, params, meta, identifier, header, headers)


def _check_response(message: dict[str, Any]) -> None:
    """JSON-RPC 2.0, section 5."""
    result, error = message.get("result", {}), message.get("error", {"code": 0, "message": ""})
    sound = isinstance(error, dict) and type(error.get("code")) is int and isinstance(error.get("message"), str)
    has_one = "id" in message and "error" not in message if "result" in message else "error" in message
    if not has_one or not isinstance(result, dict) or not sound:
        said = "A response has either a result (object) and an id, or an error (object with code and message)."
        raise WireError(INVALID_REQUEST, said)


def _modern(
    method: str, params: dict[str, Any], meta: dict[str, Any], identifier: Id, header: str | None, headers: Headers
) -> Message:
    if not method:
        raise WireError(INVALID_REQUEST, f"Revision {MODERN} has no responses of clients: answer in a new request.")
    version = meta.get(_VERSION_KEY)
    if identifier is not None or version is not None:
        if not isinstance(version, str) or not isinstance(meta.get(_CAPABILITIES_KEY), dict):
            raise WireError(
                INVALID_PARAMS, f"params._meta needs {_VERSION_KEY} and {_CAPABILITIES_KEY} in each request."
            )
        if header is None:
            raise WireError(HEADER_MISMATCH, "The header MCP-Protocol-Version is missing.")
        if header != version:
            raise WireError(HEADER_MISMATCH, f"The header says revision {header}, the body {version[:40]}.")
    if header != MODERN:
        data = {"supported": [MODERN, *LEGACY], "requested": header}
        raise WireError(UNSUPPORTED_VERSION, f"Revision {header} is not supported.", data=data)
    if identifier is not None or b"mcp-method" in headers:  # Which headers notifications have is not said.
        _compare(headers, b"mcp-method", method, "Mcp-Method")
    if key := _NAMED.get(method):
        _compare(headers, b"mcp-name", params.get(key), "Mcp-Name")
    client = _client(meta.get(_CLIENT_KEY))
    return Message(method, params, identifier, True, MODERN, client, meta.get(_CAPABILITIES_KEY) or _NOTHING)


def _compare(headers: Headers, name: bytes, wanted: Any, shown: str) -> None:
    value = _header(headers, name)
    if value is None:
        raise WireError(HEADER_MISMATCH, f"The header {shown} is missing.")
    if decoded(value) != wanted:
        raise WireError(HEADER_MISMATCH, f"The header {shown} differs from the body.")


def compare_parameters(headers: Headers, expected: Mapping[str, tuple[str, ...]], arguments: Mapping[str, Any]) -> None:
    """Check the `Mcp-Param-*` headers of a tool's mirrored arguments. Raises WireError (header mismatch)."""
    for name, path in expected.items():
        value = value_at(arguments, path)
        sent = _header(headers, name.encode())
        if value is None and sent is None:
            continue
        if sent is None or value is None or not _same(decoded(sent), value):
            raise WireError(
                HEADER_MISMATCH, f"The header {name} is missing or differs from the argument {'.'.join(path)}."
            )


def _same(sent: str | None, value: Any) -> bool:
    if sent is None:
        return False
    if isinstance(value, bool):
        return sent == ("true" if value else "false")
    if isinstance(value, (int, float)):
        # As numbers: 42.0 is 42.
        return _NUMBER.fullmatch(sent) is not None and Decimal(sent) == Decimal(value)
    return bool(sent == value)


def decoded(value: str) -> str | None:
    """A header value out of its `=?base64?…?=` form, if it is in that form; None when it is broken or not ASCII."""
    match = _SENTINEL.fullmatch(value)
    if match is None:
        return value if value.isascii() else None
    try:
        raw = base64.b64decode(match[1], validate=True)
        return raw.decode() if base64.b64encode(raw).decode() == match[1] else None
    except ValueError:
        return None


def _header(headers: Headers, name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


def _client(info: Any) -> str | None:
    if not isinstance(info, dict) or not isinstance(info.get("name"), str):
        return None
    version = info.get("version")
    return f"{info['name'][:150]} {version[:50] if isinstance(version, str) else ''}".strip()


def result_body(identifier: Id, result: Any) -> bytes:
    """A JSON-RPC response."""
    return exact.written({"jsonrpc": "2.0", "id": identifier, "result": result})


def error_body(error: WireError) -> bytes:
    """A JSON-RPC error response."""
    content: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.data is not None:
        content["data"] = error.data
    # An error that answers nothing in particular has no id (MCP 2025-11-25 and 2026-07-28, basic, "Error Responses").
    known = {} if error.identifier is None else {"id": error.identifier}
    return exact.written({"jsonrpc": "2.0", **known, "error": content})
