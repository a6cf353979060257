"""Our tools as LangChain tools: each call of the model enters the one pipeline, in the name of the agent's account."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import orjson
from langchain_core.messages import ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import StructuredTool

from access import policy
from access.models import Scope
from access.snapshot import Principal, Snapshot, ToolEntry
from agents.journal import Journal
from agents.models import Run
from agents.runs import RunFailed
from gateway.app import Gateway
from gateway.terms import Answer, Call, Refused
from tools import exact

# What every provider takes as the name of a function; Gemini wants a letter or an underscore in front.
_ACCEPTED = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_LONGEST_RESULT = 64 * 1024
# Refusals after which nothing may go on: what was done could not be recorded.
_FATAL = frozenset({"ledger_unavailable", "outcome_unknown", "policy_unavailable"})


def offered_names(names: Iterable[str]) -> dict[str, str]:
    """Name for the model → our name. Ours stays wherever providers take it; else it is told apart by a hash."""
    return {_offered(name): name for name in names}


def _offered(name: str) -> str:
    if _ACCEPTED.fullmatch(name):
        return name
    plain = re.sub(r"[^A-Za-z0-9_-]", "_", name)
    return f"t_{plain[:50]}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


class PipelineTool(StructuredTool):
    """A tool whose calls are handed over as the model made them.

    LangChain's own way would take arguments that are called `config` or `runtime` for its own.
    """

    toolkit: Any

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Carry out one tool call of the model, and give it the answer to read."""
        text, succeeded = await self.toolkit.call(self.name, str(input.get("id") or ""), dict(input["args"]))
        status: Any = "success" if succeeded else "error"
        return ToolMessage(text, name=self.name, tool_call_id=input.get("id") or "", status=status)


class Toolkit:
    """The tools that a run may use, as they were when it began; each call asks the policy in force again."""

    def __init__(self, run: Run, gateway: Gateway, journal: Journal) -> None:
        self._run = run
        self._gateway = gateway
        self._journal = journal
        self._toolset = run.agent.toolset.name if run.agent.toolset is not None else None
        snapshot = self._snapshot()
        visible = policy.visible(snapshot, self._principal(snapshot), None)
        self._names = offered_names(tool.name for tool in visible)
        ours = {name: offered for offered, name in self._names.items()}
        self.tools = [self._tool(entry, ours[entry.name]) for entry in visible]

    def _snapshot(self) -> Snapshot:
        snapshot = self._gateway.feed.current
        if snapshot is None:
            raise RunFailed("policy_unavailable", "The policy is not loaded in the agent worker. Try again.")
        return snapshot

    def _principal(self, snapshot: Snapshot) -> Principal:
        """The agent's account with its roles of this moment. Raises RunFailed when it is switched off."""
        agent = self._run.agent
        member = snapshot.members.get(agent.account_id)
        if member is None:
            raise RunFailed("agent_disabled", f"The service account of {agent.name} is switched off.")
        return Principal.of(
            member,
            f"agent {agent.name}",
            frozenset({Scope.TOOLS.value}),
            toolset=self._toolset,
            on_behalf_of=self._run.on_behalf_of,
        )

    def _tool(self, entry: ToolEntry, name: str) -> PipelineTool:
        definition = orjson.loads(entry.definition)
        description = str(definition.get("description") or entry.title)
        schema = definition["inputSchema"]
        return PipelineTool(name=name, description=description, args_schema=schema, coroutine=_unused, toolkit=self)

    async def call(self, offered: str, tool_call: str, arguments: dict[str, Any]) -> tuple[str, bool]:
        """Enter the pipeline. Returns what the model reads, and whether it worked.

        Raises RunFailed when the run must not go on.
        """
        name, step_id, began = self._names[offered], uuid.uuid4(), datetime.now(UTC)
        await self._journal.calling(name)
        text, code, call_id, record_id = await self._ask(name, arguments, step_id)
        content = {"arguments": arguments, "result": text}
        await self._journal.called(step_id, name, tool_call, content, code, began, call_id, record_id)
        if code in _FATAL:
            raise RunFailed(code, text)
        return text, code == "ok"

    async def _ask(
        self, name: str, arguments: dict[str, Any], step_id: uuid.UUID
    ) -> tuple[str, str, uuid.UUID | None, uuid.UUID | None]:
        call = Call(
            principal=self._principal(self._snapshot()),
            tool=name,
            arguments=arguments,
            raw=exact.written(arguments),
            door="agent",
            client=self._run.agent.name,
            # One trace for the run, one span for the step: upstreams can be told apart by them as well.
            request_id=str(step_id),
            traceparent=self._run.child_trace(),
            notes={"run": str(self._run.pk)},
        )
        try:
            answer = await self._gateway.pipeline.call(call)
        except Refused as refusal:
            return str(refusal), refusal.code, refusal.call_id, refusal.record_id
        return text_of(answer), answer.code, answer.call_id, answer.record_id


async def _unused(**arguments: Any) -> str:
    """StructuredTool asks for a function; `PipelineTool.ainvoke` does not use it."""
    raise NotImplementedError


def text_of(answer: Answer) -> str:
    """What a model reads of a result: its texts, or its structured content; other parts are named only."""
    result = exact.taken(answer.body)
    parts = [_part(each) for each in result.get("content") or [] if isinstance(each, dict)]
    if not parts and result.get("structuredContent") is not None:
        parts = [exact.written(result["structuredContent"]).decode()]
    text = "\n".join(parts)
    if len(text) <= _LONGEST_RESULT:
        return text
    return f"{text[:_LONGEST_RESULT]}\n[cut off: the result has {len(text)} characters]"


def _part(part: dict[str, Any]) -> str:
    if isinstance(part.get("text"), str):
        return str(part["text"])
    resource = part.get("resource")
    if isinstance(resource, dict) and isinstance(resource.get("text"), str):
        return str(resource["text"])
    return f"[{part.get('type', 'something')} that cannot be shown as text]"
