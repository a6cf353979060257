"""`retention`: what is kept for how long, which months are due, and dropping what two persons have approved."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from audit.holds import in_force
from audit.retention import expiring
from audit.retention.models import Month, RetentionClass
from audit.retention.partitions import ahead, prepare
from audit.retention.state import State, states_of


class Command(BaseCommand):
    """Nothing is proposed or approved here: who has a shell could be two persons."""

    help = (
        "Show retention classes, legal holds, and the months of the ledger with their state. Proposing and approving"
        " that records leave is done by people, in the admin or by REST."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """What to do first."""
        parser.add_argument("--partitions", action="store_true", help="Make the partitions of the coming months.")
        parser.add_argument("--find", action="store_true", help="Look for records that are past their time.")
        parser.add_argument("--drop", action="store_true", help="Drop what two persons approved and what has waited.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Do it, then show."""
        if options["partitions"]:
            for month in prepare(door="command"):
                self.stdout.write(f"made the partition of {month:%Y-%m}")
        if options["find"]:
            for found in expiring.find():
                self.stdout.write(f"{found.month:%Y-%m}: {found.records} records are past their time")
        if options["drop"]:
            for dropped in expiring.carry_out_due():
                self.stdout.write(
                    f"{dropped.month:%Y-%m}: {dropped.records} records dropped under certificate {dropped.gap}"
                )
        self._show()

    def _show(self) -> None:
        for each in RetentionClass.objects.order_by("months"):
            self.stdout.write(f"class {each.name}: {each.months} months")
        for hold in in_force().order_by("placed_at"):
            value = f" {hold.value}" if hold.value else ""
            self.stdout.write(f"hold {hold.name}: {hold.get_scope_display()}{value}, placed by {hold.placed_by}")
        self.stdout.write(f"partitions ahead: {ahead()}")
        for state in states_of(Month.objects.order_by("month")):
            self.stdout.write(_line(state))


def _line(state: State) -> str:
    parts = [f"{state.month.month:%Y-%m}: {state.label.lower()}"]
    if state.due:
        parts.append(f"{state.due} records past their time")
    if state.month.dropped:
        parts.append(f"{state.month.dropped} dropped")
    if state.expiry is not None and state.expiry.problem:
        parts.append(state.expiry.problem)
    return ", ".join(parts)
