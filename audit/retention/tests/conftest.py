"""A ledger with an archive on disk, a sealer, and two persons."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.db import connections

from access.models import User
from audit.export.tests.sealer import TestSealer
from audit.retention.archiving import ask, run
from audit.retention.expiring import find
from audit.retention.models import Archive, Expiry
from audit.retention.tests.past import fresh_month, wait, write


def make_person(name: str, *codenames: str) -> User:
    """Somebody with these permissions on the ledger's retention."""
    # The ledger outlives a test, and ids begin anew in each: nobody may have changed this one in an earlier one.
    user = User.objects.create_user(name, is_staff=True, pk=2**20 + secrets.randbelow(2**30))
    user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    return user


@pytest.fixture
def archive_folder(committed_db: None, settings: Any, tmp_path: Path) -> Path:
    """Where exports go."""
    settings.LEDGER_ARCHIVE = tmp_path.as_uri()
    return tmp_path


@pytest.fixture
def sealer(committed_db: None) -> TestSealer:
    """A sealer whose key is known to the ledger."""
    made = TestSealer()
    with connections["owner"].cursor() as cursor:
        cursor.execute("INSERT INTO audit_key (vkey, since) VALUES (%s, 0)", [str(made.key)])
    return made


class Story:
    """A month of the past with three calls that may leave and one login that stays, and who decides about it."""

    def __init__(self, sealer: TestSealer) -> None:
        self.sealer = sealer
        self.month = fresh_month(30)
        self.rids = write(
            self.month,
            [{"code": "a", "actor": "ada"}, {"code": "b"}, {"kind": "auth", "code": "c"}, {"code": "d", "tool": "pay"}],
        )
        sealer.seal()
        self.ada = make_person("ada", "expire_records", "archive_records")
        self.bob = make_person("bob", "expire_records")
        self.eve = make_person("eve")

    def export(self) -> Archive:
        return run(ask(self.month, door="test", actor=self.ada), sign=self.sealer.sign)

    @property
    def expiry(self) -> Expiry:
        return Expiry.objects.get(month=self.month)

    def find(self) -> Expiry:
        find()
        return self.expiry

    def left(self) -> list[str]:
        """The codes of the records that the month still has."""
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT code FROM audit_record WHERE rid = ANY (%s) ORDER BY id", [self.rids])
            return [row[0] for row in cursor.fetchall()]


@pytest.fixture
def story(archive_folder: Path, sealer: TestSealer) -> Iterator[Story]:
    """It waits for nothing once it is approved."""
    wait(0)
    yield Story(sealer)
    wait(24)
