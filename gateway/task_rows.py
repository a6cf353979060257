"""Tasks as PostgreSQL keeps them, for the event loop: whatever must survive a worker is committed here.

The clock is the database's, so that workers on several machines agree. What callers send and get is encrypted.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import orjson
import psycopg
from psycopg_pool import AsyncConnectionPool

from audit.masking import known
from gateway.models import Task
from keyring.fields import Sealed, opened_for, sealed_for
from keyring.keys import ring
from tools import exact

T = TypeVar("T")

# What there is to catch when the database is away.
AWAY = (psycopg.Error, OSError, TimeoutError)

_TABLE = "gateway_task"
_MOST_CONNECTIONS = 4
_WAIT_SECONDS = 3.0
# A server that hangs keeps no timeout of its own, and psycopg waits for it also when it is cancelled.
_HANG_SECONDS = 6.0
_OPTIONS = "-c statement_timeout=5000 -c lock_timeout=3000 -c synchronous_commit=on -c timezone=UTC"
_LONGEST_MESSAGE = 500

_CREATE = """
INSERT INTO gateway_task (id, user_id, token, token_id, tool, effect, call_id, status, code, message,
    request, asked, worker, heartbeat_at, attempts, created_at, updated_at, expires_at)
SELECT %(id)s, %(user_id)s, %(token)s, %(token_id)s, %(tool)s, %(effect)s, %(call_id)s,
    'working', '', '', %(request)s, 0, %(worker)s, now(), 1, now(), now(), now() + make_interval(secs => %(seconds)s)
WHERE (SELECT count(*) FROM gateway_task WHERE user_id = %(user_id)s AND status IN ('working', 'input_required'))
     < %(most)s
RETURNING id, status, message, created_at, updated_at, expires_at
"""
_FIND = """
SELECT id, status, message, created_at, updated_at, expires_at, tool, worker, call_id, code, questions, result
FROM gateway_task WHERE id = %s AND user_id = %s AND expires_at > now()
"""
_DISCARD = "DELETE FROM gateway_task WHERE id = %(id)s AND worker = %(worker)s"
_BEAT = """
UPDATE gateway_task SET heartbeat_at = now()
WHERE id = ANY(%s) AND worker = %s AND status IN ('working', 'input_required') RETURNING id
"""
_SIGNALS = """
SELECT id, cancel_requested_at IS NOT NULL, answers IS NOT NULL FROM gateway_task
WHERE id = ANY(%s) AND worker = %s AND (cancel_requested_at IS NOT NULL OR answers IS NOT NULL)
"""
_ANSWERS = """
UPDATE gateway_task AS row SET answers = NULL FROM
    (SELECT id, answers FROM gateway_task WHERE id = %s AND worker = %s AND answers IS NOT NULL FOR UPDATE) AS old
WHERE row.id = old.id RETURNING old.answers
"""
_HELD = """
SELECT questions, asked FROM gateway_task
WHERE id = %s AND worker = %s AND status IN ('working', 'input_required') FOR UPDATE
"""
_ASK = "UPDATE gateway_task SET questions = %s, asked = %s, status = 'input_required', updated_at = now() WHERE id = %s"
_ASKED = """
SELECT questions, answers FROM gateway_task
WHERE id = %s AND user_id = %s AND status IN ('working', 'input_required') FOR UPDATE
"""
_ANSWER = "UPDATE gateway_task SET questions = %s, answers = %s, status = %s, updated_at = now() WHERE id = %s"
_CANCEL = """
UPDATE gateway_task SET cancel_requested_at = now(), updated_at = now()
WHERE id = %s AND user_id = %s AND status IN ('working', 'input_required') AND cancel_requested_at IS NULL
RETURNING worker
"""
_FINISH = """
UPDATE gateway_task SET status = %s, code = %s, message = %s, result = %s, questions = NULL, answers = NULL,
    updated_at = now() WHERE id = %s AND worker = %s AND status IN ('working', 'input_required') RETURNING id
"""
_RELEASE = """
UPDATE gateway_task SET heartbeat_at = to_timestamp(0)
WHERE id = ANY(%s) AND worker = %s AND status IN ('working', 'input_required')
"""
_TAKE_OVER = """
UPDATE gateway_task SET worker = %s, heartbeat_at = now(), attempts = attempts + 1, status = 'working',
    questions = NULL, answers = NULL, updated_at = now()
WHERE id IN (SELECT id FROM gateway_task
    WHERE status IN ('working', 'input_required') AND heartbeat_at < now() - make_interval(secs => %s)
    ORDER BY heartbeat_at LIMIT 20 FOR UPDATE SKIP LOCKED)
RETURNING id, user_id, token, token_id, tool, effect, call_id, request,
    attempts, cancel_requested_at IS NOT NULL, extract(epoch FROM now() - created_at)::float
