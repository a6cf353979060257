"""Nobody gives what they do not have, the last superuser stays, and a token's secret is shown once."""

from __future__ import annotations

import json
import re

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, Permission
from django.test import Client
from django.urls import reverse

from access import attempts, tokens
from access.models import ApiToken, Grant, Role, ServiceAccount, User
from audit.models import Record
from tools.definitions import publish
from tools.models import DataSource, Tool

pytestmark = pytest.mark.django_db
USERS = "/admin/access/user/"


def make_staff(name: str = "dora", *permissions: str, **values) -> Client:
    user = User.objects.create_user(name, is_staff=True, **values)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


def make_root() -> Client:
    return make_staff("root", is_superuser=True)


def make_role(name: str, *permissions: str, tag: str = "") -> Role:
    role = Role.objects.create(name=name)
    role.permissions.set(Permission.objects.filter(codename__in=permissions))
    if tag:
        Grant.objects.create(role=role, tag=tag)
    return role


def user_form(user: User, **values):
    return {
        "username": user.username,
        "is_active": "on",
        "date_joined_0": "2026-01-01",
        "date_joined_1": "00:00",
        **values,
    }


def url_of(obj, page: str = "change") -> str:
    return reverse(f"admin:access_{obj._meta.model_name}_{page}", args=(obj.pk,))


def fresh(user: User) -> User:
    return User.objects.get(pk=user.pk)


# --- Logging in ------------------------------------------------------------------------------------------------------


def test_a_login_leads_on_and_is_on_record():
    User.objects.create_superuser("root", password="a-good-password")
    client = Client()
    answer = client.post("/admin/login/", {"username": "root", "password": "a-good-password"})
    assert (answer.status_code, answer["Location"]) == (302, "/admin/")
    client.post("/admin/logout/")
    records = Record.objects.filter(kind="auth", actor="root").order_by("id")
    assert [(record.code, record.door) for record in records] == [("login", "admin"), ("logout", "admin")]


@pytest.mark.parametrize("name", ["dora", "robot", "nobody", "root"])
def test_a_refused_login_tells_nothing_and_is_on_record(name):
    User.objects.create_superuser("root", password="a-good-password")
    User.objects.create_user("dora", password="a-good-password")
    User.objects.create_user("robot", password="a-good-password", is_staff=True, is_service=True)
    given = "wrong" if name == "root" else "a-good-password"
    answer = Client().post("/admin/login/", {"username": name, "password": given})
    assert "Please enter the correct username and password" in answer.content.decode()
    record = Record.objects.get(kind="auth", actor=name)
    assert (record.code, record.decision, record.actor_id) == ("invalid_credentials", "deny", None)


def test_guessing_at_the_admin_is_stopped():
    User.objects.create_superuser("root", password="a-good-password")
    for _ in range(attempts.LIMITS["pair"]):
        Client().post("/admin/login/", {"username": "root", "password": "wrong"})
    answer = Client().post("/admin/login/", {"username": "root", "password": "a-good-password"})
    assert "Too many attempts" in answer.content.decode()


def test_the_login_does_not_lead_to_another_site():
    User.objects.create_superuser("root", password="a-good-password")
    form = {"username": "root", "password": "a-good-password", "next": "https://evil.example.com/"}
    assert "evil" not in Client().post("/admin/login/", form)["Location"]


# --- Users -----------------------------------------------------------------------------------------------------------


def test_a_change_of_a_user_is_recorded_once_and_not_in_djangos_log():
    client, user = make_root(), User.objects.create_user("emil")
    role = make_role("support")
    answer = client.post(url_of(user), user_form(user, first_name="Emil", groups=[role.pk]))
    assert answer.status_code == 302
    changes = json.loads(Record.objects.get(object_id=str(user.pk)).detail)["changes"]
    assert changes == {"first_name": ["", "Emil"], "groups": [[], ["support"]], **_date(changes)}
    assert not LogEntry.objects.exists()


def _date(changes):
    return {name: pair for name, pair in changes.items() if name == "date_joined"}


