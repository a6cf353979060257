"""The verifier on a database, beside what the tamper drill does: parts, certificates, witnesses, what is no fault."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from django.conf import settings
from django.db import connections
from psycopg.conninfo import make_conninfo

from audit.verify import Options, main, verify_database
from bench.small_sealer import Signer
from bench.tamper import Drill, a_forged_record, certify, cut, go_on, make_row
from mcpsite.datadir import SUPERUSER


@pytest.fixture(scope="module")
def drilled(django_db_setup):
    if not settings.EMBEDDED_DATABASE:
        pytest.skip("only the embedded PostgreSQL has a superuser to play")
    name = connections["owner"].settings_dict["NAME"]
    made = Drill(make_conninfo(settings.DATA_DIR.database_url(SUPERUSER), dbname=name), seed=11)
    yield made
    made.close()


@pytest.fixture
def ledger(drilled):
    yield drilled
    drilled.restore()


def test_records_that_left_under_a_certificate_are_no_fault(ledger):
    certify(ledger, [5, 6, 7, 20])
    report = ledger.verify()
    assert (report.verdict, report.counts) == ("OK", {"EXPIRED": 4})
    assert report.findings[0].place == {"month": "2026-11", "records": 4}


def test_a_record_beside_the_bits_of_a_certificate_is_missed(ledger):
    certify(ledger, [5, 6, 7, 20])
    ledger.run("DELETE FROM audit_record WHERE id = (SELECT record_id FROM audit_leaf WHERE seq = 8)")
    report = ledger.verify()
    assert report.counts == {"EXPIRED": 4, "MISSING": 1}
    assert next(each for each in report.findings if each.verdict == "MISSING").place["seq"] == 8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"approved": {"id": "1"}}, "one person alone"),
        ({"format": "other/1"}, "its format is 'other/1'"),
        ({"removed_sha256": "00"}, "its bits are not those"),
        ({"last_seq": 1e999}, "Infinity is no number"),
        ({"last_seq": 1 << 62}, "which cannot be"),
    ],
)
def test_a_certificate_that_is_not_as_it_must_be_explains_nothing(ledger, changes, said):
    certify(ledger, [5, 6], **changes)
    report = ledger.verify()
    assert report.counts["MISSING"] == 2
    assert said in str(report)


def test_a_certificate_that_nobody_signed_explains_nothing(ledger):
    certify(ledger, [5, 6])
    ledger.run("UPDATE audit_signature SET note = ''")
    assert ledger.verify().counts == {"MISSING": 2, "MODIFIED": 1}


def test_a_record_of_this_moment_need_not_be_sealed_yet(ledger):
    row = make_row(ledger.random, datetime.now(UTC), uuid4(), 1)
    number = ledger.one("SELECT max(id) + 1 FROM audit_record")
    ledger.insert({"id": number, **row})
    report = ledger.verify()
    assert report.verdict == "OK"
    assert any(note.startswith("1 records of the last minute") for note in report.notes)


def test_a_record_that_is_not_sealed_in_time_is_told(ledger):
    row = make_row(ledger.random, datetime.now(UTC) - timedelta(minutes=3), uuid4(), 1)
    number = ledger.one("SELECT max(id) + 1 FROM audit_record")
    ledger.insert({"id": number, **row})
    report = ledger.verify()
    assert [(each.verdict, each.place["record"]) for each in report.findings] == [("UNSEALED_OLD", number)]


def test_a_record_that_the_sealer_refused_is_told(ledger):
    row = a_forged_record(ledger)
    number = ledger.one("SELECT max(id) + 1 FROM audit_record")
    ledger.insert({"id": number, **row})
    ledger.run("INSERT INTO audit_refused (record_id, reason) VALUES (%s, 'forged')", number)
    found = ledger.verify(mac_keys=()).findings
    assert [(each.verdict, each.place["record"]) for each in found] == [("INSERTED", number)]


def test_a_gap_in_the_count_of_a_writer_is_told(ledger):
    writer = uuid4()
    at = datetime.now(UTC) - timedelta(seconds=5)
    number = ledger.one("SELECT max(id) + 1 FROM audit_record")
    for place, count in enumerate((1, 2, 5)):
        ledger.insert({"id": number + place, **make_row(ledger.random, at, writer, count)})
    found = ledger.verify().findings
    assert [(each.verdict, each.place["writer"]) for each in found] == [("MISSING", str(writer))]
    assert "3-4" in found[0].what


def test_processes_at_work_find_the_same(ledger):
    number = ledger.any_id()
    ledger.change("audit_record", "id", number, kind="system")
    alone, together = ledger.verify(), ledger.verify(jobs=2)
    assert alone.as_json() == together.as_json()
    assert alone.findings[0].place["column"] == "kind"


def test_what_happened_before_a_part_is_not_looked_at(ledger):
    head = ledger.sealer.heads[30]
    ledger.run("UPDATE audit_record SET actor = 'x' WHERE id = (SELECT record_id FROM audit_leaf WHERE seq = 3)")
    after = head.sealed_at + timedelta(microseconds=1)
    assert ledger.verify(since=after).verdict == "OK"
    assert ledger.verify(until=after, witness=None).verdict == "MODIFIED"
    assert ledger.verify().verdict == "MODIFIED"


def test_the_state_of_a_witness_is_read_as_it_keeps_it(ledger, tmp_path):
    state = tmp_path / "state.json"
    last = str(ledger.sealer.signer.key)
    state.write_text(json.dumps({"format": "mcpsite-witness/1", "key": last, "former": [], "head": ledger.kept_head}))
    report = verify_database(ledger.dsn, Options(witness=str(state)))
    assert report.verdict == "OK"
    assert not any("No key was given" in note for note in report.notes)


def test_a_signed_break_explains_what_was_rolled_back_to_who_accepts_it(ledger):
    cut(ledger, 20)
    go_on(ledger, 20, ledger.sealer.signer, 3, [f"break {urlsafe_b64encode(b'The disk was lost').decode()}"])
    (found,) = ledger.verify().findings
    assert (found.verdict, found.place["broken"]) == ("ROLLED_BACK", 20)
    assert "explains it by a signed break: The disk was lost; if you know" in found.what
    assert ledger.verify(accepted=(19,)).verdict == "ROLLED_BACK"
    report = ledger.verify(accepted=(20,))
    assert report.verdict == "OK"
    assert any("accepted by you" in note for note in report.notes)
    begin = ledger.sealer.heads[-1].sealed_at + timedelta(seconds=2)
    assert ledger.verify(since=begin).findings[0].place["broken"] == 20


def test_a_break_that_the_sealer_did_not_sign_explains_nothing(ledger):
    cut(ledger, 20)
    go_on(ledger, 20, Signer(), 3, [f"break {urlsafe_b64encode(b'No matter').decode()}"])
    verdicts = {each.verdict: each.what for each in ledger.verify(accepted=(20,)).findings}
    assert set(verdicts) == {"MODIFIED", "ROLLED_BACK"}
    assert "explains" not in verdicts["ROLLED_BACK"]


def test_a_key_that_never_signed_is_not_believed(ledger):
    report = verify_database(ledger.dsn, Options(keys=(str(Signer().key),)))
    assert report.verdict == "MODIFIED"
    assert "no head is signed by a key that you trust" in str(report)


def test_a_key_that_cannot_be_read_hides_nothing(ledger):
    ledger.run("INSERT INTO audit_key (vkey, since) VALUES ('none', 0)")
    assert ledger.verify().counts == {"MODIFIED": 1}


def test_the_exit_code_tells(ledger, capsys):
    arguments = ["database", "--url", ledger.dsn, "--key", ledger.first_key, "--jobs", "1"]
    assert main(arguments) == 0
    ledger.change("audit_record", "id", ledger.any_id(), actor="mallory")
    assert main(arguments) == 1
    assert "MODIFIED" in capsys.readouterr().out
    assert main(["database", "--url", "host=/nowhere"]) == 2
    assert "cannot be read" in capsys.readouterr().err
    ledger.run("ALTER TABLE audit_leaf RENAME TO hidden")
    try:
        assert main(arguments) == 2
    finally:
        ledger.run("ALTER TABLE hidden RENAME TO audit_leaf")
    assert "nothing can be said: UndefinedTable" in capsys.readouterr().err
