"""The one pipeline: every call of a tool, by whatever door it comes in, goes through `Pipeline.call`.

Prompts that are fetched, resources that are read and arguments that are completed are calls as well; they only read.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

import orjson
from django.conf import settings

from access import policy
from access.offered import OfferedEntry, known_offered
from access.snapshot import Snapshot, ToolEntry
from audit.ledger import INTENT_SECONDS, Entry, Ledger, LedgerUnavailable
from gateway.facts import about, concluding, detail_of, facts_of, passed_on, timings_of, without_arguments
from gateway.limits import Budgets, Refusals
from gateway.meter import Meter
from gateway.outcomes import Outcome, code_of, failed, outcome_of
from gateway.terms import Answer, Call, Callee, Facts, NotAdmitted, Refused, unavailable
from tools.connectors.base import Connector, ConnectorError, Context, Kind, Result
from tools.models import Tool
from tools.schemas import problems

logger = logging.getLogger("gateway.calls")

_READ = "read"
_SOON_SECONDS = 5
# Of refused calls with larger arguments, the record keeps the commitment only.
_KEPT_OF_REFUSED = 16 * 1024


class Pipeline:
    """Carries out calls under the policy in force, and answers only what is on record."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot | None],
        ledger: Ledger,
        budgets: Budgets,
        connector: Callable[[Callee], Connector],
        meter: Meter,
    ) -> None:
        self._meter = meter
        self._snapshot = snapshot
        self._ledger = ledger
        self._budgets = budgets
        self.refusals = Refusals(budgets)
        self._connector = connector

    async def call(self, call: Call) -> Answer:
        """Carry the call out, and count how it ended. Raises Refused."""
        started, snapshot = time.perf_counter_ns(), self._snapshot()
        known = None if snapshot is None else known_of(snapshot, call)
        try:
            answer = await self._answer(call, snapshot, known, started)
        except Refused as refusal:
            decision = "allow" if refusal.code == "outcome_unknown" else "deny"
            self._meter.count(known, decision, refusal.reason)
            raise
        except asyncio.CancelledError:
            self._meter.count(known, "allow", "cancelled")
            raise
        self._meter.answer(known, answer.code, time.perf_counter_ns() - started)
        return answer

    async def _answer(self, call: Call, snapshot: Snapshot | None, known: Callee | None, started: int) -> Answer:
        """Find the grant, spend the budget, check the arguments, record, call, record, answer. Raises Refused."""
        if snapshot is None or not self._ledger.available:
            raise unavailable("ready")
        facts = facts_of(call, snapshot, known)
        found = _found(snapshot, call)
        if found is None:
            unknown = _unknown(call.kind)
            code = unknown if known is None else "not_granted"
            message = f"Unknown {call.kind}: {call.tool[:200]}"
            raise await self._refuse(facts, call, "grant", code, message, public=unknown)
        tool, per_minute = found
        facts |= about(tool)
        if wait := await self._budgets.spend(call.principal.user_id, tool.id, per_minute):
            message = f"The budget of {per_minute} calls a minute for {tool.name} is spent. Try again in {wait:.1f} s."
            raise await self._refuse(facts, call, "budget", "budget_exhausted", message, retry_after=wait)
        if isinstance(tool, ToolEntry) and tool.as_task == Tool.AsTask.ALWAYS and _is_no_task(call):
            message = f"{tool.name} is called as a task only, and this client does not declare the Tasks extension."
            raise await self._refuse(facts, call, "ready", "task_required", message)
        if isinstance(tool, ToolEntry) and (wrong := problems(tool.check, call.arguments, len(call.raw))):
            message = f"The arguments do not fit the schema of {tool.name}: {'; '.join(wrong)}"
            raise await self._refuse(facts, call, "arguments", "invalid_arguments", message)
        facts["decision"] = "allow"
        if call.admit is not None:
            await self._admit(call, facts)
        kind = "call"
        if tool.effect != _READ:
            await self._intend(facts)
            kind, facts = "outcome", without_arguments(facts)
        return await self._carry_out(tool, call, kind, facts, started)

    async def _admit(self, call: Call, facts: Facts) -> None:
        """Raises Refused."""
        assert call.admit is not None
        try:
            await call.admit()
        except NotAdmitted as refusal:
            facts = {name: value for name, value in facts.items() if name != "decision"}
            raise await self._refuse(
                facts, call, "ready", refusal.code, str(refusal), retry_after=_SOON_SECONDS
            ) from refusal

    async def _intend(self, facts: Facts) -> None:
        """Record the intent. Raises Refused when that fails in time; then nothing is called."""
        try:
            await self._ledger.write(Entry(kind="intent", code="intended", **facts), INTENT_SECONDS)
        except LedgerUnavailable as error:
            self._ledger.put(Entry(kind="outcome", code="not_called", **without_arguments(facts)))
            raise unavailable("intent", facts["call_id"]) from error
        except asyncio.CancelledError:
            self._ledger.put(Entry(kind="outcome", code="not_called", **without_arguments(facts)))
            raise

    async def _carry_out(self, tool: Callee, call: Call, kind: str, facts: Facts, started: int) -> Answer:
        before, call_id = time.perf_counter_ns(), facts["call_id"]
        if call.held is not None:
            call.held.begin(facts)
        try:
            outcome = await self._ask(tool, call, call_id)
        except asyncio.CancelledError:
            # The process stops, or the door gave up: what the upstream did is not known here.
            kind, facts = concluding(call, kind, facts)
            facts["detail"] = detail_of(call.notes, passed_on(call))
            self._ledger.put(Entry(kind=kind, code="cancelled", **facts, **timings_of(started, before)))
            raise
        timings = timings_of(started, before)
        kind, facts = concluding(call, kind, facts)
        self._meter.asked(tool.source.source.name, timings["upstream_us"])
        facts["detail"] = outcome.detail
        entry = Entry(kind=kind, code=outcome.code, result=outcome.body, **facts, **timings)
        try:
            record_id = await (self._ledger.write(entry) if kind == "call" else self._ledger.conclude(entry))
        except LedgerUnavailable as error:
            raise _unanswerable(kind, call_id) from error
        return Answer(
            outcome.body,
            outcome.meta,
            outcome.code,
            record_id,
            call_id,
            outcome.ttl_ms,
            outcome.state,
            outcome.lacking,
            refusal=outcome.refusal,
        )

    def lost(self, call: Call, call_id: uuid.UUID, record_id: uuid.UUID) -> Refused:
        """Count a parked call whose worker has ended. What its client is told."""
        snapshot = self._snapshot()
        self._meter.count(known_of(snapshot, call) if snapshot else None, "allow", "unknown")
        message = (
            f"The worker that held the call {call_id} has ended, and what became of the call is not known here. "
            "Find out, in the ledger or at the upstream, before you call again."
        )
        return Refused("call_lost", message, call_id=call_id, record_id=record_id)

    def connector_for(self, call: Call, snapshot: Snapshot) -> Connector | None:
        """What would carry the call out; None when the caller may not call it."""
        found = _found(snapshot, call)
        return found and self._connector(found[0])

    async def _ask(self, tool: Callee, call: Call, call_id: uuid.UUID) -> Outcome:
        """What came of it. Whatever fails outside, or in what came from there, becomes a result that says so."""
        try:
            result = await self._tried(tool, call, call_id)
            return outcome_of(call, result, code_of(result))
        except ConnectorError as error:
            return failed(call, str(error), error.code, error.refusal)
        except orjson.JSONEncodeError:
            message = "The upstream's answer is nested too deeply, or holds what JSON cannot."
            return failed(call, message, "bad_upstream_answer")
        except Exception:
            logger.exception("the connector of %s failed", tool.name)
            message = "The connector failed. The administrators can find the reason in the log."
            return failed(call, message, "internal_error")

    async def _tried(self, tool: Callee, call: Call, call_id: uuid.UUID) -> Result:
        """One attempt, and one more where that can do no harm, within one deadline."""
        deadline = call.seconds or min(tool.source.source.timeout_seconds, settings.CALL_TIMEOUT_SECONDS)
        until = time.monotonic() + deadline
        who, trace = call.principal, call.traceparent
        context = Context(
            call_id,
            deadline,
            who.username,
            trace,
            tool.name,
            who.on_behalf_of,
            call.peer,
            call.continuation,
            call.extra,
        )
        try:
            return await self._once(tool, call, context)
        except ConnectorError as error:
            left = until - time.monotonic()
            if left <= 0 or not error.retryable or (error.sent and tool.effect != _READ):
                raise
        return await self._once(tool, call, context._replace(deadline_seconds=left))

    async def _once(self, tool: Callee, call: Call, context: Context) -> Result:
        connector = self._connector(tool)
        if isinstance(tool, OfferedEntry):
            return await connector.request(call.method, _addressed(call, tool), context)
        if call.seconds is None:
            return await connector.call(tool.spec, call.arguments, context)
        with connector.kept_open():
            return await connector.call(tool.spec, call.arguments, context)

    async def _refuse(
        self,
        facts: Facts,
        call: Call,
        gate: str,
        code: str,
        message: str,
        *,
        public: str | None = None,
        retry_after: float | None = None,
    ) -> Refused:
        call_id = facts["call_id"]
        wait, unrecorded = await self.refusals.admit(int(facts["actor_id"]))
        if wait:
            message = f"Too many calls of yours are refused. Try again in {wait:.1f} s."
            return Refused("too_many_refusals", message, gate=gate, reason=code, retry_after=wait, call_id=call_id)
        told = {"message": message[:2000]} | ({"unrecorded_before": unrecorded} if unrecorded else {})
        facts["detail"] = detail_of(call.notes, told)
        kind = "invalid" if gate == "arguments" else "denied"
        kept = len(facts["arguments"]) <= _KEPT_OF_REFUSED
        if not kept:
            facts.pop("some_arguments", None)
        entry = Entry(kind=kind, code=code, decision="deny", keeps_arguments=kept, **facts)
        try:
            record_id = await self._ledger.write(entry, INTENT_SECONDS)
        except LedgerUnavailable:
            return unavailable(gate, call_id)
        return Refused(
            public or code,
            message,
            gate=gate,
            reason=code,
            retry_after=retry_after,
            call_id=call_id,
            record_id=record_id,
        )


