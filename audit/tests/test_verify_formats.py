"""The formats of docs/evidence.md against published vectors, and against a second, naive implementation."""

from __future__ import annotations

import base64
import hashlib
import time
from datetime import UTC, datetime
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audit import entry
from audit.datakeys import DataKeys
from audit.verify import (
    COLUMNS,
    COSIGNATURE,
    EMPTY_ROOT,
    FIRST_PREVIOUS,
    FORMATS,
    Head,
    Note,
    NoteError,
    Report,
    Signature,
    Tree,
    check_note,
    consistent,
    fields_of,
    inclusion_root,
    key_id,
    leaf_hash,
    leaves_of,
    node_hash,
    parse_head,
    parse_note,
    parse_vkey,
    root_of,
    vkey,
)
from keyring.keys import KeyRing

# Of RFC 6962's reference implementation: entries, and the roots over the first 1, 2, … of them.
ENTRIES = ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
LEAVES = [hashlib.sha256(b"\0" + bytes.fromhex(each)).digest() for each in ENTRIES]

# Of the documentation of golang.org/x/mod/sumdb/note, where the format of signed notes comes from.
NEUMANN = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
NEUMANNS_NOTE = """\
If you think cryptography is the answer to your problem,
then you don't know what your problem is.

— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=
"""


def naive_root(leaves):
    """Word by word what RFC 6962, 2.1, says."""
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256().digest()
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return node_hash(naive_root(leaves[:split]), naive_root(leaves[split:]))


def naive_path(index, leaves):
    """RFC 6962, 2.1.1."""
    if len(leaves) < 2:
        return []
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if index < split:
        return [*naive_path(index, leaves[:split]), naive_root(leaves[split:])]
    return [*naive_path(index - split, leaves[split:]), naive_root(leaves[:split])]


def naive_consistency(first, leaves, whole=True):
    """RFC 6962, 2.1.2."""
    if first == len(leaves):
        return [] if whole else [naive_root(leaves)]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    if first <= split:
        return [*naive_consistency(first, leaves[:split], whole), naive_root(leaves[split:])]
    return [*naive_consistency(first - split, leaves[split:], False), naive_root(leaves[:split])]


def many(count):
    return [hashlib.sha256(b"%d" % number).digest() for number in range(count)]


def test_roots_are_those_of_the_reference_implementation():
    assert [root_of(LEAVES[:size]).hex() for size in range(1, 9)] == list(ROOTS)
    assert root_of([]) == EMPTY_ROOT == hashlib.sha256(b"").digest()


def test_a_tree_that_grows_has_the_roots_that_the_standard_defines():
    leaves, tree = many(131), Tree()
    for size, leaf in enumerate(leaves, 1):
        tree.append(leaf)
        assert (tree.size, tree.root) == (size, naive_root(leaves[:size]))
        assert Tree(size, tree.peaks).root == tree.root


def test_a_tree_grows_by_whole_subtrees_as_by_their_leaves():
    leaves = many(77)
    tree = Tree()
    for start in range(0, 64, 8):
        tree.append_subtree(3, naive_root(leaves[start : start + 8]))
    for leaf in leaves[64:]:
        tree.append(leaf)
    assert tree.root == naive_root(leaves)
    with pytest.raises(ValueError, match="no subtree"):
        tree.append_subtree(3, leaves[0])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 31, 33])
def test_every_leaf_is_shown_to_be_included_and_nowhere_else(size):
    leaves = many(size)
    root = naive_root(leaves)
    for index, leaf in enumerate(leaves):
        path = naive_path(index, leaves)
        assert inclusion_root(leaf, index, size, path) == root
        assert inclusion_root(many(size + 1)[-1], index, size, path) != root
        for wrong in ([*path, leaf], path[:-1]):
            if wrong != path:
                with pytest.raises(ValueError, match="path is too"):
                    inclusion_root(leaf, index, size, wrong)
    with pytest.raises(ValueError, match="no leaf"):
        inclusion_root(leaves[0], size, size, [])


def test_every_tree_is_shown_to_continue_the_smaller_ones():
    *leaves, foreign = many(34)
    for second in range(1, 34):
        new = naive_root(leaves[:second])
        for first in range(1, second + 1):
            old, path = naive_root(leaves[:first]), naive_consistency(first, leaves[:second])
            assert consistent(first, second, old, new, path)
            assert not consistent(first, second, foreign, new, path)
            assert not consistent(first, second, old, foreign, path)
            assert not consistent(first, second, old, new, [*path, old])
            if path:
                assert not consistent(first, second, old, new, path[:-1])
                assert not consistent(first, second, old, new, [foreign, *path[1:]])
    assert not consistent(2, 1, new, old, [])
    assert consistent(0, 5, EMPTY_ROOT, naive_root(leaves[:5]), [])


def test_a_note_of_another_implementation_is_verified():
    note = parse_note(NEUMANNS_NOTE)
    assert note.text.endswith("is.\n")
    assert check_note(note, [NEUMANN]) == [NEUMANN]
    assert str(note) == NEUMANNS_NOTE
    assert str(parse_vkey(NEUMANN)) == NEUMANN


def test_a_note_whose_text_was_changed_is_refused():
    note = parse_note(NEUMANNS_NOTE.replace("answer", "Answer"))
    with pytest.raises(NoteError, match=r"PeterNeumann \(c74f20a3\) does not fit"):
        check_note(note, [NEUMANN])


