"""tasks/get, tasks/update and tasks/cancel: each for the user whose task it is, as long as the tool is granted.

To everybody else, a task looks as if there were none. Asking for one is not on record, since clients ask every second;
what is answered and cancelled is, and so is asking for what is not one's own.
"""

from __future__ import annotations

import uuid
from collections.abc import Coroutine
from typing import Any

import orjson

from access import policy
from access.snapshot import ToolEntry
from audit.ledger import INTENT_SECONDS, Entry, Ledger, LedgerUnavailable
from gateway import answers, task_forms, wire
from gateway.limits import Refusals
from gateway.replies import Reply
from gateway.states import State
from gateway.task_rows import AWAY, Row
from gateway.task_work import Tasks
from gateway.terms import Answer, Call
from gateway.visits import Visit
from gateway.wire import Message, WireError
from tools.models import Tool

_LONGEST_ID = 64


class TasksExtension:
    """The door to the tasks."""

    def __init__(self, tasks: Tasks, ledger: Ledger, refusals: Refusals) -> None:
        self._tasks, self._ledger, self._refusals = tasks, ledger, refusals
        self.methods = {"tasks/get": self._get, "tasks/update": self._update, "tasks/cancel": self._cancel}

    def taken(
        self, message: Message, visit: Visit, call: Call, state: State | None
    ) -> Coroutine[Any, Any, Answer | bytes] | None:
        """What carries out a call that may become a task; None for one that may not, or is parked at a worker."""
        if not message.modern or (state is not None and state.worker):
            return None
        tool = visit.snapshot.tools.get(call.tool) if call.kind == "tool" else None
        if tool is None or tool.as_task == Tool.AsTask.NEVER or not task_forms.declares(message):
            return None
        return self._carried_out(message, visit, call, tool)

    async def _carried_out(self, message: Message, visit: Visit, call: Call, tool: ToolEntry) -> Answer | bytes:
        """The answer, or the task that the call has become. Raises Refused."""
        done = await self._tasks.carry(call, tool, visit.snapshot)
        return task_forms.created(message, done) if isinstance(done, Row) else done

    async def _get(self, message: Message, visit: Visit, reply: Reply) -> tuple[int, bytes]:
        return 200, task_forms.shown(message, await self._found(message, visit))

    async def _update(self, message: Message, visit: Visit, reply: Reply) -> tuple[int, bytes]:
        row = await self._found(message, visit)
        given = message.params.get("inputResponses")
        if not isinstance(given, dict) or not all(isinstance(each, dict) for each in given.values()):
            said = "inputResponses is an object with a result, which is an object, for each key of inputRequests."
            raise WireError(wire.INVALID_PARAMS, said)

        async def note(responses: bytes) -> None:
            await self._write(self._entry(visit, message, row, "task_answered", arguments=responses))

        try:
            await self._tasks.rows.answer(row.id, visit.principal.user_id, given, note)
        except AWAY as error:
            raise _away() from error
        await self._tasks.nudge(row.worker)
        return 200, task_forms.acknowledged(message)

    async def _cancel(self, message: Message, visit: Visit, reply: Reply) -> tuple[int, bytes]:
        row = await self._found(message, visit)

        async def note() -> None:
            await self._write(self._entry(visit, message, row, "task_cancel_requested"))

        try:
            worker = await self._tasks.rows.cancel(row.id, visit.principal.user_id, note)
        except AWAY as error:
            raise _away() from error
        if worker is not None:
            await self._tasks.nudge(worker)
        return 200, task_forms.acknowledged(message)

    async def _found(self, message: Message, visit: Visit) -> Row:
        """The task that the request names. Raises WireError."""
        if not task_forms.declares(message):
            raise task_forms.undeclared(message)
        identifier = message.params.get("taskId")
        if not isinstance(identifier, str):
            raise WireError(wire.INVALID_PARAMS, f"{message.method} needs a taskId (string).")
        try:
            row = None
            if len(identifier) <= _LONGEST_ID and identifier.isascii() and "\0" not in identifier:
                row = await self._tasks.rows.find(identifier, visit.principal.user_id)
        except AWAY as error:
            raise _away() from error
        if row is None or policy.find(visit.snapshot, visit.principal, row.tool, visit.toolset) is None:
            raise await self._refused(message, visit, identifier)
        return row

    async def _refused(self, message: Message, visit: Visit, identifier: str) -> WireError:
        """Puts it on record, within the budget of refusals."""
        data = {answers.CODE: "unknown_task"}
        wait, before = await self._refusals.admit(visit.principal.user_id)
        if not wait:
            counted = {"unrecorded_before": before} if before else {}
            detail = {"message": f"{message.method} of {identifier[:_LONGEST_ID]}", **counted}
            entry = self._entry(visit, message, None, "unknown_task", detail=orjson.dumps(detail).decode())
            await self._write(entry._replace(kind="denied", decision="deny"))
        said = "There is no such task, or its time is over."
        return WireError(wire.INVALID_PARAMS, said, data=data)

    def _entry(self, visit: Visit, message: Message, row: Row | None, code: str, **columns: Any) -> Entry:
        principal = visit.principal
        about: dict[str, Any] = {}
        if row is not None:
            about = {"call_id": row.call_id, "tool": row.tool, "detail": orjson.dumps({"task": row.id}).decode()}
        shared: dict[str, Any] = {
            "kind": "system",
            "code": code,
            "actor": principal.username,
            "actor_id": str(principal.user_id),
            "on_behalf_of": principal.on_behalf_of,
            "token": principal.token,
            "roles": principal.role_names,
            "door": "mcp",
            "client": visit.client(message),
            "address": visit.address,
            "policy_version": visit.snapshot.version,
            "trace_id": message.traceparent[3:35] if message.traceparent else None,
            "request_id": visit.request_id,
        }
        return Entry(**(shared | about | columns))

    async def _write(self, entry: Entry) -> uuid.UUID:
        try:
            return await self._ledger.write(entry, INTENT_SECONDS)
        except LedgerUnavailable as error:
            raise _away() from error


def _away() -> WireError:
    said = "Tasks, or their records, cannot be kept at this moment. Try again in a few seconds."
    return WireError(wire.UNAVAILABLE, said, status=503, data={answers.CODE: "tasks_unavailable"}, retry_after=2)
