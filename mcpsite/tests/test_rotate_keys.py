from __future__ import annotations

import base64
import io
import json
import os
import uuid
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from audit.models import Record
from keyring import rotation
from keyring.keys import KeyRing, ring
from tools.models import DataSource

OLD, NEW = (base64.b64encode(os.urandom(32)).decode() for _ in range(2))


@pytest.fixture
def keys(settings):
    """Put other keys on the ring."""

    def use(text: str) -> None:
        settings.ENCRYPTION_KEYS = text
        ring.cache_clear()

    yield use
    ring.cache_clear()


def make_sources(count: int) -> list[DataSource]:
    return [
        DataSource.objects.create(name=f"s{n}-{uuid.uuid4().hex[:6]}", kind="mcp", secrets={"n": n, "x": "canary"})
        for n in range(count)
    ]


def rotate(**options: object) -> str:
    out = io.StringIO()
    call_command("rotate_keys", stdout=out, stderr=out, **options)
    return out.getvalue()


def key_ids() -> dict[str, int]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT secrets FROM tools_datasource WHERE secrets IS NOT NULL")
        names = [KeyRing.key_id_of(bytes(row[0])) for row in cursor.fetchall()]
    return {name: names.count(name) for name in names}


def system_records() -> list[Any]:
    return [json.loads(r.detail or "") for r in Record.objects.filter(code="keys_rotated").order_by("id")]


@pytest.mark.django_db
def test_every_value_moves_to_the_new_key_and_stays_what_it_was(keys):
    keys(f"old:{OLD}")
    sources = [*make_sources(5), DataSource.objects.create(name="none", kind="mcp")]
    keys(f"new:{NEW},old:{OLD}")
    said = rotate(batch=2)
    assert key_ids() == {"new": 5}
    assert "tools.DataSource.secrets: 4 looked at, 4 re-encrypted" in said
    assert "0 values remain under other keys than new" in said
    assert "canary" not in said
    keys(f"new:{NEW}")
    assert [DataSource.objects.get(pk=s.pk).secrets for s in sources] == [s.secrets for s in sources]


@pytest.mark.django_db
def test_each_batch_is_recorded(keys):
    keys(f"old:{OLD}")
    make_sources(3)
    keys(f"new:{NEW},old:{OLD}")
    before = len(system_records())
    rotate(batch=2)
    found = system_records()[before:]
    assert [each["from"] for each in found] == [{"old": 2}, {"old": 1}]
    assert {(each["field"], each["to"]) for each in found} == {("tools.DataSource.secrets", "new")}


@pytest.mark.django_db
def test_a_second_time_changes_and_records_nothing(keys):
    keys(f"old:{OLD}")
    make_sources(3)
    keys(f"new:{NEW},old:{OLD}")
    rotate()
    before = (len(system_records()), list(DataSource.objects.values_list("secrets", "updated_at")))
    assert "3 looked at, 0 re-encrypted" in rotate()
    assert (len(system_records()), list(DataSource.objects.values_list("secrets", "updated_at"))) == before


def test_what_was_done_before_a_stop_stays_done(committed_db, keys):
    keys(f"old:{OLD}")
    make_sources(5)
    keys(f"new:{NEW},old:{OLD}")
    batches = rotation.rotate(DataSource._meta.get_field("secrets"), 2)
    next(batches)
    next(batches)  # The first is committed, the second is under way.
    batches.close()
    assert key_ids() == {"new": 2, "old": 3}
    assert "5 looked at, 3 re-encrypted" in rotate()
    assert key_ids() == {"new": 5}


@pytest.mark.django_db
def test_what_cannot_be_read_is_named_left_alone_and_does_not_stop_the_others(keys):
    keys(f"old:{OLD}")
    sources = make_sources(3)
    keys(f"lost:{NEW}")
    lost = make_sources(1)[0]
    keys(f"new:{base64.b64encode(os.urandom(32)).decode()},old:{OLD}")
    out = io.StringIO()
    with pytest.raises(CommandError, match="1 values could not be read and were left as they are"):
        call_command("rotate_keys", stdout=out, stderr=out)
    assert f"tools.DataSource {lost.pk}: The key 'lost' is not in the key ring" in out.getvalue()
    assert "lost: 1 values, 0 records of the ledger: is still needed" in out.getvalue()
    assert key_ids() == {"new": len(sources), "lost": 1}


@pytest.mark.django_db
def test_the_ledger_keeps_its_keys_and_that_is_said(keys):
    keys(f"old7:{OLD}")
    rid = uuid.uuid4()
    with connection.cursor() as cursor:  # As records were before there were data keys.
        cursor.execute(
            "INSERT INTO audit_record (rid, at, kind, writer_id, code, ct, key_id, leaf, mac)"
            " VALUES (%s, now(), 'call', %s, 'ok', '', 'old7', '', '')",
            [rid, rid],
        )
    keys(f"new:{NEW},old7:{OLD},idle:{base64.b64encode(os.urandom(32)).decode()}")
    said = rotate(dry_run=True)
    assert "old7: 0 values, 1 records of the ledger: is still needed" in said
    assert "idle: 0 values, 0 records of the ledger: decrypts nothing any more" in said


@pytest.mark.django_db
def test_a_dry_run_only_counts(keys):
    keys(f"old:{OLD}")
    make_sources(2)
    keys(f"new:{NEW},old:{OLD}")
    assert "2 values remain under other keys than new" in rotate(dry_run=True)
    assert key_ids() == {"old": 2}
