"""`erase_subject`: destroy the keys of what the ledger keeps of a person."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.holds import Held
from audit.privacy.erasure import ErasureRefused, erase, survey
from audit.subjects import USER, UnknownSubject


class Command(BaseCommand):
    """Says what there is; with `--yes` it is erased."""

    help = (
        "Destroy the keys under which the ledger keeps the arguments and results of a person's calls. Records stay and"
        " still verify; nobody can read what they kept. Without --yes it is only said how much there is."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Whose, why, and whether it is meant."""
        parser.add_argument("value", help="A user name, or the value of the argument that the tools' policies name.")
        parser.add_argument("--kind", default=USER, help="What policies call such a person (default user).")
        parser.add_argument("--reason", default="", help="Why; it stands in the record of the erasure.")
        parser.add_argument("--yes", action="store_true", help="Erase, without asking again.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Survey or erase."""
        kind, value = options["kind"], options["value"]
        try:
            found = survey(kind, value, door="command")
            self.stdout.write(f"{found.keys} keys of {len(found.months)} months ({found.period or 'none'}).")
            if not options["yes"]:
                self.stdout.write("Nothing was erased. Repeat it with --yes and --reason to destroy them for ever.")
                return
            done = erase(kind, value, options["reason"], door="command")
        except (UnknownSubject, ErasureRefused, Held) as refused:
            raise CommandError(f"Nothing was erased. {refused}") from refused
        self.stdout.write(f"Erased: {done.keys} keys are destroyed.")
