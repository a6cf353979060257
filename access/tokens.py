"""Issue, verify and revoke what stands for a user: API tokens, and JWTs of one login (a session).

An API token is `mcps_` and 43 random characters (256 bits); only its SHA-256 is kept, which needs no salt or stretching
at that length. A JWT (RFC 7519) carries `aud` and `iss` (our public URL), `sub`, `gen` (the user's generation when it
was made) and `sid` (the session). Raising the generation ends all JWTs of a user; listing a session ends that one. A
refresh token is used once: using it again ends its session (RFC 9700, section 4.14.2).
"""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import jwt
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import F, Q
from django.utils import timezone
from rest_framework_simplejwt.exceptions import TokenBackendError, TokenError
from rest_framework_simplejwt.token_blacklist.models import BlacklistedToken, OutstandingToken
from rest_framework_simplejwt.tokens import RefreshToken

from access.models import ApiToken, RevokedSession, Scope, TokenUse, User
from tools.models import Toolset

PREFIX = "mcps_"
_SHOWN = 12
_LONGEST_JWT = 4096
_NOTED_EVERY = timedelta(minutes=1)


class InvalidToken(Exception):
    """The token is not one of ours, or no longer valid. The answer never says which; `reason` is for the ledger."""

    code = "invalid_token"

    def __init__(self, reason: str = "unknown") -> None:
        super().__init__()
        self.reason = reason


class ReusedToken(InvalidToken):
    """A refresh token that was used before: somebody else may have it, so its session was ended."""

    def __init__(self, user: User, session: str) -> None:
        super().__init__()
        self.user = user
        self.session = session


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified JWT says, before the user's state is looked at."""

    user_id: int
    generation: int
    session: str
    expires: float


# --- API tokens ------------------------------------------------------------------------------------------------------


