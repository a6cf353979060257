"""Has the agent worker test a model provider, since only that process knows how to ask a model."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from procrastinate.contrib.django import app

from agents.models import ModelProvider
from agents.runs import QUEUE, TEST
from audit.changes import record_event
from audit.models import Record

_PATIENCE_SECONDS = 30.0
_LOOK_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """Whether the model answered, in one sentence."""

    ok: bool
    message: str


def ask_to_test(provider: ModelProvider, within: float = _PATIENCE_SECONDS) -> CheckOutcome:
    """Queue the test and wait for what comes of it. Outside of a transaction: the job must be seen by the worker."""
    before = provider.checked_at
    app.configure_task(TEST, queue=QUEUE, allow_unknown=False).defer(provider_id=str(provider.pk))
    until = time.monotonic() + within
    while time.monotonic() < until:
        time.sleep(_LOOK_SECONDS)
        row = ModelProvider.objects.filter(pk=provider.pk).only("checked_at", "check_ok", "check_message").first()
        if row is None:
            break
        if row.checked_at != before:
            return CheckOutcome(bool(row.check_ok), row.check_message)
    message = f"The agent worker did not report back within {within:g} seconds. Is it running? Look again later."
    return CheckOutcome(False, message)


def record_test(provider: ModelProvider, outcome: CheckOutcome, *, door: str, request: Any) -> None:
    """That somebody tested it, and what came of it."""
    record_event(
        Record.Kind.CONFIG,
        "test",
        door=door,
        request=request,
        about=provider,
        detail={"action": "test", "label": str(provider), "ok": outcome.ok, "message": outcome.message},
    )
