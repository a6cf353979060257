"""`sync`: bring the tools of data sources up to date with what they offer, without the admin."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.caller import Caller
from tools.connectors.registry import kinds
from tools.models import DataSource
from tools.synchronisation import SyncFailed, SyncRefused, synchronise


class Command(BaseCommand):
    """Calls `tools.synchronisation` for each source, one after the other."""

    help = "Synchronise data sources: ask them what they offer, and update their tools. What came of it is on record."

    def add_arguments(self, parser: CommandParser) -> None:
        """Which ones."""
        parser.add_argument("names", nargs="*", metavar="NAME", help="Names of data sources.")
        parser.add_argument("--all", action="store_true", help="Every one that is on and can be synchronised.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Say of each what came of it. Fails at the end when one of them failed; the others are done."""
        failed = 0
        for source in _chosen(options["names"], options["all"]):
            try:
                outcome = synchronise(source, Caller(), "command")
                self.stdout.write(f"{source.name}: {outcome.sentence()}")
            except (SyncFailed, SyncRefused) as error:
                failed += 1
                self.stderr.write(f"{source.name}: {error}")
        if failed:
            raise CommandError(f"{failed} of the data sources could not be synchronised.")


def _chosen(names: list[str], every: bool) -> list[DataSource]:
    if bool(names) == every:
        raise CommandError("Name data sources, or give --all.")
    discovering = [kind for kind, each in kinds().items() if each.discovers]
    if every:
        return list(DataSource.objects.filter(enabled=True, kind__in=discovering).order_by("name"))
    found = {source.name: source for source in DataSource.objects.filter(name__in=names)}
    for name in names:
        if name not in found:
            raise CommandError(f"There is no data source named {name}.")
        if found[name].kind not in discovering:
            raise CommandError(f"The tools of {name} are written by hand: there is nothing to synchronise.")
    return [found[name] for name in names]
