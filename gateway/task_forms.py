"""Tasks in the form of the protocol (the extension `io.modelcontextprotocol/tasks` of MCP 2026-07-28)."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

import orjson

from gateway import answers, wire
from gateway.models import Task
from gateway.task_rows import Ending, Row
from gateway.terms import Answer
from gateway.wire import Message, WireError
from tools import exact

_REQUIRED: dict[str, Any] = {"requiredCapabilities": {"extensions": {answers.TASKS: {}}}}
_POLL_MS = 1_000


def declares(message: Message) -> bool:
    """Whether the client said in this very request that it knows tasks."""
    extensions = message.capabilities.get("extensions")
    return isinstance(extensions, dict) and answers.TASKS in extensions


def undeclared(message: Message) -> WireError:
    """The extension's section "Capability Negotiation"."""
    said = f"{message.method} needs the extension {answers.TASKS}, which the client does not declare."
    return WireError(wire.MISSING_CAPABILITY, said, data=_REQUIRED)


def created(message: Message, row: Row) -> bytes:
    """CreateTaskResult."""
    return wire.result_body(message.identifier, {"resultType": "task", **_task(row), **answers.signed()})


def shown(message: Message, row: Row) -> bytes:
    """The answer to tasks/get."""
    task: dict[str, Any] = {"resultType": "complete", **_task(row)}
    if row.questions is not None:
        task["inputRequests"] = orjson.Fragment(row.questions)
    if row.result is not None:
        task["error" if row.status == Task.Status.FAILED else "result"] = orjson.Fragment(row.result)
    return wire.result_body(message.identifier, {**task, **answers.signed()})


def acknowledged(message: Message) -> bytes:
    """The answer to tasks/update and tasks/cancel."""
    return wire.result_body(message.identifier, {"resultType": "complete", **answers.signed()})


def _task(row: Row) -> dict[str, Any]:
    said = {"statusMessage": row.message} if row.message else {}
    lives = round((row.expires_at - row.created_at).total_seconds() * 1000)
    return {
        "taskId": row.id,
        "status": row.status,
        **said,
        "createdAt": _at(row.created_at),
        "lastUpdatedAt": _at(row.updated_at),
        "ttlMs": lives,
        "pollIntervalMs": _POLL_MS,
    }


def _at(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


# --- What is kept of the end -----------------------------------------------------------------------------------------


def ended(answer: Answer) -> tuple[Ending, bytes]:
    """What became of the call: a JSON-RPC error of the upstream is a failure, an error of the tool is a result."""
    ids = answers.ids_of(answer.call_id, answer.code, answer.record_id)
    if answer.refusal is None:
        return Ending(Task.Status.COMPLETED, answer.code), answers.inlined(answer)
    number, said = answer.refusal.get("code"), str(answer.refusal.get("message", ""))[:1_000]
    known = type(number) is int and wire.PARSE_ERROR <= number <= wire.INVALID_REQUEST
    error = {"code": number if known else wire.INTERNAL_ERROR, "message": said, "data": ids}
    return Ending(Task.Status.FAILED, answer.code, said), exact.written(error)


def error_of(ending: Ending, call_id: uuid.UUID | None) -> bytes | None:
    """The error of a task that ended without its call having an answer; a cancelled one has none."""
    if ending.status == Task.Status.CANCELLED:
        return None
    data = answers.ids_of(call_id, ending.code)
    return orjson.dumps({"code": wire.INTERNAL_ERROR, "message": ending.message, "data": data})
