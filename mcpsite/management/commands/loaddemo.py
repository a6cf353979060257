"""`loaddemo`: the demo by hand, for installations whose engines are not our own."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from mcpsite.demo.load import DemoRefused, load_demo


class Command(BaseCommand):
    """Calls `mcpsite.demo.load.load_demo`."""

    help = (
        "Load the demo: a company with customers, orders and tickets in a schema of its own, with sources, tools,"
        " roles, people and tokens. Its upstream server must be running: python -m mcpsite.demo.upstream --port 8010,"
        " with the token of <data directory>/secrets/demo_upstream_token in DEMO_UPSTREAM_TOKEN."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Where the upstream server is."""
        parser.add_argument("--upstream", required=True, metavar="URL", help="e.g. http://127.0.0.1:8010/mcp")

    def handle(self, *args: Any, **options: Any) -> None:
        """Load, and say where the tokens are."""
        data_dir = settings.DATA_DIR.path
        try:
            access = load_demo(options["upstream"], data_dir)
        except (DemoRefused, OSError) as error:
            raise CommandError(str(error)) from error
        self.stdout.write(f"The demo is loaded. Tokens of {', '.join(access.tokens)}: {data_dir}/secrets/demo_tokens")
