"""Sessions, roles, grants and tokens by REST."""

from __future__ import annotations

import json

import pytest
from django.contrib.auth.models import Permission
from rest_framework.test import APIClient

from access import attempts, tokens
from access.models import ApiToken, Grant, Role, User
from audit.models import Record

pytestmark = pytest.mark.django_db
AUTH = "/api/v1/auth/token/"


def make_user(name: str = "dora", password: str | None = "a-good-password", **values) -> User:
    return User.objects.create_user(name, password=password, **values)


def make_client(user: User) -> APIClient:
    _, secret = tokens.issue(user, name="test", scopes=["read", "write"])
    return APIClient(headers={"Authorization": f"Bearer {secret}"})


def make_manager(*permissions: str) -> APIClient:
    user = make_user("manager", None)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return make_client(user)


def log_in(username: str = "dora", password: str = "a-good-password"):
    return APIClient().post(AUTH, {"username": username, "password": password})


def test_a_session_begins_goes_on_and_ends():
    make_user(is_superuser=True)
    pair = log_in().json()
    read = APIClient(headers={"Authorization": f"Bearer {pair['access']}"})
    assert read.get("/api/v1/tools/").status_code == 200
    assert APIClient().post(f"{AUTH}verify/", {"token": pair["access"]}).status_code == 200
    following = APIClient().post(f"{AUTH}refresh/", {"refresh": pair["refresh"]}).json()
    refreshed = Record.objects.get(code="token_refreshed")
    assert (refreshed.kind, refreshed.actor, refreshed.decision) == ("auth", "dora", "allow")
    assert APIClient().post(f"{AUTH}revoke/", {"refresh": following["refresh"]}).status_code == 200
    assert Record.objects.get(code="logout").token == refreshed.token
    assert read.get("/api/v1/tools/").status_code == 401
    assert APIClient().post(f"{AUTH}verify/", {"token": following["access"]}).status_code == 401
    assert APIClient().post(f"{AUTH}refresh/", {"refresh": following["refresh"]}).status_code == 401


def test_a_refresh_token_that_is_used_twice_ends_the_session():
    make_user()
    pair = log_in().json()
    following = APIClient().post(f"{AUTH}refresh/", {"refresh": pair["refresh"]}).json()
    assert APIClient().post(f"{AUTH}refresh/", {"refresh": pair["refresh"]}).status_code == 401
    assert APIClient().post(f"{AUTH}verify/", {"token": following["access"]}).status_code == 401
    assert Record.objects.filter(code="refresh_reused", actor="dora").count() == 1


def test_nobody_is_told_why_a_login_failed():
    make_user()
    make_user("off", is_active=False)
    make_user("robot", is_service=True)
    refused = [log_in("dora", "wrong"), log_in("nobody"), log_in("off"), log_in("robot")]
    bodies = [{**answer.json(), "request_id": ""} for answer in refused]
    assert {answer.status_code for answer in refused} == {401}
    assert all(body == bodies[0] for body in bodies)
    assert bodies[0]["code"] == "invalid_credentials"


def test_logins_and_failed_logins_are_on_record():
    make_user()
    log_in("dora", "wrong")
    log_in()
    records = Record.objects.filter(kind="auth", actor="dora").order_by("id")
    assert [(each.code, each.decision, each.door) for each in records] == [
        ("invalid_credentials", "deny", "rest"),
        ("login", "allow", "rest"),
    ]
    assert not Record.objects.filter(detail__contains="wrong").exists()


def test_guessing_is_stopped_for_known_and_unknown_accounts_alike():
    make_user()
    for name in ("dora", "nobody"):
        answers = [log_in(name, f"guess {number}").status_code for number in range(attempts.LIMITS["pair"] + 2)]
        assert answers == [401] * attempts.LIMITS["pair"] + [429] * 2
    answer = log_in()
    assert (answer.status_code, answer.json()["code"], answer["Retry-After"]) == (429, "too_many_attempts", "900")
    assert Record.objects.filter(code="too_many_attempts", actor="dora").count() == 1


