"""The first administrator and the standard roles."""

from __future__ import annotations

import json
from pathlib import Path
from threading import Thread

import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from pytest_django import Settings

from access.models import Role, User
from audit.models import Record
from mcpsite.bootstrap import (
    complete_again,
    complete_roles,
    ensure_role,
    ensure_standard_roles,
    first_administrator,
    new_password,
)
from mcpsite.datadir import DataDir


@pytest.fixture
def data_dir(tmp_path: Path, settings: Settings) -> DataDir:
    data = DataDir(tmp_path)
    data.create()
    settings.DATA_DIR = data
    return data


@pytest.mark.django_db
def test_the_first_administrator_gets_a_password_once(data_dir: DataDir):
    username, password = first_administrator()
    assert (username, first_administrator()) == ("admin", ("admin", None))
    user = User.objects.get(username="admin")
    assert password is not None
    assert user.check_password(password)
    assert user.is_superuser
    assert user.is_staff
    assert list(user.groups.values_list("name", flat=True)) == ["administrator"]


@pytest.mark.django_db
def test_the_password_is_kept_privately_in_the_data_directory(data_dir: DataDir):
    _, password = first_administrator()
    path = data_dir.path / "secrets/admin_password"
    assert path.read_text() == password
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.django_db
def test_without_a_data_directory_the_password_is_only_returned(tmp_path: Path, settings: Settings):
    settings.DATA_DIR = DataDir(tmp_path / "none")
    assert first_administrator()[1]
    assert not settings.DATA_DIR.path.exists()


@pytest.mark.django_db
def test_a_superuser_who_is_there_is_enough(data_dir: DataDir):
    User.objects.create_superuser("root", password="x")
    assert first_administrator() == ("root", None)
    assert User.objects.count() == 1


@pytest.mark.django_db
def test_somebody_else_who_is_named_admin_is_left_alone(data_dir: DataDir):
    User.objects.create_user("admin")
    User.objects.create_superuser("gone", is_active=False)
    username, password = first_administrator()
    assert (username, password is None) == ("admin2", False)
    assert not User.objects.get(username="admin").is_superuser


@pytest.mark.django_db
def test_an_administrator_may_everything_and_an_auditor_only_look():
    administrator, auditor = ensure_standard_roles()
    assert administrator.permissions.filter(codename="change_grant").exists()
    assert administrator.permissions.filter(codename="try_tool").exists()
    may = set(auditor.permissions.values_list("codename", flat=True))
    assert {"view_record", "view_tool", "view_user", "view_grant"} <= may
    assert {name for name in may if not name.startswith("view_")} == {"add_export", "add_evidencepack"}
    assert not auditor.grants.exists()


@pytest.mark.django_db
def test_a_role_that_somebody_changed_stays_so():
    _, auditor = ensure_standard_roles()
    auditor.permissions.clear()
    ensure_standard_roles()
    assert not auditor.permissions.exists()
    assert ensure_role("auditor", "other").description == auditor.description
    assert Role.objects.count() == 2


@pytest.mark.django_db
def test_what_comes_with_a_new_version_goes_to_roles_that_held_everything():
    administrator, auditor = ensure_standard_roles()
    auditor.permissions.remove(auditor.permissions.order_by("pk")[0])
    new = Permission.objects.get(codename="view_record")
    values = {"codename": new.codename, "name": new.name, "content_type": new.content_type}
    new.delete()
    complete = complete_roles()
    assert complete == ["administrator"]
    Permission.objects.create(**values)
    complete_again(complete)
    assert administrator.permissions.filter(codename="view_record").exists()
    assert not auditor.permissions.filter(codename="view_record").exists()
    told = Record.objects.get(object_type="access.Role", object_id=str(administrator.pk), code="update")
    assert str(Permission.objects.get(codename="view_record")) in told.detail
    complete_again(complete)
    assert Record.objects.filter(object_id=str(administrator.pk), code="update").count() == 1


@pytest.mark.django_db
def test_what_is_created_is_on_record_without_the_password(data_dir: DataDir):
    _, password = first_administrator()
    records = Record.objects.filter(door="command").order_by("-id")[:3]
    assert {record.object_type for record in records} == {"access.User", "access.Role"}
    user = next(record for record in records if record.object_type == "access.User")
    assert json.loads(user.detail or "")["changes"]["groups"] == [None, ["administrator"]]
    assert password is not None
    assert password not in (user.detail or "")


def test_replicas_that_start_together_make_one_administrator(committed_db: None, data_dir: DataDir):
    found: list[tuple[str, str | None]] = []

    def start() -> None:
        found.append(first_administrator())
        connection.close()

    threads = [Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert {username for username, _ in found} == {"admin"}
    assert len([password for _, password in found if password]) == 1


def test_passwords_are_long_and_can_be_read_aloud():
    passwords = {new_password() for _ in range(100)}
    assert len(passwords) == 100
    for password in passwords:
        assert len(password) == 29
        assert not set(password) & set("0o1il5s2z")
