"""`cold_export`: write months of the ledger to the archive, and read back what is there, without the admin."""

from __future__ import annotations

from datetime import date
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.retention import archiving
from audit.retention.archiving import ArchiveRefused, NotProven
from audit.retention.models import Archive, Month
from audit.retention.state import states_of
from audit.retention.stores import StoreError


def month_of(text: str) -> date:
    """`2024-11` as its first day."""
    try:
        return date.fromisoformat(f"{text}-01")
    except ValueError as error:
        raise CommandError(f"Write a month as 2024-11, not {text}.") from error


class Command(BaseCommand):
    """Calls `audit.retention.archiving`, here and not in a job."""

    help = (
        "Write months of the ledger to LEDGER_ARCHIVE, sign them and read them back. An export that was broken off goes"
        " on where it was. What came of it is on record."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Which months, and what of them."""
        parser.add_argument("months", nargs="*", metavar="MONTH", help="Months, as 2024-11.")
        parser.add_argument("--all", action="store_true", help="Every month that is over and not archived yet.")
        parser.add_argument("--check", action="store_true", help="Only read back what is archived.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Say of each what came of it. Fails at the end when one of them failed; the others are done."""
        if bool(options["months"]) == options["all"]:
            raise CommandError("Name months, or give --all.")
        months = [month_of(each) for each in options["months"]] or _wanted(options["check"])
        act = self._check if options["check"] else self._export
        failed = sum(not act(month) for month in months)
        if failed:
            raise CommandError(f"{failed} of {len(months)} months failed.")

    def _export(self, month: date) -> bool:
        try:
            archive = archiving.run(archiving.ask(month, door="command"), door="command")
        except ArchiveRefused as refused:
            self.stderr.write(f"{month:%Y-%m}: {refused}")
            return False
        if archive.state != Archive.State.VERIFIED:
            self.stderr.write(f"{month:%Y-%m}: {archive.error or archive.get_state_display()}")
            return False
        kept = f", {archive.resent} there already" if archive.resent else ""
        self.stdout.write(
            f"{month:%Y-%m}: {archive.written} records in {archive.files} files{kept}, read back: {archive.place}"
        )
        return True

    def _check(self, month: date) -> bool:
        archive = Archive.objects.filter(month=month, state=Archive.State.VERIFIED).order_by("-finished_at").first()
        if archive is None:
            self.stderr.write(f"{month:%Y-%m}: There is no finished export.")
            return False
        try:
            records = archiving.check(archive).records
        except (NotProven, StoreError) as error:
            self.stderr.write(f"{month:%Y-%m}: {error}")
            return False
        self.stdout.write(f"{month:%Y-%m}: {records} records, each as it was sealed: {archive.place}")
        return True


def _wanted(archived: bool) -> list[date]:
    words = ("exported", "proposed", "approved") if archived else ("exportable", "failed")
    states = states_of(Month.objects.order_by("month"))
    return [state.month.month for state in states if state.word in words and (archived or state.month.estimate != 0)]
