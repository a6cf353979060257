"""`/mcp` and `/mcp/<toolset>` as an ASGI application, in front of Django, and what a web process keeps for them."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson
from django.conf import settings
from django.http.request import validate_host

from access import policy
from access.models import Scope
from access.snapshot import Principal, Snapshot, ToolEntry
from audit.ledger import Ledger
from gateway import wire
from gateway.auth import Doorman
from gateway.calls import Call, Pipeline, Refused
from gateway.feed import Feed
from gateway.limits import Budgets
from gateway.sources import Connectors
from gateway.wire import Message, WireError

logger = logging.getLogger("gateway")

Scope_ = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_PATH = re.compile(r"/mcp(?:/([a-z0-9][a-z0-9-]{0,47}))?/?")
_SERVER = {"name": "mcpsite", "title": "mcpsite", "version": "1"}
_CAPABILITIES = {"tools": {"listChanged": False}}
_JSON = (b"content-type", b"application/json")
# A list may change with the next grant.
_LIST_TTL_MS = 5_000
_PAGE = 1_000
_PIPELINE_ERRORS = {"unknown_tool": wire.INVALID_PARAMS}


class TooLarge(WireError):
    """The body is larger than `MCP_MAX_BODY_BYTES`."""


class Gateway:
    """What one web process needs for calls: policy, ledger, budgets, connections. `start` it, `stop` it."""

    def __init__(self, conninfo: str) -> None:
        self.ledger = Ledger(conninfo)
        self.connectors = Connectors()
        self.feed = Feed(conninfo, self._swapped)
        self.budgets = Budgets(settings.REDIS_URL, settings.WEB_WORKERS)
        self.pipeline = Pipeline(lambda: self.feed.current, self.ledger, self.budgets, self.connectors.of)
        self.doorman = Doorman(conninfo, self.ledger)

    def _swapped(self, snapshot: Snapshot) -> None:
        self.connectors.replace(snapshot)

    async def start(self) -> None:
        """Begin to connect; returns at once, also when services are away."""
        await self.ledger.start()
        self.feed.start()
        self.doorman.start()

    async def stop(self) -> None:
        """Finish what is under way, then disconnect."""
        await self.doorman.stop()
        await self.feed.stop()
        await self.ledger.stop()
        await self.connectors.close()
        await self.budgets.close()

    def ready(self) -> bool:
        """Whether a call would be served now."""
        return self.feed.current is not None and self.ledger.available

    # --- ASGI ---------------------------------------------------------------------------------------------------------

    def serves(self, path: str) -> bool:
        """Whether the path is the gateway's."""
        return path == "/mcp" or path.startswith("/mcp/")

    async def __call__(self, scope: Scope_, receive: Receive, send: Send) -> None:
        """Answer one HTTP request; never raises for what a client sent."""
        request_id = os.urandom(16).hex()
        extra: list[tuple[bytes, bytes]] = []
        identifier: wire.Id = None
        try:
            headers = wire.headers_of(scope["headers"])
            toolset = self._check(scope, headers)
            snapshot = self.feed.current
            if snapshot is None:
                data = {"mcpsite/code": "policy_unavailable"}
                raise WireError(
                    wire.UNAVAILABLE, "The policy is not loaded. Try again.", status=503, data=data, retry_after=2
                )
            address = _address(scope, headers)
            principal = self.doorman.admit(snapshot, headers, address, request_id)
            if toolset is not None and not self._knows(snapshot, principal, toolset):
                raise WireError(wire.INVALID_REQUEST, f"There is no toolset {toolset!r} here.", status=404)
            message = wire.parse(await _body(receive, headers), headers)
            identifier = message.identifier
            status, body = await self._answer(message, snapshot, principal, toolset, headers, address, request_id)
        except WireError as error:
            error.identifier = identifier if error.identifier is None else error.identifier
            status, body = error.status, wire.error_body(error)
            extra = _error_headers(error)
        except Exception:
            logger.exception("a request at /mcp failed")
            failure = WireError(
                wire.INTERNAL_ERROR, f"Internal error. Name the request {request_id}.", identifier=identifier
            )
            status, body = 500, wire.error_body(failure)
        await _respond(send, status, body, request_id, extra)

    def _check(self, scope: Scope_, headers: wire.Headers) -> str | None:
        """Path, host, origin, method and content type. The toolset that the path names, if it names one."""
        if (match := _PATH.fullmatch(scope["path"])) is None:
            raise WireError(wire.INVALID_REQUEST, "There is nothing here: the endpoint is /mcp.", status=404)
        host = headers.get(b"host", b"").decode("latin-1")
        if host != self._good_host:
            if not validate_host(
                host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host, settings.ALLOWED_HOSTS
            ):
                raise WireError(wire.INVALID_REQUEST, "This host name is not served: see ALLOWED_HOSTS.", status=403)
            self._good_host = host
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1") not in settings.MCP_ALLOWED_ORIGINS:
            raise WireError(wire.INVALID_REQUEST, "Calls from this origin are not allowed.", status=403)
        if scope["method"] != "POST":
            raise WireError(wire.INVALID_REQUEST, "Send messages with POST: there are no streams to open.", status=405)
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
            raise WireError(wire.INVALID_REQUEST, "The body must be application/json.", status=415)
        accept = headers.get(b"accept", b"*/*")
        if b"application/json" not in accept and b"*/*" not in accept and b"application/*" not in accept:
            raise WireError(wire.INVALID_REQUEST, "The answer is application/json: accept it.", status=406)
        return match[1]

    _good_host = ""

    @staticmethod
    def _knows(snapshot: Snapshot, principal: Principal, toolset: str) -> bool:
        return toolset in snapshot.toolsets and any(policy.visible(snapshot, principal, toolset))

    # --- Methods ------------------------------------------------------------------------------------------------------

    async def _answer(
        self,
        message: Message,
        snapshot: Snapshot,
        principal: Principal,
        toolset: str | None,
        headers: wire.Headers,
        address: str,
        request_id: str,
    ) -> tuple[int, bytes]:
        if message.identifier is None or not message.method:
            return 202, b""
        if message.method == "tools/call":
            return 200, await self._call(message, snapshot, principal, toolset, headers, address, request_id)
        if message.method == "tools/list":
            return 200, self._list(message, snapshot, principal, toolset)
        if message.modern and message.method == "server/discover":
            return 200, wire.result_body(message.identifier, _discovered())
        if not message.modern and message.method == "initialize":
            return 200, wire.result_body(message.identifier, _initialized(message))
        if not message.modern and message.method == "ping":
            return 200, wire.result_body(message.identifier, {})
        status = 404 if message.modern else 200
        raise WireError(wire.METHOD_NOT_FOUND, f"There is no method {message.method[:100]!r} here.", status=status)

    async def _call(
        self,
        message: Message,
        snapshot: Snapshot,
        principal: Principal,
        toolset: str | None,
        headers: wire.Headers,
        address: str,
        request_id: str,
    ) -> bytes:
        name, arguments = message.params.get("name"), message.params.get("arguments", {})
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise WireError(wire.INVALID_PARAMS, "tools/call needs a name (string) and arguments (object).")
        tool = snapshot.tools.get(name)
        if message.modern and tool and tool.headers and policy.find(snapshot, principal, name, toolset):
            wire.compare_parameters(headers, tool.headers, arguments)
        call = Call(
            principal=principal,
            tool=name,
            arguments=arguments,
            raw=orjson.dumps(arguments),
            door="mcp",
            toolset=toolset,
            client=message.client or headers.get(b"user-agent", b"").decode("latin-1")[:200] or None,
            address=address,
            request_id=request_id,
            traceparent=message.traceparent,
        )
        try:
            answer = await self.pipeline.call(call)
        except Refused as refusal:
            return _refused(message, refusal)
        result = answer.result
        meta = {"mcpsite/record": str(answer.record_id), "mcpsite/call": str(answer.call_id)}
        if answer.code != "ok":
            meta["mcpsite/code"] = answer.code
        return wire.result_body(message.identifier, _dressed(message, result, meta))

    def _list(self, message: Message, snapshot: Snapshot, principal: Principal, toolset: str | None) -> bytes:
        """A page of the tools that the principal may call, from bytes prepared once for its roles."""
        key = (principal.roles, principal.toolset, Scope.TOOLS in principal.scopes, toolset, message.modern)
        pages = snapshot.lists.get(key)
        if pages is None:
            pages = snapshot.lists[key] = _pages(policy.visible(snapshot, principal, toolset), message.modern)
        page = _cursor(message.params.get("cursor"), len(pages))
        return b'{"jsonrpc":"2.0","id":' + orjson.dumps(message.identifier) + b',"result":' + pages[page] + b"}"


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
    if not isinstance(value, str) or not value.isdecimal() or len(value) > 6 or not 0 < int(value) < pages:
        raise WireError(wire.INVALID_PARAMS, "This cursor is not one of ours: begin without one.", status=200)
    return int(value)