def new_secret() -> str:
    """A new API token: `mcps_` and 43 URL-safe characters."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(raw: str) -> str:
    """The form in which a token is kept: SHA-256, hexadecimal."""
    return hashlib.sha256(raw.encode("utf-8", "replace")).hexdigest()


def issue(
    user: User,
    *,
    name: str,
    scopes: Sequence[str],
    toolset: Toolset | None = None,
    expires_at: datetime | None = None,
    raw: str | None = None,
) -> tuple[ApiToken, str]:
    """Make an API token for `user` and return it with its secret, which cannot be shown again.

    `raw` gives the secret beforehand. Raises ValueError for an unknown scope, a past expiry or a malformed secret.
    """
    if unknown := set(scopes) - set(Scope.values):
        raise ValueError(f"Unknown scopes: {', '.join(sorted(unknown))}. There are {', '.join(Scope.values)}.")
    if expires_at is not None and expires_at <= timezone.now():
        raise ValueError("The token would be expired already: choose a later time.")
    raw = raw or new_secret()
    if not raw.startswith(PREFIX) or len(raw) < len(PREFIX) + 43:
        raise ValueError(f"A token is {PREFIX} and at least 43 characters.")
    token = ApiToken.objects.create(
        user=user,
        name=name,
        prefix=raw[:_SHOWN],
        digest=digest_of(raw),
        scopes=sorted(set(scopes)),
        toolset=toolset,
        expires_at=expires_at,
    )
    return token, raw


def shown(raw: str) -> str | None:
    """The part of an API token that may be shown; None for what is none."""
    return raw[:_SHOWN] if raw.startswith(PREFIX) and len(raw) > 2 * _SHOWN else None


def why_refused(raw: str) -> str:
    """Why an API token that `find` does not find is refused: `expired`, `revoked`, `inactive` or `unknown`."""
    token = ApiToken.objects.select_related("user").filter(digest=digest_of(raw)).first()
    if token is None:
        return "unknown"
    if token.revoked_at is not None:
        return "revoked"
    return "inactive" if not token.user.is_active else "expired"


def revoke(token: ApiToken) -> None:
    """End the token now; every worker refuses it within a second."""
    if token.revoked_at is None:
        token.revoked_at = timezone.now()
        token.save(update_fields=["revoked_at"])


def find(raw: str) -> ApiToken | None:
    """The valid token with this secret, with its user, or None."""
    alive = Q(revoked_at=None) & (Q(expires_at=None) | Q(expires_at__gt=timezone.now()))
    tokens = ApiToken.objects.select_related("user", "toolset").filter(alive, user__is_active=True)
    return tokens.filter(digest=digest_of(raw)).first()


def note_use(token: ApiToken, address: str | None) -> None:
    """Note that the token is in use, at most once a minute."""
    now = timezone.now()
    used = TokenUse.objects.filter(token=token).first()
    if used is None or now - used.last_used_at > _NOTED_EVERY:
        use = {"last_used_at": now, "last_address": address or ""}
        TokenUse.objects.update_or_create(token=token, defaults=use)


# --- JWTs ------------------------------------------------------------------------------------------------------------


def claims_of(raw: str) -> Claims:
    """Verify signature, algorithm, audience, issuer, times and type of an access token. Raises InvalidToken."""
    if len(raw) > _LONGEST_JWT:
        raise InvalidToken
    try:
        payload = jwt.decode(
            raw,
            settings.SIMPLE_JWT["SIGNING_KEY"],
            algorithms=[settings.SIMPLE_JWT["ALGORITHM"]],
            audience=settings.SIMPLE_JWT["AUDIENCE"],
            issuer=settings.SIMPLE_JWT["ISSUER"],
            options={"require": ["exp", "iat", "aud", "iss", "sub", "jti"]},
        )
        if payload.get("token_type") != "access" or payload["aud"] != settings.SIMPLE_JWT["AUDIENCE"]:
            raise InvalidToken
        return Claims(int(payload["sub"]), int(payload["gen"]), str(payload["sid"]), float(payload["exp"]))
    except (jwt.PyJWTError, KeyError, ValueError, TypeError) as error:
        raise InvalidToken from error


def user_of(claims: Claims) -> User:
    """The active user whose session this still is. Raises InvalidToken."""
    user = User.objects.filter(pk=claims.user_id, is_active=True, generation=claims.generation).first()
    if user is None or RevokedSession.objects.filter(sid=claims.session).exists():
        raise InvalidToken
    return user


def _remember(token: RefreshToken, user: User) -> None:
    # The library would keep the token itself; its id is enough to blacklist it.
    expires = token.current_time + settings.SIMPLE_JWT["REFRESH_TOKEN_LIFETIME"]
    OutstandingToken.objects.create(
        user=user, jti=token["jti"], token="", created_at=token.current_time, expires_at=expires
    )


def _pair(user: User, session: str) -> dict[str, str]:
    refresh = RefreshToken()
    for claim, value in (("sub", str(user.pk)), ("gen", user.generation), ("sid", session)):
        refresh[claim] = value
    _remember(refresh, user)
    return {"access": str(refresh.access_token), "refresh": str(refresh)}


def obtain(user: User) -> dict[str, str]:
    """Begin a session: `{"access": …, "refresh": …}`."""
    return _pair(user, uuid.uuid4().hex)


def _verified(raw: str) -> RefreshToken:
    """A refresh token of ours within its time, blacklisted or not. Raises InvalidToken."""
    try:
        if len(raw) > _LONGEST_JWT:
            raise InvalidToken
        token = RefreshToken(raw, verify=False)  # type: ignore[arg-type]
        token.payload = token.get_token_backend().decode(raw, verify=True)  # type: ignore[arg-type]
        token.check_exp()
        token.verify_token_type()
        int(token["sub"]), int(token["gen"]), str(token["sid"]), str(token["jti"])
    except (TokenBackendError, TokenError, KeyError, ValueError, TypeError) as error:
        raise InvalidToken from error
    return token


def refresh(raw: str) -> dict[str, str]:
    """Exchange a refresh token for a new pair. Raises InvalidToken; a second use ends the session (ReusedToken)."""
    token = _verified(raw)
    user = user_of(_claims(token))
    if not _use_up(token, user):
        _end(token["sid"])
        raise ReusedToken(user, token["sid"])
    return _pair(user, token["sid"])


def _claims(token: RefreshToken) -> Claims:
    payload: dict[str, Any] = token.payload
    return Claims(int(payload["sub"]), int(payload["gen"]), str(payload["sid"]), float(payload["exp"]))


def _use_up(token: RefreshToken, user: User) -> bool:
    """Blacklist the token; False when somebody did so before, also at this very moment."""
    outstanding = OutstandingToken.objects.filter(jti=token["jti"], user=user).first()
    if outstanding is None:
        return False
    try:
        with transaction.atomic():
            BlacklistedToken.objects.create(token=outstanding)
    except IntegrityError:
        return False
    return True


def _end(session: str) -> None:
    longest = settings.SIMPLE_JWT["REFRESH_TOKEN_LIFETIME"] + timedelta(minutes=5)
    RevokedSession.objects.get_or_create(sid=session, defaults={"expires_at": timezone.now() + longest})


def revoke_session(raw: str) -> Claims:
    """End the session of a refresh token, with every access token that came of it. Raises InvalidToken."""
    token = _verified(raw)
    _end(token["sid"])
    return _claims(token)


def end_all_sessions(user: User) -> None:
    """Make every JWT of `user` invalid now."""
    User.objects.filter(pk=user.pk).update(generation=F("generation") + 1)
    user.refresh_from_db(fields=["generation"])


def forget_expired() -> int:
    """Delete what can no longer matter: expired sessions, and refresh tokens past their time. Returns how many."""
    now = timezone.now()
    sessions, _ = RevokedSession.objects.filter(expires_at__lt=now).delete()
    outstanding, _ = OutstandingToken.objects.filter(expires_at__lt=now).delete()
    return sessions + outstanding
