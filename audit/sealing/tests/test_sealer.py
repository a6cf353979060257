"""The sealer: every record once, in a tree that RFC 6962 describes, under heads that are signed and chained."""

from __future__ import annotations

import os
from datetime import timedelta

import psycopg
import pytest

from audit.sealing import sealer as module
from audit.sealing.heads import CannotSeal
from audit.sealing.keys import key_of
from audit.sealing.tests.conftest import Ledger, new_signer
from audit.verify import EMPTY_ROOT, Head, check_note, parse_head, parse_note, parse_vkey, root_of
from keyring.keys import KeyRing, ring

pytestmark = pytest.mark.django_db(databases=[])


def heads(ledger: Ledger) -> list[Head]:
    """All heads, each of them checked: signed by a key of the time, chained to the one before, over the leaves."""
    found: list[Head] = []
    leaves = ledger.leaves()
    for note in (parse_note(each) for each in ledger.notes()):
        head = parse_head(note.text)
        assert check_note(note, [key_of(head.origin, each) for each in ledger.signers])
        assert head.number == len(found)
        assert head.previous == (found[-1].hash if found else bytes(32))
        assert head.root == root_of(leaves[: head.size])
        found.append(head)
    return found


def sealed_ids(ledger: Ledger) -> list[int]:
    return [row[0] for row in ledger.connection.execute("SELECT record_id FROM audit_leaf ORDER BY seq")]


def test_the_first_head_of_an_empty_ledger_is_over_nothing(ledger: Ledger) -> None:
    ledger.sealer().step()
    (head,) = heads(ledger)
    assert (head.size, head.root) == (0, EMPTY_ROOT)
    assert head.origin.startswith("mcp.example.com/ledger/")


def test_records_are_sealed_in_the_order_of_their_ids(ledger: Ledger) -> None:
    ledger.write(700)
    ledger.sealer().step()
    assert sealed_ids(ledger) == list(range(1, 701))
    stored = ledger.connection.execute("SELECT leaf FROM audit_record ORDER BY id").fetchall()
    assert ledger.leaves() == [row[0] for row in stored]
    assert heads(ledger)[-1].size == 700


@pytest.mark.parametrize("parts", [[255, 1, 1], [256, 256], [257, 510, 1, 300], [1] * 12, [1023, 2]])
def test_the_root_is_that_of_all_leaves_however_they_come(ledger: Ledger, parts: list[int]) -> None:
    sealer = ledger.sealer()
    for part in parts:
        ledger.write(part)
        sealer.step()
    assert [head.size for head in heads(ledger)] == [sum(parts[: n + 1]) for n in range(len(parts))]


def test_a_new_sealer_goes_on_where_the_last_one_ended(ledger: Ledger) -> None:
    for part in (300, 213, 255, 1):
        ledger.write(part)
        ledger.sealer().step()
        ledger.end_sealers()
    assert heads(ledger)[-1].size == 769


def test_complete_subtrees_are_kept_as_nodes(ledger: Ledger) -> None:
    ledger.write(600)
    ledger.sealer().step()
    nodes = ledger.connection.execute("SELECT height, index, hash FROM audit_node ORDER BY 1, 2").fetchall()
    leaves = ledger.leaves()
    assert nodes == [(8, 0, root_of(leaves[:256])), (8, 1, root_of(leaves[256:512]))]


def test_an_idle_ledger_gets_a_head_every_minute(ledger: Ledger) -> None:
    ledger.write()
    sealer = ledger.sealer()
    sealer.step()
    ledger.clock.now += 59
    sealer.step()
    assert len(heads(ledger)) == 1
    ledger.clock.now += 1
    sealer.step()
    assert [head.size for head in heads(ledger)] == [1, 1]


