"""A model that follows a script and says so: for the demo, for trying things out, and for tests. It is no AI."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable

from agents.script import Ask, MissingValue, Say, Step, as_text, filled

_WORD = re.compile(r"\s*\S+\s*")
_WORD_SECONDS = 0.02


class ScriptedModel(BaseChatModel):
    """Answers with the step of the script that comes after those that the conversation holds."""

    steps: Sequence[Any]

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[Any, AIMessage]:
        """Itself: the script names the tools."""
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        raise NotImplementedError("A scripted model is asked asynchronously.")

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        said = sum(isinstance(message, AIMessage) for message in messages)
        step = _decided(self.steps[min(said, len(self.steps) - 1)], messages)
        if isinstance(step, Ask):
            call = {"name": step.tool, "args": orjson.dumps(step.arguments).decode(), "id": f"step-{said + 1}"}
            yield _chunk(tool_call_chunks=[{**call, "index": 0, "type": "tool_call_chunk"}])
        else:
            for word in _WORD.findall(step.text):
                yield _chunk(content=word)
                await asyncio.sleep(_WORD_SECONDS)
        yield _chunk(usage_metadata={"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}, chunk_position="last")


def _chunk(content: str = "", **fields: Any) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(content=content, **fields))


def _decided(step: Step, messages: Sequence[BaseMessage]) -> Step:
    """The step with its values. Raises MissingValue when one is missing and there is nothing to say instead."""
    task = next((str(message.text) for message in messages if isinstance(message, HumanMessage)), "")
    results = {str(each.name): _read(str(each.text)) for each in messages if isinstance(each, ToolMessage)}
    try:
        if isinstance(step, Say):
            return Say(as_text(filled(step.text, task, results)))
        return Ask(step.tool, filled(step.arguments, task, results))
    except MissingValue:
        if step.otherwise is None:
            raise
        return Say(as_text(filled(step.otherwise, task, results)))


def _read(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
