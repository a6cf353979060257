"""Records leave after an export, by the word of two persons, after a while, and under a signed certificate only."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest
from django.db import DatabaseError, connection, connections, transaction
from django.utils import timezone

from access.models import User
from audit import verify
from audit.changes import record_change
from audit.entry import COLUMNS
from audit.models import LegalHold, Record, RetentionClass
from audit.retention import expiring
from audit.retention.expiring import ExpiryRefused, approve, carry_out_due, drop, find, propose, withdraw
from audit.retention.models import Expiry, Month
from audit.retention.tests.conftest import Story
from audit.retention.tests.past import wait, write


def proposed(story: Story) -> Expiry:
    story.export()
    return propose(story.find(), story.ada, "past its time", door="test")


def approved(story: Story) -> Expiry:
    expiry = approve(proposed(story), story.bob, door="test")
    story.sealer.answer()
    return expiry


def records_about(expiry: Expiry) -> list[str]:
    return list(Record.objects.filter(object_id=str(expiry.pk)).order_by("id").values_list("code", flat=True))


def test_the_whole_story(story: Story) -> None:
    expiry = drop(approved(story), door="test", actor=story.bob)
    assert expiry.state == "dropped"
    assert (expiry.records, expiry.kept) == (3, 1)
    assert story.left() == ["c"]
    assert records_about(expiry) == ["expiry_due", "expiry_proposed", "expiry_approved", "records_dropped"]


def test_what_stays_is_what_it_was(story: Story) -> None:
    before = Record.objects.values().get(code="c", rid__in=story.rids)
    drop(approved(story), door="test")
    after = Record.objects.values().get(code="c", rid__in=story.rids)
    assert after == before
    with connection.cursor() as cursor:
        cursor.execute("SELECT leaf FROM audit_leaf WHERE record_id = %s", [after["id"]])
        assert bytes(cursor.fetchone()[0]) == bytes(after["leaf"])


def test_the_new_partition_is_guarded_and_indexed_like_the_others(story: Story) -> None:
    name = f"audit_record_{story.month:%Y%m}"
    with connections["owner"].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_index WHERE indrelid = %s::regclass", [name])
        indexes = cursor.fetchone()
        drop(approved(story), door="test")
        cursor.execute("SELECT count(*) FROM pg_index WHERE indrelid = %s::regclass", [name])
        assert cursor.fetchone() == indexes
        for statement in (f"DELETE FROM {name}", f"UPDATE {name} SET code = 'x'", f"TRUNCATE {name}"):
            with pytest.raises(DatabaseError, match="append-only"):
                cursor.execute(statement)
    with connection.cursor() as cursor, pytest.raises(DatabaseError, match="permission denied"):
        cursor.execute(f"SELECT * FROM {name}")


def test_leaves_and_heads_stay_and_the_certificate_names_the_hole(story: Story) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT seq, l.leaf, r.code FROM audit_leaf l JOIN audit_record r ON r.id = l.record_id"
            " WHERE rid = ANY (%s)",
            [story.rids],
        )
        leaves = {code: (seq, bytes(leaf)) for seq, leaf, code in cursor.fetchall()}
    expiry = drop(approved(story), door="test")
    text, note = expiring.certificate(expiry) or ("", "")
    said = json.loads(text)
    bits = zlib.decompress(base64.b64decode(said["removed"]))
    assert hashlib.sha256(bits).hexdigest() == said["removed_sha256"]
    gone = {said["first_seq"] + n for n in range(len(bits) * 8) if bits[n >> 3] >> (n & 7) & 1}
    assert gone == {leaves[code][0] for code in "abd"}
    with connection.cursor() as cursor:
        cursor.execute("SELECT leaf FROM audit_leaf WHERE seq = ANY (%s) ORDER BY seq", [sorted(gone)])
        assert [bytes(leaf) for (leaf,) in cursor.fetchall()] == [leaves[code][1] for code in "abd"]
    assert (said["proposed"]["by"], said["approved"]["by"]) == ("ada", "bob")
    assert said["archive"]["manifest"] == expiry.archive.manifest
    assert said["heads"]["after"]["size"] > said["last_seq"]
    assert verify.check_note(verify.parse_note(note), [str(story.sealer.key)])
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert verify.parse_note(note).text == f"mcpsite manifest\ngap\n{digest}\n"


# --- Two persons ------------------------------------------------------------------------------------------------------


def test_the_same_person_twice_is_refused(story: Story) -> None:
    expiry = proposed(story)
    with pytest.raises(ExpiryRefused, match="somebody else"):
        approve(expiry, story.ada, door="test")
    assert story.expiry.state == "proposed"


@pytest.mark.parametrize("maker", ["ada", "bob"])
def test_whoever_made_or_changed_the_account_of_the_other_is_no_second_person(story: Story, maker: str) -> None:
    expiry = proposed(story)
    one, other = (story.ada, story.bob) if maker == "ada" else (story.bob, story.ada)
    record_change(action="update", obj=other, before={"roles": []}, after={"roles": ["r"]}, door="admin", actor=one)
    with pytest.raises(ExpiryRefused, match="a third person"):
        approve(expiry, story.bob, door="test")


def test_the_database_refuses_the_same_person_twice(story: Story) -> None:
    expiry = approved(story)
    with connection.cursor() as cursor, pytest.raises(DatabaseError, match="audit_gap"), transaction.atomic():
        cursor.execute(
            "INSERT INTO audit_gap (month, first_seq, last_seq, records, removed, proposed_by_id, approved_by_id, body,"
            " request) SELECT month, first_seq, last_seq, records, removed, '1', '1', body, gen_random_uuid()"
            " FROM audit_gap WHERE id = %s",
            [expiry.gap],
        )


@pytest.mark.parametrize("step", ["propose", "approve", "withdraw", "drop"])
def test_without_the_permission_nobody_does_anything(story: Story, step: str) -> None:
    expiry = proposed(story) if step != "propose" else story.find()
    acts: dict[str, Any] = {
        "propose": lambda: propose(expiry, story.eve, "r", door="test"),
        "approve": lambda: approve(expiry, story.eve, door="test"),
        "withdraw": lambda: withdraw(expiry, story.eve, door="test"),
        "drop": lambda: drop(expiry, door="test", actor=story.eve),
    }
    with pytest.raises(ExpiryRefused, match="permission"):
        acts[step]()


def test_programs_do_not_count_as_persons(story: Story) -> None:
    expiry = proposed(story)
    User.objects.filter(pk=story.bob.pk).update(is_service=True)
    with pytest.raises(ExpiryRefused, match="not programs"):
        approve(expiry, User.objects.get(pk=story.bob.pk), door="test")


def test_what_changed_since_it_was_proposed_is_not_approved(story: Story) -> None:
    expiry = proposed(story)
    LegalHold.objects.create(name="h", matter="m", scope="principal", value="ada", reason="r")
    with pytest.raises(ExpiryRefused, match="changed"):
        approve(expiry, story.bob, door="test")


def test_what_was_withdrawn_stays_also_for_the_database(story: Story) -> None:
    expiry = approved(story)
    withdraw(expiry, story.ada, door="test")
    with pytest.raises(ExpiryRefused, match="withdrawn"):
        drop(expiry, door="test")
    with connection.cursor() as cursor, pytest.raises(DatabaseError, match="withdrawn"):
        cursor.execute("SELECT audit_drop_expired(%s)", [expiry.gap])
    assert len(story.left()) == 4


# --- Export first -----------------------------------------------------------------------------------------------------


def test_without_an_export_nothing_is_proposed(story: Story) -> None:
    with pytest.raises(ExpiryRefused, match="Export the month first"):
        propose(story.find(), story.ada, "r", door="test")


@pytest.mark.parametrize("file", ["records-00001.jsonl.gz", "manifest.json", "manifest.sig"])
def test_a_tampered_export_keeps_the_records(story: Story, archive_folder: Path, file: str) -> None:
    expiry = approved(story)
    place = next(archive_folder.glob(f"*/*/{file}"))
    content = gzip.decompress(place.read_bytes()) if file.endswith("gz") else place.read_bytes()
    changed = content.replace(b"ada", b"eve") if file.endswith("gz") else content[:-8] + b"AAAAAAA\n"
    place.write_bytes(gzip.compress(changed) if file.endswith("gz") else changed)
    with pytest.raises(ExpiryRefused, match="not whole"):
        drop(expiry, door="test")
    assert len(story.left()) == 4
    assert "not whole" in story.expiry.problem


def test_an_export_that_is_gone_keeps_the_records(story: Story, archive_folder: Path) -> None:
    expiry = approved(story)
    next(archive_folder.glob("*/*/records-00001.jsonl.gz")).unlink()
    with pytest.raises(ExpiryRefused, match="cannot be read"):
        drop(expiry, door="test")
    assert len(story.left()) == 4


# --- The database has the last word -----------------------------------------------------------------------------------


def test_it_has_to_wait(story: Story) -> None:
    wait(24)
    expiry = approved(story)
    with pytest.raises(ExpiryRefused, match="has to wait"):
        drop(expiry, door="test")
    with connection.cursor() as cursor, pytest.raises(DatabaseError, match="has to wait"):
        cursor.execute("SELECT audit_drop_expired(%s)", [expiry.gap])


def test_a_certificate_cannot_be_dated_back(story: Story) -> None:
    wait(24)
    expiry = approved(story)
    with connection.cursor() as cursor:
        cursor.execute("SELECT at > now() - interval '1 hour' FROM audit_gap WHERE id = %s", [expiry.gap])
        assert cursor.fetchone()[0]
        cursor.execute(
            "INSERT INTO audit_signing_request (id, purpose, digest, mac)"
            " VALUES (gen_random_uuid(), 'gap', sha256('x'), sha256('y')) RETURNING id"
        )
        request = cursor.fetchone()[0]
        cursor.execute(
            "INSERT INTO audit_gap (month, first_seq, last_seq, records, removed, proposed_by_id, approved_by_id, body,"
            " request, at) SELECT month, first_seq, last_seq, records, removed, '1', '2', body, %s, '2001-01-01'"
            " FROM audit_gap WHERE id = %s RETURNING at > now() - interval '1 hour'",
            [request, expiry.gap],
        )
        assert cursor.fetchone()[0]


def test_the_site_cannot_shorten_the_waiting_nor_say_that_something_was_dropped(story: Story) -> None:
    expiry = approved(story)
    for statement in (
        "UPDATE audit_gap_rule SET waiting = '0'",
        f"INSERT INTO audit_gap_drop VALUES ({expiry.gap}, 3, 1, now())",
        f"UPDATE audit_gap SET records = 1 WHERE id = {expiry.gap}",
        f"DELETE FROM audit_gap WHERE id = {expiry.gap}",
        f"DROP TABLE audit_record_{story.month:%Y%m}",
        f"ALTER TABLE audit_record DETACH PARTITION audit_record_{story.month:%Y%m}",
    ):
        with (
            connection.cursor() as cursor,
            pytest.raises(DatabaseError, match=r"permission denied|must be owner|append-"),
        ):
            cursor.execute(statement)


def test_without_the_signature_of_the_sealer_nothing_is_dropped(story: Story) -> None:
    expiry = approve(proposed(story), story.bob, door="test")
    with pytest.raises(ExpiryRefused, match="not signed"):
        drop(expiry, door="test")
    assert len(story.left()) == 4


def test_a_hold_placed_after_the_approval_keeps_the_records(story: Story) -> None:
    expiry = approved(story)
    hold = LegalHold.objects.create(name="h", matter="m", scope="tool", value="pay", reason="r")
    with pytest.raises(ExpiryRefused, match="held, kept for longer, or missing"):
        drop(expiry, door="test")
    assert len(story.left()) == 4
    hold.released_at = timezone.now()
    hold.save()
    assert drop(expiry, door="test").state == "dropped"


def test_a_class_made_longer_after_the_approval_keeps_the_records(story: Story) -> None:
    expiry = approved(story)
    longer = RetentionClass.objects.create(name="long", months=600, tools=["pay"])
    try:
        with pytest.raises(ExpiryRefused, match="kept for longer"):
            drop(expiry, door="test")
    finally:
        longer.delete()
    assert len(story.left()) == 4


def test_with_unsealed_records_nothing_is_dropped(story: Story) -> None:
    expiry = approved(story)
    story.rids += write(story.month, [{"kind": "auth", "code": "late"}])
    with pytest.raises(ExpiryRefused, match="not sealed"):
        drop(expiry, door="test")
    assert len(story.left()) == 5


def test_what_came_late_and_was_sealed_stays(story: Story) -> None:
    expiry = approved(story)
    story.rids += write(story.month, [{"code": "late"}])
    story.sealer.seal()
    drop(expiry, door="test")
    assert story.left() == ["c", "late"]
    assert find() != []
    assert Expiry.objects.get(month=story.month, state="due").records == 1


def test_a_missing_record_is_not_covered_up(story: Story) -> None:
    expiry = approved(story)
    name = f"audit_record_{story.month:%Y%m}"
    with connections["owner"].cursor() as cursor:
        cursor.execute(f"ALTER TABLE {name} DISABLE TRIGGER USER")
        cursor.execute(f"DELETE FROM {name} WHERE rid = %s", [story.rids[1]])
        cursor.execute(f"ALTER TABLE {name} ENABLE TRIGGER USER")
    with pytest.raises(ExpiryRefused, match="missing"):
        drop(expiry, door="test")
    assert story.left() == ["a", "c", "d"]


def test_a_certificate_is_carried_out_once(story: Story) -> None:
    expiry = approved(story)
    drop(expiry, door="test")
    with pytest.raises(ExpiryRefused, match="dropped now"):
        drop(expiry, door="test")
    with connection.cursor() as cursor, pytest.raises(DatabaseError, match="already"):
        cursor.execute("SELECT audit_drop_expired(%s)", [expiry.gap])


def test_two_replicas_at_once_drop_it_once(story: Story) -> None:
    expiry = approved(story)
    said: list[str] = []
    barrier = threading.Barrier(2)

    def one() -> None:
        barrier.wait(10)
        try:
            said.append(drop(expiry, door="job").state)
        except ExpiryRefused as refused:
            said.append(str(refused))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(said) == ["It is dropped now.", "dropped"]
    assert story.left() == ["c"]


def test_a_crash_between_the_drop_and_its_record_undoes_both(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    expiry = approved(story)

    def crash(*given: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(expiring, "record_event", crash)
        with pytest.raises(KeyboardInterrupt):
            drop(expiry, door="test")
    assert len(story.left()) == 4
    assert drop(story.expiry, door="test").state == "dropped"


def test_a_reader_that_does_not_end_makes_it_try_again_later_and_holds_up_no_call(story: Story) -> None:
    expiry = approved(story)
    connection.close()
    reader = connections["owner"].cursor()
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM audit_record")
    with pytest.raises(ExpiryRefused, match="in use all the time"):
        drop(expiry, door="test")
    reader.execute("ROLLBACK")
    reader.close()
    assert drop(story.expiry, door="test").state == "dropped"


def test_a_month_that_is_empty_after_it_has_no_partition_any_more(story: Story) -> None:
    before = Month.objects.get(month=story.month).dropped
    security = RetentionClass.objects.get(name="security")
    RetentionClass.objects.filter(name="security").update(months=1)
    try:
        drop(approved(story), door="test")
    finally:
        RetentionClass.objects.filter(name="security").update(months=security.months)
    assert story.left() == []
    month = Month.objects.get(month=story.month)
    assert (month.present, month.dropped - before) == (False, 4)


def test_the_job_carries_out_what_has_waited_and_proposes_nothing(story: Story) -> None:
    story.export()
    find()
    assert carry_out_due() == []
    assert story.expiry.state == "due"
    propose(story.expiry, story.ada, "r", door="test")
    assert carry_out_due() == []
    approve(story.expiry, story.bob, door="test")
    story.sealer.answer()
    assert [each.pk for each in carry_out_due()] == [story.expiry.pk]
    assert story.left() == ["c"]


def test_the_leaf_of_what_was_exported_is_the_one_in_the_tree(story: Story, archive_folder: Path) -> None:
    drop(approved(story), door="test")
    lines = gzip.decompress(next(archive_folder.glob("*/*/records-*.gz")).read_bytes()).splitlines()
    found = {each["record"]["code"]: each for each in map(json.loads, lines)}
    with connection.cursor() as cursor:
        for code in "abcd":
            cursor.execute("SELECT leaf FROM audit_leaf WHERE seq = %s", [found[code]["seq"]])
            assert bytes(cursor.fetchone()[0]) in set(verify.leaves_of(verify.fields_of(found[code]["record"])))
    assert set(found["a"]["record"]) == {name for name, _ in COLUMNS}