def test_a_late_commit_is_not_missed(ledger: Ledger) -> None:
    with psycopg.connect(ledger.dsn) as late:
        ledger.write(2, late)
        ledger.write(3)
        sealer = ledger.sealer()
        sealer.step()
        assert sealed_ids(ledger) == [3, 4, 5]
        assert ledger.one("SELECT low_water FROM audit_head ORDER BY number DESC LIMIT 1") == 0
    sealer.step()
    assert sealed_ids(ledger) == [3, 4, 5, 1, 2]
    assert ledger.one("SELECT low_water FROM audit_head ORDER BY number DESC LIMIT 1") == 5


def test_a_commit_that_comes_after_the_longest_time_and_a_restart_is_not_missed(ledger: Ledger) -> None:
    with psycopg.connect(ledger.dsn) as late:
        ledger.write(1, late)
        ledger.write(1)
        ledger.sealer().step()
        ledger.end_sealers()
        sealer = ledger.sealer()
        sealer.step()
        ledger.clock.now += 10 * module.LONGEST_SECONDS
        sealer.step()
        sealer.step()
    sealer.step()
    assert sorted(sealed_ids(ledger)) == [1, 2]


def test_ids_that_nobody_will_use_are_given_up(ledger: Ledger) -> None:
    with psycopg.connect(ledger.dsn) as undone:
        ledger.write(2, undone)
        undone.rollback()
    ledger.write(1)
    sealer = ledger.sealer()
    sealer.step()
    ledger.clock.now += module.LONGEST_SECONDS - 1
    ledger.write(1)
    sealer.step()
    assert ledger.one("SELECT max(low_water) FROM audit_head") == 0
    ledger.clock.now += 2
    sealer.step()
    ledger.write(1)
    sealer.step()
    assert ledger.one("SELECT max(low_water) FROM audit_head") == 5


def test_a_record_that_was_changed_before_it_was_sealed_is_refused(ledger: Ledger) -> None:
    ledger.write(3)
    ledger.connection.execute("UPDATE audit_record SET actor = 'mallory' WHERE id = 2")
    sealer = ledger.sealer()
    sealer.step()
    assert sealed_ids(ledger) == [1, 3]
    assert ledger.connection.execute("SELECT record_id, reason FROM audit_refused").fetchall() == [(2, "changed")]
    sealer.step()
    told = ledger.connection.execute("SELECT id, kind, code, detail FROM audit_record WHERE id > 3").fetchall()
    assert told == [(4, "system", "ledger_records_refused", '{"count": 1, "records": [[2, "changed"]]}')]
    assert sealed_ids(ledger) == [1, 3, 4]


def forge(ledger: Ledger, **columns: object) -> None:
    """A copy of record 1, as somebody makes it who has the database and nothing else."""
    names = ["rid", "at", "kind", "writer_id", "writer_seq", "code", "leaf", "mac"]
    values = ["%s" if name in columns else name for name in names]
    query = f"INSERT INTO audit_record ({', '.join(names)}) SELECT {', '.join(values)} FROM audit_record WHERE id = 1"
    ledger.connection.execute(query.encode(), [columns[name] for name in names if name in columns])


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"mac": bytes(32), "at": "2030-01-01"}, "changed"),
        ({"mac": bytes(32)}, "forged"),
        ({"mac": b"short"}, "forged"),
        ({"mac": b"x" * 200}, "forged"),
        ({"leaf": b"", "mac": b""}, "changed"),
    ],
)
def test_a_record_that_nobody_of_ours_wrote_is_refused(ledger: Ledger, columns: dict[str, object], reason: str) -> None:
    ledger.connection.execute("ALTER TABLE audit_record DROP CONSTRAINT audit_record_rid_at_key")
    ledger.write(1)
    forge(ledger, **columns)
    ledger.write(1)
    sealer = ledger.sealer()
    sealer.step()
    assert sealed_ids(ledger) == [1, 3]
    assert ledger.connection.execute("SELECT record_id, reason FROM audit_refused").fetchall() == [(2, reason)]