def test_a_role_is_changed_and_the_change_is_on_record():
    client = make_client(make_user("root", is_superuser=True))
    pk = client.post("/api/v1/roles/", {"name": "support", "description": "old"}).json()["id"]
    assert client.patch(f"/api/v1/roles/{pk}/", {"description": "new"}).status_code == 200
    record = Record.objects.filter(object_type="access.Role", object_id=str(pk)).first()
    assert (record.code, record.actor, record.door) == ("update", "root", "rest")
    assert json.loads(record.detail)["changes"] == {"description": ["old", "new"]}


def test_a_grant_has_exactly_one_target():
    client = make_client(make_user("root", is_superuser=True))
    Role.objects.create(name="support")
    assert client.post("/api/v1/grants/", {"role": "support"}).status_code == 400
    assert client.post("/api/v1/grants/", {"role": "support", "tag": "support"}).status_code == 201


def test_nobody_grants_themselves_tools():
    client = make_manager("add_grant", "change_role", "view_role")
    role = Role.objects.create(name="support")
    User.objects.get(username="manager").groups.add(role)
    answer = client.post("/api/v1/grants/", {"role": "support", "tag": "support"})
    assert (answer.status_code, answer.json()["code"]) == (403, "role_not_editable")
    assert client.patch(f"/api/v1/roles/{role.pk}/", {"description": "mine"}).status_code == 403
    assert not Grant.objects.exists()


def test_a_token_is_shown_once_and_its_making_is_on_record():
    client, user = make_client(make_user("root", is_superuser=True)), make_user("robot", None, is_service=True)
    answer = client.post("/api/v1/tokens/", {"user": "robot", "name": "ci", "scopes": ["tools"]})
    secret, pk = answer.json()["secret"], answer.json()["id"]
    assert answer["Cache-Control"] == "no-store"
    assert tokens.find(secret).user == user
    assert "secret" not in client.get(f"/api/v1/tokens/{pk}/").json()
    record = Record.objects.get(object_type="access.ApiToken", object_id=pk)
    assert (record.kind, record.code) == ("auth", "token_created")
    assert secret not in record.detail
    assert ApiToken.objects.get(pk=pk).digest not in record.detail


def test_deleting_a_token_revokes_it():
    client, user = make_client(make_user("root", is_superuser=True)), make_user("robot", None)
    token, secret = tokens.issue(user, name="ci", scopes=["tools"])
    assert client.delete(f"/api/v1/tokens/{token.pk}/").status_code == 204
    assert tokens.find(secret) is None
    assert Record.objects.filter(code="token_revoked", object_id=str(token.pk)).count() == 1


def test_nobody_makes_or_sees_tokens_of_more_powerful_users():
    client = make_manager("add_apitoken", "view_apitoken", "change_apitoken")
    token, secret = tokens.issue(make_user("root", None, is_superuser=True), name="ci", scopes=["tools"])
    answer = client.post("/api/v1/tokens/", {"user": "root", "name": "mine", "scopes": ["tools"]})
    assert (answer.status_code, answer.json()["code"]) == (403, "user_not_manageable")
    assert client.get(f"/api/v1/tokens/{token.pk}/").status_code == 404
    assert client.delete(f"/api/v1/tokens/{token.pk}/").status_code == 404
    assert tokens.find(secret) is not None


def test_fields_that_are_not_for_callers_are_never_applied():
    client, user = make_client(make_user("root", is_superuser=True)), make_user("robot", None)
    forged = {"prefix": "mine", "digest": "0" * 64, "revoked_at": "2020-01-01T00:00:00Z", "created_at": "2020-01-01"}
    body = {"user": "robot", "name": "ci", "scopes": ["tools"], **forged, "is_superuser": True, "generation": 9}
    token = ApiToken.objects.get(pk=client.post("/api/v1/tokens/", body).json()["id"])
    assert token.prefix != "mine"
    assert token.digest != "0" * 64
    assert token.revoked_at is None
    user.refresh_from_db()
    assert (user.is_superuser, user.generation) == (False, 1)
