"""Who is at the door: what a record says about the request that caused it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.http import HttpRequest

# Where `mcpsite.middleware` leaves the request id, so that no floor below has to import it.
REQUEST_ID = "mcpsite.request_id"
_LONGEST_CLIENT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The columns of a record that name the principal and where the request came from."""

    actor: str | None = None
    actor_id: str | None = None
    token: str | None = None
    roles: str | None = None
    client: str | None = None
    address: str | None = None
    request_id: str | None = None


def caller_of(request: Any = None, actor: Any = None) -> Caller:
    """What is known of the caller. `request` is Django's or DRF's; `actor` is a user who stands for the request's."""
    user: Any = actor if actor is not None else getattr(request, "user", None)
    known = getattr(user, "pk", None) is not None
    meta = {} if request is None else request.META
    return Caller(
        actor=user.get_username() if known else None,
        actor_id=str(user.pk) if known else None,
        roles=",".join(sorted(user.groups.values_list("name", flat=True))) if known else None,
        token=getattr(getattr(request, "auth", None), "label", None),
        client=meta.get("HTTP_USER_AGENT", "")[:_LONGEST_CLIENT] or None,
        address=None if request is None else address_of(request),
        request_id=meta.get(REQUEST_ID),
    )


def address_of(request: HttpRequest) -> str | None:
    """The client's address; behind `TRUSTED_PROXIES` proxies, the one that the outermost of them saw."""
    found = request.META.get("REMOTE_ADDR") or None
    hops = [hop.strip() for hop in request.META.get("HTTP_X_FORWARDED_FOR", "").split(",") if hop.strip()]
    if settings.TRUSTED_PROXIES and len(hops) >= settings.TRUSTED_PROXIES:
        found = hops[-settings.TRUSTED_PROXIES]
    try:
        return str(ipaddress.ip_address(found)) if found else None
    except ValueError:
        return None


def stated(reason: str) -> str:
    """The reason without blanks around it; empty where nobody could read one in it (invisible characters, dots)."""
    return reason.strip() if any(map(str.isalnum, reason)) else ""
