"""The one pipeline: every call of a tool, by whatever door it comes in, goes through `Pipeline.call`."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson
from django.conf import settings

from access import policy
from access.snapshot import Principal, Snapshot, ToolEntry
from audit.entry import uuid7
from audit.ledger import ANSWER_SECONDS, INTENT_SECONDS, Entry, Ledger, LedgerUnavailable
from gateway.limits import Budgets
from tools.connectors.base import Connector, ConnectorError, Context, Result
from tools.schemas import problems

logger = logging.getLogger("gateway.calls")

_READ = "read"

# The fields of an `Entry` that all records of one call share, by name: cheaper than copying entries.
Facts = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a door knows of a call. `raw` are the bytes of the arguments that the ledger commits to."""

    principal: Principal
    tool: str
    arguments: dict[str, Any]
    raw: bytes
    door: str
    toolset: str | None = None
    client: str | None = None
    address: str | None = None
    request_id: str | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The result (a CallToolResult) of a call that was carried out, and the ids under which it is on record."""

    result: dict[str, Any]
    code: str
    record_id: uuid.UUID
    call_id: uuid.UUID


class Refused(Exception):
    """The call was not carried out, or its answer must not leave. `code` is the stable word for why."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retry_after: float | None = None,
        call_id: uuid.UUID | None = None,
        record_id: uuid.UUID | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after
        self.call_id = call_id
        self.record_id = record_id


class Pipeline:
    """Carries out calls under the policy in force, and answers only what is on record."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot | None],
        ledger: Ledger,
        budgets: Budgets,
        connector: Callable[[ToolEntry], Connector],
    ) -> None:
        self._snapshot = snapshot
        self._ledger = ledger
        self._budgets = budgets
        self._connector = connector

    async def call(self, call: Call) -> Answer:
        """Find the grant, spend the budget, check the arguments, record, call, record, answer. Raises Refused."""
        started = time.perf_counter_ns()
        snapshot = self._snapshot()
        if snapshot is None or not self._ledger.available:
            raise _unavailable()
        facts = _facts(call, snapshot)
        found = policy.find(snapshot, call.principal, call.tool, call.toolset)
        if found is None:
            code = "not_granted" if call.tool in snapshot.tools else "unknown_tool"
            raise await self._refuse(facts, "denied", code, f"Unknown tool: {call.tool[:200]}", public="unknown_tool")
        tool, per_minute = found
        facts |= {"connector": tool.source.source.name, "effect": tool.effect, "definition": tool.fingerprint}
        if wait := await self._budgets.spend(call.principal.user_id, tool.id, per_minute):
            message = f"The budget of {per_minute} calls a minute for {tool.name} is spent. Try again in {wait:.1f} s."
            raise await self._refuse(facts, "denied", "budget_exhausted", message, retry_after=wait)
        if wrong := problems(tool.validator, call.arguments):
            message = f"The arguments do not fit the schema of {tool.name}: {'; '.join(wrong)}"
            raise await self._refuse(facts, "invalid", "invalid_arguments", message)
        facts["decision"] = "allow"
        kind = "call"
        if tool.effect != _READ:
            await self._intend(facts)
            kind, facts["arguments"] = "outcome", None
        return await self._carry_out(tool, call, kind, facts, started)

    async def _intend(self, facts: Facts) -> None:
        """Record the intent. Raises Refused when that fails in time; then nothing is called."""
        try:
            await self._ledger.write(Entry(kind="intent", code="intended", **facts), INTENT_SECONDS)
        except LedgerUnavailable as error:
            self._ledger.put(Entry(kind="outcome", code="not_called", **{**facts, "arguments": None}))
            raise _unavailable(facts["call_id"]) from error

    async def _carry_out(self, tool: ToolEntry, call: Call, kind: str, facts: Facts, started: int) -> Answer:
        before, call_id = time.perf_counter_ns(), facts["call_id"]
        try:
            result, code = await self._ask(tool, call, call_id)
        except asyncio.CancelledError:
            # The process stops, or the door gave up: what the upstream did is not known here.
            self._ledger.put(Entry(kind=kind, code="cancelled", **facts, **_timings(started, before)))
            raise
        if result.notes:
            facts["detail"] = orjson.dumps(result.notes).decode()
        body = orjson.dumps(result.content)
        entry = Entry(kind=kind, code=code, result=body, **facts, **_timings(started, before))
        try:
            record_id = await self._ledger.write(entry, ANSWER_SECONDS)
        except LedgerUnavailable as error:
            raise _unanswerable(kind, call_id) from error
        return Answer(result.content, code, record_id, call_id)

    async def _ask(self, tool: ToolEntry, call: Call, call_id: uuid.UUID) -> tuple[Result, str]:
        """The connector's result and the code of the record; what failed outside becomes a result that says so."""
        deadline = min(tool.source.source.timeout_seconds, settings.CALL_TIMEOUT_SECONDS)
        context = Context(call_id, deadline, call.principal.username, call.traceparent)
        try:
            try:
                result = await self._connector(tool).call(tool.spec, call.arguments, context)
            except ConnectorError as error:
                if not error.retryable or (error.sent and tool.effect != _READ):
                    raise
                result = await self._connector(tool).call(tool.spec, call.arguments, context)
        except ConnectorError as error:
            return _failure(str(error)), error.code
        except Exception:
            logger.exception("the connector of %s failed", tool.name)
            return _failure(
                "The connector failed. The administrators can find the reason in the log."
            ), "internal_error"
        return result, "tool_error" if result.is_error else "ok"

    async def _refuse(
        self,
        facts: Facts,
        kind: str,
        code: str,
        message: str,
        *,
        public: str | None = None,
        retry_after: float | None = None,
    ) -> Refused:
        call_id = facts["call_id"]
        detail = orjson.dumps({"message": message[:2000]}).decode()
        try:
            entry = Entry(kind=kind, code=code, decision="deny", detail=detail, **facts)
            record_id = await self._ledger.write(entry, INTENT_SECONDS)
        except LedgerUnavailable:
            return _unavailable(call_id)
        return Refused(public or code, message, retry_after=retry_after, call_id=call_id, record_id=record_id)


def _facts(call: Call, snapshot: Snapshot) -> Facts:
    """What every record of this call says."""
    principal = call.principal
    return {
        "call_id": uuid7(),
        "actor": principal.username,
        "actor_id": str(principal.user_id),
        "on_behalf_of": principal.on_behalf_of,
        "token": principal.token,
        "roles": principal.role_names,
        "door": call.door,
        "client": call.client,
        "address": call.address,
        "tool": call.tool,
        "policy_version": snapshot.version,
        "trace_id": call.traceparent[3:35] if call.traceparent else None,
        "request_id": call.request_id,
        "arguments": call.raw,
    }


def _timings(started: int, before: int) -> Facts:
    now = time.perf_counter_ns()
    return {"upstream_us": (now - before) // 1000, "total_us": (now - started) // 1000}


def _failure(message: str) -> Result:
    return Result({"content": [{"type": "text", "text": message}], "isError": True}, True)


def _unavailable(call_id: uuid.UUID | None = None) -> Refused:
    message = "The audit ledger cannot be written at this moment, so nothing is called. Try again in a few seconds."
    return Refused("ledger_unavailable", message, retry_after=2, call_id=call_id)


def _unanswerable(kind: str, call_id: uuid.UUID) -> Refused:
    if kind == "call":
        return _unavailable(call_id)
    message = (
        f"The tool was called (call {call_id}), but its outcome could not be recorded. "
        "Do not repeat the call before the ledger shows what became of it."
    )
    return Refused("outcome_unknown", message, call_id=call_id)
