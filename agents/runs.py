"""The life of a run: asked for, begun once, kept alive, ended once. Each turn of it is on record."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from django.db import connection, models, transaction
from django.utils import timezone
from procrastinate.contrib.django import app

from access.models import User
from agents.models import Agent, Run, Step, validate_input
from audit.arguments import PERMISSION
from audit.caller import caller_of
from audit.entry import Entry
from audit.ledger import record
from audit.masking import known
from audit.models import Record

QUEUE = "agents"
EXECUTE, TEST = "agents.execute", "agents.test_provider"
# The worker says every second that it lives; one that has not for so long is lost.
LOST = timedelta(seconds=15)
_NEVER_BEGUN = timedelta(hours=1)
_MOST_UNFINISHED = 20
_LONGEST_OUTPUT, _LONGEST_MESSAGE = 256_000, 2_000
_FAIL_JOB = "UPDATE procrastinate_jobs SET status = 'failed' WHERE id = %s AND status IN ('todo', 'doing')"


WITHHELD = f"Withheld: reading it needs the permission {PERMISSION}."


def may_read(user: Any, run: Run) -> bool:
    """Whether the user may read task, answer, arguments and results: one's own, or who may read them in the ledger."""
    return bool(run.started_by_id == user.pk or user.has_perm(PERMISSION))


