"""Only permissions that something asks for can be given, and holding others puts nobody out of reach."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import Permission

from access.models import Role, User
from access.privileges import assignable_permissions, manageable, may_edit_role, meaningful_permissions
from mcpsite.bootstrap import ensure_standard_roles

pytestmark = pytest.mark.django_db


def names(permissions) -> set[str]:
    return {f"{each.content_type.app_label}.{each.codename}" for each in permissions}


def permission(name: str) -> Permission:
    app, _, codename = name.partition(".")
    return Permission.objects.get(content_type__app_label=app, codename=codename)


@pytest.mark.parametrize(
    "name",
    [
        "tools.view_tool",
        "tools.sync_datasource",
        "tools.try_tool_as_role",
        "access.change_role",
        "access.change_apitoken",
        "access.add_serviceaccount",
        "access.view_revokedsession",
        "audit.view_record",
        "audit.view_metrics",
        "agents.run_agent",
        "agents.cancel_run",
        "procrastinate.view_procrastinatejob",
    ],
)
def test_what_is_asked_for_is_offered(name):
    assert name in names(meaningful_permissions())


@pytest.mark.parametrize("app", ["admin", "auth", "contenttypes", "sessions", "token_blacklist"])
def test_the_tables_of_other_packages_are_not_offered(app):
    assert Permission.objects.filter(content_type__app_label=app).exists()
    assert not meaningful_permissions().filter(content_type__app_label=app).exists()


@pytest.mark.parametrize(
    "name",
    [
        "access.change_revokedsession",
        "access.view_policyversion",
        "access.view_tokenuse",
        "tools.change_toolversion",
        "procrastinate.delete_procrastinatejob",
        "procrastinate.view_procrastinateworker",
    ],
)
def test_what_nobody_could_do_is_not_offered(name):
    assert permission(name)
    assert name not in names(meaningful_permissions())


def test_every_permission_that_is_offered_belongs_to_something_with_a_list():
    apps = {name.partition(".")[0] for name in names(meaningful_permissions())}
    assert apps == {"tools", "gateway", "access", "audit", "agents", "procrastinate"}


def test_the_standard_roles_hold_what_means_something():
    administrator, auditor = ensure_standard_roles()
    every = names(meaningful_permissions())
    assert names(administrator.permissions.all()) == every
    looks = {name for name in every if ".view_" in name}
    assert names(auditor.permissions.all()) == looks | {"audit.add_export", "audit.add_evidencepack"}


def test_others_are_offered_what_they_hold_and_means_something():
    dora = User.objects.create_user("dora")
    dora.user_permissions.set([permission("tools.view_tool"), permission("sessions.view_session")])
    assert names(assignable_permissions(dora)) == {"tools.view_tool"}


def test_a_permission_without_meaning_puts_nobody_out_of_reach():
    """As roles have it that were made before: who holds the same may still edit them."""
    role = Role.objects.create(name="old")
    for name in ("dora", "emil"):
        User.objects.create_user(name).user_permissions.add(permission("sessions.view_session"))
    role.permissions.add(permission("sessions.view_session"))
    dora = User.objects.get(username="dora")
    assert may_edit_role(dora, role)
    assert set(manageable(dora).values_list("username", flat=True)) == {"dora", "emil"}
