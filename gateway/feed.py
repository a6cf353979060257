"""Keeps this process's snapshot of the policy current: PostgreSQL notifies, and a slow poll is the belt."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import psycopg
from django.db import DatabaseError, close_old_connections
from psycopg.abc import RV, PQGen
from psycopg.rows import TupleRow

from access.snapshot import Snapshot, load

logger = logging.getLogger("gateway.feed")

CHANNEL = "mcpsite_policy"
_POLL_SECONDS = 1.0
_BURST_SECONDS = 0.02
_STALE_SECONDS = 4.5
_RETRY_SECONDS = 0.5
_ANSWER_SECONDS = 1.5
_LOOK_UP_SECONDS = 60.0


class Listening(psycopg.AsyncConnection[TupleRow]):
    """A connection that mostly waits. Psycopg looks up ten times a second, so that Ctrl-C is heard; the signals of an
    event loop wake it anyway.
    """

    async def wait(self, gen: PQGen[RV], interval: float = 0, timeout: float | None = None) -> RV:  # noqa: ASYNC109
        """As psycopg's, looking up more seldom."""
        return await super().wait(gen, max(interval, _LOOK_UP_SECONDS), timeout)


class Feed:
    """The snapshot in force. `start` it in an event loop; `swapped` is called with each new one.

    `before_first` is called in a thread, before there is any.
    """

    def __init__(
        self, conninfo: str, swapped: Callable[[Snapshot], None], before_first: Callable[[], object] = lambda: None
    ) -> None:
        self.snapshot: Snapshot | None = None
        self._conninfo = conninfo
        self._swapped = swapped
        self._before_first = before_first
        self._confirmed = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to load and to listen; returns at once."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def current(self) -> Snapshot | None:
        """The snapshot, or None when there is none that was confirmed within the last seconds: then nothing is
        allowed.
        """
        return self.snapshot if self._loop.time() - self._confirmed < _STALE_SECONDS else None

    @property
    def age_seconds(self) -> float:
        """How long ago the database confirmed the snapshot."""
        return self._loop.time() - self._confirmed

    async def _run(self) -> None:
        while True:
            try:
                await self._listen()
            except (psycopg.Error, DatabaseError, OSError) as error:
                logger.warning("the policy cannot be read: %s", str(error).splitlines()[0] if str(error) else error)
            except Exception:
                logger.exception("the policy cannot be compiled")
            await asyncio.sleep(_RETRY_SECONDS)

    async def _listen(self) -> None:
        connection = await Listening.connect(
            self._conninfo, autocommit=True, connect_timeout=5, application_name="mcpsite policy",
            options="-c statement_timeout=5000 -c tcp_user_timeout=5000",
        )  # fmt: skip
        async with connection:
            await connection.execute(f"LISTEN {CHANNEL}")
            await self._reload()
            while True:
                # Changes come in bursts: one load serves them all, however many were told of at once.
                if [told async for told in connection.notifies(timeout=_POLL_SECONDS, stop_after=1)]:
                    await asyncio.sleep(_BURST_SECONDS)
                async with asyncio.timeout(_ANSWER_SECONDS):
                    cursor = await connection.execute("SELECT version FROM access_policyversion")
                    row = await cursor.fetchone()
                if row and self.snapshot and row[0] == self.snapshot.version:
                    self._confirmed = self._loop.time()
                else:
                    await self._reload()

    async def _reload(self) -> None:
        started = self._loop.time()
        snapshot = await asyncio.to_thread(self._load, self.snapshot)
        self.snapshot, self._confirmed = snapshot, started
        self._swapped(snapshot)
        logger.debug(
            "policy version %d is in force after %.0f ms", snapshot.version, (self._loop.time() - started) * 1000
        )

    def _load(self, before: Snapshot | None) -> Snapshot:
        close_old_connections()
        try:
            if before is None:
                self._before_first()
            return load(before)
        finally:
            close_old_connections()