class RunRefused(Exception):
    """The run cannot be started; `code` is the stable word for why, the text is for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Ending:
    """How a run ended: `ok`, or the stable word for why not, with a sentence for people."""

    status: Run.Status
    code: str
    message: str = ""
    output: str | None = None


def start_run(
    agent: Agent, text: str, *, starter: User, door: str, request: Any = None, traceparent: str | None = None
) -> Run:
    """Queue a run, in one transaction with its job and its record; it continues the trace that it was started in.

    Raises RunRefused and ValidationError.
    """
    text = validate_input(text)
    if not agent.enabled:
        raise RunRefused("agent_disabled", f"The agent {agent.name} is switched off.")
    with transaction.atomic():
        # Locked, so that nobody passes the limit by asking twice at the same moment.
        User.objects.select_for_update().get(pk=starter.pk)
        unfinished = Run.objects.filter(started_by=starter, status__in=(Run.Status.QUEUED, Run.Status.RUNNING))
        if unfinished.count() >= _MOST_UNFINISHED:
            raise RunRefused(
                "too_many_runs", f"{_MOST_UNFINISHED} runs of yours are not finished: wait for one of them, or cancel."
            )
        run = Run(
            agent=agent,
            started_by=starter,
            on_behalf_of=starter.username,
            input=text,
            traceparent=(traceparent or "")[:55],
        )
        run.job_id = app.configure_task(EXECUTE, queue=QUEUE, allow_unknown=False).defer(run_id=str(run.pk))
        run.save(force_insert=True)
        _record(run, code="run_queued", door=door, request=request, actor=starter, arguments=text.encode())
    return run


def cancel_run(run: Run, *, actor: User, door: str, request: Any = None) -> Run:
    """End a run that waits, or ask the worker to stop one that runs; it does within seconds. Returns it as it is now.

    What is finished stays as it is.
    """
    with transaction.atomic():
        run = Run.objects.select_for_update(of=("self",)).select_related("agent").get(pk=run.pk)
        if run.is_finished or run.cancel_requested_at is not None:
            return run
        run.cancel_requested_at = timezone.now()
        run.save(update_fields=["cancel_requested_at"])
        _record(run, code="run_cancel_requested", door=door, request=request, actor=actor)
        if run.status == Run.Status.QUEUED:
            _end(
                run,
                Ending(
                    Run.Status.CANCELLED, code="cancelled", message=f"Cancelled by {actor.username} before it began."
                ),
            )
    return run


def begin(run_id: uuid.UUID) -> Run | None:
    """Take the run for this worker; None when it is not (or no longer) waiting. A run is begun once."""
    with transaction.atomic():
        found = Run.objects.select_for_update(of=("self",)).filter(pk=run_id, status=Run.Status.QUEUED)
        run = found.select_related("agent__provider", "agent__toolset", "agent__account", "started_by").first()
        if run is None:
            return None
        provider = run.agent.provider
        run.status, run.started_at, run.heartbeat_at = Run.Status.RUNNING, timezone.now(), timezone.now()
        run.model, run.scripted = provider.model or provider.name, provider.is_scripted
        run.save(update_fields=["status", "started_at", "heartbeat_at", "model", "scripted"])
        _record(run, code="run_started", detail={"provider": provider.name, "model": run.model, "kind": provider.kind})
    return run


def stay_alive(run_id: uuid.UUID) -> Ending | None:
    """Say that the run is being worked on. Returns how it has to end, when it must not go on."""
    going = Run.objects.filter(pk=run_id, status=Run.Status.RUNNING)
    wanted = going.filter(cancel_requested_at=None, agent__enabled=True, started_by__is_active=True)
    if wanted.update(heartbeat_at=timezone.now()):
        return None
    run = going.select_related("agent", "started_by").first()
    if run is not None and run.cancel_requested_at is None:
        who = run.agent.name if not run.agent.enabled else run.on_behalf_of
        return Ending(Run.Status.FAILED, code="agent_disabled", message=f"{who} was switched off while it ran.")
    return Ending(Run.Status.CANCELLED, code="cancelled", message="Cancelled while it ran.")


def add_step(step: Step, estimated: bool = False) -> None:
    """Keep a step, and count it in its run; `estimated` when its tokens are."""
    asked = step.kind == Step.Kind.MODEL
    with transaction.atomic():
        step.save(force_insert=True)
        Run.objects.filter(pk=step.run_id).update(
            model_calls=models.F("model_calls") + (1 if asked else 0),
            tool_calls=models.F("tool_calls") + (0 if asked else 1),
            input_tokens=models.F("input_tokens") + step.input_tokens,
            output_tokens=models.F("output_tokens") + step.output_tokens,
            **({"tokens_estimated": True} if estimated else {}),
        )


def finish(run_id: uuid.UUID, ending: Ending) -> bool:
    """End the run, unless it has ended. Returns whether this ended it."""
    with transaction.atomic():
        run = Run.objects.select_for_update(of=("self",)).select_related("agent").filter(pk=run_id).first()
        if run is None or run.is_finished:
            return False
        _end(run, ending)
    return True


def _end(run: Run, ending: Ending) -> None:
    run.status, run.code = ending.status, ending.code
    run.message = known().refresh().text(ending.message)[:_LONGEST_MESSAGE]
    run.output = None if ending.output is None else ending.output[:_LONGEST_OUTPUT]
    run.finished_at = timezone.now()
    run.save(update_fields=["status", "code", "message", "output", "finished_at"])
    succeeded, cancelled = run.status == Run.Status.SUCCEEDED, run.status == Run.Status.CANCELLED
    code = "run_succeeded" if succeeded else "run_cancelled" if cancelled else "run_failed"
    counts = {"model_calls": run.model_calls, "tool_calls": run.tool_calls, "tokens": run.tokens}
    detail = {"outcome": run.code, "message": run.message, **counts}
    _record(run, code=code, detail=detail, result=run.output.encode() if run.output else None)


def sweep() -> int:
    """End the runs whose worker was lost, and those that no worker ever took. Returns how many."""
    lost = Run.objects.filter(status=Run.Status.RUNNING, heartbeat_at__lt=timezone.now() - LOST)
    unbegun = Run.objects.filter(status=Run.Status.QUEUED, created_at__lt=timezone.now() - _NEVER_BEGUN)
    gone = Ending(
        Run.Status.FAILED,
        code="worker_lost",
        message="The worker ended in the middle of it. What it had done is on record; it is not tried again.",
    )
    never = Ending(
        Run.Status.FAILED, code="not_started", message="No worker took it for an hour: is the agent worker running?"
    )
    return _sweep(lost, gone) + _sweep(unbegun, never)


def _sweep(runs: models.QuerySet[Run], ending: Ending) -> int:
    with transaction.atomic():
        found = list(runs.select_for_update(of=("self",), skip_locked=True).select_related("agent")[:100])
        for run in found:
            _end(run, ending)
            with connection.cursor() as cursor:
                # Its job would look as if it were under way for ever. Nothing runs it again.
                cursor.execute(_FAIL_JOB, [run.job_id])
    return len(found)


def forget_runs(days: int) -> int:
    """Delete runs that ended so many days ago, with inputs, steps and outputs; their records stay. Returns how many."""
    over = Run.objects.filter(finished_at__lt=timezone.now() - timedelta(days=days))
    _, counted = over.delete()
    return counted.get("agents.Run", 0)


def entry_of(run: Run, **columns: Any) -> Entry:
    """A record about the run in the agent's name; `columns` are further fields."""
    own = {
        "kind": Record.Kind.AGENT.value,
        "actor": run.agent.account.username,
        "actor_id": str(run.agent.account_id),
        "on_behalf_of": run.on_behalf_of,
        "roles": run.agent.role.name,
        "door": "agent",
        "object_type": run._meta.label,
        "object_id": str(run.pk),
        "trace_id": run.trace_id,
    }
    if (detail := columns.get("detail")) is not None:
        columns["detail"] = json.dumps({"agent": run.agent.name, **detail}, ensure_ascii=False, separators=(",", ":"))
    return Entry(**{**own, **columns})


def _record(run: Run, *, code: str, actor: User | None = None, request: Any = None, **columns: Any) -> None:
    """In the agent's name, or in that of the person who did it."""
    if actor is not None:
        columns |= {**asdict(caller_of(request, actor)), "on_behalf_of": None}
    columns.setdefault("detail", {})
    record(entry_of(run, code=code, **columns))


class RunFailed(Exception):
    """The run cannot go on; `code` is the stable word for why, the text is for people."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
