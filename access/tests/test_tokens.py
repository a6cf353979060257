"""What stands for a user: issued once, verified strictly, ended at once."""

from __future__ import annotations

import base64
import json
import time
from datetime import timedelta
from typing import Any

import jwt
import pytest
from django.conf import settings
from django.db import connection
from django.utils import timezone
from rest_framework_simplejwt.token_blacklist.models import OutstandingToken

from access import tokens
from access.models import ApiToken, RevokedSession, TokenUse, User
from access.tokens import InvalidToken

pytestmark = pytest.mark.django_db


@pytest.fixture
def user() -> User:
    return User.objects.create(username="carla")


# --- API tokens -------------------------------------------------------------------------------------------------------


def test_a_token_is_found_by_its_secret_and_kept_as_a_hash(user: User) -> None:
    token, raw = tokens.issue(user, name="laptop", scopes=["tools"])
    assert tokens.find(raw) == token
    with connection.cursor() as cursor:
        cursor.execute("SELECT t::text FROM access_apitoken t")
        assert raw not in cursor.fetchone()[0]
    assert raw.startswith(token.prefix)
    assert len(token.prefix) == 12


def test_revoked_expired_and_inactive_are_not_found(user: User) -> None:
    token, raw = tokens.issue(user, name="a", scopes=["tools"])
    tokens.revoke(token)
    assert tokens.find(raw) is None
    token, raw = tokens.issue(user, name="b", scopes=["tools"], expires_at=timezone.now() + timedelta(hours=1))
    assert tokens.find(raw) == token
    ApiToken.objects.filter(pk=token.pk).update(expires_at=timezone.now() - timedelta(seconds=1))
    assert tokens.find(raw) is None
    _, raw = tokens.issue(user, name="c", scopes=["tools"])
    User.objects.update(is_active=False)
    assert tokens.find(raw) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"scopes": ["everything"]},
        {"scopes": ["tools"], "expires_at": timezone.now() - timedelta(days=1)},
        {"scopes": ["tools"], "raw": "short"},
    ],
)
def test_what_makes_no_sense_is_not_issued(user: User, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"scope|expired|characters"):
        tokens.issue(user, name="x", **wrong)


# --- JWTs -------------------------------------------------------------------------------------------------------------


