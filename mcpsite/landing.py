"""The address that people try first: what this is and where to go, as a page or as JSON. It tells nothing secret."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_safe

NAME = "mcpsite"
DESCRIPTION = (
    "A control plane for the Model Context Protocol: it decides which tools people and programs may call, "
    "calls them, and keeps a record of each call."
)
# The pages that anybody may know of, with what they are for.
_PLACES = (
    ("admin", "admin:index", "Administration", "Sign in to manage tools, access and agents, and to read the ledger."),
    ("api_documentation", "api-docs", "API documentation", "Every resource of the REST API, to read and to try."),
    ("api", "api-root", "REST API", "For programs: send a token with each request."),
    ("health", "health", "Health", "Whether the service and its databases answer."),
)


@require_safe
def home(request: HttpRequest) -> HttpResponse:
    """HTML for browsers, JSON for whoever asks for it and not for HTML."""
    places = [
        {"key": key, "url": settings.PUBLIC_URL + reverse(name), "title": title, "text": text}
        for key, name, title, text in _PLACES
    ]
    mcp = f"{settings.PUBLIC_URL}/mcp"
    response = _json(places, mcp) if _wants_json(request) else _page(request, places, mcp)
    response["Vary"] = "Accept"
    return response


def _wants_json(request: HttpRequest) -> bool:
    return request.get_preferred_type(["text/html", "application/json"]) == "application/json"


def _json(places: list[dict[str, str]], mcp: str) -> HttpResponse:
    links: dict[str, Any] = {each["key"]: each["url"] for each in places}
    return JsonResponse({"name": NAME, "description": DESCRIPTION, "links": {"mcp": mcp, **links}})


def _page(request: HttpRequest, places: list[dict[str, str]], mcp: str) -> HttpResponse:
    context = {"name": NAME, "description": DESCRIPTION, "places": places, "mcp": mcp}
    return render(request, "landing.html", context)


@require_safe
def api_docs(request: HttpRequest) -> HttpResponse:
    """The REST API to try out (Swagger UI), or with `?read` to read (Redoc). Both come from this site."""
    return render(request, "api_docs.html", {"reading": "read" in request.GET})
