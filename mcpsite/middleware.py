"""What every page and REST request gets: an id that also stands in its log lines, its answer and its records."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest, HttpResponseBase
from django.utils.decorators import sync_and_async_middleware

from mcpsite.logs import request_id_now

_ACCEPTABLE = re.compile(r"[A-Za-z0-9._-]{8,64}")


def accepted_request_id(offered: str | None) -> str:
    """The caller's id when it is 8 to 64 plain characters, else a new one."""
    return offered if offered and _ACCEPTABLE.fullmatch(offered) else uuid.uuid4().hex


@sync_and_async_middleware
def request_id(get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]) -> Callable[..., object]:
    """Take or make the request id, and name it in the answer as `X-Request-Id`."""
    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> HttpResponseBase:
            identifier = accepted_request_id(request.headers.get("X-Request-Id"))
            request_id_now.set(identifier)
            response: HttpResponseBase = await get_response(request)  # type: ignore[misc]
            response["X-Request-Id"] = identifier
            return response

        return markcoroutinefunction(middleware)

    def sync_middleware(request: HttpRequest) -> HttpResponseBase:
        identifier = accepted_request_id(request.headers.get("X-Request-Id"))
        request_id_now.set(identifier)
        response: HttpResponseBase = get_response(request)  # type: ignore[assignment]
        response["X-Request-Id"] = identifier
        return response

    return sync_middleware
