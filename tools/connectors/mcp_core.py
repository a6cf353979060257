"""What is MCP about a connector, whatever carries its messages: greeting, lists of tools, results, errors.

Speaks JSON-RPC itself instead of using the SDK's client, which costs three times the whole call: what comes back is
passed on, not rebuilt from typed models. The era is found once and remembered: `server/discover` (2026-07-28), and
where that is not known the `initialize` handshake of the older revisions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import orjson
from pydantic import Field

from tools.connectors.base import Connector, ConnectorError, Context, Offer, Result, Source, Spec
from tools.egress import Egress

MODERN, LEGACY = "2026-07-28", ("2025-11-25", "2025-06-18", "2025-03-26")
METHOD_NOT_FOUND, UNSUPPORTED_VERSION = -32601, -32022
_META = "io.modelcontextprotocol/"
_CLIENT = {"name": "mcpsite", "version": "1"}
_MODERN_META = {
    f"{_META}protocolVersion": MODERN,
    f"{_META}clientInfo": _CLIENT,
    f"{_META}clientCapabilities": {},
}
_MOST_PAGES, _MOST_TOOLS = 100, 5_000


_T = TypeVar("_T")


class McpTool(Spec):
    """Which of the server's tools it is."""

    name: str = Field(min_length=1, max_length=128, description="The tool's name at the server.")


@dataclass(frozen=True, slots=True)
class Greeting:
    """What was agreed with the server. `headers` go with every request that has a place for them."""

    modern: bool
    headers: Mapping[str, str]
    revision: str
    server: str = "unnamed server"


MODERN_GREETING = Greeting(True, {"MCP-Protocol-Version": MODERN}, MODERN)
NO_GREETING = Greeting(False, {}, "")


class RpcError(Exception):
    """The server answered with a JSON-RPC error."""

    def __init__(self, error: dict[str, Any]) -> None:
        self.code = error.get("code")
        self.message = str(error.get("message", ""))[:500]
        super().__init__(f"{self.message} ({str(self.code)[:20]})")


class SessionEnded(ConnectorError):
    """The server does not know the session, so it has not looked at the request."""

    def __init__(self) -> None:
        super().__init__("upstream_unavailable", "The upstream ended its session.", sent=False)


class Estranged(ConnectorError):
    """Perhaps it is another server by now: it is greeted at the next call."""


class Transport(Protocol):
    """What carries the messages to one server and back. It keeps no deadlines."""

    async def exchange(
        self, greeting: Greeting, method: str, params: dict[str, Any], tool: McpTool | None = None
    ) -> tuple[dict[str, Any], str | None]:
        """The result, and the session id that came with it. Raises RpcError and ConnectorError."""

    async def notify(self, method: str, greeting: Greeting) -> None:
        """Send a notification."""

    def agreed(self, revision: str, session: str | None, server: str) -> Greeting:
        """The greeting after the handshake of the older revisions. Raises ConnectorError."""

    async def close(self, greeting: Greeting | None) -> None:
        """Let go of what is open."""


