"""The evidence by REST: what an auditor takes along verifies elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from django.contrib.auth.models import Permission
from django.db import connection
from rest_framework.test import APIClient

from access import tokens
from access.models import User
from audit.proofs.tests.conftest import make_record, seal
from audit.tests.test_api import make_auditor as make_reader
from audit.verify import COSIGNATURE, Options, check_note, parse_note, verify_consistency, verify_proof
from bench.small_sealer import Signer, store

ROOT = "/api/v1/audit/"


def make_auditor() -> APIClient:
    client = make_reader()
    seer = Permission.objects.get(codename="view_head")
    User.objects.get(username="auditor").user_permissions.add(seer)
    return client


def saved(folder, document) -> str:
    path = folder / "document.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return str(path)


def test_the_proof_of_a_record_verifies_without_the_database(evidence, tmp_path):
    made = make_record(tool="find_customer", actor="dora", arguments=b'{"id": 7}', definition=b"\x01" * 32)
    seal(evidence, 300, made, after=40)
    answer = make_auditor().get(f"{ROOT}records/{made.rid}/proof/")
    assert answer.status_code == 200
    assert f"proof-{made.rid}.json" in answer["Content-Disposition"]
    report = verify_proof(saved(tmp_path, answer.json()), Options(keys=(str(evidence.signer.key),)))
    assert (report.verdict, report.notes) == ("OK", [])
    assert report.facts["seq"] == 300


@pytest.mark.parametrize(
    ("field", "value", "column"),
    [("actor", "mallory", None), ("decision", "allow", "decision"), ("tool", "drop_table", None)],
)
def test_a_proof_whose_record_was_changed_says_so(evidence, tmp_path, field, value, column):
    made = make_record(tool="find_customer", actor="dora")
    seal(evidence, 3, made)
    document = make_auditor().get(f"{ROOT}records/{made.rid}/proof/").json()
    document["record"]["record"][field] = value
    report = verify_proof(saved(tmp_path, document), Options())
    assert report.verdict == "MODIFIED"
    assert (f"column {column} was" in str(report)) == (column is not None)


def test_a_record_that_is_not_sealed_has_no_proof_yet(evidence):
    made = make_record()
    client = make_auditor()
    answer = client.get(f"{ROOT}records/{made.rid}/proof/")
    assert (answer.status_code, answer.json()["code"]) == (409, "not_sealed")
    seal(evidence, 3)
    assert client.get(f"{ROOT}records/{made.rid}/proof/").json()["code"] == "not_sealed"


def test_a_tree_with_a_hole_makes_no_proof(evidence):
    made = make_record()
    seal(evidence, 3, made)
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM audit_leaf WHERE seq = 1")
    answer = make_auditor().get(f"{ROOT}records/{made.rid}/proof/")
    assert (answer.status_code, answer.json()["code"]) == (409, "tree_incomplete")
    assert "no leaf 1" in answer.json()["detail"]


def test_two_heads_are_shown_to_continue_each_other(evidence, tmp_path):
    seal(evidence, 300, make_record(), after=30)
    client = make_auditor()
    document = client.get(f"{ROOT}consistency/", {"from": 0, "to": 2}).json()
    report = verify_consistency(saved(tmp_path, document), Options(keys=(str(evidence.signer.key),)))
    assert (report.verdict, report.facts["from"], report.facts["to"]) == ("OK", 0, 2)
    other = {**document, "from": document["to"], "to": document["from"]}
    assert verify_consistency(saved(tmp_path, other), Options()).verdict == "ROLLED_BACK"


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({"from": 2, "to": 1}, 400, "wrong_order"),
        ({"from": 0, "to": 9}, 404, "not_found"),
        ({"from": "x", "to": 1}, 400, "invalid"),
        ({"to": 1}, 400, "invalid"),
        ({"from": 0, "to": 10**30}, 400, "invalid"),
    ],
)
def test_a_span_that_makes_no_sense_is_refused(evidence, query, status, code):
    seal(evidence, 3)
    answer = make_auditor().get(f"{ROOT}consistency/", query)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_heads_are_listed_with_the_lines_of_witnesses(evidence):
    witness = Signer("w.example", COSIGNATURE)
    seal(evidence, 3)
    evidence.rows = {}
    with connection.cursor() as cursor:
        line = witness.sign(evidence.heads[-1].text, 1_800_000_000)
        store(cursor, {"audit_cosignature": [(2, "w.example", str(line))]})
    client = make_auditor()
    listed = client.get(f"{ROOT}heads/").json()["results"]
    assert [each["number"] for each in listed] == [2, 1, 0]
    newest = client.get(f"{ROOT}heads/newest/").json()
    assert newest == listed[0] == client.get(f"{ROOT}heads/2/").json()
    both = [str(evidence.signer.key), str(witness.key)]
    assert check_note(parse_note(newest["note"]), both) == both
    assert check_note(parse_note(listed[1]["note"]), both) == both[:1]
    assert client.get(f"{ROOT}heads/7/").status_code == 404
    for other in (10**30, "x", "-1"):
        assert client.get(f"{ROOT}heads/{other}/").status_code == 404


def test_before_the_first_head_there_is_no_newest(evidence):
    answer = make_auditor().get(f"{ROOT}heads/newest/")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_the_keys_are_told(evidence):
    seal(evidence, 3)
    assert make_auditor().get(f"{ROOT}keys/").json() == {"keys": [str(evidence.signer.key)]}


def test_the_program_that_is_downloaded_runs_alone(evidence, tmp_path):
    made = make_record(tool="find_customer")
    seal(evidence, 3, made)
    client = make_auditor()
    program = tmp_path / "verify.py"
    answer = client.get(f"{ROOT}verify.py")
    assert answer["Content-Type"].startswith("text/x-python")
    program.write_bytes(answer.content)
    proof = saved(tmp_path, client.get(f"{ROOT}records/{made.rid}/proof/").json())
    command = [sys.executable, "-P", str(program), "proof", proof, "--key", str(evidence.signer.key)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={}, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("OK")


def test_who_may_not_see_records_sees_no_evidence(db):
    _, secret = tokens.issue(User.objects.create_user("dora"), name="test", scopes=["read"])
    client = APIClient(headers={"Authorization": f"Bearer {secret}"})
    for path in ("heads/", "heads/newest/", "heads/0/", "consistency/", "keys/", "verify.py"):
        assert client.get(ROOT + path).status_code == 403, path
