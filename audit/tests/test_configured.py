"""Settings that an auditor asks about do not change unseen."""

from __future__ import annotations

import json
from typing import Any

import pytest

from audit.configured import configuration, note_configuration
from audit.models import Record
from audit.outside.sinks import read

pytestmark = pytest.mark.django_db


def changes() -> list[dict[str, Any]]:
    found = Record.objects.filter(code="configuration_changed").order_by("id")
    return [json.loads(each.detail or "{}")["changes"] for each in found]


def test_other_settings_than_the_last_time_are_on_record_before_and_after(settings: Any) -> None:
    note_configuration("web")
    known = len(changes())
    assert not note_configuration("worker jobs")
    settings.RECORDED_ARGUMENTS, settings.EXPORT_DAYS = "dropped", 3
    assert note_configuration("web")
    assert not note_configuration("web")
    assert changes()[known:] == [{"RECORDED_ARGUMENTS": ["encrypted", "dropped"], "EXPORT_DAYS": [7, 3]}]
    [record] = Record.objects.filter(code="configuration_changed").order_by("-id")[:1]
    assert (record.kind, json.loads(record.detail or "{}")["program"]) == ("system", "web")


def test_no_secret_is_told(settings: Any) -> None:
    words = ["https://siem.example/heads?key=canary-1", "s3://bucket/heads?mode=compliance&days=30"]
    settings.LEDGER_ANCHORS = read(words, "canary-2-canary-2-canary-2")
    settings.LEDGER_ARCHIVE = "s3://id:canary-3@bucket/ledger"
    note_configuration("web")
    assert changes()[-1]["LEDGER_ANCHORS"][1] == [
        "https://siem.example/heads",
        "s3://bucket/heads (compliance, 30 days)",
    ]
    assert "canary" not in json.dumps(changes()[-1])
    assert set(configuration()) >= {"ENCRYPTION_KEYS", "LEDGER_WITNESSES", "TRUSTED_PROXIES"}