def forged(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    claims = {
        "token_type": "access",
        "exp": now + 60,
        "iat": now,
        "jti": "j",
        "sub": "1",
        "gen": 1,
        "sid": "s",
        "aud": settings.PUBLIC_URL,
        "iss": settings.PUBLIC_URL,
    }
    return {name: value for name, value in {**claims, **changes}.items() if value is not None}


def signed(claims: dict[str, Any], key: str = "", algorithm: str = "HS256", **headers: Any) -> str:
    return jwt.encode(claims, key or settings.SECRET_KEY, algorithm=algorithm, headers=headers or None)


def unsigned(claims: dict[str, Any], algorithm: str) -> str:
    parts = [json.dumps({"alg": algorithm, "typ": "JWT"}), json.dumps(claims), ""]
    return ".".join(base64.urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts)


def test_a_sound_token_is_taken() -> None:
    assert tokens.claims_of(signed(forged())).session == "s"


@pytest.mark.parametrize(
    "raw",
    [
        lambda: unsigned(forged(), "none"),
        lambda: unsigned(forged(), "None"),
        lambda: signed(forged(), key="another key that is also long enough to be used"),
        lambda: signed(forged(), algorithm="HS512"),
        lambda: signed(forged(exp=int(time.time()) - 1)),
        lambda: signed(forged(exp=None)),
        lambda: signed(forged(nbf=int(time.time()) + 60)),
        lambda: signed(forged(iat=int(time.time()) + 600)),
        lambda: signed(forged(iss="https://evil.example")),
        lambda: signed(forged(aud="https://evil.example")),
        lambda: signed(forged(aud=[settings.PUBLIC_URL, "https://evil.example"])),
        lambda: signed(forged(aud=None)),
        lambda: signed(forged(token_type="refresh")),
        lambda: signed(forged(gen=None)),
        lambda: signed(forged(sid=None)),
        lambda: signed(forged(sub="one")),
        lambda: signed(forged())[:-2] + "xx",
        lambda: signed(forged()) + ".x",
        lambda: signed(forged(x="y" * 1_000_000)),
        lambda: "",
        lambda: "…",
    ],
)
def test_every_forgery_is_refused(raw: Any) -> None:
    with pytest.raises(InvalidToken):
        tokens.claims_of(raw())


def test_a_key_that_the_token_names_is_never_used() -> None:
    for headers in ({"kid": "../../dev/null"}, {"jku": "http://127.0.0.1:1/"}, {"x5u": "http://127.0.0.1:1/"}):
        assert tokens.claims_of(signed(forged(), **headers)).user_id == 1
        with pytest.raises(InvalidToken):
            tokens.claims_of(signed(forged(), key="x" * 60, **headers))


def test_a_session_is_obtained_and_refreshed(user: User) -> None:
    first = tokens.obtain(user)
    claims = tokens.claims_of(first["access"])
    assert tokens.user_of(claims) == user
    second = tokens.refresh(first["refresh"])
    assert tokens.claims_of(second["access"]).session == claims.session
    assert second["refresh"] != first["refresh"]


def test_refresh_tokens_are_not_kept_in_the_clear(user: User) -> None:
    tokens.obtain(user)
    assert list(OutstandingToken.objects.values_list("token", flat=True)) == [""]


def test_using_a_refresh_token_twice_ends_the_session(user: User) -> None:
    first = tokens.obtain(user)
    second = tokens.refresh(first["refresh"])
    with pytest.raises(InvalidToken):
        tokens.refresh(first["refresh"])
    with pytest.raises(InvalidToken):
        tokens.refresh(second["refresh"])
    with pytest.raises(InvalidToken):
        tokens.user_of(tokens.claims_of(second["access"]))


def test_ending_a_session_leaves_the_others(user: User) -> None:
    one, other = tokens.obtain(user), tokens.obtain(user)
    tokens.revoke_session(one["refresh"])
    with pytest.raises(InvalidToken):
        tokens.user_of(tokens.claims_of(one["access"]))
    assert tokens.user_of(tokens.claims_of(other["access"])) == user


def test_raising_the_generation_ends_all_of_them(user: User) -> None:
    pair = tokens.obtain(user)
    tokens.end_all_sessions(user)
    for attempt in (lambda: tokens.user_of(tokens.claims_of(pair["access"])), lambda: tokens.refresh(pair["refresh"])):
        with pytest.raises(InvalidToken):
            attempt()


def test_an_access_token_cannot_refresh_and_a_refresh_token_cannot_call(user: User) -> None:
    pair = tokens.obtain(user)
    with pytest.raises(InvalidToken):
        tokens.refresh(pair["access"])
    with pytest.raises(InvalidToken):
        tokens.claims_of(pair["refresh"])


def test_what_has_expired_is_forgotten(user: User) -> None:
    pair = tokens.obtain(user)
    tokens.revoke_session(pair["refresh"])
    assert tokens.forget_expired() == 0
    RevokedSession.objects.update(expires_at=timezone.now() - timedelta(days=1))
    OutstandingToken.objects.update(expires_at=timezone.now() - timedelta(days=1))
    assert tokens.forget_expired() == 2


def test_use_is_noted_once_a_minute(user: User) -> None:
    token, _ = tokens.issue(user, name="t", scopes=["read"])
    tokens.note_use(token, "192.0.2.1")
    tokens.note_use(token, "192.0.2.2")
    assert TokenUse.objects.get(token=token).last_address == "192.0.2.1"
    TokenUse.objects.update(last_used_at=timezone.now() - timedelta(minutes=2))
    tokens.note_use(token, "192.0.2.2")
    assert TokenUse.objects.get(token=token).last_address == "192.0.2.2"