def test_a_leaf_of_its_own_does_not_make_a_record_ours(ledger: Ledger) -> None:
    """Whoever knows the format computes the leaf; the MAC needs a key that the database does not hold."""
    ledger.connection.execute("ALTER TABLE audit_record DROP CONSTRAINT audit_record_rid_at_key")
    strangers = KeyRing({"k1": os.urandom(32)})
    ledger.write(1)
    from audit.datakeys import DataKeys
    from audit.entry import Entry, encode, python_values
    from audit.sealing.tests.conftest import _RECORD, WRITER

    row = encode(Entry(kind="call", code="ok"), DataKeys(strangers), WRITER, 2)
    ledger.connection.execute(_RECORD.encode(), python_values(row))
    ledger.sealer().step()
    assert sealed_ids(ledger) == [1]
    assert ledger.one("SELECT reason FROM audit_refused") == "forged"


def test_what_was_refused_for_want_of_a_key_is_sealed_when_it_is_there(ledger: Ledger) -> None:
    ledger.write(2)
    ledger.sealer(keys=KeyRing({"other": os.urandom(32)})).step()
    assert sealed_ids(ledger) == []
    ledger.end_sealers()
    ledger.sealer().step()
    assert {1, 2} <= set(sealed_ids(ledger))
    assert ledger.one("SELECT count(*) FROM audit_refused WHERE record_id < 3") == 2


