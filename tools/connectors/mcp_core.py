"""What is MCP about a connector, whatever carries its messages: greeting, lists of tools, results, errors.

Speaks JSON-RPC itself instead of using the SDK's client, which costs three times the whole call: what comes back is
passed on, not rebuilt from typed models. The era is found once and remembered: `server/discover` (2026-07-28), and
where that is not known the `initialize` handshake of the older revisions.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, cast

import orjson
from pydantic import Field

from tools import exact
from tools.connectors.base import Connector, ConnectorError, Context, Kind, Offer, Result, Source, Spec
from tools.connectors.mcp_input import INPUT_REQUIRED, answered, asks, shown, told
from tools.connectors.mcp_leases import Leases, declared_to_legacy
from tools.connectors.mcp_turn import Turn
from tools.egress import Egress

MODERN, LEGACY = "2026-07-28", ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
METHOD_NOT_FOUND, MISSING_CAPABILITY, UNSUPPORTED_VERSION = -32601, -32021, -32022
# What only a server of the modern era answers: header mismatch, missing capability (MCP 2026-07-28, versioning).
_MODERN_ERRORS = (-32020, MISSING_CAPABILITY)
INVALID_PARAMS = -32602
_META = "io.modelcontextprotocol/"
_CLIENT = {"name": "mcpsite", "version": "1"}
_MODERN_META = {
    f"{_META}protocolVersion": MODERN,
    f"{_META}clientInfo": _CLIENT,
    f"{_META}clientCapabilities": {},
}
# Of one list.
_MOST_PAGES, _MOST_TOOLS, _MOST_LISTED_BYTES = 100, 5_000, 32 * 1024 * 1024


_T = TypeVar("_T")

# What it is about → the capability that a server declares, the method, where the list is in the result, and the name.
_LISTS: tuple[tuple[Kind, str, str, str, str], ...] = (
    ("tool", "tools", "tools/list", "tools", "name"),
    ("prompt", "prompts", "prompts/list", "prompts", "name"),
    ("resource", "resources", "resources/list", "resources", "uri"),
    ("template", "resources", "resources/templates/list", "resourceTemplates", "uriTemplate"),
)
# What the result of a request must have a list of.
_EXPECTED = {"prompts/get": "messages", "resources/read": "contents"}


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
    capabilities: frozenset[str] = frozenset()


MODERN_GREETING = Greeting(True, {"MCP-Protocol-Version": MODERN}, MODERN)
NO_GREETING = Greeting(False, {}, "")


class RpcError(Exception):
    """The server answered with a JSON-RPC error."""

    def __init__(self, error: dict[str, Any]) -> None:
        self.error = error
        self.code = error.get("code")
        self.message = shown(error.get("message", ""), 500)
        super().__init__(f"{self.message} ({shown(self.code, 20)})")


class SessionEnded(ConnectorError):
    """The server does not know the session, so it has not looked at the request."""

    def __init__(self) -> None:
        super().__init__("upstream_unavailable", "The upstream ended its session.", sent=False)


class Estranged(ConnectorError):
    """Perhaps it is another server by now: it is greeted at the next call."""


class Transport(Protocol):
    """What carries the messages to one server and back. It keeps no deadlines."""

    async def exchange(
        self,
        greeting: Greeting,
        method: str,
        params: dict[str, Any],
        tool: McpTool | None = None,
        turn: Turn | None = None,
    ) -> tuple[dict[str, Any], str | None]:
        """The result, and the session id that came with it. Raises RpcError and ConnectorError."""

    async def attend(self, greeting: Greeting, turn: Turn) -> None:
        """Take what the server says of its own accord for what it says in this turn; only in sessions of one call."""

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
    # Whether it can be told which call the server speaks of, also when it carries out several.
    _tells_apart = True

    def __init__(self, source: Source, egress: Egress) -> None:
        super().__init__(source, egress)
        self._greeting: Greeting | None = None
        self._opening = asyncio.Lock()
        self._leases: Leases[McpCore] = Leases(source.options.max_sessions)
        # What a server of the older revisions is told that its client can be asked for, and the level it was set to.
        self._declares: dict[str, Any] = {}
        self._level: tuple[Greeting, str] | None = None

    @property
    def asks_meanwhile(self) -> bool:
        """Servers of the older revisions do; of which kind this one is may not be known yet."""
        return self._greeting is None or not self._greeting.modern

    # --- The verbs ----------------------------------------------------------------------------------------------------

    async def check(self) -> str:
        """Greet the server anew."""
        greeting = await self._within(self.source.timeout_seconds, self._greet(self._greeting))
        return f"{greeting.server} answers with revision {greeting.revision}."

    async def discover(self) -> list[Offer]:
        """All pages of the lists that the server declares, each definition as it came."""
        return await self._within(self.source.timeout_seconds, self._offers())

    async def _offers(self) -> list[Offer]:
        greeting = self._greeting or await self._greet()
        offers = []
        for kind, capability, method, key, name in _LISTS:
            if kind == "tool" or capability in greeting.capabilities:
                listed = await self._listed(kind, method, key, name)
                offers += [
                    self._offer(each) if kind == "tool" else Offer(each[name], each, {}, None, kind) for each in listed
                ]
        return offers

    async def _listed(self, kind: Kind, method: str, key: str, name: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        size = 0
        seen: set[str] = set()
        params: dict[str, Any] = {}
        for _ in range(_MOST_PAGES):
            try:
                result = await self._ask(method, params)
            except RpcError as error:
                if kind != "tool" and error.code == METHOD_NOT_FOUND:
                    return []
                raise
            found += (page := _definitions(result, kind, key, name))
            size += sum(map(_size, page))
            if size > _MOST_LISTED_BYTES:
                said = f"The server's list of {kind}s is larger than {_MOST_LISTED_BYTES // 2**20} MB."
                raise ConnectorError("too_many_tools", said)
            cursor = result.get("nextCursor")
            if len(found) > _MOST_TOOLS:
                break
            if not cursor:
                return found
            if not isinstance(cursor, str) or cursor in seen:
                raise ConnectorError("bad_upstream_answer", f"The upstream's list of {kind}s leads back into itself.")
            seen.add(cursor)
            params = {"cursor": cursor}
        raise ConnectorError(
            "too_many_tools", f"The server lists more than {_MOST_TOOLS} {kind}s or {_MOST_PAGES} pages."
        )

    def _offer(self, definition: dict[str, Any]) -> Offer:
        return Offer(definition["name"], definition, self._spec(definition), _effect(definition.get("annotations")))

    def _spec(self, definition: dict[str, Any]) -> dict[str, Any]:
        """What is needed to call the tool later."""
        return {"name": definition["name"]}

    async def call(self, spec: Spec, arguments: dict[str, Any], context: Context) -> Result:
        """tools/call."""
        if context.client is None:
            return await self._call(spec, arguments, context)
        async with self._turn(context, Turn(context.client)) as (connector, context):
            return await connector._call(spec, arguments, context)

    async def request(self, method: str, params: dict[str, Any], context: Context) -> Result:
        """prompts/get, resources/read, or completion/complete."""
        if context.client is None:
            return await self._requested(method, params, context)
        async with self._turn(context, Turn(context.client)) as (connector, context):
            return await connector._requested(method, params, context)

    async def _call(self, spec: Spec, arguments: dict[str, Any], context: Context) -> Result:
        assert isinstance(spec, McpTool)
        params = _accompanied({"name": spec.name, "arguments": arguments}, context)
        result = await self._within(context.deadline_seconds, self._ask("tools/call", params, spec, context), context)
        if asks(result, "tools/call"):
            result = await self._finished(result, "tools/call", params, context, spec)
            if result.get("resultType") == INPUT_REQUIRED:
                return Result(result, False)
        if not isinstance(result.get("content"), list):
            raise ConnectorError("bad_upstream_answer", "The upstream's answer has no content.")
        is_error = result.get("isError", False)
        if is_error is not False and is_error is not True:
            raise ConnectorError("bad_upstream_answer", "The upstream's answer has an isError that is no boolean.")
        return Result(result, is_error)

    async def _requested(self, method: str, params: dict[str, Any], context: Context) -> Result:
        params = _accompanied(params, context)
        result = await self._within(context.deadline_seconds, self._answered(method, params, context), context)
        if asks(result, method):
            result = await self._finished(result, method, params, context)
            if result.get("resultType") == INPUT_REQUIRED:
                return Result(result, False)
        if (key := _EXPECTED.get(method)) and not isinstance(result.get(key), list):
            raise ConnectorError("bad_upstream_answer", f"The upstream's answer has no {key}.")
        if method == "resources/read" and not result["contents"]:
            refusal = {"code": INVALID_PARAMS, "message": "Resource not found"}
            raise ConnectorError("upstream_refused", "The upstream has no such resource.", refusal=refusal)
        return Result(result, False)

    async def _finished(
        self,
        result: dict[str, Any],
        method: str,
        params: dict[str, Any],
        context: Context,
        tool: McpTool | None = None,
    ) -> dict[str, Any]:
        """The result after that which asks for input; again within the time of a call."""
        rounds = answered(result, method, context, lambda more: self._ask(method, params, tool, more))
        return await self._within(context.deadline_seconds, rounds, context)

    async def _answered(self, method: str, params: dict[str, Any], context: Context) -> dict[str, Any]:
        greeting = self._greeting or await self._greet()
        if method == "completion/complete" and "completions" not in greeting.capabilities:
            return {"completion": {"values": [], "hasMore": False}}
        return await self._ask(method, params, None, context)

    async def close(self) -> None:
        """Close what carries the messages."""
        await self._leases.close()
        greeting, self._greeting = self._greeting, None
        await self._upstream.close(greeting)

    @staticmethod
    async def _within(seconds: float, verb: Coroutine[Any, Any, _T], context: Context | None = None) -> _T:
        """What the verb gives, with one deadline over everything that belongs to it, but for the client's time."""
        turn = _turn_of(context)
        try:
            async with asyncio.timeout(seconds) as limit:
                if turn is None:
                    return await verb
                with turn.holding(limit):
                    return await verb
        except TimeoutError as error:
            raise ConnectorError("upstream_timeout", f"The upstream gave no answer within {seconds:g} s.") from error
        except RpcError as error:
            said = f"The upstream refused the request: {error}"
            code = "capability_missing" if error.code == MISSING_CAPABILITY else "upstream_refused"
            raise ConnectorError(code, said, refusal=error.error) from error

    # --- Turns --------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _turn(self, context: Context, turn: Turn) -> AsyncIterator[tuple[McpCore, Context]]:
        """What carries out a call whose client can be told or asked: this connector, or one that it has for itself."""
        until = time.monotonic() + context.deadline_seconds
        context = context._replace(client=turn)
        try:
            greeting = await self._within(context.deadline_seconds, self._greeted())
            declares = {} if greeting.modern else declared_to_legacy(turn.capabilities)
            # The level of an older server holds for a whole session.
            level = turn.log_level if turn.chose_level and not (greeting.modern and self._tells_apart) else None
            if not declares and level is None:
                yield self, context._replace(deadline_seconds=until - time.monotonic())
                return
            key = (context.actor, exact.ordered(declares))
            leases = self._leases.lease(key, lambda: self._leased(declares), until - time.monotonic())
            async with leases as connector:
                await self._within(until - time.monotonic(), connector._begin(turn, level))
                yield connector, context._replace(deadline_seconds=until - time.monotonic())
        finally:
            turn.close()

    def _leased(self, declares: dict[str, Any]) -> McpCore:
        """Another one of the same kind, which declares this to its server."""
        connector = type(self)(self.source, self.egress)
        connector._declares = declares
        connector.tell = self.tell
        return connector

    async def _begin(self, turn: Turn, level: str | None) -> None:
        """Be there for this turn alone. That an older server logs from the level on is a courtesy."""
        greeting = await self._greeted()
        await self._upstream.attend(greeting, turn)
        if level is None or greeting.modern or "logging" not in greeting.capabilities:
            return
        if self._level != (greeting, level):
            with contextlib.suppress(RpcError):
                await self._ask("logging/setLevel", {"level": level})
                self._level = (greeting, level)

    # --- Greeting -----------------------------------------------------------------------------------------------------

    async def _greet(self, stale: Greeting | None = None) -> Greeting:
        """The greeting in force, which is not `stale`."""
        async with self._opening:
            if self._greeting is None or self._greeting is stale:
                self._greeting = None
                self._greeting = await self._discover_era()
            return self._greeting

    async def _greeted(self) -> Greeting:
        return self._greeting or await self._greet()

    async def _discover_era(self) -> Greeting:
        if self._declares:  # It is known to be of the older revisions.
            return await self._initialize()
        return await self._discover_modern() or await self._initialize()

    async def _discover_modern(self) -> Greeting | None:
        """None from a server that speaks older revisions only."""
        try:
            found = await self._discovered()
        except (RpcError, ConnectorError) as error:
            if isinstance(error, RpcError) and error.code in _MODERN_ERRORS:
                raise
            # Older servers answer with whatever they have for an unknown method or version.
            if isinstance(error, ConnectorError) and error.code not in ("upstream_http_error", "bad_upstream_answer"):
                raise
            return None
        versions = found.get("supportedVersions")
        if not isinstance(versions, list) or MODERN not in versions:  # Some answer whatever they are asked.
            return None
        meta = found.get("_meta")
        info = meta.get(f"{_META}serverInfo") if isinstance(meta, dict) else None
        name = _name_of(info or found.get("serverInfo"))
        return Greeting(True, MODERN_GREETING.headers, MODERN, name, _capabilities_of(found))

    async def _discovered(self) -> dict[str, Any]:
        try:
            return await self._request(MODERN_GREETING, "server/discover", {})
        except RpcError as error:
            offered = _supported(error)
            if MODERN not in offered:
                if offered and not set(offered) & set(LEGACY):
                    raise _unknown_revision(", ".join(offered)) from error
                raise
            return await self._request(MODERN_GREETING, "server/discover", {})

    async def _initialize(self) -> Greeting:
        params = {"protocolVersion": LEGACY[0], "capabilities": self._declares, "clientInfo": _CLIENT}
        answer, session = await self._upstream.exchange(NO_GREETING, "initialize", params)
        version = answer.get("protocolVersion")
        if version not in LEGACY:
            raise _unknown_revision(shown(version))
        greeting = self._upstream.agreed(version, session, _name_of(answer.get("serverInfo")))
        greeting = replace(greeting, capabilities=_capabilities_of(answer))
        await self._upstream.notify("notifications/initialized", greeting)
        return greeting

    def _forget(self, greeting: Greeting) -> None:
        if self._greeting is greeting:
            self._greeting = None

    # --- Asking -------------------------------------------------------------------------------------------------------

    async def _ask(
        self, method: str, params: dict[str, Any], tool: McpTool | None = None, context: Context | None = None
    ) -> dict[str, Any]:
        """The result, under the greeting in force, or under a new one where the server does not know that any more."""
        greeting = self._greeting or await self._greet()
        try:
            return await self._request(greeting, method, params, tool, context)
        except (SessionEnded, RpcError) as error:
            if isinstance(error, RpcError) and error.code != UNSUPPORTED_VERSION:
                raise
            return await self._request(await self._greet(greeting), method, params, tool, context)

    async def _request(
        self,
        greeting: Greeting,
        method: str,
        params: dict[str, Any],
        tool: McpTool | None = None,
        context: Context | None = None,
    ) -> dict[str, Any]:
        if greeting.modern:
            params = told(params, _MODERN_META, context)
        try:
            return (await self._upstream.exchange(greeting, method, params, tool, _turn_of(context)))[0]
        except Estranged:
            self._forget(greeting)
            raise
        except RpcError as error:
            if error.code == UNSUPPORTED_VERSION:
                self._forget(greeting)
            raise


