"""The page of a record says when it was sealed, and gives the proof to take along."""

from __future__ import annotations

from django.db import connection

from audit.proofs.tests.conftest import make_record, seal
from audit.tests.test_story import make_root, story
from audit.verify import COSIGNATURE
from bench.small_sealer import Signer, store


def test_a_sealed_record_offers_its_proof(evidence):
    made = make_record(tool="find_customer")
    seal(evidence, 1200, made, after=3)
    page = story(make_root(), made)
    for said in ("1,200", "First head over it", f"/api/v1/audit/records/{made.rid}/proof/", f"proof-{made.rid}.json"):
        assert said in page, said
    assert "Cosigned by" not in page
    assert "Not sealed yet" not in page


def test_witnesses_of_a_later_head_are_named(evidence):
    made = make_record()
    seal(evidence, 3, made)
    with connection.cursor() as cursor:
        store(cursor, {"audit_cosignature": [(2, "w.example", str(Signer("w.example", COSIGNATURE).sign("x")))]})
    page = story(make_root(), made)
    assert "Cosigned by" in page
    assert "w.example" in page


def test_a_record_that_is_not_sealed_says_so(evidence):
    page = story(make_root(), make_record())
    assert "Not sealed yet" in page
    assert "Download the proof" not in page
