"""Jobs of agents. What runs an agent has a queue and a worker of its own: only that process imports LangChain."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import DatabaseError
from procrastinate import RetryStrategy
from procrastinate.contrib.django import app

from agents.runs import EXECUTE, QUEUE, TEST, forget_runs, sweep

# What could not be begun is begun later, for as long as a run waits: once begun, a run is not taken a second time.
_LATER = RetryStrategy(wait=5, max_attempts=720, retry_exceptions={DatabaseError})


@app.task(queue=QUEUE, name=EXECUTE, pass_context=True, retry=_LATER)
async def execute(context: Any, run_id: str) -> str:
    """Work on one run, once: what has begun is not repeated, since tools may have had effects. Returns how it ended."""
    ended: str = await context.additional_context["worker"].execute(UUID(run_id))
    return ended


@app.task(queue=QUEUE, name=TEST, pass_context=True)
async def test_provider(context: Any, provider_id: str) -> bool:
    """Ask a model provider for one word, and note whether it answers."""
    answers: bool = await context.additional_context["worker"].test_provider(UUID(provider_id))
    return answers


@app.periodic(cron="* * * * *")
@app.task(queueing_lock="agents.sweep", name="agents.sweep")
def sweep_runs(timestamp: int) -> int:
    """End the runs of lost workers, also when no agent worker is left to do so. Returns how many."""
    return sweep()


@app.periodic(cron="23 4 * * *")
@app.task(queueing_lock="agents.forget", name="agents.forget")
def forget(timestamp: int) -> int:
    """Delete runs past their time. Returns how many."""
    return forget_runs(settings.AGENT_RUN_DAYS)