def test_the_head_is_made_anew_after_a_failure_in_any_step(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill leaves what a failure leaves: whatever was not committed is gone."""
    ledger.write(300)
    for step in ("_append", "_insert", "_refuse"):
        sealer = ledger.sealer()
        whole = getattr(sealer, step)

        def broken(*args: object, whole: object = whole) -> None:
            whole(*args)  # type: ignore[operator]
            raise RuntimeError("killed")

        monkeypatch.setattr(sealer, step, broken)
        with pytest.raises(RuntimeError):
            sealer.step()
        assert ledger.leaves() == []
        assert ledger.notes() == []
        ledger.end_sealers()
    ledger.sealer().step()
    assert [head.size for head in heads(ledger)] == [300]


def test_a_kill_between_the_commit_and_the_file_is_no_alarm(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.sealer().step()
    ledger.write()
    sealer = ledger.sealer(opened=False)
    ledger.end_sealers()
    sealer = ledger.sealer()
    monkeypatch.setattr(ledger.state, "write", lambda known: (_ for _ in ()).throw(RuntimeError("killed")))
    with pytest.raises(RuntimeError):
        sealer.step()
    monkeypatch.undo()
    ledger.end_sealers()
    ledger.write()
    ledger.sealer().step()
    assert [head.size for head in heads(ledger)][-1] == 2


def test_there_is_one_sealer_at_a_time(ledger: Ledger) -> None:
    ledger.sealer()
    second = ledger.sealer(opened=False)
    assert not second.lock()
    ledger.end_sealers()
    assert ledger.sealer(opened=False).lock()


def test_two_sealers_without_the_lock_could_not_both_commit(ledger: Ledger) -> None:
    ledger.write(5)
    first = ledger.sealer()
    second = ledger.sealer(opened=False)
    second.open()
    first.step()
    with pytest.raises(psycopg.errors.UniqueViolation):
        second.step()
    assert len(heads(ledger)) == 1


def test_an_older_database_is_refused_until_that_is_accepted(ledger: Ledger) -> None:
    ledger.write(3)
    sealer = ledger.sealer()
    sealer.step()
    ledger.write(1)
    sealer.step()
    known = ledger.state.read()
    assert known
    assert known.number == 1
    ledger.end_sealers()
    ledger.connection.execute("DELETE FROM audit_head WHERE number = 1")
    ledger.connection.execute("DELETE FROM audit_leaf WHERE seq = 3")
    ledger.connection.execute("DELETE FROM audit_record WHERE id = 4")
    with pytest.raises(CannotSeal, match=r"number 1, and the database ends with head 0.*accept-restore"):
        ledger.sealer()
    ledger.end_sealers()
    sealer = ledger.sealer(opened=False)
    assert sealer.lock()
    sealer.open(after_restore=True)
    sealer.accept_restore("disk lost, backup of Monday", known)
    found = heads(ledger)[-1]
    assert (found.number, found.broken) == (1, "disk lost, backup of Monday")
    ledger.end_sealers()
    ledger.sealer().step()
    assert len(heads(ledger)) == 3


def test_an_exchanged_head_is_noticed(ledger: Ledger) -> None:
    ledger.sealer().step()
    ledger.end_sealers()
    signer, head = ledger.signers[0], heads(ledger)[0]
    other = head._replace(sealed_at=head.sealed_at + timedelta(seconds=1))
    from audit.sealing.heads import note_of

    ledger.connection.execute("UPDATE audit_head SET note = %s", [str(note_of(other, [signer]))])
    with pytest.raises(CannotSeal, match="has another head of that number"):
        ledger.sealer()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE audit_head SET root = leaf FROM audit_leaf WHERE seq = 0", "does not say what its row says"),
        ("UPDATE audit_head SET note = replace(note, 'number 0', 'number 1')", "does not say what its row says"),
        ("UPDATE audit_head SET note = 'x'", "cannot be read"),
        ("UPDATE audit_leaf SET leaf = sha256('x') WHERE seq = 299", "does not have the root"),
        ("UPDATE audit_node SET hash = sha256('x')", "does not have the root"),
        ("DELETE FROM audit_node", "of the 1 nodes of height 8 from 0 on, 0 are there"),
    ],
)
def test_a_damaged_tree_is_not_sealed_over(ledger: Ledger, change: str, said: str) -> None:
    ledger.write(300)
    ledger.sealer().step()
    ledger.end_sealers()
    ledger.connection.execute(change.encode())
    with pytest.raises(CannotSeal, match=said):
        ledger.sealer()


def test_a_key_is_followed_by_the_next_under_a_head_of_both(ledger: Ledger) -> None:
    sealer = ledger.sealer()
    sealer.step()
    old, new = ledger.signers[0], new_signer("s2")
    ledger.signers.insert(0, new)
    ledger.clock.now += 5
    sealer.step()
    ledger.write()
    sealer.step()
    found = heads(ledger)
    notes = [parse_note(each) for each in ledger.notes()]
    old_key, new_key = (key_of(found[0].origin, each) for each in (old, new))
    assert [check_note(note, [old_key, new_key]) for note in notes] == [
        [str(old_key)],
        [str(old_key), str(new_key)],
        [str(new_key)],
    ]
    assert [head.successor for head in found] == [None, str(new_key), None]
    assert ledger.connection.execute("SELECT vkey, since FROM audit_key ORDER BY since").fetchall() == [
        (str(old_key), 0),
        (str(new_key), 1),
    ]
    assert ledger.one("SELECT code FROM audit_record ORDER BY id LIMIT 1") == "ledger_key_rotated"
    ledger.end_sealers()
    ledger.signers.remove(old)
    ledger.clock.now += 60
    ledger.sealer().step()
    assert len(heads_of(ledger, [old, new])) == 4


def heads_of(ledger: Ledger, signers: list[object]) -> list[Head]:
    ledger.signers = signers  # type: ignore[assignment]
    return heads(ledger)


def test_a_key_that_is_taken_away_too_early_is_asked_for(ledger: Ledger) -> None:
    ledger.sealer().step()
    ledger.end_sealers()
    ledger.signers = [new_signer()]
    with pytest.raises(CannotSeal, match="not among LEDGER_SIGNING_KEYS"):
        ledger.sealer()


def test_the_ring_of_the_test_is_that_of_the_site() -> None:
    assert ring().primary


def test_keys_are_named_in_the_database(ledger: Ledger) -> None:
    ledger.sealer().step()
    key = parse_vkey(str(ledger.one("SELECT vkey FROM audit_key")))
    assert key.public == ledger.signers[0].public
