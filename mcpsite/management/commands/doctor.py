"""`doctor`: what is wrong with the installation, and what to do about it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandParser

from mcpsite.check import State
from mcpsite.doctor import examine, worst
from mcpsite.ledger_checks import signing_keys

_SIGNS = {State.OK: "ok  ", State.WARN: "warn", State.FAIL: "FAIL"}


class Command(BaseCommand):
    """Prints the checks of `mcpsite.doctor`."""

    help = "Examine the installation: database roles, durability, sealing, keys, witnesses, clock, Redis."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """For people, or for programs."""
        parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")

    def handle(self, *args: Any, **options: Any) -> None:
        """Say what was found; exit code 1 when something fails, 0 with warnings."""
        checks = examine()
        if settings.LEDGER_SIGNING_KEYS():
            checks += signing_keys()
        if options["json"]:
            self.stdout.write(
                json.dumps({"state": worst(checks), "checks": [asdict(each) for each in checks]}, indent=2)
            )
        else:
            width = max(len(each.name) for each in checks)
            for each in checks:
                self.stdout.write(f"{_SIGNS[each.state]}  {each.name:<{width}}  {each.found}")
                if each.advice:
                    self.stdout.write(f"{'':6}{'':<{width}}  → {each.advice}")
        if worst(checks) == State.FAIL:
            sys.exit(1)
