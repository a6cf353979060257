"""One call that is a task, or may become one: the job that carries it out, and how that ends."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from typing import Any

from django.conf import settings

from gateway import task_forms
from gateway.models import Task
from gateway.task_client import TaskClient
from gateway.task_rows import Ending, Row
from gateway.terms import Answer, Call, NotAdmitted, Refused
from tools.connectors.base import Client

logger = logging.getLogger("gateway.tasks")

# The call itself has a deadline, and says better what was late.
_GRACE_SECONDS = 5.0
_READ = "read"

CANCELLED = Ending(Task.Status.CANCELLED, code="cancelled", message="Cancelled while it was under way.")
NOT_ALLOWED = Ending(Task.Status.FAILED, code="not_granted", message="Its caller may not call this tool any more.")
LATE = Ending(Task.Status.FAILED, code="task_timeout", message="It took longer than a task may take.")
UNKNOWN = Ending(
    Task.Status.FAILED,
    code="outcome_unknown",
    message="The process that called the tool has ended, and what became of the call is not known. It has effects,"
    " so it is not repeated.",
)
LOST = Ending(
    Task.Status.FAILED,
    code="task_lost",
    message="The process that called the tool has ended, and could not be replaced.",
)


class Work:
    """A call of this worker that is a task, or may become one."""

    def __init__(self, call: Call, generation: int, before: Client | None) -> None:
        self.id = secrets.token_urlsafe(24)
        self.call = call
        self.generation = generation
        self.before = before
        self.effect = ""
        self.client: TaskClient
        self.job: asyncio.Task[Answer]
        self.when_done: Callable[[asyncio.Task[Answer]], None]
        # What its records say of it; it is one dictionary, so that it can be said of a call that is under way.
        self.notes: dict[str, Any] = {}
        self.enrolling: asyncio.Task[NotAdmitted | None] | None = None
        self.created: asyncio.Future[Row] = asyncio.get_running_loop().create_future()
        # A client may take its time to answer, but not for ever.
        self.until = time.monotonic() + settings.TASK_TIMEOUT_SECONDS + _GRACE_SECONDS
        # Why its job was cancelled; None: the process stops.
        self.ending: Ending | None = None

    def break_off(self, ending: Ending) -> None:
        """Cancel the job, unless it is over or is ended for something else."""
        if not self.job.done() and self.ending is None:
            self.ending = ending
            self.job.cancel()

    def outcome(self) -> tuple[Ending | None, bytes | None]:
        """How it ended, and the result or error. No ending: it is left to another worker."""
        if self.job.cancelled():
            ending = self.ending or (None if self.effect == _READ else UNKNOWN)
        elif isinstance(refused := self.job.exception(), Refused):
            ending = Ending(Task.Status.FAILED, refused.code, str(refused))
        elif self.job.exception() is not None:
            logger.error("the task %s failed", self.call.call_id, exc_info=self.job.exception())
            ending = Ending(Task.Status.FAILED, "internal_error", "The site failed. The log says why.")
        else:
            return task_forms.ended(self.job.result())
        return ending, None if ending is None else task_forms.error_of(ending, self.call.call_id)
