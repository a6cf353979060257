"""The sealer: gives records their place in the tree, and signs a head over all of them.

It works on one connection, which also holds the lock that makes it the only one: when the connection is lost, so are
the lock and whatever was not committed. What a head says is committed in one transaction; after any failure everything
is read from the database again.
"""

from __future__ import annotations

import json
import logging
import time
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from struct import Struct
from typing import Any
from uuid import UUID

import psycopg

from audit.datakeys import DataKeys
from audit.entry import ALL_COLUMNS, INSERT, Entry, encode, python_values, uuid7
from audit.sealing import frontier, heads, requests
from audit.sealing.gaps import Gaps
from audit.sealing.heads import CannotSeal, OlderState, Stored
from audit.sealing.keys import Signer, key_of, signed
from audit.sealing.records import Examiner, Seen, among, in_ranges, read
from audit.sealing.state import Known, State
from audit.verify import Head, Key, manifest_text
from keyring.keys import KeyRing

logger = logging.getLogger("audit.sealing")

LOCK = 7_035_916_241
IDLE_SECONDS = 60.0
# No record is given up before the transaction that took its id had this long to commit.
LONGEST_SECONDS = 30.0
BATCH = 8192
_RANGES = 200
_KEY_SECONDS = 2.0
_REQUESTS = 100
_REQUEST_HOURS = 1
_OLD_REFUSALS = 10_000

_LOOK = """
SELECT (SELECT last_value - CASE WHEN is_called THEN 0 ELSE 1 END FROM audit_record_id_seq),
       pg_snapshot_xmin(pg_current_snapshot())::text::bigint, pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
       EXISTS (SELECT FROM audit_signing_request r WHERE r.at > now() - make_interval(hours => %s)
               AND r.id <> ALL(%s) AND NOT EXISTS (SELECT FROM audit_signature s WHERE s.request = r.id))
"""
_OPEN_REQUESTS = """
SELECT id, purpose, digest, mac FROM audit_signing_request r WHERE r.at > now() - make_interval(hours => %s)
AND r.id <> ALL(%s) AND NOT EXISTS (SELECT FROM audit_signature s WHERE s.request = r.id) ORDER BY at LIMIT %s
"""
_NEW_HEAD = """
INSERT INTO audit_head (number, size, root, previous, sealed_at, low_water, note) VALUES (%s, %s, %s, %s, %s, %s, %s)
"""
_RECORD = f"{INSERT}({', '.join(['%s'] * len(ALL_COLUMNS))})"
_COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_TRAILER = b"\xff\xff"
_LEAF_ROW = Struct("!hiqiqiqi32s")


