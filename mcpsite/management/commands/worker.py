"""`worker`: a process that runs background jobs, or the runs of agents, or seals the ledger."""

from __future__ import annotations

import asyncio
import logging
import signal
from threading import Event
from typing import Any

import uvloop
from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser
from django.db import DatabaseError, connection
from procrastinate import App, PsycopgConnector
from procrastinate.contrib.django import app, connector_params

from agents.runs import QUEUE
from agents.worker import AgentWorker, serve
from audit.configured import note_configuration
from audit.ledger import record
from audit.sealing import process
from audit.streams.worker import StreamWorker
from audit.system import process_event
from gateway.feed import Listening
from mcpsite import env
from mcpsite.postgres import conninfo
from tools.dialling import dial

logger = logging.getLogger("mcpsite.worker")

# Below what the supervisor waits for before it kills.
_GRACEFUL_SECONDS = 15.0
# So that an export of hours keeps nobody from synchronising a data source.
_JOBS_AT_ONCE = 4
# Older names of the same switch, which the library still obeys.
_TRACING = ("LANGSMITH_TRACING", "LANGSMITH_TRACING_V2", "LANGCHAIN_TRACING", "LANGCHAIN_TRACING_V2")


class Command(BaseCommand):
    """Three kinds, so that what agents need (a language model's libraries, minutes of time) stays with them, and so do
    the keys of the sealer.
    """

    help = (
        "Run background jobs (`worker jobs`), or the runs of agents (`worker agents`), or seal the ledger"
        " (`worker sealer`), until SIGTERM."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare what is worked on."""
        parser.add_argument(
            "what", nargs="?", choices=("jobs", "agents", "sealer"), default="jobs", help="default: jobs"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Run until a signal asks to stop; what is under way is finished, or stopped after a while."""
        logger.debug("working on %s", options["what"])
        if options["what"] == "sealer":
            _seal()
            return
        connector = PsycopgConnector(kwargs=connector_params(), connection_class=Listening)
        with app.replace_connector(connector) as jobs:
            if options["what"] == "agents":
                uvloop.run(_agents(jobs))
                return
            _record("job_worker_started")
            uvloop.run(_jobs(jobs))
            _record("job_worker_stopped")


def _record(code: str) -> None:
    """That this process works, or that it is done; a database that is away must not keep it from either."""
    try:
        record(process_event(code, "worker jobs"))
        note_configuration("worker jobs")
    except DatabaseError as error:
        logger.warning("that the job worker starts or stops is not on record: %s", str(error).partition("\n")[0])
    finally:
        connection.close()


def _seal() -> None:
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    process.run(conninfo(settings.LEDGER_DATABASES["sealer"]), stop)


async def _jobs(jobs: App) -> None:
    """Jobs, and beside them in threads of their own the streams of the ledger."""
    streams = StreamWorker(conninfo(settings.DATABASES["default"]), dial)
    streams.start()
    try:
        async with jobs.open_async():
            await jobs.run_worker_async(
                queues=["default"], name="jobs", concurrency=_JOBS_AT_ONCE, shutdown_graceful_timeout=_GRACEFUL_SECONDS
            )
    finally:
        await asyncio.to_thread(streams.stop)


async def _agents(jobs: App) -> None:
    for name in _TRACING:
        env.override(name, str(settings.LANGSMITH_TRACING).lower())
    worker = AgentWorker(conninfo(settings.DATABASES["default"]), conninfo(settings.LEDGER_DATABASES["writer"]))
    async with jobs.open_async():
        work = jobs.run_worker_async(
            queues=[QUEUE],
            name="agents",
            concurrency=settings.AGENT_RUNS_AT_ONCE,
            shutdown_graceful_timeout=_GRACEFUL_SECONDS,
            additional_context={"worker": worker},
        )
        await serve(worker, work)
