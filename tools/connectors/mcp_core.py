"""What is MCP about a connector, whatever carries its messages: greeting, calls and other requests, turns of clients.

Speaks JSON-RPC itself instead of using the SDK's client, which costs three times the whole call: what comes back is
passed on, not rebuilt from typed models. The era is found once and remembered: `server/discover` (2026-07-28), and
where that is not known the `initialize` handshake of the older revisions.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from typing import Any, TypeVar, cast

from tools import exact
from tools.connectors.base import Connector, ConnectorError, Context, Offer, Result, Source, Spec
from tools.connectors.mcp_greeting import (
    CLIENT,
    LEGACY,
    META,
    MODERN,
    MODERN_GREETING,
    MODERN_META,
    NO_GREETING,
    Greeting,
    capabilities_of,
    name_of,
)
from tools.connectors.mcp_input import INPUT_REQUIRED, answered, asks, shown, told
from tools.connectors.mcp_leases import Leases, declared_to_legacy
from tools.connectors.mcp_lists import LISTS, effect, listed
from tools.connectors.mcp_messages import (
    INVALID_PARAMS,
    MISSING_CAPABILITY,
    UNSUPPORTED_VERSION,
    Estranged,
    McpTool,
    RpcError,
    SessionEnded,
    Transport,
)
from tools.connectors.mcp_turn import Turn
from tools.egress import Egress

# What only a server of the modern era answers: header mismatch, missing capability (MCP 2026-07-28, versioning).
_MODERN_ERRORS = (-32020, MISSING_CAPABILITY)
# What the result of a request must have a list of.
_EXPECTED = {"prompts/get": "messages", "resources/read": "contents"}

_T = TypeVar("_T")


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
        for kind, capability, method, key, name in LISTS:
            if kind == "tool" or capability in greeting.capabilities:
                found = await listed(self._ask, kind, method, key, name)
                offers += [
                    self._offer(each) if kind == "tool" else Offer(each[name], each, {}, None, kind) for each in found
                ]
        return offers

    def _offer(self, definition: dict[str, Any]) -> Offer:
        return Offer(definition["name"], definition, self._spec(definition), effect(definition.get("annotations")))

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
        info = meta.get(f"{META}serverInfo") if isinstance(meta, dict) else None
        name = name_of(info or found.get("serverInfo"))
        return Greeting(True, MODERN_GREETING.headers, MODERN, name, capabilities_of(found))

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
        params = {"protocolVersion": LEGACY[0], "capabilities": self._declares, "clientInfo": CLIENT}
        answer, session = await self._upstream.exchange(NO_GREETING, "initialize", params)
        version = answer.get("protocolVersion")
        if version not in LEGACY:
            raise _unknown_revision(shown(version))
        greeting = self._upstream.agreed(version, session, name_of(answer.get("serverInfo")))
        greeting = replace(greeting, capabilities=capabilities_of(answer))
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
            params = told(params, MODERN_META, context)
        try:
            return (await self._upstream.exchange(greeting, method, params, tool, _turn_of(context)))[0]
        except Estranged:
            self._forget(greeting)
            raise
        except RpcError as error:
            if error.code == UNSUPPORTED_VERSION:
                self._forget(greeting)
            raise


def _accompanied(params: dict[str, Any], context: Context) -> dict[str, Any]:
    """The parameters with what the caller says besides."""
    if context.traceparent is None:
        return {**params, "_meta": dict(context.extra)} if context.extra else params
    return {**params, "_meta": {**(context.extra or {}), "traceparent": context.traceparent}}


def _turn_of(context: Context | None) -> Turn | None:
    """Who can be told and asked, in the course of this call."""
    return None if context is None else cast("Turn | None", context.client)


def _supported(error: RpcError) -> list[str]:
    """The revisions that a server names which refuses ours; none when it refuses something else."""
    data = error.error.get("data")
    offered = data.get("supported") if error.code == UNSUPPORTED_VERSION and isinstance(data, dict) else None
    return [each for each in offered if isinstance(each, str)] if isinstance(offered, list) else []


def _unknown_revision(said: str) -> ConnectorError:
    return ConnectorError("unsupported_version", f"The server speaks revision {said[:40]!r}, which is not known here.")
