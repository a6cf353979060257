"""What a new installation needs before anyone can log in: the standard roles and the first administrator."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from django.conf import settings
from django.contrib.auth.models import Group, Permission
from django.db import connection, models, transaction

from access import tokens
from access.login import record_token
from access.models import ApiToken, Role, Scope, ServiceAccount, User
from access.privileges import meaningful_permissions
from audit.changes import differences, record_change, snapshot, stored
from mcpsite.datadir import write_private

ADMINISTRATOR, AUDITOR, WITNESS = "administrator", "auditor", "witness"
USERNAME = "admin"
PASSWORD_FILE = "admin_password"  # noqa: S105 - the name of a file
DOOR = "command"

# Without what people mistake for one another: 0 o, 1 i l, 2 z, 5 s.
_ALPHABET = "abcdefghjkmnpqrtuvwxy346789"
_GROUPS, _LETTERS = 5, 5
# Any number will do, as long as every replica uses the same one.
_LOCK = 7_035_916_240

M = TypeVar("M", bound=models.Model)


def new_password() -> str:
    """Five groups of five letters and digits: 118 bits that can be read aloud."""
    return "-".join("".join(secrets.choice(_ALPHABET) for _ in range(_LETTERS)) for _ in range(_GROUPS))


def record_created(obj: M) -> M:
    """Record that `obj`, complete as it is now, was created by a command. Returns it."""
    record_change(action="create", obj=obj, before={}, after=snapshot(obj), door=DOOR)
    return obj


def ensure_role(
    name: str, description: str, permissions: Callable[[], models.QuerySet[Permission]] | None = None
) -> Role:
    """The role of that name; made with these Django permissions if there is none, else left as it is."""
    if found := Role.objects.filter(name=name).first():
        return found
    with transaction.atomic():
        role = Role(name=name, description=description)
        role.save()
        if permissions is not None:
            role.permissions.set(permissions())
        return record_created(role)


def ensure_standard_roles() -> tuple[Role, Role]:
    """The roles `administrator` and `auditor`, made once."""
    return (
        ensure_role(ADMINISTRATOR, "Runs the control plane: sees and changes everything.", _every_permission),
        ensure_role(
            AUDITOR,
            "Reads and exports the ledger and sees everything else, but changes and calls nothing.",
            _auditors_permissions,
        ),
    )


def _every_permission() -> models.QuerySet[Permission]:
    return meaningful_permissions()


# What an auditor may make: it is taken away, and changes nothing.
_TAKEN_AWAY = ("add_export", "add_evidencepack")


def _auditors_permissions() -> models.QuerySet[Permission]:
    wanted = models.Q(codename__startswith="view_") | models.Q(codename__in=_TAKEN_AWAY)
    return meaningful_permissions().filter(wanted)


def complete_roles() -> list[str]:
    """The standard roles that hold all that they are made with; none where there are no tables yet."""
    tables = connection.introspection.table_names()
    if Group._meta.db_table not in tables or Permission._meta.db_table not in tables:
        return []
    return [name for name, wanted in _STANDARD.items() if _lacking(name, wanted()) == set()]


def _lacking(name: str, wanted: models.QuerySet[Permission]) -> set[int] | None:
    group = Group.objects.filter(name=name).first()
    if group is None:
        return None
    return set(wanted.values_list("pk", flat=True)) - set(group.permissions.values_list("pk", flat=True))


def complete_again(names: list[str]) -> None:
    """Give the roles of these names what came with a new version; a role that somebody narrowed is none of them."""
    for name in names:
        if not _lacking(name, _STANDARD[name]()):
            continue
        with transaction.atomic():
            role = Role.objects.get(name=name)
            before = snapshot(role)
            role.permissions.add(*_STANDARD[name]())
            record_change(action="update", obj=role, before=before, after=snapshot(role), door=DOOR)


def first_administrator() -> tuple[str, str | None]:
    """The name of a superuser and, only when this call had to create one, the password of `admin`.

    The standard roles exist afterwards. Safe to call from several replicas at once.
    """
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        administrator, _ = ensure_standard_roles()
        found = User.objects.filter(is_superuser=True, is_active=True).order_by("pk").first()
        if found is not None:
            return found.get_username(), None
        password = new_password()
        user = _create_administrator(administrator, password)
    return user.get_username(), password


def _create_administrator(role: Role, password: str) -> User:
    user = User.objects.create_superuser(_free_username(), password=password)
    user.groups.add(role)
    record_created(user)
    if settings.DATA_DIR.exists:
        write_private(settings.DATA_DIR.path / "secrets" / PASSWORD_FILE, password)
    return user


def witness_account(file: Path | None = None, raw: str | None = None) -> None:
    """The service account of a witness, with its role and a token: `raw`, or a new one that is written to `file`.

    What is there stays as it is: a witness whose account was switched off or whose token was revoked gets no other.
    """
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        role = ensure_role(WITNESS, "Sees signed heads and signs them; reads no records.", _witness_permissions)
        account = User.objects.filter(username=WITNESS).first()
        if account is None:
            account = ServiceAccount(username=WITNESS, is_service=True)
            account.set_unusable_password()
            account.save()
            account.groups.add(role)
            record_created(account)
        if raw is None and file is not None and file.exists():
            raw = file.read_text(encoding="utf-8").strip()
        if raw is not None and ApiToken.objects.filter(digest=tokens.digest_of(raw)).exists():
            return
        token, secret = tokens.issue(account, name="witness", scopes=[Scope.READ, Scope.WRITE], raw=raw)
        record_token(None, token, "token_created", differences({}, stored(token)), door=DOOR)
        if file is not None:
            write_private(file, secret)


def _witness_permissions() -> models.QuerySet[Permission]:
    return meaningful_permissions().filter(
        content_type__app_label="audit", codename__in=("view_head", "add_cosignature")
    )


# The permissions that the standard roles are made with.
_STANDARD: dict[str, Callable[[], models.QuerySet[Permission]]] = {
    ADMINISTRATOR: _every_permission,
    AUDITOR: _auditors_permissions,
}


def _free_username() -> str:
    taken = set(User.objects.filter(username__startswith=USERNAME).values_list("username", flat=True))
    names = (USERNAME, *(f"{USERNAME}{number}" for number in range(2, len(taken) + 3)))
    return next(name for name in names if name not in taken)
