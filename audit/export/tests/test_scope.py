"""An export holds what the list shows, and refuses what it cannot read."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.contrib import admin
from django.test import RequestFactory
from django.utils import timezone

from access.models import User
from audit.entry import Entry
from audit.export.scope import KNOWN, BadScope, read, rows_of, told
from audit.ledger import record
from audit.models import Record

pytestmark = pytest.mark.django_db


def listed(params: dict[str, str]) -> set[int]:
    """What the list of records shows for these parameters."""
    request: Any = RequestFactory().get("/admin/audit/record/", params)
    request.user = User.objects.create_superuser(f"root{User.objects.count()}")
    changes = admin.site.get_model_admin(Record).get_changelist_instance(request)
    return set(changes.get_queryset(request).values_list("pk", flat=True))


def test_every_filter_of_the_list_can_be_exported():
    names: set[str] = set()
    for each in admin.site.get_model_admin(Record).list_filter:
        names |= set(getattr(each, "parameter_names", None) or {each.parameter_name})
    assert names <= set(KNOWN)


@pytest.mark.parametrize(
    "params",
    [
        {"tool": "one"},
        {"actor": "dora", "code": "ok"},
        {"decision": "deny"},
        {"result": "refused"},
        {"result": "ok"},
        {"kind": "config"},
        {"last": "24h"},
        {"text": "beacon"},
        {"q": "one"},
        {"q": "beacon"},
        {"trace_id": "ab" * 16},
        {"connector": "desk", "door": "mcp"},
    ],
)
def test_the_export_holds_what_is_listed(params):
    record(Entry(kind="call", code="ok", tool="one", actor="dora", connector="desk", door="mcp", trace_id="ab" * 16))
    record(Entry(kind="denied", code="not_granted", tool="two", actor="emil", decision="deny"))
    record(Entry(kind="config", code="update", detail='{"label":"beacon"}', object_type="x.Y", object_id="7"))
    found = set(rows_of(read(params)).values_list("pk", flat=True))
    assert found == listed(params)
    assert found


def test_times_bound_it():
    record(Entry(kind="call", code="ok", tool="timed"))
    now = timezone.now()
    inside = {"tool": "timed", "since": (now - timedelta(hours=1)).isoformat(), "until": now.isoformat()}
    assert rows_of(read(inside)).count() == 1
    assert rows_of(read({**inside, "until": (now - timedelta(minutes=59)).isoformat()})).count() == 0
    assert rows_of(read({"tool": "timed"}), until=now - timedelta(hours=1)).count() == 0


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"tol": "x"}, "tol"),
        ({"since": "yesterday"}, "since"),
        ({"since": "2026-13-01T00:00:00Z"}, "since"),
        ({"call_id": "x"}, "call_id"),
        ({"kind": "cal"}, "kind"),
        ({"last": "2y"}, "last"),
        ({"tool": "a\0b"}, "tool"),
        ({"tool": "x" * 600}, "tool"),
    ],
)
def test_what_cannot_be_read_is_refused(given, name):
    with pytest.raises(BadScope) as refused:
        read(given)
    assert refused.value.name == name


def test_a_scope_is_told_in_words():
    assert told({"tool": "x", "connector": "desk"}) == "tool: x; data source: desk"
    assert told({}) == "every record"
