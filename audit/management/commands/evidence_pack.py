"""`evidence_pack`: makes an evidence pack at once, into a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from audit.export.models import Export
from audit.export.records import record_export
from audit.export.scope import BadScope
from audit.export.signing import SealerAway
from audit.export.targets import Archive
from audit.packs.making import write_pack
from audit.packs.scope import ALL, SAMPLES, USUAL_SAMPLES, read
from audit.patience import TooSlow


class _Quiet:
    """Where nobody watches a page."""

    def __init__(self, command: BaseCommand) -> None:
        self._command = command

    def records(self, number: int) -> None:
        """Nothing to say."""

    def say(self, **state: Any) -> None:
        """The stage, as a line."""
        if stage := state.get("stage"):
            self._command.stderr.write(f"{stage} …")


class Command(BaseCommand):
    """The same pack as in the admin, without a job and without keeping it."""

    help = "Make an evidence pack of a period into a zip file. It is on record, as is every pack."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare what it is about."""
        parser.add_argument("file", type=Path, help="the archive to write; it must not exist yet")
        parser.add_argument("--since", required=True, help="the period begins, inclusive: 2026-10-01T00:00:00Z")
        parser.add_argument("--until", default="", help="it ends, exclusive; default: now")
        parser.add_argument("--as-of", default="", help="who could call what at this time; default: --until")
        parser.add_argument("--sources", default="", help="data sources, separated by commas; default: every one")
        parser.add_argument("--tools", default="", help="tools, separated by commas; default: every one")
        parser.add_argument("--roles", default="", help="roles, separated by commas; default: every one")
        parser.add_argument("--samples", default=USUAL_SAMPLES, type=int, help="of each kind; default: %(default)s")
        parser.add_argument("--seed", default="", help="chooses the samples; default: a random one")
        parser.add_argument("--records", default=SAMPLES, choices=(SAMPLES, ALL), help="default: %(default)s")

    def handle(self, *args: Any, **options: Any) -> None:
        """Make it, or leave no file."""
        names = ("since", "until", "as_of", "sources", "tools", "roles", "samples", "seed", "records")
        try:
            scope = read({name: options[name] for name in names})
        except BadScope as error:
            raise CommandError(str(error)) from error
        export = Export(form=Export.Form.PACK, scope=scope, asked_by="a command")
        record_export(export, "export_requested", door="command")
        records, manifest = self._write(options["file"], export)
        record_export(export, "export_made", door="command", records=records, manifest=manifest.hex())
        self.stdout.write(f"{options['file']}: {records} records, manifest {manifest.hex()}")

    def _write(self, file: Path, export: Export) -> tuple[int, bytes]:
        telling: Any = _Quiet(self)
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise CommandError(f"{file} cannot be written: {error.strerror}.") from error
        try:
            with os.fdopen(descriptor, "wb") as stream, Archive(stream) as target:
                return write_pack(export, target, telling)
        except BaseException as error:
            file.unlink()
            if isinstance(error, (SealerAway, TooSlow, OSError)):
                raise CommandError(str(error) or "It took too long.") from error
            raise
