"""JSON-RPC over streamable HTTP, of both eras of MCP, on one URL: bytes to a request, and what goes back.

Which era a request is of is told by its header, or by its `_meta` (MCP 2026-07-28, basic/transports). The modern era
(2026-07-28) carries everything in each request; the older revisions begin with `initialize`. Sessions are not issued.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import orjson

from tools.mirrored import value_at
from tools.nesting import is_writable

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

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS, INTERNAL_ERROR = -32700, -32600, -32601, -32602, -32603
HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION = -32020, -32021, -32022
UNAVAILABLE = -32010
# Of revisions before 2026-07-28.
RESOURCE_NOT_FOUND = -32002

_NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
_ROUTING = (b"mcp-protocol-version", b"mcp-method", b"mcp-name")
_SENTINEL = re.compile(r"=\?base64\?(.*)\?=", re.DOTALL)
_LONGEST_ID = 256
_MOST_LEVELS = 240
TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

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


Headers = Mapping[bytes, bytes]


def headers_of(raw: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Header names (lower case) to stripped values. A routing header that occurs twice is refused: readers would
    differ.
    """
    found: dict[bytes, bytes] = {}
    for name, value in raw:
        if name in found and (name in _ROUTING or name.startswith(b"mcp-param-")):
            raise WireError(HEADER_MISMATCH, f"The header {name.decode('latin-1')} occurs twice.")
        found[name] = value.strip()
    return found


def parse(body: bytes, headers: Headers) -> Message:
    """The message in `body`, checked against its headers. Raises WireError."""
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise WireError(PARSE_ERROR, f"The body is not JSON: {error}") from error
    # Only a body with many brackets can be deep.
    if body.count(b"[") + body.count(b"{") > _MOST_LEVELS and not is_writable(message):
        raise WireError(PARSE_ERROR, f"The body is nested more than {_MOST_LEVELS} levels deep.")
    if isinstance(message, list):
        raise WireError(INVALID_REQUEST, "Batches are not supported: send one message in each request.")
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        raise WireError(INVALID_REQUEST, 'A message is an object with "jsonrpc": "2.0".')
    identifier = _identifier(message)
    try:
        return _message(message, identifier, headers)
    except WireError as error:
        error.identifier = identifier
        raise


def _identifier(message: dict[str, Any]) -> Id:
    if "id" not in message:
        return None
    value = message["id"]
    if isinstance(value, str) and len(value) <= _LONGEST_ID:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise WireError(INVALID_REQUEST, f"An id is a whole number or a string of at most {_LONGEST_ID} characters.")


def _message(message: dict[str, Any], identifier: Id, headers: Headers) -> Message:
    method, params = message.get("method", ""), message.get("params", {})
    if not isinstance(method, str) or (not method and "result" not in message and "error" not in message):
        raise WireError(INVALID_REQUEST, "A message has a method, or is a response.")
    if not method:
        params = message
    if not isinstance(params, dict):
        raise WireError(INVALID_PARAMS, "params must be an object.")
    meta = params.get("_meta", {})
    header = _header(headers, b"mcp-protocol-version")
    if header in LEGACY or (header is None and not (isinstance(meta, dict) and _VERSION_KEY in meta)):
        if isinstance(meta, dict) and meta.get(_VERSION_KEY, header) != header:
            raise WireError(HEADER_MISMATCH, f"The header says revision {header}, the body another one.")
        return Message(method, params, identifier, False, header or _ASSUMED, _client(params.get("clientInfo")))
    return _modern(method, params, meta, identifier, header, headers)


def _modern(
    method: str, params: dict[str, Any], meta: Any, identifier: Id, header: str | None, headers: Headers
) -> Message:
    version = meta.get(_VERSION_KEY) if isinstance(meta, dict) else None
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
    _compare(headers, b"mcp-method", method, "Mcp-Method")
    if key := _NAMED.get(method):
        _compare(headers, b"mcp-name", params.get(key), "Mcp-Name")
    meta = meta if isinstance(meta, dict) else _NOTHING
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
        try:
            return float(sent) == float(value)
        except (ValueError, OverflowError):
            return False
    return bool(sent == value)


def decoded(value: str) -> str | None:
    """A header value out of its `=?base64?…?=` form, if it is in that form; None when that is broken."""
    match = _SENTINEL.fullmatch(value)
    if match is None:
        return value
    try:
        raw = base64.b64decode(match[1], validate=True)
        return raw.decode() if base64.b64encode(raw).decode() == match[1] else None
    except (binascii.Error, UnicodeDecodeError):
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
    return orjson.dumps({"jsonrpc": "2.0", "id": identifier, "result": result})


def error_body(error: WireError) -> bytes:
    """A JSON-RPC error response."""
    content: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.data is not None:
        content["data"] = error.data
    return orjson.dumps({"jsonrpc": "2.0", "id": error.identifier, "error": content})
