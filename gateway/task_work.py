"""Tasks of this worker: calls that go on without the request that began them, and those of workers that have died.

A task is a row before anybody hears of it (tasks extension, "Task Creation"). While its call is under way, its worker
gives signs of life there. Of a worker that gives none, another one begins anew what only reads, once; what has effects
may have had them, so it ends as `outcome_unknown`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from django.conf import settings

from access import policy
from access.snapshot import Snapshot, ToolEntry
from audit.entry import uuid7
from audit.ledger import Ledger, LedgerUnavailable
from audit.reconcile import close_aside
from gateway import task_forms
from gateway.calls import Pipeline
from gateway.mail import Mail
from gateway.meter import Meter
from gateway.task_again import call_again, kept_of, unfinished
from gateway.task_client import TaskClient
from gateway.task_job import CANCELLED, LATE, LOST, NOT_ALLOWED, UNKNOWN, Work
from gateway.task_rows import AWAY, Ending, Lost, Row, Rows
from gateway.terms import Answer, Call, NotAdmitted
from tools.models import Tool

logger = logging.getLogger("gateway.tasks")

# The letter that says: look at your tasks.
LOOK = "tasks.look"
_LOOK_SECONDS, _BEAT_SECONDS = 1.0, 5.0
# A worker that gave no sign of life for so long has died; nobody is declared dead before the database has answered for
# as long, since without it nobody can give a sign.
LOST_SECONDS = 15.0
_AGES_SECONDS = 1e9
_MOST_ATTEMPTS = 2
_CLOSE_SECONDS = 10.0
_ATTEMPTS_TO_FINISH = 20
_READ = "read"


class Tasks:
    """The tasks of this worker. `start` it in an event loop, `stop` it there."""

    def __init__(
        self,
        conninfo: str,
        pipeline: Pipeline,
        ledger: Ledger,
        meter: Meter,
        mail: Mail,
        snapshot: Callable[[], Snapshot | None],
    ) -> None:
        self.rows = Rows(conninfo)
        self._pipeline, self._ledger, self._meter, self._mail, self._snapshot = pipeline, ledger, meter, mail, snapshot
        self._held: dict[str, Work] = {}
        self._finishing: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._beaten = self._swept = float("-inf")
        # Since when the database has answered without a gap.
        self._answers_since: float | None = None
        self._checked: Snapshot | None = None

    def __len__(self) -> int:
        return len(self._held)

    async def start(self) -> None:
        """Begin to look after tasks; connects in the background."""
        await self.rows.open()
        self._mail.on(LOOK, lambda letter: self._wake.set())
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Break off what is under way; what only reads is left to another worker."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        jobs = [work.job for work in self._held.values()]
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        await asyncio.gather(*self._finishing, return_exceptions=True)
        await self.rows.close()

    async def nudge(self, worker: str) -> None:
        """Let the worker look at its tasks at once; without Redis it does within a second."""
        await self._mail.send(worker, LOOK, {})

    # --- A call becomes a task ----------------------------------------------------------------------------------------

    async def carry(self, call: Call, tool: ToolEntry, snapshot: Snapshot) -> Answer | Row:
        """The answer to the call, or the task that it has become. Raises Refused."""
        member = snapshot.members.get(call.principal.user_id)
        work = Work(call, member.generation if member else 0, call.peer)
        at_once = tool.as_task != Tool.AsTask.SLOW
        if at_once:
            work.notes["task"] = work.id
            call = call._replace(seconds=settings.TASK_TIMEOUT_SECONDS, admit=lambda: self._admit(work))
        capabilities = call.peer.capabilities if call.peer else {}
        self._begin(work, call._replace(call_id=call.call_id or uuid7()), tool.effect, capabilities)
        try:
            return await self._first(work, None if at_once else settings.TASK_AFTER_SECONDS)
        except asyncio.CancelledError:
            work.ending = CANCELLED
            work.job.cancel()
            await asyncio.wait({work.job})
            raise

    def _begin(self, work: Work, call: Call, effect: str, capabilities: Mapping[str, Any]) -> None:
        work.client = TaskClient(work.before, capabilities, lambda question: self._ask(work, question))
        work.notes |= call.notes or {}
        work.call = call._replace(notes=work.notes, peer=work.client)
        work.effect = effect
        work.job = asyncio.create_task(self._pipeline.call(work.call))

    async def _first(self, work: Work, seconds: float | None) -> Answer | Row:
        """Whatever comes first: the answer, or the task, which it becomes after so long."""
        either: set[asyncio.Future[Any]] = {work.job, work.created}
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not work.job.done() and not work.created.done():
            # Where that fails, it stays a call: nobody is worse off than before.
            await self._enrolled(work)
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return work.created.result() if work.created.done() else work.job.result()

    async def _admit(self, work: Work) -> None:
        if (refusal := await self._enrolled(work)) is not None:
            raise refusal

    async def _enrolled(self, work: Work) -> NotAdmitted | None:
        """Make it a task, once; why not, where that fails."""
        if work.id in self._held:
            return None
        if work.enrolling is None:
            work.client.is_task = True
            work.enrolling = asyncio.create_task(self._enrol(work))
        return await asyncio.shield(work.enrolling)

    async def _enrol(self, work: Work) -> NotAdmitted | None:
        call, most = work.call, settings.TASKS_PER_USER
        seconds = settings.TASK_TIMEOUT_SECONDS + settings.TASK_KEPT_SECONDS
        values = {
            "id": work.id,
            "user_id": call.principal.user_id,
            "token": call.principal.token,
            "token_id": call.principal.token_id,
            "tool": call.tool,
            "effect": work.effect,
            "call_id": call.call_id,
            "worker": self._mail.worker,
        }
        try:
            row = await self.rows.create(values, kept_of(work), seconds=seconds, most=most)
        except AWAY as error:
            logger.warning("a task cannot be made: %s", _first_line(error))
            work.client.is_task = False
            return NotAdmitted("tasks_unavailable", "Tasks cannot be kept at this moment. Try again in a few seconds.")
        if row is None:
            work.client.is_task = False
            said = f"{most} tasks of yours are under way: wait for one of them, or cancel one."
            return NotAdmitted("too_many_tasks", said)
        work.notes["task"] = work.id
        self._hold(work)
        work.created.set_result(row)
        return None

    def _hold(self, work: Work) -> None:
        self._held[work.id] = work
        self._checked = None  # a grant may be gone since the call began
        work.when_done = lambda job: self._end_soon(work)
        work.job.add_done_callback(work.when_done)

    async def _ask(self, work: Work, question: Mapping[str, Any]) -> str | None:
        """The key under which the question stands in the task; None when it cannot be asked."""
        if await self._enrolled(work) is not None:
            return None
        try:
            return await self.rows.ask(work.id, self._mail.worker, question)
        except AWAY as error:
            logger.warning("a question of a task cannot be kept: %s", _first_line(error))
            return None

    # --- The end ------------------------------------------------------------------------------------------------------

    def _end_soon(self, work: Work) -> None:
        task = asyncio.create_task(self._end(work))
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)

    async def _end(self, work: Work) -> None:
        ending, result = work.outcome()
        try:
            await self._finish(work.id, ending, result)
        finally:
            self._held.pop(work.id, None)

    async def _finish(self, identifier: str, ending: Ending | None, result: bytes | None) -> None:
        """Commit the end, also when the database is away for a while."""
        for attempt in range(_ATTEMPTS_TO_FINISH):
            try:
                if ending is None:
                    await self.rows.release([identifier], self._mail.worker)
                else:
                    await self.rows.finish(identifier, self._mail.worker, ending, result)
                    self._meter.task(ending.status)
                return
            except AWAY as error:
                logger.warning("the end of a task cannot be kept: %s", _first_line(error))
                await asyncio.sleep(min(attempt, 5))
        logger.error("the end of a task could not be kept: another worker will find it without an end")

    # --- Looking after them -------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._look()
            except AWAY as error:
                if self._answers_since is not None:
                    logger.warning("tasks cannot be looked after: %s", _first_line(error))
                self._answers_since = None
            except Exception:
                logger.exception("tasks cannot be looked after")

    async def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._held:
            self._end_what_may_not_go_on()
            if now - self._beaten >= _BEAT_SECONDS:
                await self._beat()
                self._beaten = now
            await self._listen()
        if now - self._swept >= _BEAT_SECONDS:
            self._swept = now
            since = self._answers_since
            await self._take_over(LOST_SECONDS if since is not None and now - since >= LOST_SECONDS else _AGES_SECONDS)
        if self._answers_since is None:
            self._answers_since = now

    async def _beat(self) -> None:
        """Say that this worker works on them, and let go of what another one has taken over."""
        held = dict(self._held)  # what is taken up meanwhile is not asked about
        mine = await self.rows.beat(self._mail.worker, list(held))
        for identifier, work in held.items():
            if identifier not in mine:
                work.break_off(LOST)

    async def _listen(self) -> None:
        for identifier, is_cancelled, has_answers in await self.rows.signals(self._mail.worker, list(self._held)):
            work = self._held.get(identifier)
            if work is not None and has_answers:
                await self.rows.take_answers(identifier, self._mail.worker, work.client.deliver)
            if work is not None and is_cancelled:
                work.break_off(CANCELLED)

    def _end_what_may_not_go_on(self) -> None:
        """Its time may be over; and a grant, a token or a user may be gone, which each version of the policy tells."""
        now, snapshot = time.monotonic(), self._snapshot()
        for work in self._held.values():
            if work.until < now:
                work.break_off(LATE)
        if snapshot is None or snapshot is self._checked:
            return
        self._checked = snapshot
        for work in self._held.values():
            call = work.call
            who = call.principal
            principal = policy.principal_again(snapshot, who.user_id, who.token, who.token_id, work.generation)
            if principal is None or policy.find(snapshot, principal, call.tool, call.toolset) is None:
                work.break_off(NOT_ALLOWED)

    # --- Workers that have died ---------------------------------------------------------------------------------------

    async def _take_over(self, seconds: float) -> None:
        for lost in await self.rows.take_over(self._mail.worker, seconds):
            await self._adopt(lost)

    async def _adopt(self, lost: Lost) -> None:
        if lost.is_cancelled:
            ending = CANCELLED
        elif lost.effect != _READ:
            ending = UNKNOWN
        elif lost.attempts > _MOST_ATTEMPTS or not self._begin_anew(lost):
            ending = LOST
        else:
            return
        if lost.effect == _READ:
            # Should it not be written in time, it is written later all the same.
            with contextlib.suppress(LedgerUnavailable):
                await self._ledger.write(unfinished(lost, "cancelled" if lost.is_cancelled else "unknown"))
        else:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await asyncio.to_thread(close_aside, lost.call_id)
        await self._finish(lost.id, ending, task_forms.error_of(ending, lost.call_id))

    def _begin_anew(self, lost: Lost) -> bool:
        """Whether it could be begun: its caller and its tool must be what they were."""
        snapshot, kept = self._snapshot(), lost.request
        seconds = settings.TASK_TIMEOUT_SECONDS - lost.age_seconds
        if snapshot is None or seconds <= 0:
            return False
        principal = policy.principal_again(snapshot, lost.user_id, lost.token, lost.token_id, kept["generation"])
        tool = snapshot.tools.get(lost.tool)
        if principal is None or tool is None or tool.effect != _READ:
            return False
        call = call_again(lost, principal, seconds)
        work = Work(call, kept["generation"], None)
        work.id, work.until = lost.id, time.monotonic() + seconds
        work.notes["task"] = lost.id
        self._begin(work, call, lost.effect, kept["capabilities"])
        work.client.is_task = True
        self._hold(work)
        return True


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
