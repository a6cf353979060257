"""The one pipeline: every call of a tool, by whatever door it comes in, goes through `Pipeline.call`.

Prompts that are fetched, resources that are read and arguments that are completed are calls as well; they only read.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol

import orjson
from django.conf import settings

from access import policy
from access.offered import OfferedEntry, known_offered
from access.snapshot import Principal, Snapshot, ToolEntry
from audit.entry import uuid7
from audit.ledger import INTENT_SECONDS, Entry, Ledger, LedgerUnavailable
from gateway.limits import Budgets, Refusals
from gateway.meter import Meter
from tools import exact
from tools.connectors.base import Client, Connector, ConnectorError, Context, Kind, Result
from tools.connectors.mcp_input import INPUT_REQUIRED
from tools.models import Tool
from tools.nesting import is_writable
from tools.schemas import problems

logger = logging.getLogger("gateway.calls")

_READ = "read"
_SOON_SECONDS = 5
# Our words in a result's `_meta`; an upstream's imitations of them are dropped.
OURS = "mcpsite/"
# Under which name a record's arguments hold what the client answered.
ANSWERS_ON_RECORD = f"{OURS}inputResponses"
# And what it said besides.
EXTRA_ON_RECORD = f"{OURS}_meta"
# Of refused calls with larger arguments, the record keeps the commitment only.
_KEPT_OF_REFUSED = 16 * 1024

# What is kept of the message with which an upstream refuses a prompt or resource.
_LONGEST_MESSAGE = 1_000
_INTERNAL_ERROR = -32603

# What can be called.
Callee = ToolEntry | OfferedEntry

# The fields of an `Entry` that all records of one call share, by name: cheaper than copying entries.
Facts = dict[str, Any]


class Held(Protocol):
    """A call that may be parked while its client thinks. Whoever parks it puts that on record, with its facts."""

    # Whether an intent says that it is parked, or was.
    is_announced: bool

    def begin(self, facts: Facts) -> None:
        """What all its records say."""


class Call(NamedTuple):
    """What a door knows of a call. `raw` are the bytes of the arguments that the ledger commits to.

    `tool` is the name of what is called, or its URI. Of what is no tool, `method` says what is wanted, and `arguments`
    are the parameters of the request.
    """

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
    # What the door has to say about the call, for the detail of each of its records.
    notes: Mapping[str, Any] | None = None
    # Under which id it is to be on record; a new one, where the door has not promised one.
    call_id: uuid.UUID | None = None
    kind: Kind = "tool"
    method: str = "tools/call"
    # Who can be told and asked while it goes on, and what goes on with it.
    peer: Client | None = None
    continuation: Mapping[str, Any] | None = None
    # What its client adds in `_meta` for whoever answers; `raw` has it too.
    extra: Mapping[str, Any] | None = None
    held: Held | None = None
    # Of a task: how long it may take, and what has to happen before anything is called. It may raise NotAdmitted.
    seconds: float | None = None
    admit: Callable[[], Awaitable[None]] | None = None


def accompanied(call: Call, extra: Mapping[str, Any]) -> Call:
    """The call with what its client says besides: whoever answers gets that too, and it is on record."""
    if not extra or EXTRA_ON_RECORD in call.arguments:
        return call
    return call._replace(extra=extra, raw=exact.written({**call.arguments, EXTRA_ON_RECORD: extra}))


class NotAdmitted(Exception):
    """The call cannot be taken as a task. `code` is the stable word for why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


# What a call has to pass, in this order; `Refused.gate` names the one that it did not.
GATES = ("ready", "grant", "budget", "arguments", "intent", "record")


