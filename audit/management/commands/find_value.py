"""`find_value`: whether a value occurs in what records commit to."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Any
from uuid import UUID

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.export.scope import moment
from audit.privacy.occurrence import MOST_RECORDS, Question, search


def time(text: str) -> datetime:
    """The time; without an offset it is UTC. Raises ValueError."""
    return moment("time", text)


class Command(BaseCommand):
    """Reads the candidate from standard input, so that it stands in no list of processes and no history."""

    help = (
        "Say whether a value occurs in calls: the value of an argument, whole arguments or a whole result, read from"
        " standard input. Commitments are recomputed, so that this works where nothing but the commitment is kept."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """What, where and why."""
        parser.add_argument("--what", choices=("value", "arguments", "result"), default="value", help="What is given.")
        parser.add_argument("--argument", default="", help="Name or JSON pointer of the argument; empty: any.")
        parser.add_argument("--tool", default="", help="Calls of this tool.")
        parser.add_argument("--record", type=UUID, help="One record, by its id.")
        parser.add_argument("--since", type=time, help="From this time on (ISO 8601).")
        parser.add_argument("--until", type=time, help="Before this time (ISO 8601).")
        parser.add_argument("--reason", required=True, help="Why; it stands in the record of the search.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Search and say where it occurs."""
        fields: dict[str, Any] = {name: options[name] for name in ("argument", "tool", "since", "until")}
        fields["record"] = str(options["record"] or "")
        candidate = sys.stdin.read().removesuffix("\n")
        try:
            report = search(Question(**{options["what"]: candidate, **fields}), options["reason"], door="command")
        except ValueError as refused:
            raise CommandError(f"Nothing was sought. {refused}") from refused
        for each in report.findings:
            record = each.record
            self.stdout.write(f"{record.at:%Y-%m-%dT%H:%M:%SZ} {record.rid} {each.verdict} {each.why}".rstrip())
        said = "" if report.complete else f", of more than {MOST_RECORDS}: narrow the time"
        self.stdout.write(f"{report.verdict}: {report.looked_at} records were looked at{said}.")