def known_of(snapshot: Snapshot, call: Call) -> Callee | None:
    """What is called, whether or not the caller may."""
    if call.kind == "tool":
        return snapshot.tools.get(call.tool)
    return known_offered(snapshot.offered, call.kind, call.tool)


def is_granted(snapshot: Snapshot, call: Call) -> bool:
    """Whether the caller may call it."""
    return _found(snapshot, call) is not None


def _is_no_task(call: Call) -> bool:
    """Whether it comes by the door of tasks, and not as one."""
    return call.door == "mcp" and call.admit is None


def _unknown(kind: Kind) -> str:
    """The code of what is not there, or not for the caller."""
    code = "unknown_tool"
    if kind == "prompt":
        code = "unknown_prompt"
    elif kind == "resource":
        code = "unknown_resource"
    elif kind == "template":
        code = "unknown_template"
    return code


def _found(snapshot: Snapshot, call: Call) -> tuple[Callee, int] | None:
    """What is called, if the caller may, and the budget for it."""
    if call.kind == "tool":
        return policy.find(snapshot, call.principal, call.tool, call.toolset)
    return policy.find_offered(snapshot, call.principal, call.kind, call.tool, call.toolset)


def _addressed(call: Call, entry: OfferedEntry) -> dict[str, Any]:
    """The parameters, with the name that a prompt has at its source."""
    if entry.kind != "prompt":
        return call.arguments
    if call.method == "completion/complete":
        return {**call.arguments, "ref": {**call.arguments["ref"], "name": entry.source_name}}
    return {**call.arguments, "name": entry.source_name}


def _unanswerable(kind: str, call_id: uuid.UUID) -> Refused:
    if kind == "call":
        return unavailable("record", call_id)
    message = (
        f"The tool was called (call {call_id}), but its outcome could not be recorded. "
        "Do not repeat the call before the ledger shows what became of it."
    )
    return Refused("outcome_unknown", message, gate="record", call_id=call_id)
