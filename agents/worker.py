"""What the agent worker keeps: a gateway of its own, and the runs that it works on."""

from __future__ import annotations

import asyncio
import importlib
import logging
import uuid
from collections.abc import Coroutine
from typing import Any

from django.db import DatabaseError
from django.utils import timezone

from access.models import PolicyVersion
from agents.journal import Journal, stored
from agents.live import Announcer
from agents.models import ModelProvider, Run
from agents.runs import Ending, RunFailed, begin, finish, stay_alive, sweep
from gateway.app import Gateway
from tools.sync import egress_now

logger = logging.getLogger("agents")

_BEAT_SECONDS = 1.0
_SWEEP_SECONDS = 5.0
_READY_SECONDS = 10.0
_LET_GO_SECONDS = 5.0
_ATTEMPTS_TO_FINISH = 10

STOPPED = Ending(
    Run.Status.FAILED, code="worker_stopped", message="The worker was stopped in the middle of it; it is not repeated."
)


class AgentWorker:
    """Executes runs. `start` it in an event loop, `stop` it there."""

    def __init__(self, conninfo: str, ledger_conninfo: str | None = None) -> None:
        self.gateway = Gateway(conninfo, ledger_conninfo, "worker agents")
        self.announcer = Announcer()
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to connect, and to look for runs whose worker was lost."""
        await self.gateway.start()
        self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """Disconnect."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        await self.announcer.close()
        await self.gateway.stop()

    async def execute(self, run_id: uuid.UUID) -> str:
        """Work on the run, unless somebody has begun it before. Returns the code of how it ended."""
        run = await stored(begin, run_id)
        if run is None:
            return "not_waiting"
        await self.announcer.tell(run_id, {"event": "begun"})
        try:
            # Whoever was switched off while it waited calls nothing, also not in the first second.
            ending = await stored(stay_alive, run_id) or await self._worked(run)
        except asyncio.CancelledError:
            await asyncio.shield(self._finish(run_id, STOPPED))
            raise
        await self._finish(run_id, ending)
        return ending.code

    async def _worked(self, run: Run) -> Ending:
        """Whichever comes first: the agent is done, it must not go on, or its time is over."""
        work = asyncio.create_task(self._outcome(run))
        watch = asyncio.create_task(self._watch(run.pk))
        seconds = run.agent.max_seconds
        try:
            await asyncio.wait({work, watch}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if watch.done():
                return watch.result()
            message = f"The run took longer than its {seconds} seconds."
            return Ending(Run.Status.FAILED, code="time_limit", message=message)
        finally:
            for task in (work, watch):
                task.cancel()
            await asyncio.wait({work, watch}, timeout=_LET_GO_SECONDS)

    async def _outcome(self, run: Run) -> Ending:
        try:
            output = await self._drive(run)
        except RunFailed as failure:
            return Ending(Run.Status.FAILED, code=failure.code, message=str(failure))
        except Exception:
            logger.exception("the run %s of %s failed", run.pk, run.agent.name)
            message = "The run failed in a way that nobody foresaw. The administrators can find the reason in the log."
            return Ending(Run.Status.FAILED, code="internal_error", message=message)
        return Ending(Run.Status.SUCCEEDED, code="ok", output=output)

    async def _drive(self, run: Run) -> str:
        if not run.agent.provider.enabled:
            raise RunFailed("provider_disabled", f"The model provider {run.agent.provider.name} is switched off.")
        await self._until_ready()
        engine = await _engine()
        journal = Journal(run, self.gateway.ledger, self.announcer)
        output: str = await engine.drive(run, self.gateway, await stored(egress_now), journal)
        return output

    async def _until_ready(self) -> None:
        """Wait for the policy of now: an agent that was just made, or changed, must not meet an older one."""
        version = await stored(PolicyVersion.objects.values_list("version", flat=True).get)
        try:
            async with asyncio.timeout(_READY_SECONDS):
                while not self._knows(version):  # noqa: ASYNC110 - it does but for the first moments
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            message = "The policy or the ledger is not available to the agent worker. Try again."
            raise RunFailed("policy_unavailable", message) from error

    def _knows(self, version: int) -> bool:
        snapshot = self.gateway.feed.current
        return snapshot is not None and snapshot.version >= version and self.gateway.ledger.available

    async def _watch(self, run_id: uuid.UUID) -> Ending:
        """Keep the run alive, and return when it must not go on."""
        while True:
            await asyncio.sleep(_BEAT_SECONDS)
            try:
                if (ending := await stored(stay_alive, run_id)) is not None:
                    return ending
            except DatabaseError as error:
                logger.warning("the run %s cannot say that it lives: %s", run_id, str(error).partition("\n")[0])

    async def _finish(self, run_id: uuid.UUID, ending: Ending) -> None:
        """End the run, also when the database is away for a moment; after that, the sweep ends it as lost."""
        for attempt in range(1, _ATTEMPTS_TO_FINISH + 1):
            try:
                await stored(finish, run_id, ending)
                break
            except DatabaseError:
                if attempt == _ATTEMPTS_TO_FINISH:
                    raise
                await asyncio.sleep(1)
        await self.announcer.tell(run_id, {"event": "end"})

    async def _sweep(self) -> None:
        while True:
            try:
                if ended := await stored(sweep):
                    logger.warning("%d runs of lost workers were ended", ended)
            except DatabaseError as error:
                logger.warning("lost runs cannot be looked for: %s", str(error).partition("\n")[0])
            await asyncio.sleep(_SWEEP_SECONDS)

    # --- Providers ----------------------------------------------------------------------------------------------------

    async def test_provider(self, provider_id: uuid.UUID) -> bool:
        """Ask the model for one word, and note what came of it."""
        provider = await stored(ModelProvider.objects.filter(pk=provider_id).first)
        if provider is None:
            return False
        try:
            engine = await _engine()
            egress = await stored(egress_now)
            async with asyncio.timeout(provider.timeout_seconds):
                ok, message = True, await engine.ask_once(provider, egress)
        except RunFailed as failure:
            ok, message = False, str(failure)
        except TimeoutError:
            ok, message = False, f"The model did not answer within {provider.timeout_seconds} seconds."
        await stored(_note_check, provider_id, ok, message)
        return ok


def _note_check(provider_id: uuid.UUID, ok: bool, message: str) -> None:
    found = ModelProvider.objects.filter(pk=provider_id)
    found.update(checked_at=timezone.now(), check_ok=ok, check_message=message)


async def _engine() -> Any:
    """LangChain takes seconds and a hundred megabytes to import: only once it is needed, and beside the event loop."""
    return await asyncio.to_thread(importlib.import_module, "agents.engine")


async def serve(worker: AgentWorker, jobs: Coroutine[Any, Any, None]) -> None:
    """Keep the worker running for as long as the jobs last."""
    await worker.start()
    try:
        await jobs
    finally:
        await worker.stop()
