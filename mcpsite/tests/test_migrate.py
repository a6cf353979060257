"""What `migrate` changes is on record."""

from __future__ import annotations

import json

import pytest
from django.core.management import call_command

from audit.models import Record


@pytest.fixture
def last(committed_db: None) -> int:
    return Record.objects.order_by("-id").values_list("id", flat=True).first() or 0


def test_what_was_applied_is_on_record_and_nothing_when_there_was_nothing_to_do(last: int) -> None:
    ours = Record.objects.filter(code="migrations_applied", id__gt=last).order_by("id")
    call_command("migrate", verbosity=0, interactive=False)
    assert not ours.exists()
    call_command("migrate", "gateway", "zero", verbosity=0, interactive=False)
    call_command("migrate", verbosity=0, interactive=False)
    told = [json.loads(each.detail or "")["migrations"] for each in ours]
    assert told[0] == told[1]
    assert "gateway.0001_keyed_calls" in told[0]
    assert all(name.startswith("gateway.") for name in told[0])
