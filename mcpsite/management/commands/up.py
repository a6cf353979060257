"""`up`: from a bare machine to a running installation, in one command."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser

from mcpsite.demo.database import DemoRefused
from mcpsite.engines import EngineError
from mcpsite.greeting import Progress
from mcpsite.installation import AlreadyRunning, Installation, Options, locked
from mcpsite.prelude import DEFAULT_HOST, DEFAULT_PORT, STARTED, port
from mcpsite.supervisor import StartFailed
from mcpsite.web import CannotListen


class Command(BaseCommand):
    """Starts everything as one process tree; `mcpsite.prelude` has given the settings what they need to know of it."""

    help = "Run the whole site: engines of its own unless DATABASE_URL and REDIS_URL are set, web workers, job worker."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options; `mcpsite.prelude` reads some of them before the settings are loaded."""
        parser.allow_abbrev = False
        parser.add_argument("--data", metavar="DIR", help="data directory: the engines' files, the generated secrets")
        parser.add_argument("--host", default=DEFAULT_HOST, help="address to listen on (default: %(default)s)")
        parser.add_argument("--port", type=port, default=DEFAULT_PORT, help="port to listen on (default: %(default)s)")
        parser.add_argument("--workers", type=int, help="web worker processes (default: WEB_WORKERS)")
        parser.add_argument("--services", action="store_true", help="start only PostgreSQL and Valkey")
        parser.add_argument(
            "--demo",
            action=argparse.BooleanOptionalAction,
            help="load the demo, with an upstream of its own (default: only on the PostgreSQL that comes along)",
        )
        parser.add_argument(
            "--ready-file", type=Path, metavar="FILE", help="write URLs and tokens here when all is ready"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Run until a signal asks to stop."""
        if options["services"] and not (settings.EMBEDDED_DATABASE or settings.EMBEDDED_REDIS):
            sys.exit("DATABASE_URL and REDIS_URL are set, so there is no engine to start.")
        progress = Progress(sys.stdout, STARTED)
        progress.say(f"mcpsite, with its data in {settings.DATA_DIR.path}\n")
        try:
            with locked(settings.DATA_DIR):
                Installation(settings.DATA_DIR, _chosen(options), progress).run()
        except (AlreadyRunning, CannotListen, DemoRefused, EngineError, StartFailed) as error:
            sys.exit(str(error))


def _chosen(options: dict[str, Any]) -> Options:
    return Options(
        host=options["host"],
        port=options["port"],
        workers=settings.WEB_WORKERS,
        services=options["services"],
        demo=settings.EMBEDDED_DATABASE if options["demo"] is None else options["demo"],
        ready_file=options["ready_file"].absolute() if options["ready_file"] else None,
    )
