"""`create_token` prints a working token, and nothing else."""

from __future__ import annotations

from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from access import tokens
from access.models import User
from audit.models import Record
from tools.models import Toolset

pytestmark = pytest.mark.django_db


def create(*arguments: str) -> str:
    out = StringIO()
    call_command("create_token", *arguments, stdout=out)
    return out.getvalue()


def test_the_token_works_and_is_on_record():
    User.objects.create_user("dora")
    Toolset.objects.create(name="support")
    printed = create(
        "dora", "--name", "ci", "--scope", "read", "--scope", "tools", "--toolset", "support", "--days", "3"
    )
    token = tokens.find(printed.strip())
    assert (token.name, token.scopes, token.toolset.name) == ("ci", ["read", "tools"], "support")
    assert token.expires_at is not None
    record = Record.objects.get(object_id=str(token.pk))
    assert (record.code, record.door) == ("token_created", "command")


@pytest.mark.parametrize("arguments", [("nobody",), ("dora", "--toolset", "none"), ("dora", "--days", "-1")])
def test_what_is_wrong_is_said_in_a_sentence(arguments):
    User.objects.create_user("dora")
    with pytest.raises(CommandError, match=r"\.$"):
        create(*arguments, "--name", "ci")
