"""Runs an agent with LangChain. Imported by the agent worker at its first run, and by nothing else."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import orjson
from langchain.agents import create_agent
from langchain.agents.middleware import (
    AgentMiddleware,
    ModelCallLimitMiddleware,
    ModelRequest,
    ModelResponse,
    ToolCallLimitMiddleware,
)
from langchain.agents.middleware.model_call_limit import ModelCallLimitExceededError
from langchain.agents.middleware.tool_call_limit import ToolCallLimitExceededError
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig

from agents.chat_models import chat_model, failure_of
from agents.journal import Journal, Usage
from agents.models import Agent, ModelProvider, Run
from agents.runs import RunFailed
from agents.toolkit import Toolkit
from gateway.app import Gateway
from tools.egress import Egress

_TOOLS_AT_ONCE = 4
# Characters of a token, where a provider does not count.
_CHARACTERS = 4
# What a step can hold; who claims more has passed every limit.
_MOST_TOKENS = 2**31 - 1


class Asking(AgentMiddleware[Any, Any, Any]):
    """Around each question to the model: the limit of tokens, and failures under our names."""

    def __init__(self, agent: Agent, journal: Journal) -> None:
        super().__init__()
        self._agent = agent
        self._journal = journal
        self.began = datetime.now(UTC)
        # Characters of the question, from which its tokens are estimated where a provider does not count.
        self.sent = 0

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> ModelResponse[Any]:
        """Ask, unless the tokens are used up. Raises RunFailed."""
        if self._journal.tokens >= self._agent.max_tokens:
            raise RunFailed("token_limit", f"The run has used {self._journal.tokens} tokens: its limit is reached.")
        self.began = datetime.now(UTC)
        self.sent = len(self._agent.instructions) + sum(map(_length, request.messages))
        try:
            return await handler(request)
        except Exception as error:
            raise failure_of(error, self._agent.provider) from error


async def drive(run: Run, gateway: Gateway, egress: Egress, journal: Journal) -> str:
    """Work on the run until the model has nothing more to ask for. Returns its last words. Raises RunFailed."""
    agent = run.agent
    async with chat_model(agent.provider, egress) as model:
        asking = Asking(agent, journal)
        graph = create_agent(
            model,
            Toolkit(run, gateway, journal).tools,
            system_prompt=agent.instructions,
            middleware=[
                asking,
                ModelCallLimitMiddleware(run_limit=agent.max_model_calls, exit_behavior="error"),
                ToolCallLimitMiddleware(run_limit=agent.max_tool_calls, exit_behavior="error"),
            ],
        )
        try:
            return await _follow(graph, str(run.input), agent, asking, journal)
        except ModelCallLimitExceededError as error:
            message = f"The agent may ask its model {agent.max_model_calls} times: that was not enough."
            raise RunFailed("model_call_limit", message) from error
        except ToolCallLimitExceededError as error:
            message = f"The agent may call {agent.max_tool_calls} tools in a run: the model wanted more."
            raise RunFailed("tool_call_limit", message) from error


async def _follow(graph: Any, task: str, agent: Agent, asking: Asking, journal: Journal) -> str:
    """Hear the words as they come, and write down each answer when it is complete."""
    # Each round of model and tools is at most eight of LangGraph's steps: our own limits come first.
    config = RunnableConfig(recursion_limit=8 * agent.max_model_calls + 16, max_concurrency=_TOOLS_AT_ONCE)
    last: AIMessage | None = None
    asked: dict[Any, str] = {}
    stream = graph.astream({"messages": [HumanMessage(task)]}, config, stream_mode=["updates", "messages"])
    async for mode, part in stream:
        if mode == "messages" and isinstance(part[0], AIMessageChunk):
            for piece in part[0].tool_call_chunks:
                place = piece["id"] if piece["index"] is None else piece["index"]
                asked[place] = asked.get(place, "") + (piece["args"] or "")
            await journal.hear(str(part[0].text))
        elif mode == "updates" and (update := part.get("model")):
            _check_arguments(asked)
            asked, last = {}, update["messages"][-1]
            await _written(last, asking, journal)
    if last is None or last.invalid_tool_calls or not str(last.text).strip():
        raise RunFailed("bad_model_answer", "The model ended without an answer, or with a call that cannot be read.")
    return str(last.text)


def _check_arguments(asked: dict[Any, str]) -> None:
    """Refuse arguments that were cut off, before a tool sees them: LangChain would complete them. Raises RunFailed."""
    for arguments in asked.values():
        try:
            orjson.loads(arguments or "{}")
        except orjson.JSONDecodeError as error:
            message = "The model asked for a tool with arguments that are not JSON, or were cut off."
            raise RunFailed("bad_model_answer", message) from error


async def _written(message: AIMessage, asking: Asking, journal: Journal) -> None:
    text = str(message.text)
    calls = [{"id": call["id"], "tool": call["name"], "arguments": call["args"]} for call in message.tool_calls]
    await journal.answered(text, calls, _usage(message, asking.sent), asking.began)


def _length(message: BaseMessage) -> int:
    """Characters of its text and of the calls that it asks for."""
    calls = message.tool_calls if isinstance(message, AIMessage) else []
    return len(str(message.text)) + sum(len(str(call["args"])) for call in calls)


def _usage(message: AIMessage, sent: int) -> Usage:
    told = message.usage_metadata
    if told is not None:
        return Usage(_bounded(told["input_tokens"]), _bounded(told["output_tokens"]))
    return Usage(sent // _CHARACTERS + 1, _length(message) // _CHARACTERS + 1, estimated=True)


def _bounded(tokens: int) -> int:
    return min(max(0, tokens), _MOST_TOKENS)


async def ask_once(provider: ModelProvider, egress: Egress) -> str:
    """Ask the model for one word. Returns a sentence about the answer. Raises RunFailed."""
    if provider.is_scripted:
        async with chat_model(provider, egress):
            return "The script can be followed. It is no AI."
    async with chat_model(provider, egress) as model:
        started = time.monotonic()
        try:
            answer = await model.ainvoke([HumanMessage("Answer with the one word: ready")])
        except Exception as error:
            raise failure_of(error, provider) from error
    said = " ".join(str(answer.text).split())[:80]
    return f"{provider.model} answered in {time.monotonic() - started:.1f} s: “{said}”"
