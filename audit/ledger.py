"""The only writer of the ledger.

`Ledger` is the writer of a web process: it groups the records that come in while one commit is under way into the next
one, and every caller waits for the commit of its own record. There is no timer: an idle ledger writes at once. It
drives its own connection through libpq's pipeline mode, since this is the path of every call: the statements of a batch
and their one `Sync` are a single implicit transaction (PostgreSQL documentation, "Pipeline Mode").

`record` writes one entry inside a Django transaction, for changes that must be recorded together with their record.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import uuid
from collections import deque
from dataclasses import dataclass, field
from functools import cache
from itertools import chain

import psycopg
from django.db import connections
from psycopg import pq

from audit.datakeys import INSERT_KEY, KEY_COLUMNS, DataKeys
from audit.durability import SWITCHED_OFF, complaint
from audit.entry import ALL_COLUMNS, INSERT, Entry, Row, encode, key_values, python_values
from audit.histogram import Histogram
from audit.masking import known
from audit.spool import Left, Spool, SpoolFull
from keyring.keys import KeyRing, ring

__all__ = ["Entry", "Ledger", "LedgerUnavailable", "record"]

logger = logging.getLogger("audit.ledger")

# How long a call may wait for its intent before it is refused, and how long an answer may wait for its record.
INTENT_SECONDS = 0.23
ANSWER_SECONDS = 5.0
# How long a call waits for its client to answer what it was asked, before it is cancelled.
PARKED_SECONDS = 600.0
# How long the outcome of a call that was made waits for the database before it goes to the spool, how long the spool
# may stand in for the database, and how often somebody looks for what others left in theirs.
SPOOL_SECONDS, _SPOOL_LASTS_SECONDS, _LOOK_SECONDS = 1.0, 60.0, 30.0
_ADOPTED_AT_ONCE = 256
_QUEUE_LIMIT = 4096
_BATCH_LIMIT = 128
_RECONNECT_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0)
_AGAIN_SECONDS = 0.1
# Classes of SQLSTATE that tell of the row itself: bad data, a constraint, a missing partition.
_LASTING = frozenset((b"22", b"23"))
_BATCH_BYTES, _QUEUE_BYTES = 4 * 1024 * 1024, 64 * 1024 * 1024
_WATCH_SECONDS = 0.02
_OIDS = {"uuid": 2950, "timestamptz": 1184, "text": 25, "bigint": 20, "bytea": 17, "date": 1082}
_WIDTH = len(ALL_COLUMNS)
# Statements that write so many rows at once, the largest first: one plan and one partition lookup for all of them.
_SIZES = (32, 16, 8, 4, 2, 1)
# synchronous_commit: the answer waits for the disk, whatever the server's default is.
_SESSION = "-c synchronous_commit=on -c statement_timeout=2000 -c lock_timeout=1000 -c timezone=UTC"


class LedgerUnavailable(Exception):
    """The record could not be made durable in time; the call must not go on, its answer must not leave."""

    code = "ledger_unavailable"


@dataclass(slots=True, eq=False)
class _Pending:
    row: Row
    since: float
    expires: float
    written: asyncio.Future[None] | None = field(default=None)
    # When it may go to the spool, if its caller is content with that; whether it is there; whether it may be in the
    # database already.
    spools_at: float | None = field(default=None)
    spooled: bool = field(default=False)
    again: bool = field(default=False)


class Ledger:
    """The group-commit writer of one process. Use it within one event loop; `start` before, `stop` after."""

    def __init__(self, conninfo: str, keys: KeyRing | None = None, spool: Spool | None = None) -> None:
        self.writer_id = uuid.uuid4()
        self.batches = 0
        self.rows = 0
        self.rows_spooled = 0
        self.waits = Histogram()
        self._conninfo = conninfo
        self._keys = DataKeys(keys or ring())
        self._known = known()
        self._seq = 0
        self._waiting: deque[_Pending] = deque()
        self._in_flight: list[_Pending] = []
        self._sent_at = 0.0
        self._failed: str | None = None
        self._lasting = False
        self._isolate = False
        self._spool = spool
        self._spooled = 0
        self._spooled_since = 0.0
        self._spooling: asyncio.Task[None] | None = None
        self._bytes = 0
        self._due = False
        self._connection: psycopg.AsyncConnection[object] | None = None
        self._pg: pq.abc.PGconn | None = None
        self._socket = -1
        self._lost = asyncio.Event()
        self._pending = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = False

    # --- Life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to connect; returns at once, also when the database is away."""
        self._loop = asyncio.get_running_loop()
        self._tasks = [asyncio.create_task(self._keep_connected()), asyncio.create_task(self._watch())]
        if self._spool is not None:
            self._tasks.append(asyncio.create_task(self._take_over(self._spool)))

    async def stop(self, within: float = ANSWER_SECONDS) -> None:
        """Write what is waiting, at most `within` seconds, then disconnect. What is left goes to the spool."""
        last = [pending for pending in (*self._in_flight, *self._waiting) if pending.written is None]
        for pending in last:
            pending.written = self._loop.create_future()
        unfinished = [pending.written for pending in (*self._in_flight, *self._waiting) if pending.written]
        if unfinished:
            await asyncio.wait(unfinished, timeout=within)
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._disconnect()
        await self._leave()
        for pending in last:
            if pending.written and pending.written.done():
                pending.written.exception()  # nobody else waits for these

    @property
    def spooled(self) -> int:
        """Records that wait in the spool: the database has not taken them yet."""
        return self._spooled

    @property
    def available(self) -> bool:
        """Whether a record written now can be expected to become durable in time."""
        stuck = bool(self._in_flight) and self._loop.time() - self._sent_at > INTENT_SECONDS
        return self._pg is not None and not stuck and not self._full()

    @property
    def queued(self) -> int:
        """Records that are not durable yet."""
        return len(self._waiting) + len(self._in_flight)

    def _full(self) -> bool:
        return len(self._waiting) >= _QUEUE_LIMIT or self._bytes >= _QUEUE_BYTES

    # --- Writing ------------------------------------------------------------------------------------------------------

    async def write(self, entry: Entry, within: float = ANSWER_SECONDS) -> uuid.UUID:
        """Return the record's id once it is durable; raise LedgerUnavailable after `within` seconds at the latest.

        A record that came too late for its caller is still written when the database is back, as long as this process
        lives: what was refused for that reason is then on record as well.
        """
        if self._full() or (self._pg is None and within <= INTENT_SECONDS):
            raise LedgerUnavailable("The ledger cannot be written at this moment.")
        pending = self._enqueue(entry, within)
        pending.written = self._loop.create_future()
        await pending.written
        return pending.row.rid

    async def conclude(self, entry: Entry) -> uuid.UUID:
        """As `write`, for what has happened already and must not be forgotten: the outcome of a call with effects.

        The record counts as durable when it is in the spool, where it goes after SPOOL_SECONDS. It is not refused
        because the queue is full: each has an intent, so that there are no more than calls under way.
        """
        pending = self._enqueue(entry, ANSWER_SECONDS)
        pending.spools_at = pending.since + SPOOL_SECONDS
        pending.written = self._loop.create_future()
        await pending.written
        return pending.row.rid

    def put(self, entry: Entry) -> None:
        """Write without waiting. Dropped when the queue is full, but for outcomes."""
        if entry.kind == "outcome" or not self._full():
            self._enqueue(entry, ANSWER_SECONDS)

    def forget_keys(self) -> None:
        """Encrypt what comes from here on with new keys: some of those in use may have been destroyed."""
        self._keys.forget()

    def _enqueue(self, entry: Entry, within: float) -> _Pending:
        self._seq += 1
        now = self._loop.time()
        row = encode(entry, self._keys, self.writer_id, self._seq, self._known.masker)
        pending = _Pending(row, now, now + within)
        self._take(pending)
        return pending

    def _take(self, pending: _Pending) -> None:
        self._waiting.append(pending)
        self._pending.set()
        self._bytes += pending.row.size
        if not self._in_flight and not self._due:
            self._send_soon()

    def _send_soon(self) -> None:
        """Send after two turns of the event loop, so that what becomes ready in the same moment shares the commit.

        It is no timer: an idle loop turns at once.
        """
        self._due = True
        self._loop.call_soon(self._loop.call_soon, self._send)

    def _send(self) -> None:
        """Send what is waiting, unless a commit is under way: then it is sent after that."""
        self._due = False
        if self._in_flight or self._pg is None or not self._waiting:
            return
        limit, size = 1 if self._isolate else _BATCH_LIMIT, 0
        while self._waiting and len(self._in_flight) < limit and size < _BATCH_BYTES:
            self._in_flight.append(self._waiting.popleft())
            size += self._in_flight[-1].row.size
        self._sent_at = self._loop.time()
        self._failed = None
        try:
            self._send_keys(self._pg)
            self._send_rows(self._pg, self._in_flight)
            self._pg.pipeline_sync()
            self._flush()
        except psycopg.Error as error:
            self._lose(f"sending failed: {error}")

    def _send_keys(self, pg: pq.abc.PGconn) -> None:
        """The keys that rows of this transaction are encrypted with, unless they are known to be there."""
        keys = [pending.row.key for pending in self._in_flight]
        for key in {each.id: each for each in keys if each is not None and not each.stored}.values():
            pg.send_query_prepared(b"key", key.parameters, [1] * len(KEY_COLUMNS))

    def _send_rows(self, pg: pq.abc.PGconn, batch: list[_Pending]) -> None:
        rows = [pending.row.parameters for pending in batch]
        if any(pending.again for pending in batch):
            for row in rows:
                pg.send_query_prepared(b"again", row, [1] * _WIDTH)
            return
        start = 0
        for size in _SIZES:
            while len(rows) - start >= size:
                parameters = rows[start] if size == 1 else list(chain.from_iterable(rows[start : start + size]))
                pg.send_query_prepared(b"write%d" % size, parameters, [1] * (_WIDTH * size))
                start += size

    def _flush(self) -> None:
        if self._pg is None:
            return
        try:
            unfinished = self._pg.flush() == 1
        except psycopg.Error as error:
            self._lose(f"sending failed: {error}")
            return
        if unfinished:
            self._loop.add_writer(self._socket, self._flush)
        else:
            self._loop.remove_writer(self._socket)

    def _receive(self) -> None:
        pg = self._pg
        if pg is None:
            return
        try:
            pg.consume_input()
            nothing = False
            while not pg.is_busy():
                result = pg.get_result()
                if result is None:
                    # One None ends the results of a statement, two mean that there is nothing more to read.
                    if nothing:
                        return
                    nothing = True
                    continue
                nothing = False
                if result.status == pq.ExecStatus.PIPELINE_SYNC:
                    self._settle()
                    return
                if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.PIPELINE_ABORTED):
                    self._failed = result.error_message.decode("utf-8", "replace").strip() or "unknown error"
                    state = result.error_field(pq.DiagnosticField.SQLSTATE) or b""
                    self._lasting = state[:2] in _LASTING
        except psycopg.Error as error:
            self._lose(f"the connection broke: {error}")

    def _settle(self) -> None:
        batch, self._in_flight = self._in_flight, []
        if self._failed is None:
            self.batches += 1
            self.rows += len(batch)
            self._bytes -= sum(pending.row.size for pending in batch)
            now = self._loop.time()
            for pending in batch:
                if pending.row.key is not None:
                    pending.row.key.stored = True
                self.waits.observe(int((now - pending.since) * 1_000_000))
                if pending.written is not None and not pending.written.done():
                    pending.written.set_result(None)
            self._isolate = self._isolate and bool(self._waiting)
            if self._spooled:
                self._spooled -= sum(pending.spooled for pending in batch)
                self._pending.set()
        elif not self._lasting:
            # A lock, a full disk, a server that stops: nothing of it is the row's fault, and nothing was written.
            logger.warning("the ledger cannot be written, %d records wait: %s", len(batch), self._failed)
            self._waiting.extendleft(reversed(batch))
            self._due = True  # not with each record that comes in meanwhile
            self._loop.call_later(_AGAIN_SECONDS, self._send)
            return
        elif len(batch) > 1:
            # One bad row takes the whole transaction with it: write the rows one by one to find it.
            self._isolate = True
            self._waiting.extendleft(reversed(batch))
        else:
            self._bytes -= batch[0].row.size
            self._spooled -= batch[0].spooled
            self._fail(batch[0], f"The database refused the record: {self._failed}")
            self._note_refusal(batch[0].row, self._failed)
        self._send_soon()

    def _note_refusal(self, row: Row, reason: str) -> None:
        """The place of a record that the database will never take stays empty: that is on record itself."""
        place, kind = row.value("writer_seq"), row.value("kind")
        logger.error("a record (%s, number %s of its writer) was refused by the database: %s", kind, place, reason)
        if kind != "system":
            told = {"kind": kind, "record": str(row.rid), "writer_seq": place, "message": reason[:500]}
            detail = json.dumps({"writer_id": str(row.value("writer_id")), **told})
            self.put(Entry(kind="system", code="record_refused", call_id=row.value("call_id"), detail=detail))

    @staticmethod
    def _fail(pending: _Pending, reason: str) -> bool:
        """Whether somebody was waiting for it."""
        if pending.written is None or pending.written.done():
            return False
        pending.written.set_exception(LedgerUnavailable(reason))
        return True

    # --- The connection -----------------------------------------------------------------------------------------------

    def _lose(self, reason: str) -> None:
        if self._pg is None:
            return
        log = logger.debug if self._stopping else logger.warning
        log("the ledger's connection is lost, %d records wait: %s", len(self._in_flight), reason)
        self._pg = None
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        # Whether they were committed is unknown: they are sent again, and a row that is there already stays as it is.
        for pending in self._in_flight:
            pending.again = True
        self._waiting.extendleft(reversed(self._in_flight))
        self._in_flight = []
        self._lost.set()

    async def _keep_connected(self) -> None:
        attempt = 0
        while True:
            try:
                await self._connect()
                attempt = 0
                await self._lost.wait()
            except (psycopg.Error, OSError) as error:
                logger.warning("the ledger cannot connect: %s", str(error).splitlines()[0] if str(error) else error)
            await self._disconnect()
            await asyncio.sleep(_RECONNECT_SECONDS[min(attempt, len(_RECONNECT_SECONDS) - 1)])
            attempt += 1

    async def _connect(self) -> None:
        self._lost.clear()
        connection = await psycopg.AsyncConnection.connect(
            self._conninfo, autocommit=True, options=_SESSION, connect_timeout=5, application_name="mcpsite ledger"
        )
        self._connection = connection
        pg = connection.pgconn
        await asyncio.to_thread(_prepare, pg)
        pg.nonblocking = 1
        pg.enter_pipeline_mode()
        self._socket, self._pg = pg.socket, pg
        self._loop.add_reader(self._socket, self._receive)
        self._send()

    async def _disconnect(self) -> None:
        if self._pg is not None:
            self._lose("stopped")
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error):
                await self._connection.close()
            self._connection = None

    async def _watch(self) -> None:
        while True:
            if not self.queued and not self._spool_is_stale():
                self._pending.clear()
                await self._pending.wait()
            await asyncio.sleep(_WATCH_SECONDS)
            # After a busy moment of this process the answer may have come, and only not been read yet.
            self._receive()
            now = self._loop.time()
            self._use_spool(now)
            late = [pending for pending in (*self._in_flight, *self._waiting) if pending.expires < now]
            refused = sum(self._fail(pending, "The ledger could not be written in time.") for pending in late)
            if refused:
                logger.warning("%d records were not durable in time, what waited for them was refused", refused)
            # A server that hangs is no better than one that is gone; its statements time out after two seconds.
            if self._in_flight and now - self._sent_at > 2 * ANSWER_SECONDS:
                self._lose("no answer")

    # --- The spool ----------------------------------------------------------------------------------------------------

    def _spool_is_stale(self) -> bool:
        return self._spooled_since > 0 and not self._spooled

    def _use_spool(self, now: float) -> None:
        """Write to the spool when an outcome has waited long enough, and empty it when all of it is in the database."""
        if self._spool is None or (self._spooling is not None and not self._spooling.done()):
            return
        missing = [pending for pending in (*self._in_flight, *self._waiting) if not pending.spooled]
        due = any(pending.spools_at is not None and pending.spools_at < now for pending in missing)
        if due and not (self._spooled_since and now - self._spooled_since > _SPOOL_LASTS_SECONDS):
            # With all that stands before and behind it, so that the count of this writer shows no gap.
            self._spooling = asyncio.create_task(self._keep(self._spool, missing))
        elif self._spool_is_stale():
            self._spooling = asyncio.create_task(self._forget(self._spool))

    async def _keep(self, spool: Spool, missing: list[_Pending]) -> None:
        try:
            await asyncio.to_thread(spool.append, [pending.row for pending in missing])
        except (OSError, SpoolFull) as error:
            logger.error("%d records cannot be kept in the spool: %s", len(missing), error)
            for pending in missing:
                pending.spools_at = None
            return
        logger.warning("%d records are kept in the spool until the database takes them", len(missing))
        self.rows_spooled += len(missing)
        self._spooled_since = self._spooled_since or self._loop.time()
        known = {id(pending) for pending in (*self._in_flight, *self._waiting)}
        for pending in missing:
            pending.spooled = True
            self._spooled += id(pending) in known
            if pending.spools_at is not None and pending.written is not None and not pending.written.done():
                pending.written.set_result(None)

    async def _forget(self, spool: Spool) -> None:
        try:
            await asyncio.to_thread(spool.clear)
        except OSError as error:
            logger.warning("the spool cannot be emptied, and will be read once more: %s", error)
        self._spooled_since = 0.0

    async def _leave(self) -> None:
        """Keep what could not be written, for the next process."""
        if self._spooling is not None:
            await asyncio.wait({self._spooling})
        missing = [pending.row for pending in self._waiting if not pending.spooled]
        if self._spool is None:
            if missing:
                logger.error("%d records are lost: the database is away, and there is no spool", len(missing))
            return
        try:
            if missing:
                await asyncio.to_thread(self._spool.append, missing)
                logger.warning("%d records are left in the spool for the next process", len(missing))
            elif not self._waiting:
                await asyncio.to_thread(self._spool.clear)
        except (OSError, SpoolFull) as error:
            logger.error("%d records are lost: %s", len(missing), error)
        await asyncio.to_thread(self._spool.close)

    async def _take_over(self, spool: Spool) -> None:
        """Reserve our own place; write what processes left that have ended, now and again."""
        while True:
            try:
                await asyncio.to_thread(spool.open)
                for left in await asyncio.to_thread(spool.left_behind):
                    await self._drain(left)
            except OSError as error:
                logger.warning("the ledger's spool cannot be used: %s", error)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _drain(self, left: Left) -> None:
        """Write what is there to the ledger. Whatever fails is tried again at the next look."""
        finished = False
        try:
            rows, damaged = await asyncio.to_thread(left.read)
            if rows or damaged:
                refused = await self._write_rows(rows)
                detail = {"file": left.path.name, "records": len(rows), "refused": refused, "damaged_bytes": damaged}
                logger.warning("the spool of a process that ended was written to the ledger: %s", detail)
                await self.write(Entry(kind="system", code="spool_drained", detail=json.dumps(detail)), float("inf"))
                damaged += refused
            await asyncio.to_thread(lambda: left.close(keep=bool(damaged)))
            finished = True
        except (OSError, LedgerUnavailable) as error:
            logger.warning("the spool %s could not be done with, and stays: %s", left.path.name, error)
        finally:
            if not finished:
                left.release()

    async def _write_rows(self, rows: list[Row]) -> int:
        """Write rows of another writer, which may be there already. Returns how many the database refused."""
        refused = 0
        for start in range(0, len(rows), _ADOPTED_AT_ONCE):
            now = self._loop.time()
            futures = []
            for row in rows[start : start + _ADOPTED_AT_ONCE]:
                futures.append(self._loop.create_future())
                self._take(_Pending(row, now, float("inf"), futures[-1], again=True))
            results = await asyncio.gather(*futures, return_exceptions=True)
            refused += sum(isinstance(result, LedgerUnavailable) for result in results)
        return refused