class Answer(NamedTuple):
    """What a call brought, and the ids under which it is on record.

    `body` is the CallToolResult as JSON without its `_meta` and `resultType`: the bytes that the record commits to.
    `meta` is what the source put into `_meta`. Of what is no tool, `body` is the result of the method without caching
    hints, of which `ttl_ms` is left; and unless `code` is `ok`, it is a JSON-RPC error. Where `code` is
    `input_required`, `body` is what the upstream asks for, and `state` what it wants back; if the call itself
    goes on, `parked` says where. `lacking` are capabilities that a client must declare for this.
    """

    body: bytes
    meta: dict[str, Any]
    code: str
    record_id: uuid.UUID
    call_id: uuid.UUID
    ttl_ms: int = 0
    state: str | None = None
    lacking: dict[str, Any] | None = None
    # The worker, and the number that the call has there.
    parked: tuple[str, str] | None = None
    # The upstream's JSON-RPC error, where that is how it refused.
    refusal: Mapping[str, Any] | None = None


class Refused(Exception):
    """The call was not carried out, or its answer must not leave. `code` is the stable word for why, `gate` the place.

    `reason` is the code that stands in the record: the caller of a tool that is not granted is not told so.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        gate: str = "ready",
        reason: str | None = None,
        retry_after: float | None = None,
        call_id: uuid.UUID | None = None,
        record_id: uuid.UUID | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.gate = gate
        self.reason = reason or code
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
        facts = _facts(call, snapshot, known)
        found = _found(snapshot, call)
        if found is None:
            unknown = _unknown(call.kind)
            code = unknown if known is None else "not_granted"
            message = f"Unknown {call.kind}: {call.tool[:200]}"
            raise await self._refuse(facts, call, "grant", code, message, public=unknown)
        tool, per_minute = found
        facts |= _of(tool)
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
            kind, facts = _concluding(call, kind, facts)
            facts["detail"] = _detail(call.notes, _passed_on(call))
            self._ledger.put(Entry(kind=kind, code="cancelled", **facts, **_timings(started, before)))
            raise
        timings = _timings(started, before)
        kind, facts = _concluding(call, kind, facts)
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

    async def _ask(self, tool: Callee, call: Call, call_id: uuid.UUID) -> _Outcome:
        """What came of it. Whatever fails outside, or in what came from there, becomes a result that says so."""
        try:
            result = await self._tried(tool, call, call_id)
            return _outcome(call, result, _code_of(result))
        except ConnectorError as error:
            return _failed(call, str(error), error.code, error.refusal)
        except orjson.JSONEncodeError:
            message = "The upstream's answer is nested too deeply, or holds what JSON cannot."
            return _failed(call, message, "bad_upstream_answer")
        except Exception:
            logger.exception("the connector of %s failed", tool.name)
            message = "The connector failed. The administrators can find the reason in the log."
            return _failed(call, message, "internal_error")

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
        facts["detail"] = _detail(call.notes, told)
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


class _Outcome(NamedTuple):
    """What a call brought, ready to be committed to and sent."""

    body: bytes
    meta: dict[str, Any]
    code: str
    detail: str | None
    ttl_ms: int = 0
    state: str | None = None
    lacking: dict[str, Any] | None = None
    refusal: Mapping[str, Any] | None = None


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


_APART = frozenset({"_meta", "resultType"})
_APART_OF_READS = _APART | {"ttlMs", "cacheScope"}
_APART_OF_QUESTIONS = _APART_OF_READS | {"requestState"}


def _code_of(result: Result) -> str:
    code = "tool_error" if result.is_error else "ok"
    if result.content.get("resultType") == INPUT_REQUIRED:
        code = "input_required"
    return code


def _outcome(call: Call, result: Result, code: str) -> _Outcome:
    """Serialise the result apart from its `_meta`. Raises orjson.JSONEncodeError."""
    asks = code == INPUT_REQUIRED
    apart = _APART_OF_QUESTIONS if asks else _APART if call.kind == "tool" else _APART_OF_READS
    content = {name: value for name, value in result.content.items() if name not in apart}
    theirs = result.content.get("_meta")
    meta = {}
    if isinstance(theirs, dict):
        meta = {name: value for name, value in theirs.items() if not name.startswith(OURS)}
        exact.written([[meta]])  # it goes into the answer two levels further down
    # What was given answers is not to be cached (MCP 2026-07-28, server/utilities/caching).
    ttl = 0 if call.kind == "tool" or call.continuation is not None else result.content.get("ttlMs")
    ttl_ms = ttl if type(ttl) is int and ttl > 0 else 0
    state = result.content.get("requestState") if asks else None
    return _Outcome(
        exact.written(content), meta, code, _detail(call.notes, result.notes, _passed_on(call)), ttl_ms, state
    )


def _failed(call: Call, message: str, code: str, refusal: dict[str, Any] | None = None) -> _Outcome:
    """The failure as a result that says so; of what is no tool as a JSON-RPC error, with the upstream's own code."""
    lacking = _lacking(refusal) if code == "capability_missing" else None
    if call.kind == "tool":
        return _outcome(call, _failure(message), code)._replace(lacking=lacking, refusal=refusal)
    said = (refusal or {}).get("message")
    number = (refusal or {}).get("code")
    error = {
        "code": number if type(number) is int else _INTERNAL_ERROR,
        "message": said[:_LONGEST_MESSAGE] if isinstance(said, str) else message,
    }
    return _Outcome(exact.written(error), {}, code, _detail(call.notes, _passed_on(call)), lacking=lacking)


