"""`streams`: how the streams of the ledger stand, and what an operator does with them at a shell."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.dateparse import parse_datetime
from django.utils.timezone import is_naive, make_aware

from audit.streams.models import Stream
from audit.streams.steering import ALARMS, Standing, ask_to_test, record_test, rewind, standings


class Command(BaseCommand):
    """Lists; with a name and an option, tests or moves one."""

    help = "Show how far the streams of the ledger are; test one, or set its place."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare which, and what."""
        parser.add_argument("name", nargs="?", help="the stream; without it all are listed")
        parser.add_argument("--test", action="store_true", help="have the worker send a test message")
        parser.add_argument("--from", dest="since", metavar="TIME", help="send from then on, e.g. 2026-03-01T08:00Z")

    def handle(self, *args: Any, **options: Any) -> None:
        """List, test or move. Ends with 1 when there is an alarm or the test failed."""
        if options["name"] is None:
            if options["test"] or options["since"]:
                raise CommandError("Name the stream.")
            self._list(list(standings().values()))
            return
        stream = Stream.objects.filter(name=options["name"]).first()
        if stream is None:
            raise CommandError(f"There is no stream {options['name']}.")
        if options["since"]:
            self._move(stream, options["since"])
        if options["test"]:
            self._test(stream)
        if not options["since"] and not options["test"]:
            self._list([standings()[stream.pk]])

    def _list(self, found: list[Standing]) -> None:
        for each in found:
            state = each.alarm or "well" if each.enabled else "off"
            lag = f"{each.lag_records} records, {each.lag_seconds:.0f} s behind"
            self.stdout.write(f"{each.name}: {state}; {each.sent} messages acknowledged; {lag}")
        if alarms := [each for each in found if each.alarm]:
            raise CommandError(" ".join(f"{each.name}: {ALARMS[each.alarm]}" for each in alarms))

    def _move(self, stream: Stream, since: str) -> None:
        moment = parse_datetime(since)
        if moment is None:
            raise CommandError(f"{since} is not a time. Write it as 2026-03-01T08:00Z.")
        moved = rewind(stream, make_aware(moment) if is_naive(moment) else moment, door="command")
        self.stdout.write(f"{stream.name}: the next record to be sent is {moved.after}; before, it was {moved.before}.")

    def _test(self, stream: Stream) -> None:
        tested = ask_to_test(stream, "manage.py streams")
        record_test(stream, tested, door="command", request=None)
        if not tested.ok:
            raise CommandError(tested.message)
        self.stdout.write(tested.message)