def _prepare(pg: pq.abc.PGconn) -> None:
    """Make the statements ready, on a server that keeps what it has committed."""
    found = pg.exec_(SWITCHED_OFF.encode())
    if fault := complaint((found.get_value(row, 0) or b"").decode() for row in range(found.ntuples)):
        raise psycopg.OperationalError(fault)
    places = ", ".join(f"${place}" for place in range(1, len(KEY_COLUMNS) + 1))
    _check(pg.prepare(b"key", INSERT_KEY.format(places).encode(), [_OIDS[kind] for _, kind in KEY_COLUMNS]))
    oids = [_OIDS[kind] for _, kind in ALL_COLUMNS]
    for size in _SIZES:
        rows = (range(row * _WIDTH + 1, (row + 1) * _WIDTH + 1) for row in range(size))
        values = ", ".join(f"({', '.join(f'${place}' for place in row)})" for row in rows)
        _check(pg.prepare(b"write%d" % size, (INSERT + values).encode(), oids * size))
        if size == 1:
            _check(pg.prepare(b"again", f"{INSERT}{values} ON CONFLICT DO NOTHING".encode(), oids))


def _check(result: pq.abc.PGresult) -> None:
    if result.status != pq.ExecStatus.COMMAND_OK:
        raise psycopg.OperationalError(result.error_message.decode("utf-8", "replace"))


@cache
def _process_writer_id() -> uuid.UUID:
    return uuid.uuid4()


_RECORD_SQL = f"{INSERT}({', '.join(['%s'] * _WIDTH)})"
_KEY_SQL = INSERT_KEY.format(", ".join(["%s"] * len(KEY_COLUMNS)))


def record(entry: Entry, using: str = "default") -> uuid.UUID:
    """Write one entry in the current transaction of the Django connection `using` and return the record's id.

    It has no sequence number: a transaction that is rolled back must not look like a missing record.
    Raises django.db.Error, which is meant to take the change with it.
    """
    # Keys of its own: those of a transaction that is rolled back are gone with it.
    masker = known().current(entry.object_type) if entry.detail else known().masker
    row = encode(entry, DataKeys(ring()), _process_writer_id(), None, masker)
    with connections[using].cursor() as cursor:
        if row.key is not None:
            cursor.execute(_KEY_SQL, key_values(row.key))
        cursor.execute(_RECORD_SQL, python_values(row))
    return row.rid
