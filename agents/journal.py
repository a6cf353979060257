"""Writes down what happens in a run, step by step: the ledger first, then the step that people see."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import orjson
from asgiref.sync import sync_to_async
from django.db import close_old_connections

from agents.live import Announcer
from agents.models import Run, Step
from agents.runs import RunFailed, add_step, entry_of
from audit.ledger import Ledger, LedgerUnavailable

T = TypeVar("T")

_LONGEST_TEXT = 256_000
_DELTA_SECONDS = 0.04


async def stored(work: Callable[..., T], *arguments: Any) -> T:
    """What `work` returns, which uses Django's database beside the event loop."""
    return await sync_to_async(_with_connection)(work, *arguments)


def _with_connection(work: Callable[..., T], *arguments: Any) -> T:
    close_old_connections()
    try:
        return work(*arguments)
    finally:
        close_old_connections()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer; `estimated` when the provider did not count them."""

    input: int
    output: int
    estimated: bool = False


def _packed(content: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(content)
    except orjson.JSONEncodeError as error:
        message = f"The model's answer holds what JSON cannot: {error}."
        raise RunFailed("bad_model_answer", message) from error


class Journal:
    """The steps of one run, in order."""

    def __init__(self, run: Run, ledger: Ledger, announcer: Announcer) -> None:
        self._run = run
        self._ledger = ledger
        self._announcer = announcer
        self._number = 0
        self._heard: list[str] = []
        self._told_at = 0.0
        self.tokens = 0

    async def hear(self, text: str) -> None:
        """Show words of the model as they come, some at a time."""
        self._heard.append(text.encode(errors="replace").decode())
        if time.monotonic() - self._told_at >= _DELTA_SECONDS:
            await self._tell_heard()

    async def _tell_heard(self) -> None:
        text, self._heard, self._told_at = "".join(self._heard), [], time.monotonic()
        if text:
            await self._announcer.tell(self._run.pk, {"event": "delta", "text": text})

    async def answered(self, text: str, calls: list[dict[str, Any]], usage: Usage, began: datetime) -> None:
        """Write down an answer of the model. Raises RunFailed when it cannot be written."""
        await self._tell_heard()
        self.tokens += usage.input + usage.output
        content = {"text": text[:_LONGEST_TEXT], "calls": calls}
        result = _packed(content)
        number = self._next()
        told = {"step": number, "tools": [call["tool"] for call in calls]}
        entry = entry_of(
            self._run,
            code="model_answered",
            detail={**told, "input_tokens": usage.input, "output_tokens": usage.output},
            result=result,
            upstream_us=int((datetime.now(UTC) - began).total_seconds() * 1_000_000),
        )
        try:
            record_id = await self._ledger.write(entry)
        except LedgerUnavailable as error:
            raise RunFailed("ledger_unavailable", "The ledger could not be written, so the run ended.") from error
        await self._keep(
            Step(
                run=self._run,
                number=number,
                kind=Step.Kind.MODEL,
                content=content,
                record_id=record_id,
                code="ok",
                input_tokens=usage.input,
                output_tokens=usage.output,
                started_at=began,
                finished_at=datetime.now(UTC),
            ),
            usage.estimated,
        )

    async def calling(self, tool: str) -> None:
        """Show that a tool is being called."""
        await self._announcer.tell(self._run.pk, {"event": "calling", "tool": tool})

    async def called(
        self,
        step_id: uuid.UUID,
        tool: str,
        tool_call: str,
        content: dict[str, Any],
        code: str,
        began: datetime,
        call_id: uuid.UUID | None,
        record_id: uuid.UUID | None,
    ) -> None:
        """Keep what came of a call, which the pipeline has recorded already."""
        await self._keep(
            Step(
                id=step_id,
                run=self._run,
                number=self._next(),
                kind=Step.Kind.TOOL,
                content=content,
                tool=tool[:200],
                tool_call=tool_call.replace("\0", "")[:200],
                call_id=call_id,
                record_id=record_id,
                code=code,
                started_at=began,
                finished_at=datetime.now(UTC),
            )
        )

    def _next(self) -> int:
        self._number += 1
        return self._number

    async def _keep(self, step: Step, estimated: bool = False) -> None:
        await stored(add_step, step, estimated)
        await self._announcer.tell(self._run.pk, {"event": "step", "number": step.number})
