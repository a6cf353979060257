"""The vectors for other implementers are true: ours gives what they say."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from audit.verify import (
    COLUMNS,
    Trust,
    check_manifest,
    check_note,
    consistent,
    fields_of,
    inclusion_root,
    leaf_hash,
    leaves_of,
    parse_head,
    parse_note,
    parse_vkey,
    root_of,
)

VECTORS = json.loads((Path(__file__).resolve().parents[2] / "docs/evidence-vectors.json").read_text(encoding="utf-8"))
TREE = VECTORS["tree"]
LEAVES = [bytes.fromhex(leaf) for leaf in TREE["leaves"]]
ROOTS = [bytes.fromhex(root) for root in TREE["roots"]]


def path_of(vector):
    return [base64.b64decode(step) for step in vector["path"]]


def test_columns_are_those_of_the_verifier_and_more_may_follow():
    named = [tuple(each) for each in VECTORS["columns"]]
    assert list(COLUMNS[: len(named)]) == named


@pytest.mark.parametrize("vector", VECTORS["leaves"], ids=lambda vector: vector["record"]["kind"])
def test_leaves(vector):
    fields = fields_of(vector["record"])
    by_length = {int(length): leaf for length, leaf in vector["leaf_by_number_of_columns"].items()}
    assert {length: leaf_hash(fields[:length]).hex() for length in by_length} == by_length
    assert {bytes.fromhex(leaf) for leaf in by_length.values()} <= set(leaves_of(fields))


def test_roots():
    assert [leaf_hash([]).hex()] == TREE["leaves"][:1]
    assert [root_of(LEAVES[:size]) for size in range(9)] == ROOTS


def test_paths():
    for each in TREE["inclusion"]:
        assert inclusion_root(LEAVES[each["seq"]], each["seq"], each["size"], path_of(each)) == ROOTS[each["size"]]
    for each in TREE["consistency"]:
        assert consistent(each["from"], each["to"], ROOTS[each["from"]], ROOTS[each["to"]], path_of(each))


def test_heads_and_signatures():
    sealer, witness = VECTORS["keys"]["sealer"]["vkey"], VECTORS["keys"]["witness"]["vkey"]
    previous = bytes(32)
    for each in VECTORS["heads"]:
        note = parse_note(each["note"])
        head = parse_head(note.text)
        assert check_note(note, [sealer]) == [sealer]
        assert (head.number, head.size, head.root.hex()) == (each["number"], each["size"], each["root"])
        assert (head.previous, head.hash.hex()) == (previous, each["hash"])
        assert head.root == ROOTS[head.size]
        previous = head.hash
    assert head.broken == "restored from tape"
    assert check_note(parse_note(VECTORS["cosigned"]), [sealer, witness]) == [sealer, witness]
    assert str(parse_vkey(witness)) == witness


def test_a_signed_manifest():
    manifest = VECTORS["manifest"]
    trust = Trust([VECTORS["keys"]["sealer"]["vkey"]], [])
    check_manifest(manifest["content"].encode(), manifest["purpose"], manifest["note"], trust)
