"""A user name and a password become a user, or a refusal that tells nothing, and either becomes a record."""

from __future__ import annotations

from typing import Any

from django.contrib.auth import authenticate
from django.http import HttpRequest

from access.attempts import Attempt, TooManyAttempts, begin, succeeded
from access.models import ApiToken, User
from audit.caller import address_of
from audit.changes import record_event
from audit.models import Record


class LoginRefused(Exception):
    """Unknown user, wrong password, inactive, or a service account: the answer is the same, and takes as long."""

    code = "invalid_credentials"


def log_in(request: HttpRequest, username: str, password: str, *, door: str, staff_only: bool = False) -> User:
    """The user, with the login on record. Raises LoginRefused or TooManyAttempts, with the refusal on record."""
    attempt = Attempt(username, address_of(request))
    try:
        begin(attempt)
    except TooManyAttempts as refused:
        if refused.first:  # the rest of a flood is only counted
            record_auth(request, "too_many_attempts", door=door, decision="deny", claimed=username[:150])
        raise
    user = authenticate(request, username=username, password=password)
    if not isinstance(user, User) or user.is_service or (staff_only and not user.is_staff):
        record_auth(request, "invalid_credentials", door=door, decision="deny", claimed=username[:150])
        raise LoginRefused("The user name or the password is wrong.")
    succeeded(attempt)
    record_auth(request, "login", door=door, actor=user)
    return user


def record_auth(
    request: Any,
    code: str,
    *,
    door: str,
    decision: str = "allow",
    actor: User | None = None,
    **columns: Any,
) -> None:
    """Record a login, a logout or what became of a token."""
    record_event(Record.Kind.AUTH, code, door=door, request=request, actor=actor, decision=decision, **columns)


def record_token(request: Any, token: ApiToken, code: str, changes: dict[str, Any], *, door: str) -> None:
    """Record what became of a token, under the token and linked to its user."""
    record_auth(
        request,
        code,
        door=door,
        about=token,
        detail={"action": code, "label": str(token), "changes": changes, "links": [f"access.User:{token.user_id}"]},
    )
