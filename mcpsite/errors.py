"""Failures outside of any view: a problem (RFC 9457) under /api/, Django's own page elsewhere."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.views import defaults

from access.rest import problem_page


def _is_api(request: HttpRequest) -> bool:
    return request.path.startswith("/api/")


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """400."""
    if _is_api(request):
        return problem_page(request, 400, "bad_request", "The request cannot be understood.")
    return defaults.bad_request(request, exception)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    """403."""
    if _is_api(request):
        return problem_page(request, 403, "permission_denied", "You may not do this.")
    return defaults.permission_denied(request, exception)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """404."""
    if _is_api(request):
        return problem_page(
            request, 404, "not_found", "There is nothing at this address. Addresses of the API end with a slash."
        )
    return defaults.page_not_found(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    """500. What went wrong is in the log, under the request id."""
    if _is_api(request):
        return problem_page(request, 500, "internal_error", "Something went wrong here. The log knows more.")
    return defaults.server_error(request)
