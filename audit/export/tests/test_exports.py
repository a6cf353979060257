"""An export from being asked for to being gone: made by a job, on record, and never half."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import hmac
import json
from collections import Counter
from datetime import timedelta

import pytest
from django.db import OperationalError, connection
from django.utils import timezone
from procrastinate.contrib.django.models import ProcrastinateJob

from audit.entry import Entry
from audit.export import parts, working, writing
from audit.export.asking import (
    ExportRefused,
    ask_for_export,
    cancel_export,
    delete_export,
    expire,
    restart_lost,
)
from audit.export.gauges import GAUGES
from audit.export.lines import pages
from audit.export.models import Export, Part
from audit.export.scope import read
from audit.export.tests.conftest import archive_of, made, make_user, manifest_of
from audit.export.working import Stopped, carry_out, write_records_of
from audit.ledger import record
from audit.models import Record


def make_records(number: int, tool: str) -> None:
    for place in range(number):
        record(Entry(kind="call", code="ok", tool=tool, detail=f'{{"n":{place}}}', arguments=b'{"secret":"x"}'))


def asked(tool: str, form: str = "jsonl", user=None) -> Export:
    return ask_for_export(form, read({"tool": tool}), user=user or make_user("dora"), door="admin")


def turns(export: Export) -> list[str]:
    rows = Record.objects.filter(object_type="audit.Export", object_id=str(export.pk))
    return list(rows.order_by("id").values_list("code", flat=True))


def test_an_export_is_made_signed_and_on_record(sealer):
    make_records(5, "made")
    export = made(asked("made"))
    assert (export.state, export.records, export.problem) == ("done", 5, "")
    manifest = manifest_of(export)
    assert manifest["scope"] == "tool: made"
    assert (manifest["records"], manifest["unsealed"], manifest["by"]) == (5, 0, "dora")
    assert hashlib.sha256(archive_of(export).read("manifest.json")).hexdigest() == export.manifest
    assert turns(export) == ["export_requested", "export_made"]
    detail = json.loads(Record.objects.get(code="export_made", object_id=str(export.pk)).detail)
    assert (detail["manifest"], detail["records"], detail["archive"]) == (export.manifest, 5, export.digest)
    assert str(sealer.key) in archive_of(export).read("keys.txt").decode().splitlines()


def test_arguments_stay_encrypted(sealer):
    make_records(1, "encrypted")
    raw = gzip.decompress(archive_of(made(asked("encrypted"))).read("records-00001.jsonl.gz"))
    assert b"secret" not in raw
    assert json.loads(raw)["record"]["ct"]


def test_decrypted_arguments_are_what_the_record_commits_to(sealer):
    make_records(1, "opened")
    user = make_user("dora")
    for form in ("jsonl", "csv"):
        export = made(
            ask_for_export(form, {"tool": "opened"}, user=user, door="admin", payloads=True, reason="Ticket 7")
        )
        assert export.state == "done", export.problem
        found = archive_of(export)
        if form == "csv":
            assert b'"{""secret"":""x""}"' in found.read("records-00001.csv")
            continue
        line = json.loads(gzip.decompress(found.read("records-00001.jsonl.gz")))
        salt, arguments = bytes.fromhex(line["payload"]["salt"]), line["payload"]["arguments"]
        assert hmac.digest(salt, b"a" + arguments.encode(), "sha256").hex() == line["record"]["args_commit"]
    detail = json.loads(Record.objects.filter(code="export_requested").latest("id").detail)
    assert (detail["payloads"], detail["reason"]) == (True, "Ticket 7")


def test_known_secrets_are_masked_in_decrypted_arguments_too(sealer):
    secret = "mcps_" + "x" * 32
    record(Entry(kind="call", code="ok", tool="masked", arguments=f'{{"note":"{secret}"}}'.encode()))
    export = ask_for_export(
        "jsonl", {"tool": "masked"}, user=make_user("dora"), door="admin", payloads=True, reason="r"
    )
    raw = gzip.decompress(archive_of(made(export)).read("records-00001.jsonl.gz"))
    assert json.loads(raw)["payload"]["arguments"] == '{"note":"[secret]"}'


def test_what_happens_after_it_was_asked_for_is_not_in_it(sealer):
    make_records(2, "before")
    export = asked("before")
    make_records(1, "before")
    assert made(export).records == 2


def test_a_large_archive_is_kept_in_parts(sealer, monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 300)
    make_records(20, "parts")
    export = made(asked("parts"))
    assert export.parts.count() == -(-export.size // 300) > 3
    assert archive_of(export).testzip() is None
    raw = b"".join(bytes(part.data) for part in export.parts.order_by("number"))
    assert hashlib.sha256(raw).hexdigest() == export.digest


def test_what_grows_too_large_fails_and_keeps_nothing(sealer, settings):
    settings.EXPORT_MAX_MB = 0
    make_records(1, "large")
    export = made(asked("large"))
    assert (export.state, export.parts.count()) == ("failed", 0)
    assert "EXPORT_MAX_MB" in export.problem
    assert turns(export)[-1] == "export_failed"


def test_without_a_sealer_it_fails_and_says_so(committed_db, monkeypatch):
    monkeypatch.setattr(working, "_SEALED_SECONDS", 0.01)
    monkeypatch.setattr("audit.export.signing.WAIT_SECONDS", 0.05)
    export = made(asked("unsealed"))
    assert export.state == "failed"
    assert "Is it running?" in export.problem


def test_a_full_disk_is_said_to_be_one(sealer, monkeypatch):
    def full(*args, **kwargs):
        cause = type("DiskFull", (Exception,), {"sqlstate": "53100"})()
        raise OperationalError("No space left on device") from cause

    export = asked("full")
    carry_out(export.pk, full, lambda: False)
    export.refresh_from_db()
    assert (export.state, "disk" in export.problem) == ("failed", True)


def test_an_unforeseen_failure_ends_it_too(sealer):
    def broken(*args):
        raise RuntimeError("nobody foresaw this")

    export = asked("broken")
    assert carry_out(export.pk, broken, lambda: False) == "failed"
    export.refresh_from_db()
    assert "the log" in export.problem


def test_one_that_waits_is_cancelled_at_once_and_one_under_way_soon(sealer):
    user = make_user("dora")
    waiting = cancel_export(asked("waiting", user=user), door="admin")
    assert waiting.state == "cancelled"
    assert carry_out(waiting.pk, write_records_of, lambda: False) == "gone"
    make_records(1, "going")
    going = asked("going", user=user)

    def cancelled_meanwhile(export, target, telling):
        with target.file("half") as stream:
            stream.write(b"x" * parts.PART_BYTES * 2)
        cancel_export(export, door="admin")
        return write_records_of(export, target, telling)

    assert carry_out(going.pk, cancelled_meanwhile, lambda: False) == "cancelled"
    assert not Part.objects.filter(export=going).exists()
    assert turns(going) == ["export_requested", "export_cancelled"]


def test_a_stopped_worker_leaves_it_to_the_next_one(sealer, monkeypatch):
    make_records(3, "stopped")
    export = asked("stopped")
    with pytest.raises(Stopped):
        carry_out(export.pk, write_records_of, lambda: True)
    assert Export.objects.get(pk=export.pk).state == "running"
    end_job(export)
    assert restart_lost() == 1
    again = Export.objects.get(pk=export.pk)
    assert (again.state, again.job_id != export.job_id) == ("waiting", True)
    again = made(again)
    assert (again.state, again.records, again.attempts) == ("done", 3, 2)


def test_another_worker_goes_on_behind_the_files_that_are_complete(sealer, monkeypatch):
    monkeypatch.setattr(parts, "PART_BYTES", 300)
    monkeypatch.setattr(writing, "_RECORDS_A_PART", {"jsonl": 2})
    monkeypatch.setattr(working, "_TELL_SECONDS", 0)
    read_by = []

    def read_in_twos(rows, **options):
        for page in pages(rows, size=2, **options):
            read_by[-1] += [json.loads(line.shown()["detail"])["n"] for line in page]
            yield page

    monkeypatch.setattr(working, "pages", read_in_twos)
    counted = gauges_now()
    make_records(7, "gone_on")
    export = asked("gone_on")
    for stops_at in (3, 2, 1000):
        read_by.append([])
        calls = iter(range(1, stops_at))
        with contextlib.suppress(Stopped):
            carry_out(export.pk, write_records_of, lambda calls=calls: next(calls, None) is None)
        end_job(Export.objects.get(pk=export.pk))
        restart_lost()
    # The second one was stopped before it had completed a file of its own.
    assert read_by == [[0, 1, 2, 3], [2, 3], [2, 3, 4, 5, 6]]
    export.refresh_from_db()
    assert (export.state, export.records, export.attempts, export.kept) == ("done", 7, 3, None)
    found = archive_of(export)
    assert found.testzip() is None
    files = {each["name"]: each for each in manifest_of(export)["files"]}
    assert [files[f"records-0000{number}.jsonl.gz"]["records"] for number in (1, 2, 3, 4)] == [2, 2, 2, 1]
    assert all(hashlib.sha256(found.read(name)).hexdigest() == each["sha256"] for name, each in files.items())
    lines = b"".join(gzip.decompress(found.read(name)) for name in sorted(files) if name.startswith("records-"))
    assert [json.loads(json.loads(line)["record"]["detail"])["n"] for line in lines.splitlines()] == list(range(7))
    raw = b"".join(bytes(part.data) for part in export.parts.order_by("number"))
    assert hashlib.sha256(raw).hexdigest() == export.digest
    more = gauges_now() - counted
    assert (more["mcpsite_exports", "done"], more["mcpsite_export_records", ""]) == (1, 7)


def gauges_now() -> Counter[tuple[str, str]]:
    with connection.cursor() as cursor:
        cursor.execute(GAUGES)
        return Counter({(name, label): round(number) for name, label, number in cursor.fetchall()})


def test_a_worker_that_was_only_thought_dead_writes_no_more(sealer):
    export = asked("taken_over")
    first, second = (parts.Parts(export, 1024), parts.Parts(Export.objects.get(pk=export.pk), 1024))
    Export.objects.filter(pk=export.pk).update(attempts=1)
    second._export.attempts = 1
    second.write(b"new")
    second.close()
    first.write(b"old")
    with pytest.raises(parts.Cancelled):
        first.close()
    assert bytes(Part.objects.get(export=export).data) == b"new"


def end_job(export: Export) -> None:
    """As the look after stalled jobs does when a worker has died."""
    ProcrastinateJob.objects.get(pk=export.job_id)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE procrastinate_jobs SET status = 'failed' WHERE id = %s", [export.job_id])


def test_one_whose_workers_die_again_and_again_has_failed(committed_db):
    export = asked("dying")
    Export.objects.filter(pk=export.pk).update(state="running", attempts=3)
    end_job(export)
    assert restart_lost() == 1
    export.refresh_from_db()
    assert export.state == "failed"
    assert "3 times" in export.problem
    assert restart_lost() == 0


def test_one_that_is_under_way_is_not_lost(committed_db):
    export = asked("alive")
    Export.objects.filter(pk=export.pk).update(asked_at=timezone.now() - timedelta(hours=1))
    assert restart_lost() == 0


def test_an_archive_is_deleted_when_its_time_is_over(sealer):
    make_records(1, "old")
    export = made(asked("old"))
    assert expire() == 0
    Export.objects.filter(pk=export.pk).update(expires_at=timezone.now() - timedelta(seconds=1))
    assert expire() == 1
    export.refresh_from_db()
    assert (export.state, export.parts.count()) == ("expired", 0)
    assert turns(export)[-1] == "export_expired"


def test_deleting_one_is_on_record(sealer):
    make_records(1, "deleted")
    export = made(asked("deleted"))
    key = str(export.pk)
    delete_export(export, door="admin")
    assert not Part.objects.filter(export_id=key).exists()
    assert Record.objects.filter(code="export_deleted", object_id=key).count() == 1


def test_nobody_has_too_many_at_once_and_the_disk_is_not_filled(committed_db, settings):
    user = make_user("dora")
    for _ in range(5):
        asked("many", user=user)
    with pytest.raises(ExportRefused, match="not finished") as refused:
        asked("many", user=user)
    assert refused.value.code == "too_many_exports"
    Export.objects.create(form="csv", state="done", size=2 * 1024**2, asked_by="x", asked_by_id="x")
    settings.EXPORT_TOTAL_MB = 1
    with pytest.raises(ExportRefused, match="delete some") as refused:
        asked("many", user=make_user("emil"))
    assert refused.value.code == "exports_full"


def test_arguments_are_not_exported_without_a_reason(committed_db):
    with pytest.raises(ExportRefused, match="reason"):
        ask_for_export("jsonl", {}, user=make_user("dora"), door="admin", payloads=True, reason=" ")
