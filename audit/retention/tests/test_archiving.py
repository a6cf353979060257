"""Cold exports: signed, read back, taken up where they were broken off, on a disk and in S3."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import connections
from django.utils import timezone
from moto.server import ThreadedMotoServer

from audit.export import writing
from audit.export.lines import pages
from audit.export.tests.sealer import TestSealer
from audit.models import Record
from audit.retention import archiving
from audit.retention.archiving import ArchiveRefused, NotProven, ask, check, lost, run
from audit.retention.models import Archive
from audit.retention.stores import Bucket, Disk, StoreError, settle, store_at, store_for
from audit.retention.tests.conftest import Story
from audit.retention.tests.past import fresh_month, write


def folder_of(archive: Archive) -> Path:
    return Path(archive.place.removeprefix("file://"))


def records_about(archive: Archive) -> list[str]:
    return list(Record.objects.filter(object_id=str(archive.pk)).order_by("id").values_list("code", flat=True))


def test_an_export_holds_every_record_of_the_month_and_is_read_back(story: Story) -> None:
    archive = story.export()
    assert (archive.state, archive.written, archive.error) == ("verified", 4, "")
    names = {path.name for path in folder_of(archive).iterdir()}
    assert names == {"records-00001.jsonl.gz", "heads.jsonl", "keys.txt", "manifest.json", "manifest.sig"}
    said = json.loads((folder_of(archive) / "manifest.json").read_text())
    assert (said["complete"], said["records"], said["purpose"]) == (True, 4, "archive")
    assert check(archive).records == 4
    assert records_about(archive) == ["archive_begun", "archive_verified"]


def test_its_files_are_for_their_owner_only(story: Story) -> None:
    folder = folder_of(story.export())
    assert {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {"0o600"}


def test_records_of_neighbours_that_were_sealed_in_between_go_along(archive_folder: Path, sealer: TestSealer) -> None:
    month = fresh_month(30)
    write(month, [{"code": "a"}])
    sealer.seal()
    other = fresh_month(40)
    write(other, [{"code": "stray"}])
    sealer.seal()
    write(month, [{"code": "b"}])
    sealer.seal()
    archive = run(ask(month, door="test"), sign=sealer.sign)
    assert archive.state == "verified"
    assert json.loads((folder_of(archive) / "manifest.json").read_text())["complete"] is True
    assert archive.written == 3


@pytest.mark.parametrize(
    ("prepare", "why"),
    [
        (lambda story, settings: setattr(settings, "LEDGER_ARCHIVE", None), "There is no archive"),
        (lambda story, settings: setattr(story, "month", timezone.now().date().replace(day=1)), "is not over"),
        (lambda story, settings: setattr(story, "month", fresh_month(30)), "has no records"),
        (lambda story, settings: write(story.month, [{"code": "late"}]), "not sealed"),
        (lambda story, settings: ask(story.month, door="test"), "under way"),
    ],
)
def test_what_cannot_be_exported_is_refused_with_a_reason(story: Story, settings: Any, prepare: Any, why: str) -> None:
    prepare(story, settings)
    with pytest.raises(ArchiveRefused, match=why):
        ask(story.month, door="test")


def test_what_was_broken_off_goes_on_and_sends_nothing_twice(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(writing._RECORDS_A_PART, "jsonl", 1)
    monkeypatch.setattr(archiving, "pages", lambda rows: ([line] for page in pages(rows) for line in page))
    archive, put = ask(story.month, door="test"), Disk.put
    sent: list[str] = []

    def put_two(disk: Disk, name: str, path: Path, digest: str) -> None:
        if len(sent) == 2:
            raise KeyboardInterrupt
        sent.append(name)
        put(disk, name, path, digest)

    with monkeypatch.context() as patch:
        patch.setattr(Disk, "put", put_two)
        with pytest.raises(KeyboardInterrupt):
            run(archive, sign=story.sealer.sign)
    archive.refresh_from_db()
    assert (archive.state, archive.files) == ("running", 2)
    archive = run(archive, sign=story.sealer.sign)
    assert (archive.state, archive.resent, archive.files) == ("verified", 2, 8)


def test_an_export_whose_job_died_is_taken_up(story: Story) -> None:
    archive = ask(story.month, door="test")
    assert lost() == []
    Archive.objects.update(state="running", beat_at=timezone.now() - timedelta(minutes=3))
    assert [each.pk for each in lost()] == [archive.pk]


def test_two_jobs_on_one_export_do_not_meet(story: Story) -> None:
    archive = ask(story.month, door="test")
    key = int.from_bytes(archive.pk.bytes[:8], signed=True)
    with connections["owner"].cursor() as other:
        other.execute("SELECT pg_advisory_lock(%s)", [key])
        assert run(archive, sign=story.sealer.sign).state == "waiting"
        other.execute("SELECT pg_advisory_unlock(%s)", [key])
    assert run(archive, sign=story.sealer.sign).state == "verified"


def test_a_disk_that_cannot_be_written_is_told(story: Story, archive_folder: Path, settings: Any) -> None:
    (archive_folder / "file").write_text("in the way")
    settings.LEDGER_ARCHIVE = (archive_folder / "file").as_uri()
    archive = story.export()
    assert archive.state == "failed"
    assert "cannot be written" in archive.error
    assert records_about(archive) == ["archive_begun", "archive_failed"]


def test_a_failed_export_goes_on_under_the_same_name(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(archiving, "SIGNATURE_SECONDS", 0.1)
        failed = run(ask(story.month, door="test"))
    assert "No sealer" in failed.error
    again = story.export()
    assert again.pk == failed.pk
    assert (again.state, again.resent) == ("verified", 3)


def test_a_signature_of_somebody_else_proves_nothing(story: Story) -> None:
    archive = run(ask(story.month, door="test"), sign=TestSealer().sign)
    assert archive.state == "failed"
    assert "no signature of this ledger" in archive.error


def test_a_record_that_was_changed_in_the_ledger_is_not_archived(story: Story) -> None:
    name = f"audit_record_{story.month:%Y%m}"
    with connections["owner"].cursor() as cursor:
        cursor.execute(f"ALTER TABLE {name} DISABLE TRIGGER USER")
        cursor.execute(f"UPDATE {name} SET actor = 'eve' WHERE rid = %s", [story.rids[0]])
        cursor.execute(f"ALTER TABLE {name} ENABLE TRIGGER USER")
    archive = story.export()
    assert archive.state == "failed"
    assert f"record {story.rids[0]} is not what the ledger has sealed" in archive.error


def test_the_command_exports_and_checks(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    story.export()
    call_command("cold_export", f"{story.month:%Y-%m}", check=True)
    assert "4 records, each as it was sealed" in capsys.readouterr().out
    next(folder_of(Archive.objects.get(month=story.month)).glob("records-*")).write_bytes(b"x")
    with pytest.raises(CommandError, match="1 of 1 months failed"):
        call_command("cold_export", f"{story.month:%Y-%m}", check=True)
    with pytest.raises(CommandError, match="Write a month as"):
        call_command("cold_export", "November")


# --- Places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("file://host/folder", "absolute"),
        ("file:///folder?region=x", "absolute"),
        ("s3:///prefix", "s3://bucket"),
        ("s3://bucket?colour=red", "colour is no option"),
        ("s3://bucket?lock_mode=COMPLIANCE", "lock_days"),
        ("s3://bucket?lock_mode=SOFT&lock_days=3", "lock_mode"),
    ],
)
def test_a_place_that_is_none_is_refused_with_a_sentence(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        settle(url)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch, settings: Any) -> Any:
    """A bucket that locks what is put into it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    client = boto3.client("s3", region_name="eu-central-1", endpoint_url=s3)
    if "cold" not in [each["Name"] for each in client.list_buckets()["Buckets"]]:
        where: Any = {"LocationConstraint": "eu-central-1"}
        client.create_bucket(Bucket="cold", CreateBucketConfiguration=where, ObjectLockEnabledForBucket=True)
    settings.LEDGER_ARCHIVE = f"s3://cold/ledger?region=eu-central-1&endpoint={s3}&lock_mode=COMPLIANCE&lock_days=2555"
    return client


