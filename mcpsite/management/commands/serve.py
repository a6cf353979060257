"""`serve`: the web workers alone, where engines, migrations and the other workers are started by somebody else."""

from __future__ import annotations

import sys
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser

from mcpsite.installation import web_programs
from mcpsite.prelude import DEFAULT_HOST, DEFAULT_PORT, port
from mcpsite.supervisor import StopRequested, Supervisor
from mcpsite.web import CannotListen, listen


class Command(BaseCommand):
    """What a container runs: one parent that holds the socket, and WEB_WORKERS workers that it keeps alive."""

    help = "Run WEB_WORKERS web workers on one socket until SIGTERM, and nothing else."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare where to listen."""
        parser.add_argument("--host", default=DEFAULT_HOST, help="address to listen on (default: %(default)s)")
        parser.add_argument("--port", type=port, default=DEFAULT_PORT, help="port to listen on (default: %(default)s)")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run until a signal asks to stop; requests that are under way are finished."""
        supervisor = Supervisor()
        try:
            with listen(options["host"], options["port"]) as listener, supervisor.signals():
                try:
                    for program in web_programs(listener, settings.WEB_WORKERS):
                        supervisor.start(program)
                    supervisor.run()
                except StopRequested:
                    supervisor.stop()
        except CannotListen as error:
            sys.exit(str(error))
