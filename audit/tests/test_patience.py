"""A page looks only for so long, and by indexes; what comes after it is not bound by that."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, connection

from access.models import User
from audit.patience import TooSlow, at_most

pytestmark = pytest.mark.django_db
NAMES = ("statement_timeout", "enable_seqscan", "jit")


def settings() -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting(name) FROM unnest(%s::text[]) AS name", [list(NAMES)])
        return [value for (value,) in cursor.fetchall()]


def sleep(seconds: float) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_sleep(%s)", [seconds])


def make_a_user_and_sleep() -> None:
    with at_most(50):
        User.objects.create_user("lost")
        sleep(5)


def test_what_takes_longer_is_ended_and_rolled_back():
    with pytest.raises(TooSlow):
        make_a_user_and_sleep()
    assert not User.objects.exists()
    sleep(0.1)


def test_afterwards_everything_is_as_before():
    before = settings()
    with at_most(1_000):
        assert settings() == ["1s", "off", "off"]
    assert settings() == before


def test_other_failures_stay_what_they_are():
    User.objects.create_user("maria")
    with pytest.raises(IntegrityError), at_most(1_000):
        User.objects.create_user("maria")
