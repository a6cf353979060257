"""`make tamper`: a superuser of PostgreSQL changes the ledger in every way that we know; the verifier must name each.

The ledger is a copy of the site's tables in a schema of its own, with a past: exchanged keys, witnesses, idle heads.
What is changed is put back after each time, and every so often the untouched ledger is verified: it must be OK.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from struct import Struct
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from audit.verify import (
    COLUMNS,
    COSIGNATURE,
    EXPIRED,
    FIRST_PREVIOUS,
    INSERTED,
    MISSING,
    MODIFIED,
    REORDERED,
    ROLLED_BACK,
    UNSEALED_OLD,
    Finding,
    Head,
    Options,
    Report,
    Tree,
    leaf_hash,
    verify_database,
)
from bench.processes import BenchError, Stage
from bench.small_sealer import ORIGIN, Signer, SmallSealer, store

SCHEMA, PRISTINE = "tamper_drill", "tamper_drill_kept"
EVIDENCE = ("audit_leaf", "audit_node", "audit_head", "audit_cosignature", "audit_key")
TABLES = ("audit_record", *EVIDENCE)
COPIED = (*TABLES, "audit_refused", "audit_gap", "audit_gap_withdrawal", "audit_signature", "audit_signing_request")
FAULTS = {MODIFIED, MISSING, INSERTED, REORDERED, ROLLED_BACK, UNSEALED_OLD}
MAC_KEY = hashlib.sha256(b"a key that the database does not hold").digest()
_BIGINT = Struct("!q")
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_ROOT = Path(__file__).resolve().parent.parent


# --- The ledger -------------------------------------------------------------------------------------------------------


def binary(value: Any, kind: str) -> bytes | None:
    """PostgreSQL's binary form of a Python value."""
    if value is None:
        return None
    match kind:
        case "text":
            return str.encode(value)
        case "uuid":
            return bytes(value.bytes)
        case "bigint":
            return _BIGINT.pack(value)
        case "timestamptz":
            return _BIGINT.pack((value - _EPOCH) // timedelta(microseconds=1))
    return bytes(value)


def leaf_of(row: dict[str, Any]) -> bytes:
    """The leaf of a row."""
    return leaf_hash([binary(row[name], kind) for name, kind in COLUMNS])


def mac_of(row: dict[str, Any], key: bytes | None = None) -> bytes:
    """The MAC of a row, with a key that is not ours or with ours."""
    place = b"" if row["writer_seq"] is None else _BIGINT.pack(row["writer_seq"])
    return hmac.digest(MAC_KEY if key is None else key, row["leaf"] + row["writer_id"].bytes + place, "sha256")


def make_row(random_: random.Random, at: datetime, writer: UUID, count: int | None) -> dict[str, Any]:
    """A record as a process writes it."""
    row: dict[str, Any] = {name: None for name, _ in COLUMNS}
    stamp = int(at.timestamp() * 1000) << 80 | 0x7 << 76 | 0x2 << 62 | random_.getrandbits(62)
    row.update(
        rid=UUID(int=stamp), at=at, kind=random_.choice(["call", "intent", "outcome", "denied"]), writer_id=writer,
        writer_seq=count, actor=random_.choice(["ada", "dora", "emil"]), actor_id="7", roles="clerk", door="mcp",
        connector="office", tool=random_.choice(["find_customer", "close_ticket"]), effect="read", policy_version=3,
        decision="allow", code="ok", detail=random_.choice([None, '{"message": "as usual"}']),
        args_commit=random_.randbytes(32), result_bytes=random_.randrange(9000), total_us=random_.randrange(10**6),
        ct=random_.randbytes(80), key_id="k1",
    )  # fmt: skip
    if count is None:
        row.update(kind="config", tool=None, object_type="access.Grant", object_id="4", decision=None)
    row["leaf"] = leaf_of(row)
    row["mac"] = mac_of(row)
    return row


@dataclass
class Drill:
    """One ledger in a database, as its superuser."""

    url: str
    seed: int
    blocks: int = 2
    random: random.Random = field(init=False)
    sealer: SmallSealer = field(default_factory=SmallSealer)
    witness: Signer = field(default_factory=lambda: Signer("w.example/1", COSIGNATURE))
    kept_head: str = ""
    states: list[tuple[int, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.first_key = str(self.sealer.signer.key)
        self.connection = psycopg.connect(self.url, autocommit=True)
        self.connection.execute("SET session_replication_role = replica")  # no trigger, no foreign key
        self._make_tables()
        self._fill()
        self._keep()
        self.dsn = make_conninfo(self.url, options=f"-c search_path={SCHEMA}")
        with tempfile.NamedTemporaryFile("w", suffix=".note", delete=False, encoding="utf-8") as file:
            file.write(self.kept_head)
        self.witness_file = file.name

    def close(self) -> None:
        """Leave nothing behind."""
        os.unlink(self.witness_file)
        self.run(f"DROP SCHEMA {SCHEMA} CASCADE; DROP SCHEMA {PRISTINE} CASCADE")
        self.connection.close()

    def run(self, statement: str, *values: Any) -> list[Any]:
        """Run a statement; its rows."""
        cursor = self.connection.execute(statement.encode(), values or None)
        return cursor.fetchall() if cursor.description else []

    def one(self, statement: str, *values: Any) -> Any:
        """The first value."""
        return self.run(statement, *values)[0][0]

    def _make_tables(self) -> None:
        for schema in (SCHEMA, PRISTINE):
            self.run(f"DROP SCHEMA IF EXISTS {schema} CASCADE; CREATE SCHEMA {schema}")
            for table in COPIED:
                if self.one("SELECT to_regclass(%s) IS NULL", f"public.{table}"):
                    continue
                parts = " PARTITION BY RANGE (at)" if table == "audit_record" else ""
                self.run(f"CREATE TABLE {schema}.{table} (LIKE public.{table} INCLUDING ALL){parts}")
            self.run(f"CREATE TABLE {schema}.audit_record_all PARTITION OF {schema}.audit_record DEFAULT")
            self.run(f"ALTER TABLE {schema}.audit_record ALTER COLUMN id SET GENERATED BY DEFAULT")
        self.run(f"SET search_path = {SCHEMA}")

    def _fill(self) -> None:
        """A past: some 650 records of four processes, sealed in groups, with idle heads and an exchange of keys."""
        random_, sealer = self.random, self.sealer
        writers = [UUID(int=random_.getrandbits(128)) for _ in range(4)]
        counts = Counter[UUID]()
        at = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=3)
        number = 0
        while sealer.tree.size < self.blocks * 256 + 130:
            group = []
            for _ in range(random_.choice([0, 1, 3, 9, 20, 30])):
                at += timedelta(milliseconds=random_.randrange(1, 60))
                number += random_.choice([1, 1, 1, 1, 2])  # ids have gaps, of transactions that were rolled back
                writer = random_.choice([*writers, None])
                counts[writer or writers[0]] += writer is not None
                row = make_row(random_, at, writer or writers[0], counts[writer] if writer else None)
                group.append({"id": number, **row})
            self.insert(*group)
            random_.shuffle(group)
            sealer.leaves((row["id"], row["at"], row["leaf"]) for row in group)
            at += timedelta(milliseconds=200)
            successor = Signer() if len(sealer.heads) == 12 else None
            sealer.head(at, number, successor=successor)
            self.states.append((sealer.tree.size, len(sealer.heads), number))
            if len(sealer.heads) % 3 == 0:
                self.kept_head = sealer.cosign(self.witness)
        sealer.head(at + timedelta(seconds=60), number)
        self.kept_head = sealer.cosign(self.witness)
        with self.connection.cursor() as cursor:
            store(cursor, sealer.rows)

    def insert(self, *rows: dict[str, Any]) -> None:
        """Write records, whatever is in them."""
        for row in rows:
            names = sql.SQL(", ").join(map(sql.Identifier, row))
            places = sql.SQL(", ").join(sql.Placeholder() * len(row))
            statement = sql.SQL("INSERT INTO audit_record ({}) OVERRIDING SYSTEM VALUE VALUES ({})")
            self.connection.execute(statement.format(names, places), list(row.values()))

    def _keep(self) -> None:
        for table in TABLES:
            self.run(f"INSERT INTO {PRISTINE}.{table} OVERRIDING SYSTEM VALUE SELECT * FROM {SCHEMA}.{table}")

    def restore(self) -> None:
        """Put everything back."""
        tables = ", ".join(f"{SCHEMA}.{table}" for table in COPIED)
        copies = "; ".join(
            f"INSERT INTO {SCHEMA}.{table} OVERRIDING SYSTEM VALUE SELECT * FROM {PRISTINE}.{table}" for table in TABLES
        )
        self.run(f"BEGIN; TRUNCATE {tables}; {copies}; COMMIT")

    def verify(self, **options: Any) -> Report:
        """As an auditor does who was told the first key, and has the head of a witness."""
        keys = (self.first_key, str(self.witness.key))
        return verify_database(self.dsn, Options(keys, self.witness_file, mac_keys=(MAC_KEY,))._replace(**options))

    # What mutations pick from

    def row(self, number: int | None = None) -> dict[str, Any]:
        """A record, at random."""
        number = number or self.any_id()
        with self.connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            found = cursor.execute("SELECT * FROM audit_record WHERE id = %s", [number]).fetchone()
        assert found is not None
        return found

    def any_id(self) -> int:
        """Of a record."""
        ids = [number for (number,) in self.run("SELECT id FROM audit_record ORDER BY id")]
        return int(self.random.choice(ids))

    def two_ids(self) -> tuple[int, int]:
        """Of two records."""
        one = self.any_id()
        other = self.any_id()
        return (one, other) if one != other else self.two_ids()

    def any_seq(self) -> int:
        """Of a leaf."""
        return self.random.randrange(self.sealer.tree.size)

    def any_head(self) -> int:
        """Of a head."""
        return self.random.randrange(len(self.sealer.heads))

    def change(self, table: str, where: str, value: Any, **columns: Any) -> None:
        """Change columns of the rows that `where` names."""
        sets = ", ".join(f"{name} = %s" for name in columns)
        self.run(f"UPDATE {table} SET {sets} WHERE {where} = %s", *columns.values(), value)


# --- What is done to it -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """What the verifier has to say: one of these verdicts, and with it, this place (where one can be told)."""

    verdicts: frozenset[str]
    place: tuple[tuple[str, Any], ...] = ()

    def by(self, findings: Sequence[Finding]) -> bool:
        """Whether it says so."""
        return any(each.verdict in self.verdicts and _at(each, self.place) for each in findings)


def _at(finding: Finding, wanted: tuple[tuple[str, Any], ...]) -> bool:
    return all(_within(finding.place.get(name), value) for name, value in wanted)


def _within(found: Any, wanted: Any) -> bool:
    if isinstance(found, str) and isinstance(wanted, int) and "-" in found:
        first, last = found.split("-")
        return int(first) <= wanted <= int(last)
    return bool(found == wanted)


def told(*verdicts: str, **place: Any) -> Told:
    """A `Told`."""
    return Told(frozenset(verdicts), tuple(place.items()))


def _other(drill: Drill, row: dict[str, Any], name: str, kind: str) -> Any:
    random_, value = drill.random, row[name]
    match kind:
        case "uuid":
            return uuid4()
        case "bigint":
            return (value or 0) + random_.choice([1, -1, 1000])
        case "timestamptz":
            return value + random_.choice([timedelta(microseconds=1), timedelta(days=-3)])
        case "bytea":
            if not value:
                return b"\x01"
            place = random_.randrange(len(value))
            return value[:place] + bytes([value[place] ^ 1]) + value[place + 1 :]
    nullable = name not in ("kind", "code")
    return random_.choice([f"{value or ''}x", *([None] if nullable and value is not None else [])])


def a_column(drill: Drill) -> Told:
    """One column of one record."""
    name, kind = drill.random.choice([*COLUMNS, ("leaf", "bytea"), ("mac", "bytea")])
    row = drill.row()
    drill.change("audit_record", "id", row["id"], **{name: _other(drill, row, name, kind)})
    return told(MODIFIED, record=row["id"])


def the_number_of_a_record(drill: Drill) -> Told:
    """`id`, which no leaf covers."""
    number = drill.any_id()
    drill.change("audit_record", "id", number, id=number + 10**6)
    return told(MODIFIED, record=number + 10**6, column="id")


def a_column_and_its_leaf(drill: Drill) -> Told:
    """A record with the leaf that fits it: the database's own columns agree with each other."""
    row = drill.row()
    row["actor"] = "mallory"
    drill.change("audit_record", "id", row["id"], actor="mallory", leaf=leaf_of(row))
    return told(MODIFIED, record=row["id"])


def a_record_and_its_leaf_in_the_tree(drill: Drill) -> Told:
    """Record and row of the tree, so that all rows agree: only the signed roots do not."""
    row = drill.row()
    row["actor"] = "mallory"
    leaf = leaf_of(row)
    seq = drill.one("SELECT seq FROM audit_leaf WHERE record_id = %s", row["id"])
    drill.change("audit_record", "id", row["id"], actor="mallory", leaf=leaf)
    drill.change("audit_leaf", "seq", seq, leaf=leaf)
    return told(MODIFIED, REORDERED, seq=seq)


def a_record_and_the_whole_tree(drill: Drill) -> Told:
    """Record, leaf and all nodes above it."""
    expected = a_record_and_its_leaf_in_the_tree(drill)
    rebuild_nodes(drill)
    return expected


def rebuild_nodes(drill: Drill) -> None:
    """Compute the nodes anew from the leaves."""
    leaves = [bytes(leaf) for (leaf,) in drill.run("SELECT leaf FROM audit_leaf ORDER BY seq")]
    for index in range(len(leaves) // 256):
        tree = Tree()
        for leaf in leaves[index * 256 : index * 256 + 256]:
            tree.append(leaf)
        drill.change("audit_node", "height = 8 AND index", index, hash=tree.root)


def a_deletion(drill: Drill) -> Told:
    """A record is deleted."""
    number = drill.any_id()
    drill.run("DELETE FROM audit_record WHERE id = %s", number)
    return told(MISSING, record=number)


def a_deletion_with_its_leaf(drill: Drill) -> Told:
    """A record and its leaf."""
    seq = drill.any_seq()
    drill.run("DELETE FROM audit_record WHERE id = (SELECT record_id FROM audit_leaf WHERE seq = %s)", seq)
    drill.run("DELETE FROM audit_leaf WHERE seq = %s", seq)
    return told(MISSING, seq=seq)


def a_deletion_that_closes_the_gap(drill: Drill) -> Told:
    """A record and its leaf, and the leaves after it move up."""
    seq = drill.any_seq()
    a, b = drill.sealer.tree.size, 10**9
    drill.run("DELETE FROM audit_record WHERE id = (SELECT record_id FROM audit_leaf WHERE seq = %s)", seq)
    drill.run("DELETE FROM audit_leaf WHERE seq = %s", seq)
    drill.run(f"UPDATE audit_leaf SET seq = seq + {b} WHERE seq > %s", seq)
    drill.run(f"UPDATE audit_leaf SET seq = seq - {b} - 1 WHERE seq > {a}")
    rebuild_nodes(drill)
    return told(MISSING, MODIFIED, REORDERED)


def several_deletions(drill: Drill) -> Told:
    """All records of somebody."""
    drill.run("DELETE FROM audit_record WHERE actor = %s", drill.random.choice(["ada", "dora", "emil"]))
    return told(MISSING)


def a_forged_record(drill: Drill, key: bytes = b"") -> dict[str, Any]:
    """A record that was never written, long ago."""
    model = drill.row()
    at = model["at"] + timedelta(milliseconds=3)
    row = make_row(drill.random, at, model["writer_id"], None)
    row["mac"] = mac_of(row, key)
    return row


def a_backdated_insertion(drill: Drill) -> Told:
    """A record of long ago, by whoever has no key of ours, in a gap of the numbers or at the end."""
    row = a_forged_record(drill)
    there = {number for (number,) in drill.run("SELECT id FROM audit_record")}
    number = drill.random.choice([each for each in range(1, max(there) + 9) if each not in there])
    drill.insert({"id": number, **row})
    return told(INSERTED, record=number)


def a_backdated_insertion_with_the_key(drill: Drill) -> Told:
    """The same by whoever has the encryption keys."""
    row = a_forged_record(drill, MAC_KEY)
    there = {number for (number,) in drill.run("SELECT id FROM audit_record")}
    number = drill.random.choice([each for each in range(1, max(there)) if each not in there])
    drill.insert({"id": number, **row})
    return told(INSERTED, record=number)


def an_insertion_ahead_of_its_time(drill: Drill) -> Told:
    """A record that seems to have been written a moment ago, or tomorrow, where the sealer has passed."""
    row = a_forged_record(drill, MAC_KEY)
    row["at"] = datetime.now(UTC) + drill.random.choice([timedelta(days=1), timedelta(seconds=-1)])
    row["leaf"] = leaf_of(row)
    row["mac"] = mac_of(row)
    there = {number for (number,) in drill.run("SELECT id FROM audit_record")}
    number = drill.random.choice([each for each in range(1, max(there)) if each not in there])
    drill.insert({"id": number, **row})
    return told(INSERTED, record=number)


def an_insertion_with_a_leaf(drill: Drill) -> Told:
    """A record of long ago with the next place of the tree."""
    row = a_forged_record(drill, MAC_KEY)
    number = drill.one("SELECT max(id) + 1 FROM audit_record")
    drill.insert({"id": number, **row})
    seq = drill.sealer.tree.size
    drill.run("INSERT INTO audit_leaf VALUES (%s, %s, %s, %s)", seq, number, row["at"], row["leaf"])
    return told(INSERTED, seq=seq)


def an_insertion_between_leaves(drill: Drill) -> Told:
    """A record with a place in the midst of the tree; the leaves after it move on."""
    row, seq = a_forged_record(drill, MAC_KEY), drill.any_seq()
    number = drill.one("SELECT max(id) + 1 FROM audit_record")
    drill.insert({"id": number, **row})
    drill.run("UPDATE audit_leaf SET seq = seq + 1000001 WHERE seq >= %s", seq)
    drill.run("UPDATE audit_leaf SET seq = seq - 1000000 WHERE seq >= 1000000")
    drill.run("INSERT INTO audit_leaf VALUES (%s, %s, %s, %s)", seq, number, row["at"], row["leaf"])
    rebuild_nodes(drill)
    return told(MODIFIED, REORDERED, INSERTED)


def a_copy_of_a_record(drill: Drill) -> Told:
    """A record a second time."""
    row = drill.row()
    row["id"] = drill.one("SELECT max(id) + 1 FROM audit_record")
    if drill.random.random() < 0.5:
        row["at"] += timedelta(days=1)
    drill.run("ALTER TABLE audit_record DROP CONSTRAINT IF EXISTS audit_record_rid_at_key")
    try:
        drill.insert(row)
    except psycopg.errors.UniqueViolation:
        row["at"] += timedelta(days=1)
        drill.insert(row)
    return told(INSERTED, MODIFIED, rid=str(row["rid"]))


def a_swap_of_records(drill: Drill) -> Told:
    """Two records exchange all of their columns."""
    one, other = map(drill.row, drill.two_ids())
    names = [name for name in one if name != "id"]
    far = {name: one[name] for name in names} | {"rid": uuid4()}
    drill.change("audit_record", "id", one["id"], **far)
    drill.change("audit_record", "id", other["id"], **{name: one[name] for name in names})
    drill.change("audit_record", "id", one["id"], **{name: other[name] for name in names})
    return told(REORDERED, MODIFIED, record=one["id"])


def a_swap_of_leaves(drill: Drill) -> Told:
    """Two leaves exchange their places."""
    one, other = drill.any_seq(), drill.any_seq()
    if one == other:
        return a_swap_of_leaves(drill)
    drill.run("UPDATE audit_leaf SET seq = -1 WHERE seq = %s", one)
    drill.run("UPDATE audit_leaf SET seq = %s WHERE seq = %s", one, other)
    drill.run("UPDATE audit_leaf SET seq = %s WHERE seq = -1", other)
    if drill.random.random() < 0.5:
        rebuild_nodes(drill)
    return told(REORDERED, MODIFIED, seq=min(one, other))


def a_swap_of_neighbours(drill: Drill) -> Told:
    """Two leaves of one head exchange their places."""
    heads = [(a.size, b.size) for a, b in zip(drill.sealer.heads, drill.sealer.heads[1:], strict=False)]
    first, past = drill.random.choice([(a, b) for a, b in heads if b - a > 1])
    one, other = drill.random.sample(range(first, past), 2)
    drill.run("UPDATE audit_leaf SET seq = -1 WHERE seq = %s", one)
    drill.run("UPDATE audit_leaf SET seq = %s WHERE seq = %s", one, other)
    drill.run("UPDATE audit_leaf SET seq = %s WHERE seq = -1", other)
    return told(REORDERED, seq=one)


def a_rotation_of_leaves(drill: Drill) -> Told:
    """Some leaves in a row stand in another order."""
    first = drill.random.randrange(drill.sealer.tree.size - 4)
    drill.run("UPDATE audit_leaf SET seq = -1 - seq WHERE seq BETWEEN %s AND %s", first, first + 3)
    drill.run("UPDATE audit_leaf SET seq = %s + (-1 - seq - %s + 1) %% 4 WHERE seq < 0", first, first)
    return told(REORDERED, MODIFIED)


def a_cut_of_the_last_records(drill: Drill) -> Told:
    """The last records alone."""
    ids = drill.run("DELETE FROM audit_record WHERE id > (SELECT max(id) - %s FROM audit_record) RETURNING id",
                    drill.random.randrange(1, 30))  # fmt: skip
    return told(MISSING, record=ids[0][0])


def a_cut_of_records_and_leaves(drill: Drill) -> Told:
    """The last records and leaves; the heads stay."""
    seq = drill.sealer.tree.size - drill.random.randrange(1, 30)
    drill.run("DELETE FROM audit_record WHERE id IN (SELECT record_id FROM audit_leaf WHERE seq >= %s)", seq)
    drill.run("DELETE FROM audit_leaf WHERE seq >= %s", seq)
    return told(MISSING, seq=seq)


def a_cut_of_everything(drill: Drill) -> Told:
    """The end of the ledger: records, leaves, nodes and heads. What is left is whole in itself."""
    cut(drill, drill.random.randrange(1, len(drill.sealer.heads) - 1))
    return told(ROLLED_BACK)


def cut(drill: Drill, heads: int) -> None:
    """Keep only so many heads, and what they cover."""
    size = drill.sealer.heads[heads - 1].size
    drill.run("DELETE FROM audit_record WHERE id IN (SELECT record_id FROM audit_leaf WHERE seq >= %s)", size)
    drill.run("DELETE FROM audit_leaf WHERE seq >= %s", size)
    drill.run("DELETE FROM audit_node WHERE (index + 1) << height > %s", size)
    drill.run("DELETE FROM audit_head WHERE number >= %s", heads)
    drill.run("DELETE FROM audit_cosignature WHERE head >= %s", heads)
    drill.run("DELETE FROM audit_key WHERE since > %s", heads)


def an_older_backup(drill: Drill) -> Told:
    """The state of some time ago, restored, to which the sealer with its own key adds new records."""
    heads = drill.random.randrange(13, len(drill.sealer.heads) - 2)
    cut(drill, heads)
    go_on(drill, heads, drill.sealer.signer, drill.random.randrange(0, 60))
    return told(ROLLED_BACK)


def go_on(drill: Drill, heads: int, signer: Signer, count: int, further: Sequence[str] = ()) -> None:
    """Seal new records after so many heads; the head over them says `further`."""
    sealer = SmallSealer(signer)
    sealer.rows.clear()
    rows = drill.run("SELECT record_id, at, leaf FROM audit_leaf ORDER BY seq")
    sealer.leaves((number, at, bytes(leaf)) for number, at, leaf in rows)
    sealer.rows.clear()
    sealer.heads = list(drill.sealer.heads[:heads])
    at = sealer.heads[-1].sealed_at
    number = drill.one("SELECT coalesce(max(id), 0) FROM audit_record")
    for _ in range(count):
        at, number = at + timedelta(milliseconds=5), number + 1
        row = {"id": number, **make_row(drill.random, at, UUID(int=5), None)}
        drill.insert(row)
        sealer.leaves([(number, at, row["leaf"])])
    if further:  # a restore is later than what it lost
        at = drill.sealer.heads[-1].sealed_at
    sealer.head(at + timedelta(seconds=1), number, further)
    with drill.connection.cursor() as cursor:
        store(cursor, sealer.rows)


def a_forged_end(drill: Drill) -> Told:
    """The last heads made anew, with other records, chained well and signed with another key, which is put in place."""
    heads = drill.random.randrange(1, len(drill.sealer.heads) - 2)
    cut(drill, heads)
    forger = Signer()
    go_on(drill, heads, forger, drill.random.randrange(1, 60))
    drill.run("INSERT INTO audit_key (vkey, since) VALUES (%s, %s)", str(forger.key), heads)
    return told(MODIFIED, ROLLED_BACK)


def a_forged_ledger(drill: Drill) -> Told:
    """All heads signed anew with another key, over a changed record; the witness's signatures are gone."""
    row = drill.row()
    row["actor"] = "mallory"
    drill.change("audit_record", "id", row["id"], actor="mallory", leaf=leaf_of(row), mac=b"\0" * 32)
    drill.change("audit_leaf", "record_id", row["id"], leaf=leaf_of(row))
    rebuild_nodes(drill)
    leaves = [bytes(leaf) for (leaf,) in drill.run("SELECT leaf FROM audit_leaf ORDER BY seq")]
    forger, tree, previous = Signer(), Tree(), FIRST_PREVIOUS
    for old in drill.sealer.heads:
        while tree.size < old.size:
            tree.append(leaves[tree.size])
        head = Head(ORIGIN, old.size, tree.root, old.number, previous, old.sealed_at)
        previous = head.hash
        note = forger.note(head.text)
        drill.change("audit_head", "number", old.number, root=head.root, previous=head.previous, note=note)
    drill.run("DELETE FROM audit_cosignature; DELETE FROM audit_key")
    drill.run("INSERT INTO audit_key (vkey, since) VALUES (%s, 0)", str(forger.key))
    return told(MODIFIED, ROLLED_BACK)


def a_head_signed_with_another_key(drill: Drill) -> Told:
    """One head, with the very same text."""
    number = drill.any_head()
    drill.change("audit_head", "number", number, note=Signer().note(drill.sealer.heads[number].text))
    return told(MODIFIED, head=number)


def a_column_of_a_head(drill: Drill) -> Told:
    """One column of one head, beside its note."""
    number = drill.any_head()
    head = drill.sealer.heads[number]
    name, value = drill.random.choice([
        ("size", head.size + 1), ("root", bytes(32)), ("previous", b"\1" * 32),
        ("sealed_at", head.sealed_at + timedelta(seconds=1)), ("sealed_at", "infinity"),
    ])  # fmt: skip
    drill.change("audit_head", "number", number, **{name: value})
    return told(MODIFIED, head=number, column=name)


def the_text_of_a_head(drill: Drill) -> Told:
    """A character of a note."""
    number = drill.any_head()
    note = drill.one("SELECT note FROM audit_head WHERE number = %s", number)
    place = drill.random.randrange(len(note))
    other = drill.random.choice([each for each in "Ab3\n +" if each != note[place]])
    drill.change("audit_head", "number", number, note=note[:place] + other + note[place + 1 :])
    return told(MODIFIED, head=number)


def a_head_that_is_gone(drill: Drill) -> Told:
    """A head in the midst."""
    number = drill.random.randrange(len(drill.sealer.heads) - 1)
    drill.run("DELETE FROM audit_head WHERE number = %s", number)
    return told(MISSING, head=number)


def a_head_that_was_never_made(drill: Drill) -> Told:
    """A head after the newest."""
    number = len(drill.sealer.heads)
    last = drill.sealer.heads[-1]
    head = last._replace(number=number, previous=last.hash)
    values = (number, head.size, head.root, head.previous, head.sealed_at, 0, Signer().note(head.text))
    drill.run("INSERT INTO audit_head VALUES (%s, %s, %s, %s, %s, %s, %s)", *values)
    return told(MODIFIED, head=number)


def a_low_water_mark(drill: Drill) -> Told:
    """The mark of a head, so that the sealer would pass over records."""
    number = drill.random.randrange(len(drill.sealer.heads) // 2, len(drill.sealer.heads))
    drill.change("audit_head", "number", number, low_water=-5)
    return told(MODIFIED, head=number, column="low_water")


def a_leaf(drill: Drill) -> Told:
    """A leaf's hash."""
    seq = drill.any_seq()
    drill.change("audit_leaf", "seq", seq, leaf=drill.random.randbytes(32))
    return told(MODIFIED, seq=seq, table="audit_leaf")


def the_time_of_a_leaf(drill: Drill) -> Told:
    """The time in a leaf's row."""
    seq = drill.any_seq()
    drill.run("UPDATE audit_leaf SET at = at - interval '1 day' WHERE seq = %s", seq)
    return told(MODIFIED, seq=seq)


def the_record_of_a_leaf(drill: Drill) -> Told:
    """Which record a leaf is of."""
    seq = drill.any_seq()
    drill.run("UPDATE audit_leaf SET record_id = record_id + 1000000 WHERE seq = %s", seq)
    return told(MODIFIED, MISSING, seq=seq)


def a_leaf_that_is_gone(drill: Drill) -> Told:
    """A leaf's row; its record stays."""
    seq = drill.any_seq()
    drill.run("DELETE FROM audit_leaf WHERE seq = %s", seq)
    return told(MISSING, seq=seq)


def a_node(drill: Drill) -> Told:
    """A node's hash."""
    index = drill.random.randrange(drill.blocks)
    drill.change("audit_node", "height = 8 AND index", index, hash=drill.random.randbytes(32))
    return told(MODIFIED, table="audit_node", index=index)


def a_node_that_is_gone(drill: Drill) -> Told:
    """A node."""
    index = drill.random.randrange(drill.blocks)
    drill.run("DELETE FROM audit_node WHERE index = %s", index)
    return told(MISSING, table="audit_node", index=index)


def a_node_that_was_never_made(drill: Drill) -> Told:
    """A node of leaves that are not there."""
    index = drill.blocks + drill.random.randrange(1, 50)
    drill.run("INSERT INTO audit_node VALUES (8, %s, %s)", index, bytes(32))
    return told(INSERTED, table="audit_node", index=index)


def a_cosignature(drill: Drill) -> Told:
    """The signature of a witness, put under another head."""
    heads = [head for (head,) in drill.run("SELECT head FROM audit_cosignature ORDER BY head")]
    one, other = drill.random.sample(heads, 2)
    line = drill.one("SELECT line FROM audit_cosignature WHERE head = %s", one)
    drill.change("audit_cosignature", "head", other, line=line)
    return told(MODIFIED, head=other)


def a_key_of_ones_own(drill: Drill) -> Told:
    """A key beside those that signed."""
    stranger = Signer()
    drill.run("INSERT INTO audit_key (vkey, since) VALUES (%s, %s)", str(stranger.key), len(drill.sealer.heads))
    return told(INSERTED, table="audit_key", key=stranger.key.id.hex())


def certify(drill: Drill, seqs: Sequence[int], signer: Signer | None = None, **changes: Any) -> None:
    """Delete the records of these leaves, with a certificate; the sealer's key signs it, if no other one is given."""
    first, last = min(seqs), max(seqs)
    bits = bytearray((last - first) // 8 + 1)
    for seq in seqs:
        bits[(seq - first) // 8] |= 1 << (seq - first) % 8
    body = {
        "format": "mcpsite-gap/1", "origin": ORIGIN, "month": "2026-11", "first_seq": first, "last_seq": last,
        "removed": base64.b64encode(zlib.compress(bytes(bits))).decode(),
        "removed_sha256": hashlib.sha256(bits).hexdigest(), "records": len(seqs),
        "proposed": {"id": "1"}, "approved": {"id": "2"},
    } | changes  # fmt: skip
    text, request = json.dumps(body), uuid4()
    drill.run(
        "INSERT INTO audit_gap (month, first_seq, last_seq, records, removed, proposed_by_id, approved_by_id, body,"
        " request, at) VALUES ('2026-11-01', %s, %s, %s, %s, '1', '2', %s, %s, now())",
        first, last, len(seqs), bytes(bits), text, request,
    )  # fmt: skip
    note = (signer or drill.sealer.signer).manifest("gap", text.encode())
    drill.run("INSERT INTO audit_signature (request, note) VALUES (%s, %s)", request, note)
    drill.run("DELETE FROM audit_record WHERE id IN (SELECT record_id FROM audit_leaf WHERE seq = ANY(%s))", list(seqs))


def a_deletion_with_a_forged_certificate(drill: Drill) -> Told:
    """A record, under a certificate of a key that was put among those of the ledger."""
    seq, stranger = drill.any_seq(), Signer()
    drill.run("INSERT INTO audit_key (vkey, since) VALUES (%s, 0)", str(stranger.key))
    certify(drill, [seq], stranger)
    return told(MISSING, seq=seq)


Mutation = Callable[[Drill], Told]
# With how often each is done: what has many places to be done at, more often.
MUTATIONS: dict[Mutation, int] = {
    a_column: 12, the_number_of_a_record: 2, a_column_and_its_leaf: 3, a_record_and_its_leaf_in_the_tree: 4,
    a_record_and_the_whole_tree: 3, a_deletion: 4, a_deletion_with_its_leaf: 4, a_deletion_that_closes_the_gap: 3,
    several_deletions: 1, a_backdated_insertion: 4, a_backdated_insertion_with_the_key: 3, an_insertion_with_a_leaf: 2,
    an_insertion_ahead_of_its_time: 2,
    an_insertion_between_leaves: 2, a_copy_of_a_record: 2, a_swap_of_records: 4, a_swap_of_leaves: 3,
    a_swap_of_neighbours: 3, a_rotation_of_leaves: 3, a_cut_of_the_last_records: 3, a_cut_of_records_and_leaves: 3,
    a_cut_of_everything: 3, an_older_backup: 4, a_forged_end: 4, a_forged_ledger: 2, a_head_signed_with_another_key: 3,
    a_column_of_a_head: 3, the_text_of_a_head: 4, a_head_that_is_gone: 2, a_head_that_was_never_made: 1,
    a_low_water_mark: 1, a_leaf: 3, the_time_of_a_leaf: 2, the_record_of_a_leaf: 2, a_leaf_that_is_gone: 2, a_node: 2,
    a_node_that_is_gone: 1, a_node_that_was_never_made: 1, a_cosignature: 2,
    a_key_of_ones_own: 1, a_deletion_with_a_forged_certificate: 3,
}  # fmt: skip


# --- The drill --------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What came of one sort of mutation."""

    name: str
    done: int = 0
    found: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    missed: list[str] = field(default_factory=list)


def plan(random_: random.Random, count: int) -> list[Mutation]:
    """So many mutations: first each sort once, then at random by weight."""
    every = list(MUTATIONS)
    rest = random_.choices(every, weights=list(MUTATIONS.values()), k=max(0, count - len(every)))
    return [*every, *rest][: max(count, len(every))]


def drill(ledger: Drill, count: int, tell: Callable[[int], None] = lambda done: None) -> Iterator[Outcome]:
    """Do them all; what came of each sort, and of leaving the ledger alone."""
    outcomes = {each: Outcome(each.__name__.replace("_", " ")) for each in MUTATIONS}
    untouched = Outcome("nothing (must be OK)")
    for place, mutation in enumerate(plan(ledger.random, count)):
        if place % 25 == 0:
            leave_alone(ledger, untouched)
        expected = mutation(ledger)
        report = ledger.verify()
        outcome = outcomes[mutation]
        outcome.done += 1
        outcome.verdicts[report.verdict] += 1
        if expected.by(report.findings):
            outcome.found += 1
        else:
            outcome.missed.append(f"{expected}\n{report}")
        ledger.restore()
        tell(place + 1)
    leave_alone(ledger, untouched)
    yield untouched
    yield from outcomes.values()


def leave_alone(ledger: Drill, outcome: Outcome) -> None:
    """Verify what nobody touched, the whole and a part."""
    heads = ledger.sealer.heads
    since = ledger.random.choice(heads[1:-1]).sealed_at + timedelta(microseconds=1)
    for report in (ledger.verify(), ledger.verify(since=since)):
        outcome.done += 1
        outcome.verdicts[report.verdict] += 1
        if report.faults or report.counts.get(EXPIRED):
            outcome.missed.append(str(report))
        else:
            outcome.found += 1


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes for people."""
    lines = [f"{'What was changed':<42} {'times':>6} {'found':>6}  named"]
    for each in outcomes:
        words = ", ".join(f"{verdict} {count}" for verdict, count in each.verdicts.most_common())
        lines.append(f"{each.name:<42} {each.done:>6} {each.found:>6}  {words}")
    return "\n".join(lines)


@contextmanager
def own_postgres() -> Iterator[str]:
    """A PostgreSQL with the tables of the site, which is thrown away; the URL of its superuser."""
    from bench.targets import own_engines
    from mcpsite.datadir import DATABASE_NAME, SUPERUSER, DataDir

    with (
        tempfile.TemporaryDirectory(prefix="mcpsite-tamper-", ignore_cleanup_errors=True) as folder,
        Stage(Path(folder)) as stage,
    ):
        data, environment = stage.folder / "data", own_engines(stage.folder / "data")
        manage = (sys.executable, str(_ROOT / "manage.py"))
        stage.start("engines", *manage, "up", "--services", "--data", str(data), environment=environment)
        url = _wait(lambda: make_conninfo(DataDir(data).database_url(SUPERUSER), dbname=DATABASE_NAME))
        done = subprocess.run([*manage, "migrate", "-v", "0"], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise BenchError(f"The tables could not be made:\n{done.stderr.strip()[-3000:]}")
        yield url


def _wait(url: Callable[[], str]) -> str:
    """The URL, once somebody answers there."""
    end = time.monotonic() + 120
    while True:
        try:
            psycopg.connect(url()).close()
            return url()
        except (psycopg.Error, OSError) as error:
            if time.monotonic() > end:
                raise BenchError(f"PostgreSQL did not start: {error}") from error
            time.sleep(0.2)


def main() -> int:
    """The exit code: 0 when each was found and named, and nothing where nothing was done."""
    parser = argparse.ArgumentParser("python -m bench.tamper", description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="mutations")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9), help="to repeat a drill")
    arguments = parser.parse_args()
    started = time.monotonic()
    print(f"seed {arguments.seed}", flush=True)
    with own_postgres() as url:
        ledger = Drill(url, arguments.seed)
        outcomes = list(drill(ledger, arguments.count, _tell(arguments.count)))
        ledger.close()
    print(table(outcomes))
    missed = [text for each in outcomes for text in each.missed]
    done, found = sum(each.done for each in outcomes[1:]), sum(each.found for each in outcomes[1:])
    print(f"{found} of {done} mutations found and named, in {time.monotonic() - started:.0f} s")
    for text in missed[:5]:
        print(f"\nNot as it must be: {text}")
    return 1 if missed else 0


def _tell(count: int) -> Callable[[int], None]:
    def tell(done: int) -> None:
        if sys.stderr.isatty() or done % 100 == 0:
            print(f"\r{done} of {count}", end="" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)

    return tell


if __name__ == "__main__":
    sys.exit(main())