def test_lines_of_unknown_keys_are_passed_over():
    key = Ed25519PrivateKey.generate()
    stranger = vkey("Enoch", key.public_key().public_bytes_raw())
    note = parse_note(NEUMANNS_NOTE)
    assert check_note(note, [stranger]) == []
    identity = key_id("Enoch", key.public_key().public_bytes_raw())
    both = Note(note.text, (*note.signatures, Signature("Enoch", identity, key.sign(note.text.encode()))))
    assert check_note(parse_note(str(both)), [NEUMANN]) == [NEUMANN]
    assert check_note(parse_note(str(both)), [stranger, NEUMANN]) == [NEUMANN, stranger]


def test_a_cosignature_covers_its_time():
    key = Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes_raw()
    witness, text, moment = vkey("w.example", public, COSIGNATURE), "origin\n1\nroot\n", int(time.time())
    blob = moment.to_bytes(8) + key.sign(b"cosignature/v1\ntime %d\n" % moment + text.encode())
    note = Note(text, (Signature("w.example", key_id("w.example", public, COSIGNATURE), blob),))
    assert check_note(note, [witness]) == [witness]
    later = Note(text, (note.signatures[0]._replace(blob=(moment + 1).to_bytes(8) + blob[8:]),))
    with pytest.raises(NoteError, match="does not fit"):
        check_note(later, [witness])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("no signatures\n", "no signatures"),
        ("text\n\n— name", "no signatures"),
        ("text\n\n- name AAAAAAA=\n", "Not a line"),
        ("text\n\n— name AAAA\n", "Not a line"),
        ("text\n\n— name ****\n", "base64"),
        ("te\rxt\n\n— name AAAAAAA=\n", "control"),
        ("text\n\n— na+me AAAAAAA=\n", "Not a line"),
    ],
)
def test_what_is_no_note_is_refused(text, complaint):
    with pytest.raises(NoteError, match=complaint):
        parse_note(text)


def test_a_key_with_another_ones_id_is_refused():
    with pytest.raises(NoteError, match="has the id c74f20a3, not c74f20a4"):
        parse_vkey(NEUMANN.replace("c74f20a3", "c74f20a4"))
    for wrong in ("", "a", "a+b+c", NEUMANN[:-4], "a b+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"):
        with pytest.raises(NoteError):
            parse_vkey(wrong)


def a_head(**changes):
    made = Head("a.example/ledger/1", 8, bytes.fromhex(ROOTS[7]), 3, FIRST_PREVIOUS, datetime(2026, 11, 23, tzinfo=UTC))
    return made._replace(**changes)


def test_a_head_is_read_as_it_was_written():
    reason = base64.urlsafe_b64encode(b"restored").decode()
    head = a_head(further=(f"break {reason}", f"successor {NEUMANN}"))
    assert parse_head(head.text) == head
    assert (head.broken, head.successor) == ("restored", NEUMANN)
    assert (a_head().broken, a_head().successor) == (None, None)
    assert head.hash == hashlib.sha256(head.text.encode()).digest()
    assert head.text.split("\n")[5] == "sealed 2026-11-23T00:00:00.000000Z"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("8\n", "08\n"),
        ("8\n", "+8\n"),
        ("number 3", "number  3"),
        ("00Z", "00"),
        ("previous AAA", "previous AA"),
        ("8\n", ""),
    ],
)
def test_a_head_that_is_not_written_as_it_must_be_is_refused(old, new):
    with pytest.raises(NoteError, match="Not "):
        parse_head(a_head().text.replace(old, new, 1))


def test_the_ledger_writes_the_leaf_that_the_verifier_computes():
    row = entry.encode(
        entry.Entry("call", "ok", actor="ada", arguments=b'{"a": 1}', result=b"[]", total_us=12, detail="ü" * 700),
        DataKeys(KeyRing({"k1": bytes(32)})),
        UUID(int=1),
        5,
    )
    *fields, leaf, _ = row.parameters
    assert leaf_hash(fields) == leaf
    assert [name for name, _ in entry.COLUMNS] == [name for name, _ in COLUMNS]
    assert len(COLUMNS) == FORMATS[-1]


def test_a_leaf_follows_from_the_record_as_json():
    fields = {
        "rid": str(UUID(int=7)),
        "at": "2026-11-23T10:00:00.000001Z",
        "kind": "call",
        "code": "ok",
        "total_us": 12,
    }
    packed = fields_of({**fields, "definition": "00ff", "leaf": "not covered"})
    assert packed[:3] == [UUID(int=7).bytes, ((1_795_428_000 - 946_684_800) * 1_000_000 + 1).to_bytes(8), b"call"]
    assert packed[17] == b"\x00\xff"
    assert entry.leaf_of(tuple(packed)) == leaf_hash(packed) == next(leaves_of(packed))


@pytest.mark.parametrize(
    ("name", "value"), [("rid", 3), ("at", "today"), ("total_us", "12"), ("code", 5), ("ct", "xy")]
)
def test_what_is_no_value_of_its_column_is_refused(name, value):
    with pytest.raises(ValueError, match="is no "):
        fields_of({name: value})


def test_what_is_told_does_not_draw_on_the_screen():
    report = Report()
    report.find("MODIFIED", "\x1b[2J\nOK: records 9\u202e\ud800", rid="\x9b1A" + "x" * 5_000)
    report.note("a\rb")
    first, second, third = str(report).split("\n")
    assert all(line.isprintable() and len(line) < 3_000 for line in (first, second, third))
    assert "\\x9b1A" in second
    assert third.endswith("a\\rb")