class McpCore(Connector):
    """One upstream server behind `_upstream`, which the kind sets."""

    discovers = True
    _upstream: Transport

    def __init__(self, source: Source, egress: Egress) -> None:
        super().__init__(source, egress)
        self._greeting: Greeting | None = None
        self._opening = asyncio.Lock()

    # --- The verbs ----------------------------------------------------------------------------------------------------

    async def check(self) -> str:
        """Greet the server anew."""
        greeting = await self._within(self.source.timeout_seconds, self._greet(self._greeting))
        return f"{greeting.server} answers with revision {greeting.revision}."

    async def discover(self) -> list[Offer]:
        """All pages of tools/list, each definition as it came."""
        return await self._within(self.source.timeout_seconds, self._offers())

    async def _offers(self) -> list[Offer]:
        offers: list[Offer] = []
        seen: set[str] = set()
        params: dict[str, Any] = {}
        for _ in range(_MOST_PAGES):
            result = await self._ask("tools/list", params)
            offers += map(self._offer, _tools_of(result))
            cursor = result.get("nextCursor")
            if len(offers) > _MOST_TOOLS:
                break
            if not cursor:
                return offers
            if not isinstance(cursor, str) or cursor in seen:
                raise ConnectorError("bad_upstream_answer", "The upstream's list of tools leads back into itself.")
            seen.add(cursor)
            params = {"cursor": cursor}
        raise ConnectorError(
            "too_many_tools", f"The server lists more than {_MOST_TOOLS} tools or {_MOST_PAGES} pages."
        )

    def _offer(self, definition: dict[str, Any]) -> Offer:
        return Offer(definition["name"], definition, self._spec(definition), _effect(definition.get("annotations")))

    def _spec(self, definition: dict[str, Any]) -> dict[str, Any]:
        """What is needed to call the tool later."""
        return {"name": definition["name"]}

    async def call(self, spec: Spec, arguments: dict[str, Any], context: Context) -> Result:
        """tools/call."""
        assert isinstance(spec, McpTool)
        params: dict[str, Any] = {"name": spec.name, "arguments": arguments}
        if context.traceparent:
            params["_meta"] = {"traceparent": context.traceparent}
        result = await self._within(context.deadline_seconds, self._ask("tools/call", params, spec))
        if result.get("resultType", "complete") != "complete":
            raise ConnectorError("unsupported_result", "The upstream asks for input, which is not passed on yet.")
        if not isinstance(result.get("content"), list):
            raise ConnectorError("bad_upstream_answer", "The upstream's answer has no content.")
        is_error = result.get("isError", False)
        if is_error is not False and is_error is not True:
            raise ConnectorError("bad_upstream_answer", "The upstream's answer has an isError that is no boolean.")
        return Result(result, is_error)

    async def close(self) -> None:
        """Close what carries the messages."""
        greeting, self._greeting = self._greeting, None
        await self._upstream.close(greeting)

    @staticmethod
    async def _within(seconds: float, verb: Coroutine[Any, Any, _T]) -> _T:
        """What the verb gives, with one deadline over everything that belongs to it."""
        try:
            async with asyncio.timeout(seconds):
                return await verb
        except TimeoutError as error:
            raise ConnectorError("upstream_timeout", f"The upstream gave no answer within {seconds:g} s.") from error
        except RpcError as error:
            raise ConnectorError("upstream_refused", f"The upstream refused the request: {error}") from error

    # --- Greeting -----------------------------------------------------------------------------------------------------

    async def _greet(self, stale: Greeting | None = None) -> Greeting:
        """The greeting in force, which is not `stale`."""
        async with self._opening:
            if self._greeting is None or self._greeting is stale:
                self._greeting = None
                self._greeting = await self._discover_era()
            return self._greeting

    async def _discover_era(self) -> Greeting:
        return await self._discover_modern() or await self._initialize()

    async def _discover_modern(self) -> Greeting | None:
        """None from a server that speaks older revisions only."""
        try:
            found = await self._request(MODERN_GREETING, "server/discover", {})
        except (RpcError, ConnectorError) as error:
            # Older servers answer with whatever they have for an unknown method or version.
            if isinstance(error, ConnectorError) and error.code not in ("upstream_http_error", "bad_upstream_answer"):
                raise
            return None
        versions = found.get("supportedVersions")
        if isinstance(versions, list) and MODERN not in versions:
            return None
        meta = found.get("_meta")
        info = meta.get(f"{_META}serverInfo") if isinstance(meta, dict) else None
        return Greeting(True, MODERN_GREETING.headers, MODERN, _name_of(info or found.get("serverInfo")))

    async def _initialize(self) -> Greeting:
        params = {"protocolVersion": LEGACY[0], "capabilities": {}, "clientInfo": _CLIENT}
        answer, session = await self._upstream.exchange(NO_GREETING, "initialize", params)
        version = answer.get("protocolVersion")
        if version not in LEGACY:
            raise ConnectorError(
                "unsupported_version", f"The server speaks revision {str(version)[:40]!r}, which is not known here."
            )
        greeting = self._upstream.agreed(version, session, _name_of(answer.get("serverInfo")))
        await self._upstream.notify("notifications/initialized", greeting)
        return greeting

    def _forget(self, greeting: Greeting) -> None:
        if self._greeting is greeting:
            self._greeting = None

    # --- Asking -------------------------------------------------------------------------------------------------------

    async def _ask(self, method: str, params: dict[str, Any], tool: McpTool | None = None) -> dict[str, Any]:
        """The result, under the greeting in force, or under a new one where the server has ended its session."""
        greeting = self._greeting or await self._greet()
        try:
            return await self._request(greeting, method, params, tool)
        except SessionEnded:
            return await self._request(await self._greet(greeting), method, params, tool)

    async def _request(
        self, greeting: Greeting, method: str, params: dict[str, Any], tool: McpTool | None = None
    ) -> dict[str, Any]:
        if greeting.modern:
            params = {**params, "_meta": {**_MODERN_META, **params.get("_meta", {})}}
        try:
            return (await self._upstream.exchange(greeting, method, params, tool))[0]
        except Estranged:
            self._forget(greeting)
            raise
        except RpcError as error:
            if error.code == UNSUPPORTED_VERSION:
                self._forget(greeting)
            raise


# --- Messages ---------------------------------------------------------------------------------------------------------


def written(message: dict[str, Any]) -> bytes:
    """The message as JSON. Raises ConnectorError."""
    try:
        return orjson.dumps(message)
    except orjson.JSONEncodeError as error:
        raise ConnectorError("invalid_arguments", "The arguments cannot be written as JSON.", sent=False) from error


def parsed(body: bytes) -> dict[str, Any] | None:
    """The JSON object in `body`; None when it is something else."""
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return message if isinstance(message, dict) else None


def result_of(answer: dict[str, Any]) -> dict[str, Any]:
    """The result in a JSON-RPC response. Raises RpcError and ConnectorError."""
    if isinstance(error := answer.get("error"), dict):
        raise RpcError(error)
    if not isinstance(result := answer.get("result"), dict):
        raise ConnectorError("bad_upstream_answer", "The upstream's answer has neither result nor error.")
    return result


def declined(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to what a server asks of its client: no, so that it does not wait."""
    message: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"]}
    if request["method"] == "ping":
        message["result"] = {}
    else:
        message["error"] = {"code": METHOD_NOT_FOUND, "message": "The client did not declare this capability."}
    return message


def _effect(hints: object) -> str | None:
    if not isinstance(hints, dict):
        return None
    return (
        "read" if hints.get("readOnlyHint") is True else "destructive" if hints.get("destructiveHint") is True else None
    )


def _tools_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    tools = result.get("tools")
    if not isinstance(tools, list) or not all(isinstance(t, dict) and isinstance(t.get("name"), str) for t in tools):
        raise ConnectorError("bad_upstream_answer", "The upstream's list of tools is not one.")
    return tools


def _name_of(info: object) -> str:
    name = info.get("name") if isinstance(info, dict) else None
    return str(name)[:120] if name else "unnamed server"