def test_staff_cannot_make_themselves_or_others_superusers():
    client = make_staff("dora", "view_user", "change_user", "view_group")
    everything = Permission.objects.get(codename="change_datasource").pk
    for user in (User.objects.get(username="dora"), User.objects.create_user("emil")):
        before = list(user.user_permissions.order_by("pk"))
        form = user_form(user, is_superuser="on", is_staff="on", user_permissions=[everything])
        assert client.post(url_of(user), form).status_code == 302
        assert not fresh(user).is_superuser
        assert list(user.user_permissions.order_by("pk")) == before
    assert not fresh(user).is_staff


def test_staff_cannot_give_roles_that_they_do_not_have():
    client = make_staff("dora", "view_user", "change_user")
    mine, other = make_role("mine"), make_role("other", tag="secret")
    User.objects.get(username="dora").groups.add(mine)
    emil = User.objects.create_user("emil")
    assert client.post(url_of(emil), user_form(emil, groups=[other.pk])).status_code == 200
    assert client.post(url_of(emil), user_form(emil, groups=[mine.pk])).status_code == 302
    assert [group.name for group in emil.groups.all()] == ["mine"]


def test_staff_cannot_change_their_own_roles():
    client = make_staff("dora", "view_user", "change_user")
    dora = User.objects.get(username="dora")
    dora.groups.add(make_role("mine"))
    client.post(url_of(dora), user_form(dora, first_name="Dora", groups=[make_role("other").pk]))
    assert (fresh(dora).first_name, [group.name for group in dora.groups.all()]) == ("Dora", ["mine"])


@pytest.mark.parametrize("kind", ["superuser", "with a role", "with a permission"])
def test_staff_cannot_touch_users_who_hold_more(kind):
    client = make_staff("dora", "view_user", "change_user", "delete_user")
    user = User.objects.create_user("emil", is_superuser=kind == "superuser", password="before-before")
    if kind == "with a role":
        user.groups.add(make_role("other"))
    if kind == "with a permission":
        user.user_permissions.add(Permission.objects.get(codename="change_datasource"))
    assert client.post(url_of(user), user_form(user, email="x@example.com")).status_code == 403
    form = {"password1": "another-good-one", "password2": "another-good-one", "usable_password": "true"}
    assert client.post(f"{USERS}{user.pk}/password/", form).status_code == 403
    assert client.post(url_of(user, "delete"), {"post": "yes"}).status_code == 403
    picked = {"action": "delete_selected", "_selected_action": [user.pk], "post": "yes"}
    client.post(USERS, picked)
    assert fresh(user).check_password("before-before")


def test_the_last_superuser_can_be_neither_demoted_nor_switched_off_nor_deleted():
    client = make_root()
    root = User.objects.get(username="root")
    for change in ({"is_active": "on"}, {"is_superuser": "on", "is_active": ""}):
        form = {**user_form(root, is_staff="on"), **change}
        form = {name: value for name, value in form.items() if value}
        assert "last active superuser" in client.post(url_of(root), form).content.decode()
    assert "last active superuser" in client.post(url_of(root, "delete"), {"post": "yes"}).content.decode()
    client.post(USERS, {"action": "delete_selected", "_selected_action": [root.pk], "post": "yes"})
    assert (fresh(root).is_superuser, fresh(root).is_active) == (True, True)


def test_one_of_two_superusers_can_be_demoted():
    client = make_root()
    second = User.objects.create_superuser("second")
    assert client.post(url_of(second), user_form(second, is_staff="on")).status_code == 302
    assert not fresh(second).is_superuser


def test_a_new_password_ends_sessions_and_is_on_record_without_its_hash():
    client, user = make_root(), User.objects.create_user("emil", password="before-before")
    pair = tokens.obtain(user)
    form = {"password1": "another-good-one", "password2": "another-good-one", "usable_password": "true"}
    assert client.post(f"{USERS}{user.pk}/password/", form).status_code == 302
    with pytest.raises(tokens.InvalidToken):
        tokens.refresh(pair["refresh"])
    record = Record.objects.get(object_id=str(user.pk))
    assert json.loads(record.detail)["changes"]["password"] == ["set", "changed"]
    assert "scrypt" not in record.detail