def _discovered() -> dict[str, Any]:
    return {
        "resultType": "complete",
        "supportedVersions": [wire.MODERN, *wire.LEGACY],
        "capabilities": _CAPABILITIES,
        "ttlMs": _LIST_TTL_MS,
        "cacheScope": "private",
        "_meta": {wire.SERVER_INFO_KEY: _SERVER},
    }


def _initialized(message: Message) -> dict[str, Any]:
    """The handshake of the older revisions: the version asked for when it is known, else the newest of them."""
    asked = message.params.get("protocolVersion")
    if not isinstance(asked, str):
        raise WireError(wire.INVALID_PARAMS, "initialize needs a protocolVersion.", status=200)
    version = asked if asked in wire.LEGACY else wire.LEGACY[0]
    return {"protocolVersion": version, "capabilities": _CAPABILITIES, "serverInfo": _SERVER}


def _dressed(message: Message, result: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    """The upstream's result with our ids, and with what the client's era asks for."""
    theirs = result.get("_meta")
    meta = {**theirs, **meta} if isinstance(theirs, dict) else meta
    dressed = {**result, "_meta": meta}
    if message.modern:
        dressed["resultType"] = "complete"
        meta[wire.SERVER_INFO_KEY] = _SERVER
    else:
        dressed.pop("resultType", None)
        meta.pop(wire.SERVER_INFO_KEY, None)
    return dressed


def _refused(message: Message, refusal: Refused) -> bytes:
    """A refusal as the protocol wants it: unknown tools and an absent ledger as errors, the rest as results for the
    model.
    """
    ids = {"mcpsite/code": refusal.code}
    if refusal.record_id:
        ids["mcpsite/record"] = str(refusal.record_id)
    if refusal.call_id:
        ids["mcpsite/call"] = str(refusal.call_id)
    if refusal.code in ("ledger_unavailable", "outcome_unknown"):
        raise WireError(wire.UNAVAILABLE, str(refusal), status=503, data=ids, retry_after=2)
    if code := _PIPELINE_ERRORS.get(refusal.code):
        raise WireError(code, str(refusal), status=400 if message.modern else 200, data=ids)
    result = {"content": [{"type": "text", "text": str(refusal)}], "isError": True}
    return wire.result_body(message.identifier, _dressed(message, result, ids))


async def _body(receive: Receive, headers: wire.Headers) -> bytes:
    limit: int = settings.MCP_MAX_BODY_BYTES
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length) > limit:
        raise TooLarge(wire.INVALID_REQUEST, f"The body is larger than {limit} bytes.", status=413)
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise WireError(wire.INVALID_REQUEST, "Send the body without a content encoding.", status=415)
    chunks: list[bytes] = []
    size = 0
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise WireError(wire.INVALID_REQUEST, "The client left before its request was complete.")
        chunk = event.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise TooLarge(wire.INVALID_REQUEST, f"The body is larger than {limit} bytes.", status=413)
        if not event.get("more_body"):
            return chunk if not chunks else b"".join((*chunks, chunk))
        chunks.append(chunk)


def _address(scope: Scope_, headers: wire.Headers) -> str:
    """Where the request comes from; `X-Forwarded-For` counts only as far as our own proxies wrote it."""
    if settings.TRUSTED_PROXIES and (forwarded := headers.get(b"x-forwarded-for")):
        hops = [hop.strip() for hop in forwarded.decode("latin-1").split(",")]
        return hops[-min(settings.TRUSTED_PROXIES, len(hops))][:64]
    client = scope.get("client")
    return client[0] if client else ""


def _error_headers(error: WireError) -> list[tuple[bytes, bytes]]:
    if error.status == 401:
        return [(b"www-authenticate", b'Bearer realm="mcpsite", error="invalid_token"')]
    if error.status == 405:
        return [(b"allow", b"POST")]
    return [(b"retry-after", str(error.retry_after).encode())] if error.retry_after else []


async def _respond(send: Send, status: int, body: bytes, request_id: str, extra: list[tuple[bytes, bytes]]) -> None:
    headers = [(b"content-length", str(len(body)).encode()), (b"x-request-id", request_id.encode()), *extra]
    headers.append((b"cache-control", b"no-store"))
    if body:
        headers.append(_JSON)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