def _lacking(refusal: dict[str, Any] | None) -> dict[str, Any]:
    """Which capabilities the client must declare, as the upstream says (MCP 2026-07-28, error -32021)."""
    data = (refusal or {}).get("data")
    required = data.get("requiredCapabilities") if isinstance(data, dict) else None
    return required if isinstance(required, dict) and is_writable(required) else {}


def _passed_on(call: Call) -> Mapping[str, Any] | None:
    """How much of what the upstream told and asked reached the client: the words themselves are nowhere on record."""
    peer = call.peer
    if peer is None or not (peer.told or peer.asked):
        return None
    return {name: count for name, count in (("told", peer.told), ("asked", peer.asked)) if count}


def _detail(*notes: Mapping[str, Any] | None) -> str | None:
    told = {name: value for each in notes if each for name, value in each.items()}
    return orjson.dumps(told).decode() if told else None


def _facts(call: Call, snapshot: Snapshot, known: Callee | None) -> Facts:
    """What every record of this call says."""
    principal = call.principal
    recording = snapshot.recording if known is None else known.recording
    facts = {
        "call_id": call.call_id or uuid7(),
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
        "detail": _detail(call.notes) if call.notes else None,
    }
    return facts if recording is None else facts | recording.told(call.arguments)


def _of(tool: Callee) -> Facts:
    """What records say of what is called, once the caller may."""
    facts: Facts = {"connector": tool.source.source.name, "effect": tool.effect, "definition": tool.fingerprint}
    if isinstance(tool, OfferedEntry):
        facts |= dict(zip(("object_type", "object_id"), tool.about, strict=True))
    return facts


def _concluding(call: Call, kind: str, facts: Facts) -> tuple[str, Facts]:
    """The last record of a call: an outcome, where an intent is on record."""
    if call.held is not None and call.held.is_announced:
        return "outcome", without_arguments(facts)
    return kind, facts


def without_arguments(facts: Facts) -> Facts:
    """For the outcome: its intent says and keeps what they were."""
    left = {name: value for name, value in facts.items() if name not in ("shown", "some_arguments")}
    return {**left, "arguments": None}


def _timings(started: int, before: int) -> Facts:
    now = time.perf_counter_ns()
    return {"upstream_us": (now - before) // 1000, "total_us": (now - started) // 1000}


def _failure(message: str) -> Result:
    return Result({"content": [{"type": "text", "text": message}], "isError": True}, True)


def unavailable(gate: str, call_id: uuid.UUID | None = None) -> Refused:
    """What is said when the ledger does not take a record."""
    message = "The audit ledger cannot be written at this moment, so nothing is called. Try again in a few seconds."
    return Refused("ledger_unavailable", message, gate=gate, retry_after=2, call_id=call_id)


def _unanswerable(kind: str, call_id: uuid.UUID) -> Refused:
    if kind == "call":
        return unavailable("record", call_id)
    message = (
        f"The tool was called (call {call_id}), but its outcome could not be recorded. "
        "Do not repeat the call before the ledger shows what became of it."
    )
    return Refused("outcome_unknown", message, gate="record", call_id=call_id)