def test_changing_ones_own_password_is_on_record():
    user = User.objects.create_superuser("root", password="before-before")
    client = Client()
    client.force_login(user)
    form = {"old_password": "before-before", "new_password1": "another-good-one", "new_password2": "another-good-one"}
    assert client.post("/admin/password_change/", form).status_code == 302
    assert "password" in json.loads(Record.objects.get(object_id=str(user.pk)).detail)["changes"]


def test_a_service_account_cannot_be_given_a_password():
    client = make_root()
    assert client.post("/admin/access/serviceaccount/add/", {"username": "robot"}).status_code == 302
    robot = ServiceAccount.objects.get()
    assert robot.is_service
    assert not robot.has_usable_password()


@pytest.mark.parametrize(
    "url",
    [
        f"{USERS}?password__startswith=s",
        "/admin/access/serviceaccount/?password__startswith=s",
        "/admin/access/apitoken/?digest__startswith=a",
        "/admin/access/apitoken/?user__password__startswith=s",
        "/admin/access/serviceaccount/?groups__user__password__startswith=s",
    ],
)
def test_lookups_cannot_guess_what_is_hidden(url):
    assert make_root().get(url).status_code in (302, 400)


# --- Roles and grants ------------------------------------------------------------------------------------------------


def role_form(role: Role, **values):
    return {"name": role.name, "grants-TOTAL_FORMS": "0", "grants-INITIAL_FORMS": "0", **values}


def test_grants_in_a_role_are_recorded_and_stand_in_its_history():
    client, role = make_root(), make_role("support")
    form = role_form(role, **{"grants-TOTAL_FORMS": "1", "grants-0-tag": "desk", "grants-0-role": role.pk})
    assert client.post(url_of(role), form).status_code == 302
    grant = Grant.objects.get()
    assert Record.objects.get(object_id=str(grant.pk)).code == "create"
    assert "support → tag desk" in client.get(url_of(role, "history")).content.decode()
    client.post(url_of(role), {**form, "grants-INITIAL_FORMS": "1", "grants-0-id": grant.pk, "grants-0-DELETE": "on"})
    assert not Grant.objects.exists()
    assert Record.objects.filter(object_id=str(grant.pk)).first().code == "delete"


def test_before_a_role_is_deleted_its_page_names_who_loses_it():
    client, role = make_root(), make_role("support", tag="desk")
    User.objects.create_user("maria").groups.add(role)
    page = client.get(url_of(role, "delete")).content.decode()
    assert "Loses the role: maria" in page
    assert "support → tag desk" in page
    assert "User-group relationship" not in page


def test_a_role_shows_what_it_comes_to():
    client, role = make_root(), make_role("support", tag="desk")
    source = DataSource.objects.create(name="office", kind="mcp", options={"url": "https://example.com/mcp"})
    tool = Tool.objects.create(source=source, name="send_reply", tags=["desk"], effect="destructive")
    publish(tool, {"name": "send_reply", "inputSchema": {"type": "object"}})
    page = client.get(url_of(role)).content.decode()
    assert "send_reply" in page
    assert "Destroys" in page


def test_staff_can_put_only_their_own_permissions_into_a_role_and_not_into_their_own():
    client = make_staff("dora", "view_role", "change_role")
    mine, other, stronger = make_role("mine"), make_role("other"), make_role("stronger", "change_datasource")
    User.objects.get(username="dora").groups.add(mine)
    allowed, forbidden = (Permission.objects.get(codename=name).pk for name in ("view_role", "change_datasource"))
    assert client.post(url_of(other), role_form(other, permissions=[forbidden])).status_code == 200
    assert client.post(url_of(other), role_form(other, permissions=[allowed])).status_code == 302
    assert client.post(url_of(mine), role_form(mine, permissions=[allowed])).status_code == 403
    assert client.post(url_of(stronger), role_form(stronger)).status_code == 403
    assert [each.codename for each in other.permissions.all()] == ["view_role"]


def test_a_grant_cannot_be_added_to_ones_own_role():
    client = make_staff("dora", "add_grant", "view_grant", "view_role", "change_role")
    mine = make_role("mine")
    User.objects.get(username="dora").groups.add(mine)
    assert client.post("/admin/access/grant/add/", {"role": mine.pk, "tag": "desk"}).status_code == 403
    assert not Grant.objects.exists()


