"""Delivers one stream: at least once, in order, from the place that is kept.

Whoever holds the stream's advisory lock leads it. The same connection holds the lock, reads and keeps the place, so
that a leader that lost its connection cannot move the place any more. The place moves after the receiver acknowledged:
what was sent and not kept is sent once more.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
import zlib
from collections import deque
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import psycopg
from psycopg.rows import dict_row

from audit.masking import known
from audit.streams import sealed
from audit.streams.messages import Message, told, trial
from audit.streams.sealed import Filters, Gone, Stretch
from audit.streams.senders import NotDelivered, Sender, TooLarge

logger = logging.getLogger("audit.streams")

_LOCKS = 0x6D63_7374  # advisory locks of streams; the second key is the stream's
_IDLE_SECONDS = 0.5
_CANDIDATE_SECONDS = 2.0
_BACKOFF_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
_MOST_BYTES = 1024 * 1024
_LONGEST_ERROR = 500
_COLUMNS = (
    "cursor, number, resend_cursor, resend_number, pending, filters, failing_since, test_asked_at, test_message AS by"
)


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be delivered, and how much at once."""

    stream_id: uuid.UUID
    name: str
    filters: Filters
    enabled: bool
    batch: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where the next message is read, and what it is counted as."""

    cursor: int
    number: int


class Moved(Exception):
    """Somebody else set the place meanwhile: go on from there."""


class Delivery:
    """One stream in one process. `run` returns when `stop` is called, and raises when PostgreSQL is away."""

    def __init__(self, conninfo: str, work: Work, sender: Sender) -> None:
        self._conninfo = conninfo
        self._work = work
        self._sender = sender
        self._stopping = threading.Event()
        self._failures = 0
        self._recent: deque[Place] = deque()
        self._kept: Place | None = None
        self._batch = work.batch

    def stop(self) -> None:
        """Have it end soon, from any thread."""
        self._stopping.set()
        self._sender.close()

    def run(self) -> None:
        """Wait to lead, then deliver."""
        name = f"mcpsite stream {self._work.name}"
        with (
            closing(self._sender),
            psycopg.connect(self._conninfo, autocommit=True, connect_timeout=5, application_name=name) as connection,
        ):
            connection.execute("SET statement_timeout = '30s'; SET lock_timeout = '5s'; SET timezone = 'UTC'")
            while not self._stopping.is_set():
                if self._leads(connection):
                    self._lead(connection)
                    return
                self._stopping.wait(_CANDIDATE_SECONDS)

    def _leads(self, connection: psycopg.Connection[Any]) -> bool:
        key = lock_key(self._work.stream_id)
        row = connection.execute("SELECT pg_try_advisory_lock(%s::int, %s::int)", [_LOCKS, key]).fetchone()
        return bool(row and row[0])

    def _lead(self, connection: psycopg.Connection[Any]) -> None:
        place: Place | None = None
        with connection.cursor() as cursor:
            while not self._stopping.is_set():
                state = _state(cursor, self._work.stream_id)
                if state is None:
                    return
                kept = Place(state["cursor"], state["number"])
                if place is None or kept != self._kept or not self._sender.is_open():
                    place, self._kept = self._beginning(cursor, state, kept), kept
                if state["test_asked_at"] is not None:
                    self._test(cursor, state)
                if not self._work.enabled:
                    return
                try:
                    place = self._step(cursor, state, kept, place)
                except Moved:
                    place = None
                except NotDelivered as error:
                    place = None
                    self._failed(cursor, error)

    def _beginning(self, cursor: psycopg.Cursor[Any], state: dict[str, Any], kept: Place) -> Place:
        """From where a new connection starts: the last messages once more, if they are still counted alike."""
        self._recent.clear()
        filters = dict(self._work.filters)
        if state["filters"] == filters and self._sender.repeats:
            return Place(state["resend_cursor"], state["resend_number"])
        if state["filters"] != filters:
            self._write(cursor, kept, resend_cursor=kept.cursor, resend_number=kept.number, filters=json.dumps(filters))
        return kept

    def _step(self, cursor: psycopg.Cursor[Any], state: dict[str, Any], kept: Place, place: Place) -> Place:
        """Deliver what comes next, or wait for it. Returns the place after it."""
        if place.cursor < kept.cursor:
            return self._repeat(cursor, kept, place)
        pending = state["pending"]
        filters: Filters = pending["filters"] if pending else self._work.filters
        found = sealed.read(cursor, kept.cursor, filters, self._batch, pending["until"] if pending else None)
        if found.end == found.start:
            self._stopping.wait(_IDLE_SECONDS)
            return kept
        messages, found = self._messages(found, kept.number)
        if messages and not pending:
            self._write(cursor, kept, pending=json.dumps({"until": found.end, "filters": dict(filters)}))
        self._send(cursor, kept, messages)
        after = Place(found.end, kept.number + len(messages))
        self._keep(cursor, kept, after, found)
        return after

    def _repeat(self, cursor: psycopg.Cursor[Any], kept: Place, place: Place) -> Place:
        """Send once more what a new connection begins with. What is gone since then was sent while it was there."""
        found = sealed.read(cursor, place.cursor, self._work.filters, self._batch, kept.cursor)
        if any(isinstance(item, Gone) for item in found.found):
            return kept
        messages, found = self._messages(found, place.number)
        self._send(cursor, kept, messages)
        if messages:
            self._recent.append(place)
        after = Place(found.end, place.number + len(messages))
        return after if after.cursor < kept.cursor else kept

    def _messages(self, found: Stretch, number: int) -> tuple[list[Message], Stretch]:
        """As messages, no more than a megabyte of them, and how far that goes."""
        made: list[Message] = []
        size = 0
        for item in found.found:
            message = told(self._work.stream_id, number + len(made), item)
            size += len(json.dumps(message.body))
            if made and size > _MOST_BYTES:
                start = item.first_seq if isinstance(item, Gone) else item.seq
                return made, replace(found, end=start, found=found.found[: len(made)])
            made.append(message)
        return made, found

    def _send(self, cursor: psycopg.Cursor[Any], kept: Place, messages: list[Message]) -> None:
        if not messages:
            return
        try:
            self._sender.send(messages)
        except TooLarge:
            # What it did not take it does not know: the batch may be another one, with the same first number.
            self._batch = max(1, len(messages) // 2)
            self._write(cursor, kept, pending=None)
            raise
        if self._failures:
            logger.warning("the stream %s delivers again", self._work.name)
        self._failures = 0
        self._write(cursor, kept, acknowledged_at=datetime.now(UTC), failing_since=None, error="")

    def _keep(self, cursor: psycopg.Cursor[Any], kept: Place, after: Place, found: Stretch) -> None:
        """The place after what was acknowledged."""
        missed = sum(item.count for item in found.found if isinstance(item, Gone))
        resend = self._resend_from(kept, after)
        self._write(
            cursor,
            kept,
            missed=missed,
            cursor=after.cursor,
            number=after.number,
            pending=None,
            resend_cursor=resend.cursor,
            resend_number=resend.number,
        )
        self._kept = after

    def _resend_from(self, kept: Place, after: Place) -> Place:
        """The latest place with at least `repeats` messages after it, of those of this connection."""
        if not self._sender.repeats:
            return after
        if after.number > kept.number:
            self._recent.append(kept)
        while len(self._recent) > 1 and after.number - self._recent[1].number >= self._sender.repeats:
            self._recent.popleft()
        return self._recent[0] if self._recent else after

    def _failed(self, cursor: psycopg.Cursor[Any], error: NotDelivered) -> None:
        seconds = _BACKOFF_SECONDS[min(self._failures, len(_BACKOFF_SECONDS) - 1)]
        if not self._failures:
            logger.warning("the stream %s cannot deliver: %s", self._work.name, error)
        self._failures += 1
        if self._stopping.is_set():
            return
        cursor.execute(
            "UPDATE audit_streamstate SET failed_at = now(), failing_since = coalesce(failing_since, now()), error = %s"
            " WHERE stream_id = %s",
            [_told(error), self._work.stream_id],
        )
        self._pause(cursor, seconds)

    def _pause(self, cursor: psycopg.Cursor[Any], seconds: float) -> None:
        """Wait, but not when somebody wants to test it meanwhile, or moved the place."""
        until = time.monotonic() + seconds
        before = _state(cursor, self._work.stream_id)
        while time.monotonic() < until and not self._stopping.wait(_IDLE_SECONDS):
            now = _state(cursor, self._work.stream_id)
            if before is None or now is None or now["test_asked_at"] or now["cursor"] != before["cursor"]:
                return

    def _test(self, cursor: psycopg.Cursor[Any], state: dict[str, Any]) -> None:
        """Send what is no record, and note what came of it."""
        ok, said = True, "The receiver took the test message."
        try:
            self._sender.send([trial(self._work.stream_id, state["by"])])
        except NotDelivered as error:
            ok, said = False, _told(error)
        cursor.execute(
            "UPDATE audit_streamstate SET test_asked_at = NULL, tested_at = now(), test_ok = %s, test_message = %s"
            " WHERE stream_id = %s",
            [ok, said, self._work.stream_id],
        )

    def _write(self, cursor: psycopg.Cursor[Any], kept: Place, /, missed: int = 0, **values: Any) -> None:
        """Change the state, if the place is still where we know it; raises Moved."""
        names = ", ".join(f"{name} = %({name})s" for name in values)
        cursor.execute(
            f"UPDATE audit_streamstate SET missed = missed + %(missed)s, {names}"  # noqa: S608 - our own names
            " WHERE stream_id = %(stream)s AND cursor = %(kept_cursor)s AND number = %(kept_number)s",
            {
                **values,
                "missed": missed,
                "stream": self._work.stream_id,
                "kept_cursor": kept.cursor,
                "kept_number": kept.number,
            },
        )
        if cursor.rowcount != 1:
            raise Moved


def lock_key(stream_id: uuid.UUID) -> int:
    """The second key of a stream's advisory lock, which has 32 bits."""
    return zlib.crc32(stream_id.bytes) - 2**31


def _told(error: NotDelivered) -> str:
    """What a receiver answered may repeat what it was sent."""
    return known().masker.text(str(error))[:_LONGEST_ERROR]


def _state(cursor: psycopg.Cursor[Any], stream_id: Any) -> dict[str, Any] | None:
    with cursor.connection.cursor(row_factory=dict_row) as rows:
        found: dict[str, Any] | None = rows.execute(
            f"SELECT {_COLUMNS} FROM audit_streamstate WHERE stream_id = %s",  # noqa: S608 - constants
            [stream_id],
        ).fetchone()
    return found