def test_an_export_to_s3_is_locked_and_read_back(story: Story, bucket: Any) -> None:
    archive = story.export()
    assert (archive.state, archive.error) == ("verified", "")
    assert archive.place.startswith(f"s3://cold/ledger/{story.month:%Y-%m}/{archive.pk}?region=")
    key = f"ledger/{story.month:%Y-%m}/{archive.pk}/records-00001.jsonl.gz"
    found = bucket.head_object(Bucket="cold", Key=key, ChecksumMode="ENABLED")
    assert found["ObjectLockMode"] == "COMPLIANCE"
    assert found["ObjectLockRetainUntilDate"] > timezone.now() + timedelta(days=2554)
    assert found["ChecksumSHA256"]
    assert check(archive).records == 4


def test_what_was_overwritten_in_s3_is_found(story: Story, bucket: Any) -> None:
    archive = story.export()
    key = f"ledger/{story.month:%Y-%m}/{archive.pk}/records-00001.jsonl.gz"
    bucket.put_object(Bucket="cold", Key=key, Body=b"something else")
    with pytest.raises(NotProven, match="records-00001"):
        check(archive)


def test_a_large_file_goes_in_parts_and_is_not_sent_again(bucket: Any, settings: Any, tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(range(256)) * (40 * 4096))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    store = store_for(settings.LEDGER_ARCHIVE, "large")
    assert not store.has("large", digest, path.stat().st_size)
    store.put("large", path, digest)
    assert bucket.head_object(Bucket="cold", Key="ledger/large/large")["ETag"].strip('"').endswith("-3")
    assert store.has("large", digest, path.stat().st_size)
    assert not store.has("large", "0" * 64, path.stat().st_size)
    with store_at(store.place).open("large") as stream:
        assert hashlib.sha256(stream.read()).hexdigest() == digest


def test_a_bucket_that_is_not_there_is_told(bucket: Any, settings: Any, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    store = store_for(settings.LEDGER_ARCHIVE.replace("cold", "elsewhere"), "x")
    assert isinstance(store, Bucket)
    with pytest.raises(StoreError, match="elsewhere"):
        store.put("x", tmp_path / "x", "0" * 64)
    with pytest.raises(StoreError, match="elsewhere"), store.open("x"):
        pass
