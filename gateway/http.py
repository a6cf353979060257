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
from tools import exact

ASGIScope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_PATH = re.compile(r"/mcp(?:/([a-z0-9][a-z0-9-]{0,47}))?/?")
_KINDS_OF_JSON = (b"application/json", b"application/*", b"*/*")
_KINDS_OF_EVENTS = (b"text/event-stream", b"text/*", b"*/*")
_NEVER = re.compile(rb"q=0(?:\.0{0,3})?")
# A body may drip in, but not for ever. For its first part one timer looks after all, since most are here already.
_BODY_SECONDS, _LOOK_SECONDS = 30.0, 1.0
_GIVEN_UP = -1
# Of a request that is refused unread, the body is looked at if it is small and here soon.
_LARGEST_UNREAD, _UNREAD_SECONDS = 64 * 1024, 1.0
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
    if not _takes(headers.get(b"accept", b"*/*"), _KINDS_OF_JSON):
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


def takes_events(headers: Headers) -> bool:
    """Whether a client takes an event stream as an answer.

    The specification has clients accept both kinds (all revisions, transports, "Sending Messages"), and does not have
    servers insist: who takes JSON alone is told and asked nothing in the course of a request, and gets its result.
    """
    return _takes(headers.get(b"accept", b"*/*"), _KINDS_OF_EVENTS)


@lru_cache(64)
def _takes(accept: bytes, kinds: tuple[bytes, ...]) -> bool:
    """Whether a client takes one of these kinds (RFC 9110, section 12.5.1)."""
    for each in accept.lower().split(b","):
        kind, *parameters = (part.strip() for part in each.split(b";"))
        if kind in kinds and not any(_NEVER.fullmatch(parameter) for parameter in parameters):
            return True
    return False


class Intake:
    """Takes bodies in, within limits of size and time for each, and of size for all that are under way."""

    # As of `Streams`.
    loop: asyncio.AbstractEventLoop | None = None

    def __init__(self) -> None:
        self._held = 0
        # Who waits for the first part of a body, and since which look at them: to ask for the time takes longer.
        self._waiting: dict[asyncio.Task[Any], int] = {}
        self._looks = 0
        self._timer: asyncio.TimerHandle | None = None

    async def body_of(self, receive: Receive, headers: Headers) -> bytes:
        """The whole body. Raises WireError (413, 408, 503, 400)."""
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > settings.MCP_MAX_BODY_BYTES:
            raise _too_large()
        event = await self._first(receive) if length != b"0" else None
        if event is not None and not event.get("more_body") and event["type"] == "http.request":
            return bytes(event.get("body", b""))
        body = bytearray()  # not a list of parts, of which each takes more than its own size
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                await self._take(body, receive, event)
        except TimeoutError as error:
            raise _too_late() from error
        finally:
            self._held -= len(body)
        return bytes(body)

    async def identifier_of(self, receive: Receive, headers: Headers) -> wire.Id:
        """The id of a request that is refused without being read, for its client to know what is answered; None where
        that would take long to find out.
        """
        length = headers.get(b"content-length", b"")
        if not length.isdigit() or not 0 < int(length[:20]) <= _LARGEST_UNREAD:
            return None
        body, event = bytearray(), None
        try:
            async with asyncio.timeout(_UNREAD_SECONDS):
                await self._take(body, receive, event)
            content = exact.read(bytes(body))
        except (TimeoutError, ValueError, WireError):
            return None
        finally:
            self._held -= len(body)
        return wire.identifier_of(content)

    async def _first(self, receive: Receive) -> MutableMapping[str, Any]:
        """The first part of a body. Raises WireError (408)."""
        task = asyncio.current_task(self.loop)
        assert task is not None
        self._waiting[task] = self._looks
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look)
        try:
            return await receive()
        except asyncio.CancelledError:
            if self._waiting[task] != _GIVEN_UP:
                raise
            task.uncancel()
            raise _too_late() from None
        finally:
            del self._waiting[task]

    def _look(self) -> None:
        """Give up those that wait for too long."""
        self._looks += 1
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_LOOK_SECONDS, self._look) if self._waiting else None
        for task, since in tuple(self._waiting.items()):
            if since != _GIVEN_UP and (self._looks - since) * _LOOK_SECONDS > _BODY_SECONDS:
                self._waiting[task] = _GIVEN_UP
                task.cancel()

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


def _too_late() -> WireError:
    return WireError(wire.INVALID_REQUEST, f"The body did not come within {_BODY_SECONDS:g} s.", status=408)


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
