"""Users by REST: nobody gives what they do not have, and passwords only go in."""

from __future__ import annotations

import json

import pytest
from django.contrib.auth.models import Permission
from rest_framework.test import APIClient

from access import tokens
from access.models import Role, User
from access.privileges import manageable, may_manage
from audit.models import Record

pytestmark = pytest.mark.django_db
USERS, PROGRAMS, ROLES = "/api/v1/users/", "/api/v1/service-accounts/", "/api/v1/roles/"
PASSWORD = "correct-horse-battery"


def make_client(user: User) -> APIClient:
    _, secret = tokens.issue(user, name="test", scopes=["read", "write"])
    return APIClient(headers={"Authorization": f"Bearer {secret}"})


@pytest.fixture
def root() -> APIClient:
    return make_client(User.objects.create_superuser("root"))


@pytest.fixture
def manager() -> APIClient:
    """May do everything with users and roles that permissions allow."""
    user = User.objects.create_user("manager")
    user.groups.add(Role.objects.create(name="helpdesk"))
    wanted = ("user", "serviceaccount", "role")
    user.user_permissions.set(Permission.objects.filter(content_type__model__in=wanted))
    return make_client(user)


def test_a_person_is_made_with_password_and_roles(root):
    Role.objects.create(name="support")
    answer = root.post(USERS, {"username": "dora", "password": PASSWORD, "roles": ["support"], "is_staff": True})
    assert answer.status_code == 201, answer.json()
    assert "password" not in answer.json()
    user = User.objects.get(username="dora")
    assert (user.check_password(PASSWORD), user.is_staff, user.is_service) == (True, True, False)
    record = Record.objects.get(object_type="access.User", object_id=str(user.pk))
    assert json.loads(record.detail)["changes"]["groups"] == [None, ["support"]]
    assert PASSWORD not in record.detail
    assert user.password not in record.detail


def test_a_person_without_a_password_cannot_log_in(root):
    root.post(USERS, {"username": "dora"})
    assert not User.objects.get(username="dora").has_usable_password()


def test_a_new_password_ends_all_sessions_and_is_on_record(root):
    user = User.objects.create_user("dora", password=PASSWORD)
    access = tokens.obtain(user)["access"]
    assert root.patch(f"{USERS}{user.pk}/", {"password": "another-" + PASSWORD}).status_code == 200
    assert make_session(access).get(USERS).status_code == 401
    user.refresh_from_db()
    assert user.check_password("another-" + PASSWORD)
    record = Record.objects.get(object_type="access.User", object_id=str(user.pk))
    assert json.loads(record.detail)["changes"]["password"] == ["set", "changed"]


def make_session(access: str) -> APIClient:
    return APIClient(headers={"Authorization": f"Bearer {access}"})


@pytest.mark.parametrize("password", ["short", "password123", "dora-dora", ""])
def test_a_bad_password_is_refused(root, password):
    answer = root.post(USERS, {"username": "dora-dora", "password": password})
    assert (answer.status_code, list(answer.json()["errors"])) == (400, ["password"])


def test_switching_a_user_off_ends_everything(root):
    user = User.objects.create_user("dora", is_superuser=True)
    client = make_client(user)
    assert client.get(USERS).status_code == 200
    assert root.patch(f"{USERS}{user.pk}/", {"is_active": False}).json()["is_active"] is False
    assert client.get(USERS).status_code == 401


def test_names_that_look_the_same_are_the_same(root):
    User.objects.create_user("fiona")
    assert root.post(USERS, {"username": "ﬁona"}).json()["errors"]["username"][0]["code"] == "unique"


def test_a_program_has_roles_and_no_password(root):
    Role.objects.create(name="support")
    answer = root.post(PROGRAMS, {"username": "robot", "roles": ["support"]})
    assert root.post(PROGRAMS, {"username": "robot2", "password": PASSWORD, "is_staff": True}).status_code == 400
    assert answer.status_code == 201
    user = User.objects.get(username="robot")
    assert (user.is_service, user.is_staff, user.has_usable_password()) == (True, False, False)
    assert Record.objects.get(object_type="access.User", object_id=str(user.pk)).code == "create"
    assert [each["username"] for each in root.get(PROGRAMS, {"role": "support"}).json()["results"]] == ["robot"]
    assert root.get(f"{USERS}{user.pk}/").status_code == 404


@pytest.mark.parametrize(
    "forged", [{"is_superuser": True}, {"is_staff": True}, {"permissions": ["tools.view_tool"]}, {"permissions": []}]
)
def test_privileges_are_for_superusers_to_give(manager, forged):
    own = User.objects.get(username="manager")
    answers = [
        manager.post(USERS, {"username": "dora", **forged, "email": "d@example.com"}),
        manager.patch(f"{USERS}{own.pk}/", forged),
    ]
    changes = [answer for answer in answers if answer.status_code != 400]
    # To give nobody anything is allowed, to take from oneself is not.
    assert [answer.status_code for answer in changes] == ([201] if forged == {"permissions": []} else [])
    assert answers[1].json()["errors"][next(iter(forged))][0]["code"] == "superusers_only"
    own.refresh_from_db()
    assert not own.is_superuser
    assert own.user_permissions.exists()