# --- Messages ---------------------------------------------------------------------------------------------------------


def introduced(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a request to a modern server that is made for no client."""
    return {**params, "_meta": _MODERN_META}


def _accompanied(params: dict[str, Any], context: Context) -> dict[str, Any]:
    """The parameters with what the caller says besides."""
    if context.traceparent is None:
        return {**params, "_meta": dict(context.extra)} if context.extra else params
    return {**params, "_meta": {**(context.extra or {}), "traceparent": context.traceparent}}


def written(message: dict[str, Any]) -> bytes:
    """The message as JSON. Raises ConnectorError."""
    try:
        return exact.written(message)
    except orjson.JSONEncodeError as error:
        raise ConnectorError("invalid_arguments", "The arguments cannot be written as JSON.", sent=False) from error


def parsed(body: bytes) -> dict[str, Any] | None:
    """The message in `body`, whose method is a text, if it has one; None when it is something else."""
    try:
        message = exact.taken(body)
    except ValueError:
        return None
    return message if isinstance(message, dict) and isinstance(message.get("method", ""), str) else None


def result_of(answer: dict[str, Any]) -> dict[str, Any]:
    """The result in a JSON-RPC response. Raises RpcError and ConnectorError."""
    if isinstance(error := answer.get("error"), dict):
        raise RpcError(error)
    if not isinstance(result := answer.get("result"), dict):
        raise ConnectorError("bad_upstream_answer", "The upstream's answer has neither result nor error.")
    return result


def _turn_of(context: Context | None) -> Turn | None:
    """Who can be told and asked, in the course of this call."""
    return None if context is None else cast("Turn | None", context.client)


def _effect(hints: object) -> str | None:
    if not isinstance(hints, dict):
        return None
    return (
        "read" if hints.get("readOnlyHint") is True else "destructive" if hints.get("destructiveHint") is True else None
    )


def _definitions(result: dict[str, Any], kind: Kind, key: str, name: str) -> list[dict[str, Any]]:
    found = result.get(key)
    if not isinstance(found, list) or not all(isinstance(t, dict) and isinstance(t.get(name), str) for t in found):
        raise ConnectorError("bad_upstream_answer", f"The upstream's list of {kind}s is not one.")
    return found


def _size(definition: dict[str, Any]) -> int:
    """In bytes; what cannot be written is taken for large."""
    try:
        return len(exact.written(definition))
    except orjson.JSONEncodeError:
        return _MOST_LISTED_BYTES // 8


def _capabilities_of(answer: dict[str, Any]) -> frozenset[str]:
    """What the server declares: `tools`, and `tools.listChanged` where that is true."""
    declared = answer.get("capabilities")
    if not isinstance(declared, dict):
        return frozenset()
    flags = ((name, flag) for name, more in declared.items() if isinstance(more, dict) for flag in more)
    return frozenset(declared) | {f"{name}.{flag}" for name, flag in flags if declared[name][flag] is True}


def _supported(error: RpcError) -> list[str]:
    """The revisions that a server names which refuses ours; none when it refuses something else."""
    data = error.error.get("data")
    offered = data.get("supported") if error.code == UNSUPPORTED_VERSION and isinstance(data, dict) else None
    return [each for each in offered if isinstance(each, str)] if isinstance(offered, list) else []


def _unknown_revision(said: str) -> ConnectorError:
    return ConnectorError("unsupported_version", f"The server speaks revision {said[:40]!r}, which is not known here.")


def _name_of(info: object) -> str:
    name = info.get("name") if isinstance(info, dict) else None
    return name[:120] if isinstance(name, str) and name else "unnamed server"