class Sealer:
    """Seals on the given connection, which must be its own, in autocommit mode. `open` first, then `step` again and
    again; after any exception make a new one.
    """

    def __init__(
        self,
        connection: psycopg.Connection,
        keys: KeyRing,
        signers: Callable[[], Sequence[Signer]],
        state: State,
        host: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._keys = keys
        self._examiner = Examiner(keys)
        self._all_signers = signers
        self._state = state
        self._host = host
        self._clock = clock
        self._writer_id = uuid7()
        self._passed_over: list[UUID] = []
        self._broken: dict[str, Any] = {}

    # --- Where we are -------------------------------------------------------------------------------------------------

    def lock(self) -> bool:
        """Whether this is the one sealer from now on."""
        row = self._connection.execute("SELECT pg_try_advisory_lock(%s)", [LOCK]).fetchone()
        return bool(row and row[0])

    def open(self, *, after_restore: bool = False) -> None:
        """Read where the ledger is. Raises CannotSeal when it is not where this sealer left it, unless that is
        accepted.
        """
        self._signers, self._signers_at = self._all_signers(), self._clock()
        self._newest = heads.newest(self._connection)
        if not after_restore:
            self._refuse_an_older_state()
        self._origin = self._newest.head.origin if self._newest else heads.new_origin(self._host)
        self._key = heads.current_key(self._newest, self._signers) if self._newest else self._first_key
        self._frontier = self._load_frontier()
        self._gaps = self._load_gaps()
        self._sealed_at = -IDLE_SECONDS
        self._again = self._no_longer_refused()

    @property
    def _first_key(self) -> Key:
        return key_of(self._origin, self._signers[0])

    def _refuse_an_older_state(self) -> None:
        known = self._state.read()
        if known is None:
            if self._newest:
                logger.warning("%s is not there: it cannot be told whether the database is older", self._state.path)
            return
        row = self._connection.execute("SELECT note FROM audit_head WHERE number = %s", [known.number]).fetchone()
        there = row and heads.hash_of(row[0])
        if there == known.hash:
            return
        number = self._newest.head.number if self._newest else "none"
        what = "has another head of that number" if there else f"ends with head {number}"
        raise OlderState(
            f"The newest head that this sealer made is number {known.number}, and the database {what}: an older backup"
            " was restored, or the ledger was changed. Nothing is sealed. If the restore was meant, run: manage.py"
            " ledger accept-restore --reason '…'"
        )

    def _load_frontier(self) -> frontier.Frontier:
        if self._newest is None:
            return frontier.Frontier()
        head = self._newest.head
        try:
            found = frontier.load(self._connection, head.size)
        except ValueError as error:
            raise CannotSeal(f"The Merkle tree is damaged: {error}. Run the verifier, and restore a backup.") from error
        if found.root != head.root:
            raise CannotSeal(
                f"The Merkle tree does not have the root of head {head.number}: leaves or nodes were changed. Run the"
                " verifier, and restore a backup."
            )
        return found

    def _load_gaps(self) -> Gaps:
        low_water = self._newest.low_water if self._newest else 0
        rows = self._connection.execute(
            "SELECT record_id FROM audit_leaf WHERE record_id > %s"
            " UNION SELECT record_id FROM audit_refused WHERE record_id > %s ORDER BY 1",
            [low_water, low_water],
        )
        seen = [row[0] for row in rows]
        return Gaps(low_water, seen, seen[-1] if seen else low_water, self._clock())

    def _no_longer_refused(self) -> list[Seen]:
        """Records that were refused for want of a key that is there now."""
        rows = self._connection.execute(
            "SELECT record_id FROM audit_refused r WHERE NOT EXISTS"
            " (SELECT FROM audit_leaf l WHERE l.record_id = r.record_id) ORDER BY at DESC LIMIT %s",
            [_OLD_REFUSALS],
        )
        seen = read(self._connection, self._examiner, among([row[0] for row in rows]), _OLD_REFUSALS)
        return [each for each in seen if not each.refused]

    # --- One step -----------------------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Seal what is there and answer what is asked; whether more is waiting already."""
        last, oldest, following, asked = self._look()
        late = self._read(self._gaps.ranges)
        new = self._read([(self._gaps.high + 1, last)] if last > self._gaps.high else [])
        whole = len(new) < BATCH
        self._gaps.fill(each.id for each in late)
        reached = last if whole else new[-1].id
        self._gaps.reach((each.id for each in new), max(reached, self._gaps.high), self._clock())
        if len(late) < BATCH:
            self._gaps.give_up(self._clock(), LONGEST_SECONDS, oldest, following)
        found, self._again = [*self._again, *late, *new], []
        if found or self._clock() - self._sealed_at >= IDLE_SECONDS or self._wants_other_key():
            self._commit(found)
        if asked:
            self._answer()
        return not whole or len(late) == BATCH

    def _look(self) -> tuple[int, int, int, bool]:
        row = self._connection.execute(_LOOK, [_REQUEST_HOURS, self._passed_over]).fetchone()
        assert row is not None
        return row[0], row[1], row[2], row[3]

    def _read(self, ranges: Sequence[tuple[int, int]]) -> list[Seen]:
        found: list[Seen] = []
        for start in range(0, len(ranges), _RANGES):
            where = in_ranges(ranges[start : start + _RANGES])
            found += read(self._connection, self._examiner, where, BATCH - len(found))
            if len(found) == BATCH:
                break
        return found

    def _wants_other_key(self) -> bool:
        if self._clock() - self._signers_at >= _KEY_SECONDS:
            self._signers, self._signers_at = self._all_signers(), self._clock()
        return self._first_key != self._key

    def _commit(self, found: Sequence[Seen], further: tuple[str, ...] = ()) -> None:
        refused = [each for each in found if each.refused]
        with self._connection.transaction():
            self._newest = self._head([each for each in found if not each.refused], further)
            if self._broken:
                self._record(code="ledger_restored", detail={**self._broken, "head": self._newest.head.number})
                self._broken = {}
            self._refuse(refused)
        self._state.write(Known(self._newest.head.number, self._newest.head.hash))

    def accept_restore(self, reason: str, lost: Known | None) -> Head:
        """Make the head that says that an older state was restored, and go on from here."""
        said = [f"break {urlsafe_b64encode(reason.encode()).decode().rstrip('=')}"]
        if lost:
            said.append(f"lost {lost.number} {b64encode(lost.hash).decode()}")
        self._broken = {"reason": reason, "lost": lost and lost.number}
        self._commit([], tuple(said))
        assert self._newest is not None
        return self._newest.head

    # --- The parts of a step ------------------------------------------------------------------------------------------

    def _head(self, sealed: Sequence[Seen], further: tuple[str, ...]) -> Stored:
        self._append(sealed)
        by = [self._signer(self._key)]
        successor = self._key
        if self._newest is None:
            self._note_key(self._key, 0)
        elif self._first_key != self._key:
            successor = self._first_key
            by.append(self._signers[0])
            further = (*further, f"successor {successor}")
            self._note_key(successor, self._newest.head.number + 1)
            self._record(code="ledger_key_rotated", detail={"from": self._key.id.hex(), "to": successor.id.hex()})
        size, root, now = self._frontier.size, self._frontier.root, datetime.now(UTC)
        head = heads.following(self._newest, self._origin, size, root, now, further)
        stored = Stored(head, heads.note_of(head, by), self._gaps.low_water)
        self._insert(stored)
        self._key, self._sealed_at = successor, self._clock()
        return stored

    def _signer(self, key: Key) -> Signer:
        for each in self._signers:
            if key_of(self._origin, each) == key:
                return each
        raise CannotSeal(
            f"The key {key.id.hex()}, which signs the next head, is not among LEDGER_SIGNING_KEYS: put it back, behind"
            " a new one if you meant to exchange it."
        )

    def _append(self, sealed: Sequence[Seen]) -> None:
        first, nodes = self._frontier.size, []
        rows = [_COPY_HEADER]
        for seq, each in enumerate(sealed, first):
            nodes += self._frontier.append(each.leaf)
            rows.append(_LEAF_ROW.pack(4, 8, seq, 8, each.id, 8, each.at, 32, each.leaf))
        if not sealed:
            return
        with (
            self._connection.cursor() as cursor,
            cursor.copy("COPY audit_leaf (seq, record_id, at, leaf) FROM STDIN (FORMAT binary)") as copy,
        ):
            copy.write(b"".join((*rows, _COPY_TRAILER)))
        if nodes:
            with self._connection.cursor() as cursor:
                cursor.executemany("INSERT INTO audit_node (height, index, hash) VALUES (%s, %s, %s)", nodes)

    def _insert(self, stored: Stored) -> None:
        head = stored.head
        values = (head.number, head.size, head.root, head.previous, head.sealed_at, stored.low_water, str(stored.note))
        self._connection.execute(_NEW_HEAD, values)

    def _note_key(self, key: Key, since: int) -> None:
        self._connection.execute("INSERT INTO audit_key (vkey, since) VALUES (%s, %s)", [str(key), since])

    def _refuse(self, refused: Sequence[Seen]) -> None:
        if not refused:
            return
        rows = [(each.id, each.refused) for each in refused]
        with self._connection.cursor() as cursor:
            cursor.executemany("INSERT INTO audit_refused (record_id, reason) VALUES (%s, %s)", rows)
        first = refused[0]
        self._record(code="ledger_records_refused", detail={"count": len(refused), "records": rows[:100]})
        logger.error(
            "%d records are not as their writer wrote them and were not sealed; the first is %d (%s)",
            len(refused),
            first.id,
            first.refused,
        )

    def _answer(self) -> None:
        values = [_REQUEST_HOURS, self._passed_over, _REQUESTS]
        for request, purpose, digest, mac in self._connection.execute(_OPEN_REQUESTS, values).fetchall():
            if not requests.is_ours(self._keys, request, purpose, digest, mac):
                self._passed_over.append(request)
                logger.error("the signing request %s was not made by this installation and stays unsigned", request)
                continue
            note = signed(self._origin, manifest_text(purpose, digest), [self._signer(self._key)])
            answer = "INSERT INTO audit_signature (request, note) VALUES (%s, %s)"
            self._connection.execute(answer, [request, str(note)])

    def _record(self, code: str, detail: dict[str, Any]) -> None:
        """A record in the transaction of what it tells; it is sealed with the next head."""
        write_record(self._connection, self._keys, self._writer_id, code, detail)


def write_record(
    connection: psycopg.Connection, keys: KeyRing, writer: UUID, code: str, detail: dict[str, Any]
) -> None:
    """A record of the sealer, in the current transaction."""
    entry = Entry(kind="system", code=code, door="sealer", detail=json.dumps(detail, ensure_ascii=False))
    connection.execute(_RECORD, python_values(encode(entry, DataKeys(keys), writer, None)))