def test_groups_without_grants_are_not_administered():
    Group.objects.create(name="plain")
    client = make_root()
    assert client.get("/admin/auth/group/").status_code == 404
    assert "plain" not in client.get(url_of(User.objects.get())).content.decode()


# --- Tokens ----------------------------------------------------------------------------------------------------------


def test_a_token_is_shown_once():
    client, user = make_root(), User.objects.create_user("emil")
    answer = client.post("/admin/access/apitoken/add/", {"user": user.pk, "name": "laptop", "scopes": ["tools"]})
    secret = re.search(r"mcps_[\w-]{43}", answer.content.decode())[0]
    assert answer.status_code == 200
    assert "no-store" in answer["Cache-Control"]
    token = ApiToken.objects.get()
    assert tokens.find(secret) == token
    for url in (url_of(token), "/admin/access/apitoken/", "/admin/", url_of(token, "history")):
        page = client.get(url).content.decode()
        assert secret not in page
        assert token.digest not in page
    record = Record.objects.get(object_id=str(token.pk))
    assert (record.kind, record.code) == ("auth", "token_created")
    assert secret not in record.detail
    assert token.digest not in record.detail


def test_a_token_is_revoked_by_its_button_and_by_selection():
    client, user = make_root(), User.objects.create_user("emil")
    first, _ = tokens.issue(user, name="one", scopes=["tools"])
    second, _ = tokens.issue(user, name="two", scopes=["tools"])
    url = reverse("admin:access_apitoken_revoke", args=(first.pk,))
    assert client.get(url).status_code == 200
    assert ApiToken.objects.get(pk=first.pk).revoked_at is None
    client.post(url, {"_form_submitted": "1"})
    selected = {"action": "revoke_selected", "_selected_action": [second.pk]}
    assert "Revoke 1 API token?" in client.post("/admin/access/apitoken/", selected).content.decode()
    assert ApiToken.objects.get(pk=second.pk).revoked_at is None
    client.post("/admin/access/apitoken/", {**selected, "confirmed": "yes"})
    assert not ApiToken.objects.filter(revoked_at=None).exists()
    assert Record.objects.filter(code="token_revoked").count() >= 2


def test_staff_cannot_make_or_revoke_tokens_of_users_who_hold_more():
    client = make_staff("dora", "add_apitoken", "change_apitoken", "view_apitoken")
    root = User.objects.create_superuser("root")
    token, _ = tokens.issue(root, name="one", scopes=["tools"])
    form = {"user": root.pk, "name": "mine", "scopes": ["tools"]}
    assert client.post("/admin/access/apitoken/add/", form).context["errors"]
    url = reverse("admin:access_apitoken_revoke", args=(token.pk,))
    assert client.post(url, {"_form_submitted": "1"}).status_code == 403
    selected = {"action": "revoke_selected", "_selected_action": [token.pk], "confirmed": "yes"}
    client.post("/admin/access/apitoken/", selected)
    assert ApiToken.objects.get().revoked_at is None


def test_a_form_that_is_sent_again_makes_no_second_token():
    user = User.objects.create_user("emil")
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("root"))
    page = client.get("/admin/access/apitoken/add/").content.decode()
    sent = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page)[1]
    form = {"csrfmiddlewaretoken": sent, "user": user.pk, "name": "laptop", "scopes": ["tools"]}
    assert client.post("/admin/access/apitoken/add/", form).status_code == 200
    assert client.post("/admin/access/apitoken/add/", form).status_code == 302
    assert ApiToken.objects.count() == 1


def test_a_revoked_token_has_no_button_to_revoke_it():
    client, (token, _) = make_root(), tokens.issue(User.objects.create_user("emil"), name="one", scopes=["tools"])
    button = reverse("admin:access_apitoken_revoke", args=(token.pk,))
    assert button in client.get(url_of(token)).content.decode()
    tokens.revoke(token)
    assert button not in client.get(url_of(token)).content.decode()


def test_who_may_only_look_at_a_role_sees_its_permissions_by_object():
    role = make_role("mine")
    role.permissions.set(Permission.objects.filter(codename__in=("add_tool", "view_tool", "sync_datasource")))
    page = make_staff("dora", "view_role").get(url_of(role)).content.decode()
    assert "view, add" in page
    assert "Can add tool" not in page
