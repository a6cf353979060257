"""What an HTTP request must be before its body is worth parsing (ASGI 3)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.http.request import split_domain_port, validate_host

from gateway import wire
from gateway.wire import Headers, WireError

ASGIScope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_PATH = re.compile(r"/mcp(?:/([a-z0-9][a-z0-9-]{0,47}))?/?")
_KINDS_OF_JSON = (b"application/json", b"application/*", b"*/*")
_NEVER = re.compile(rb"q=0(?:\.0{0,3})?")
# A body may drip in, but not for ever.
_BODY_SECONDS = 30.0
# Bodies that are still coming in, in one process together.
_MOST_HELD = 64 * 1024 * 1024


def toolset_of(scope: ASGIScope) -> str | None:
    """The toolset that the path names, if it names one. Raises WireError (404)."""
    if (match := _PATH.fullmatch(scope["path"])) is None:
        raise WireError(wire.INVALID_REQUEST, "There is nothing here: the endpoint is /mcp.", status=404)
    return match[1]


def check(scope: ASGIScope, headers: Headers) -> None:
    """Host, origin, method and content types (MCP 2026-07-28, transports, "Security warning"). Raises WireError."""
    if not _is_served(headers.get(b"host", b"").decode("latin-1")):
        raise WireError(wire.INVALID_REQUEST, "This host name is not served: see ALLOWED_HOSTS.", status=403)
    origin = headers.get(b"origin")
    if origin is not None and origin.decode("latin-1") not in settings.MCP_ALLOWED_ORIGINS:
        raise WireError(wire.INVALID_REQUEST, "Calls from this origin are not allowed.", status=403)
    if scope["method"] != "POST":
        _check_session_method(scope["method"], headers)
        return
    if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
        raise WireError(wire.INVALID_REQUEST, "The body must be application/json.", status=415)
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise WireError(wire.INVALID_REQUEST, "Send the body without a content encoding.", status=415)
    if not _takes_json(headers.get(b"accept", b"*/*")):
        raise WireError(wire.INVALID_REQUEST, "The answer is application/json: accept it.", status=406)


def _check_session_method(method: str, headers: Headers) -> None:
    """GET and DELETE are for sessions, which only the older revisions have."""
    version = headers.get(b"mcp-protocol-version", b"").decode("latin-1")
    if version and version not in (wire.MODERN, *wire.LEGACY):
        raise WireError(wire.INVALID_REQUEST, f"Revision {version[:40]} is not supported.")
    if method not in ("GET", "DELETE") or version == wire.MODERN:
        raise WireError(wire.INVALID_REQUEST, "Send messages with POST: this revision has no sessions.", status=405)
    if method == "GET" and b"text/event-stream" not in headers.get(b"accept", b""):
        raise WireError(wire.INVALID_REQUEST, "GET opens an event stream: accept text/event-stream.", status=406)


@lru_cache(64)
def _is_served(host: str) -> bool:
    return validate_host(split_domain_port(host)[0], settings.ALLOWED_HOSTS)


@lru_cache(64)
def _takes_json(accept: bytes) -> bool:
    """Whether a client takes JSON as an answer (RFC 9110, section 12.5.1).

    The specification has clients accept event streams as well, and does not have servers insist.
    """
    for each in accept.lower().split(b","):
        kind, *parameters = (part.strip() for part in each.split(b";"))
        if kind in _KINDS_OF_JSON and not any(_NEVER.fullmatch(parameter) for parameter in parameters):
            return True
    return False


class Intake:
    """Takes bodies in, within limits of size and time for each, and of size for all that are under way."""

    def __init__(self) -> None:
        self._held = 0

    async def body_of(self, receive: Receive, headers: Headers) -> bytes:
        """The whole body. Raises WireError (413, 408, 503, 400)."""
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > settings.MCP_MAX_BODY_BYTES:
            raise _too_large()
        event = await receive() if length != b"0" else None
        if event is not None and not event.get("more_body") and event["type"] == "http.request":
            return bytes(event.get("body", b""))
        body = bytearray()  # not a list of parts, of which each takes more than its own size
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                await self._take(body, receive, event)
        except TimeoutError as error:
            message = f"The body did not come within {_BODY_SECONDS:g} s."
            raise WireError(wire.INVALID_REQUEST, message, status=408) from error
        finally:
            self._held -= len(body)
        return bytes(body)

    async def _take(self, body: bytearray, receive: Receive, event: MutableMapping[str, Any] | None) -> None:
        while True:
            event = event or await receive()
            if event["type"] == "http.disconnect":
                raise WireError(wire.INVALID_REQUEST, "The client left before its request was complete.")
            chunk = event.get("body", b"")
            body += chunk
            self._held += len(chunk)
            if len(body) > settings.MCP_MAX_BODY_BYTES:
                raise _too_large()
            if self._held > _MOST_HELD:
                message = "Too many large requests are under way. Try again in a few seconds."
                raise WireError(wire.UNAVAILABLE, message, status=503, retry_after=5)
            if not event.get("more_body"):
                return
            event = None


def _too_large() -> WireError:
    limit = settings.MCP_MAX_BODY_BYTES
    return WireError(wire.INVALID_REQUEST, f"The body is larger than {limit} bytes.", status=413)


def address_of(scope: ASGIScope, headers: Headers) -> str:
    """Where the request comes from; `X-Forwarded-For` counts only as far as our own proxies wrote it."""
    if settings.TRUSTED_PROXIES and (forwarded := headers.get(b"x-forwarded-for")):
        hops = [hop.strip() for hop in forwarded.decode("latin-1").split(",")]
        return hops[-min(settings.TRUSTED_PROXIES, len(hops))][:64]
    client = scope.get("client")
    return client[0] if client else ""


def error_headers(error: WireError) -> list[tuple[bytes, bytes]]:
    """The headers that the error's status calls for."""
    if error.status == 401:
        return [(b"www-authenticate", b'Bearer realm="mcpsite", error="invalid_token"')]
    if error.status == 405:
        return [(b"allow", b"POST")]
    return [(b"retry-after", str(error.retry_after).encode())] if error.retry_after else []
