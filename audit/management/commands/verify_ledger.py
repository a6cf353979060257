"""`verify_ledger`: whether the ledger is as it was sealed."""

from __future__ import annotations

import json
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.verify import OK, NoteError, Unusable, moment
from audit.verifying import verify_installation


class Command(BaseCommand):
    """Runs `audit.verifying`, which records the verdict."""

    help = (
        "Verify the whole ledger, or a part: every record, leaf, node, head and MAC. The exit code is 0 if all is as it"
        " was sealed. Who does not trust this machine takes verify.py to another one."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """What to look at, and what to compare it with."""
        parser.add_argument("--since", type=moment, help="only what was recorded from this time on")
        parser.add_argument("--until", type=moment, help="only what was recorded before this time")
        parser.add_argument("--key", action="append", default=[], help="a public key that you trust; may be repeated")
        parser.add_argument("--witness", help="a file with the state of a witness, or a head that you kept")
        parser.add_argument(
            "--accept-break", action="append", type=int, default=[], metavar="NUMBER",
            help="the number of a head whose break you know of: what it explains is no fault",
        )  # fmt: skip
        parser.add_argument("--jobs", type=int, default=1, help="processes at work (default 1)")
        parser.add_argument("--json", action="store_true", help="answer with JSON")

    def handle(self, *args: Any, **options: Any) -> None:
        """Say what was found. Ends with 1 for faults, and when nothing could be told."""
        watched = sys.stderr.isatty() and not options["json"]
        try:
            report = verify_installation(
                door="command",
                since=options["since"],
                until=options["until"],
                keys=tuple(options["key"]),
                witness=options["witness"],
                accepted=tuple(options["accept_break"]),
                jobs=max(options["jobs"], 1),
                progress=self._progress if watched else _quiet,
            )
        except (Unusable, NoteError) as error:
            raise CommandError(f"{error}.") from error
        if watched:
            self.stderr.write("\r\033[K", ending="")
        self.stdout.write(json.dumps(report.as_json(), indent=2) if options["json"] else str(report))
        if report.verdict != OK:
            raise CommandError(f"The ledger is not as it was sealed: {report.faults:,} faults.")

    def _progress(self, what: str, done: int, total: int) -> None:
        self.stderr.write(f"\r\033[K{what}: {done:,} of {total:,}", ending="")
        self.stderr.flush()


def _quiet(what: str, done: int, total: int) -> None:
    """Nobody watches."""
