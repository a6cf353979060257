"""What every page and REST request gets: an id that also stands in its log lines, its answer and its records.

And what some get: probes an answer before anything that could wait, pages a content security policy that fits them.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable
from typing import cast

from asgiref.sync import async_to_sync, iscoroutinefunction, markcoroutinefunction
from csp.middleware import CSPMiddleware, PolicyParts
from django.http import HttpRequest, HttpResponseBase
from django.middleware.common import CommonMiddleware
from django.utils.decorators import sync_and_async_middleware

from audit.caller import REQUEST_ID
from mcpsite.health import PROBES
from mcpsite.logs import request_id_now

_ACCEPTABLE = re.compile(r"[A-Za-z0-9._-]{8,64}")


def accepted_request_id(offered: str | None) -> str:
    """The caller's id when it is 8 to 64 plain characters, else a new one."""
    return offered if offered and _ACCEPTABLE.fullmatch(offered) else uuid.uuid4().hex


@sync_and_async_middleware
def request_id(
    get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]],
) -> Callable[..., object]:
    """Take or make the request id, and name it in the answer as `X-Request-Id`."""
    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> HttpResponseBase:
            identifier = accepted_request_id(request.headers.get("X-Request-Id"))
            request_id_now.set(identifier)
            request.META[REQUEST_ID] = identifier
            response: HttpResponseBase = await get_response(request)
            response["X-Request-Id"] = identifier
            return response

        return markcoroutinefunction(middleware)

    def sync_middleware(request: HttpRequest) -> HttpResponseBase:
        identifier = accepted_request_id(request.headers.get("X-Request-Id"))
        request_id_now.set(identifier)
        request.META[REQUEST_ID] = identifier
        response: HttpResponseBase = get_response(request)  # type: ignore[assignment]
        response["X-Request-Id"] = identifier
        return response

    return sync_middleware


@sync_and_async_middleware
def probes(
    get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]],
) -> Callable[..., object]:
    """Answer `/health`, `/livez` and `/readyz` first: whoever asks has an address for a host name, and little time."""
    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> HttpResponseBase:
            if (probe := PROBES.get(request.path)) is not None:
                return await probe(request)
            return cast(HttpResponseBase, await get_response(request))

        return markcoroutinefunction(middleware)

    def sync_middleware(request: HttpRequest) -> HttpResponseBase:
        if (probe := PROBES.get(request.path)) is not None:
            return async_to_sync(probe)(request)
        return cast(HttpResponseBase, get_response(request))

    return sync_middleware


class Common(CommonMiddleware):
    """Django's, which adds a slash that is missing. Not to changes by REST: what is sent on comes as GET."""

    def should_redirect_with_slash(self, request: HttpRequest) -> bool:
        """Whether the address is good but for its end, and nothing is lost by sending the caller there."""
        kept = request.method not in ("GET", "HEAD", "OPTIONS") and request.path.startswith("/api/")
        return not kept and super().should_redirect_with_slash(request)


class ContentSecurityPolicy(CSPMiddleware):
    """The policy of the settings is the admin's, whose Alpine.js evaluates text. Elsewhere only our scripts run."""

    def get_policy_parts(
        self, request: HttpRequest, response: HttpResponseBase, report_only: bool = False
    ) -> PolicyParts:
        """The policy for this page."""
        parts = super().get_policy_parts(request, response, report_only)
        if not request.path.startswith("/admin/"):
            parts.replace = {"script-src": ["'self'"], **(parts.replace or {})}
        return parts