def test_what_is_unchanged_can_be_sent_back(manager):
    own = User.objects.get(username="manager")
    shown = manager.get(f"{USERS}{own.pk}/")
    answer = manager.put(f"{USERS}{own.pk}/", {**shown.json(), "first_name": "M."}, headers={"If-Match": shown["ETag"]})
    assert (answer.status_code, answer.json()["first_name"]) == (200, "M."), answer.json()


def test_only_roles_that_one_has_can_be_given_and_never_to_oneself(manager):
    Role.objects.create(name="powerful")
    target, own = User.objects.create_user("dora"), User.objects.get(username="manager")
    assert manager.patch(f"{USERS}{target.pk}/", {"roles": ["helpdesk"]}).status_code == 200
    answer = manager.patch(f"{USERS}{target.pk}/", {"roles": ["helpdesk", "powerful"]})
    assert answer.json()["errors"]["roles"][0]["code"] == "not_yours_to_give"
    answer = manager.patch(f"{USERS}{own.pk}/", {"roles": []})
    assert answer.json()["errors"]["roles"][0]["code"] == "own_roles"
    answer = manager.post(PROGRAMS, {"username": "robot", "roles": ["powerful"]})
    assert answer.json()["errors"]["roles"][0]["code"] == "not_yours_to_give"


@pytest.mark.parametrize("kind", ["superuser", "other role", "other permission"])
def test_who_holds_more_cannot_be_changed(manager, kind):
    target = User.objects.create_user("dora", PASSWORD, is_superuser=kind == "superuser")
    if kind == "other role":
        target.groups.add(Role.objects.create(name="powerful"))
    if kind == "other permission":
        target.user_permissions.add(Permission.objects.get(codename="view_record"))
    before = target.password
    for answer in (
        manager.patch(f"{USERS}{target.pk}/", {"password": "mine-" + PASSWORD}),
        manager.patch(f"{USERS}{target.pk}/", {"is_active": False}),
        manager.delete(f"{USERS}{target.pk}/"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "user_not_manageable")
    target.refresh_from_db()
    assert (target.password, target.is_active) == (before, True)


def test_the_last_superuser_stays(root):
    own = User.objects.get(username="root")
    for change in ({"is_active": False}, {"is_superuser": False}):
        answer = root.patch(f"{USERS}{own.pk}/", change)
        assert answer.json()["errors"][next(iter(change))][0]["code"] == "last_superuser"
    answer = root.delete(f"{USERS}{own.pk}/")
    assert (answer.status_code, answer.json()["code"]) == (409, "last_superuser")


def test_permissions_of_a_role_are_those_that_one_has(manager):
    answer = manager.post(ROLES, {"name": "new", "permissions": ["access.view_user"]})
    assert (answer.status_code, answer.json()["permissions"]) == (201, ["access.view_user"])
    url = answer["Location"]
    for answer in (
        manager.patch(url, {"permissions": ["access.view_user", "audit.view_record"]}),
        manager.post(ROLES, {"name": "newer", "permissions": ["audit.view_record"]}),
    ):
        assert answer.json()["errors"]["permissions"][0]["code"] == "not_yours_to_give"
    assert manager.patch(url, {"permissions": ["nothing.at_all"]}).status_code == 400
    assert manager.patch(url, {"permissions": []}).json()["permissions"] == []


def test_who_may_be_managed_is_the_same_in_one_query(manager):
    own = User.objects.get(username="manager")
    helpdesk, powerful = Role.objects.get(name="helpdesk"), Role.objects.create(name="powerful")
    own.groups.get().permissions.add(Permission.objects.get(codename="view_tool"))
    kinds = {
        "nobody": ({}, [], []),
        "root": ({"is_superuser": True}, [], []),
        "colleague": ({}, [helpdesk], ["view_tool"]),
        "boss": ({}, [helpdesk, powerful], []),
        "auditor": ({}, [], ["view_record"]),
    }
    for name, (fields, roles, codes) in kinds.items():
        user = User.objects.create_user(name, **fields)
        user.groups.set(roles)
        user.user_permissions.set(Permission.objects.filter(codename__in=codes))
    for actor in User.objects.all():
        one_by_one = {user.username for user in User.objects.all() if may_manage(actor, user)}
        assert {user.username for user in manageable(actor)} == one_by_one, actor
    assert {user.username for user in manageable(own)} == {"manager", "nobody", "colleague"}


def test_a_misspelt_field_is_refused_and_nothing_is_made(root):
    answer = root.post(PROGRAMS, {"username": "bot", "roels": ["agent"]}, format="json")
    assert answer.status_code == 400
    assert answer.json()["errors"] == {"roels": [{"code": "unknown_field", "detail": "There is no such field."}]}
    assert not User.objects.filter(username="bot").exists()


def test_what_was_read_can_be_sent_back(root):
    made = root.post(PROGRAMS, {"username": "bot"}, format="json").json()
    assert root.patch(f"{PROGRAMS}{made['id']}/", made, format="json").status_code == 200