"""


class Row(NamedTuple):
    """A task as its client may see it. `result` is the JSON of the result, or of the error of a failed one."""

    id: str
    status: str
    message: str
    created_at: datetime
    updated_at: datetime
    expires_at: datetime
    tool: str = ""
    worker: str = ""
    call_id: uuid.UUID | None = None
    code: str = ""
    questions: bytes | None = None
    result: bytes | None = None


class Ending(NamedTuple):
    """How a task ended: `code` is `ok` or the stable word for what went wrong, `message` a sentence for people."""

    status: Task.Status
    code: str
    message: str = ""


class Lost(NamedTuple):
    """A task whose worker has died."""

    id: str
    user_id: int
    token: str
    token_id: uuid.UUID | None
    tool: str
    effect: str
    call_id: uuid.UUID
    request: dict[str, Any]
    attempts: int
    is_cancelled: bool
    age_seconds: float


class Rows:
    """The table, through a few connections that are opened when they are needed."""

    def __init__(self, conninfo: str) -> None:
        self._pool = AsyncConnectionPool(
            conninfo,
            min_size=0,
            max_size=_MOST_CONNECTIONS,
            timeout=_WAIT_SECONDS,
            max_idle=60,
            num_workers=1,
            open=False,
            reconnect_timeout=2,
            kwargs={
                "autocommit": True,
                "connect_timeout": 3,
                "application_name": "mcpsite tasks",
                "options": _OPTIONS,
            },
        )
        # Statements that are given up, and hang still.
        self._left: set[asyncio.Future[Any]] = set()

    async def open(self) -> None:
        """Make it usable; connects to nothing yet."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Disconnect."""
        await self._pool.close(timeout=1)

    # --- For the door -------------------------------------------------------------------------------------------------

    async def create(self, values: Mapping[str, Any], request: bytes, *, seconds: int, most: int) -> Row | None:
        """Commit a new task; None when its user has `most` of them under way."""
        sealed = _sealed(values["id"], "request", request)
        values = {**values, "request": sealed, "seconds": seconds, "most": most}
        making = asyncio.ensure_future(self._rows(_CREATE, values))
        try:
            found = await self._within(making)
        except TimeoutError:
            self._keep(asyncio.ensure_future(self._undo(making, values)))
            raise
        return Row(*found[0]) if found else None

    async def _undo(self, making: asyncio.Future[Any], values: Mapping[str, Any]) -> None:
        """Nobody was told of the task: should it be there after all, nobody is to take it over."""
        await asyncio.wait({making})
        with contextlib.suppress(*AWAY):
            await self._rows(_DISCARD, values)

    async def find(self, identifier: str, user_id: int) -> Row | None:
        """The user's task, unless its time is over."""
        found = await self._one(_FIND, (identifier, user_id))
        if found is None:
            return None
        row = Row(*found)
        questions, result = _opened(row.id, "questions", row.questions), _opened(row.id, "result", row.result)
        return row._replace(questions=questions, result=result)

    async def answer(
        self, identifier: str, user_id: int, given: Mapping[str, Any], note: Callable[[bytes], Awaitable[object]]
    ) -> None:
        """Keep the answers to questions that are open, for the worker to take; what answers no question is dropped.

        `note` gets them as JSON before they are kept; what it raises leaves everything as it was.
        """
        await self._within(self._answer(identifier, user_id, given, note))

    async def _answer(
        self, identifier: str, user_id: int, given: Mapping[str, Any], note: Callable[[bytes], Awaitable[object]]
    ) -> None:
        async with self._pool.connection() as connection, connection.transaction():
            row = await (await connection.execute(_ASKED, (identifier, user_id))).fetchone()
            asked = _loaded(identifier, "questions", row[0]) if row else {}
            fitting = {key: value for key, value in given.items() if key in asked}
            if row is None or not fitting:
                return
            await note(exact.written(fitting))
            answers = _loaded(identifier, "answers", row[1]) | fitting
            left = {key: value for key, value in asked.items() if key not in fitting}
            questions = _sealed(identifier, "questions", left) if left else None
            status = Task.Status.INPUT_REQUIRED if left else Task.Status.WORKING
            await connection.execute(_ANSWER, (questions, _sealed(identifier, "answers", answers), status, identifier))

    async def cancel(self, identifier: str, user_id: int, note: Callable[[], Awaitable[object]]) -> str | None:
        """Ask for its end; the worker that carries it out, or None where there is nothing to do. `note` as above."""
        return await self._within(self._cancel(identifier, user_id, note))

    async def _cancel(self, identifier: str, user_id: int, note: Callable[[], Awaitable[object]]) -> str | None:
        async with self._pool.connection() as connection, connection.transaction():
            row = await (await connection.execute(_CANCEL, (identifier, user_id))).fetchone()
            if row is None:
                return None
            await note()
            return str(row[0])

    # --- For the worker -----------------------------------------------------------------------------------------------

    async def beat(self, worker: str, held: list[str]) -> frozenset[str]:
        """Say that the worker works on these. Returns those of them that are its own."""
        return frozenset(row[0] for row in await self._all(_BEAT, (held, worker)))

    async def signals(self, worker: str, held: list[str]) -> list[tuple[str, bool, bool]]:
        """(task, whether it is to end, whether there are answers), of those that have either."""
        return [tuple(row) for row in await self._all(_SIGNALS, (held, worker))]

    async def take_answers(self, identifier: str, worker: str, deliver: Callable[[dict[str, Any]], object]) -> None:
        """Hand over the answers that came since the last time, also when that takes the server longer than we wait."""
        await self._within(self._take_answers(identifier, worker, deliver))

    async def _take_answers(self, identifier: str, worker: str, deliver: Callable[[dict[str, Any]], object]) -> None:
        for (answers,) in await self._rows(_ANSWERS, (identifier, worker)):
            deliver(_loaded(identifier, "answers", answers))

    async def ask(self, identifier: str, worker: str, question: Mapping[str, Any]) -> str | None:
        """Put the question to the client. Returns its key; None when the worker does not hold the task any more."""
        return await self._within(self._ask(identifier, worker, question))

    async def _ask(self, identifier: str, worker: str, question: Mapping[str, Any]) -> str | None:
        async with self._pool.connection() as connection, connection.transaction():
            row = await (await connection.execute(_HELD, (identifier, worker))).fetchone()
            if row is None:
                return None
            number = row[1] + 1
            asked = _loaded(identifier, "questions", row[0]) | {f"q{number}": question}
            await connection.execute(_ASK, (_sealed(identifier, "questions", asked), number, identifier))
        return f"q{number}"

    async def finish(self, identifier: str, worker: str, ending: Ending, result: bytes | None) -> bool:
        """End it, if the worker holds it. `result` is the JSON of the result, or of the error."""
        sealed = None if result is None else _sealed(identifier, "result", result)
        said = known().masker.text(ending.message)[:_LONGEST_MESSAGE].replace("\0", "\N{REPLACEMENT CHARACTER}")
        return bool(await self._all(_FINISH, (ending.status, ending.code, said, sealed, identifier, worker)))

    async def release(self, identifiers: list[str], worker: str) -> None:
        """Let another worker begin them anew at once."""
        await self._all(_RELEASE, (identifiers, worker))

    async def take_over(self, worker: str, seconds: float) -> list[Lost]:
        """Tasks whose worker gave no sign of life for so long; they are this worker's now."""
        found = [Lost(*row) for row in await self._all(_TAKE_OVER, (worker, seconds))]
        return [row._replace(request=_loaded(row.id, "request", row.request)) for row in found]  # type: ignore[arg-type]

    # --- Statements ---------------------------------------------------------------------------------------------------

    async def _one(self, statement: str, values: Any) -> Any:
        found = await self._all(statement, values)
        return found[0] if found else None

    async def _all(self, statement: str, values: Any) -> list[Any]:
        return await self._within(self._rows(statement, values))

    async def _rows(self, statement: str, values: Any) -> list[Any]:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(statement, values)
            return await cursor.fetchall() if cursor.description else []

    async def _within(self, work: Awaitable[T]) -> T:
        """What the work gives. Raises TimeoutError when the server hangs; then it goes on by itself."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task}, timeout=_HANG_SECONDS)
        except asyncio.CancelledError:
            task.cancel()
            self._keep(task)
            raise
        if not task.done():
            self._keep(task)
            raise TimeoutError(f"no answer within {_HANG_SECONDS:g} s")
        return task.result()

    def _keep(self, task: asyncio.Future[Any]) -> None:
        self._left.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Future[Any]) -> None:
        self._left.discard(task)
        if not task.cancelled():
            task.exception()  # Whoever asked was told that there is no answer.


def _sealed(identifier: str, column: str, value: Any) -> Sealed:
    """The value, or its JSON, encrypted for its place."""
    raw = value if isinstance(value, bytes) else exact.written(value)
    return sealed_for(ring(), _TABLE, identifier, column, orjson.Fragment(raw))


def _opened(identifier: str, column: str, value: bytes | None) -> bytes | None:
    return None if value is None else opened_for(ring(), _TABLE, identifier, column, bytes(value))


def _loaded(identifier: str, column: str, value: bytes | None) -> dict[str, Any]:
    raw = _opened(identifier, column, value)
    found: dict[str, Any] = {} if raw is None else exact.taken(raw)
    return found
