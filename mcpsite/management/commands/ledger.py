"""`ledger`: what an operator does about the seals of the ledger: exchange the key, accept a restore."""

from __future__ import annotations

import time
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error, connection

from audit.sealing import process, rotation
from audit.sealing.heads import CannotSeal
from audit.sealing.keys import signers
from audit.sealing.kms import CannotSign
from mcpsite.postgres import conninfo

_LONGEST_REASON = 500
_SEALER_SECONDS = 15.0


class Command(BaseCommand):
    """Two verbs, each for somebody who knows why."""

    help = "Exchange the key that signs the ledger (rotate-key), or accept that an older state was restored."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the verbs."""
        verbs = parser.add_subparsers(dest="verb", required=True)
        rotate = verbs.add_parser("rotate-key", help="Put a new key in front of LEDGER_SIGNING_KEYS.")
        rotate.add_argument("--kms", metavar="ARN", help="An Ed25519 key of AWS KMS; without it, a key is made.")
        rotate.add_argument("--endpoint", metavar="URL", help="Where KMS answers, if not at the region's address.")
        accept = verbs.add_parser("accept-restore", help="Seal on from an older state of the database.")
        accept.add_argument(
            "--reason", required=True, help="Why it was restored; it is signed, and anybody may read it."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Carry out the verb."""
        try:
            if options["verb"] == "rotate-key":
                self._rotate_key(options["kms"], options["endpoint"])
            else:
                self._accept_restore(options["reason"].strip())
        except (CannotSeal, CannotSign, ImproperlyConfigured, OSError, Error) as error:
            raise CommandError(str(error)) from error

    def _rotate_key(self, arn: str | None, endpoint: str | None) -> None:
        others = signers()
        entry = rotation.kms_entry(others, arn, endpoint) if arn else rotation.new_entry(others)
        file = rotation.path()
        if file is None:
            self.stdout.write(
                f"Put this in front of LEDGER_SIGNING_KEYS, and start the sealer again:\n\n{entry},\n\n"
                "The next head is signed by both keys. After that, the old entry can go."
            )
            return
        before = _keys()
        rotation.put_in_front(entry, file)
        self.stdout.write(f"{file} begins with a new key. Waiting for the sealer to sign with both …")
        until = time.monotonic() + _SEALER_SECONDS
        while time.monotonic() < until:
            if new := _keys() - before:
                self.stdout.write(f"{new.pop()}\nsigns from now on. The old entry of the file can go.")
                return
            time.sleep(0.2)
        raise CommandError(
            f"No sealer took it up within {_SEALER_SECONDS:g} seconds. It will when it runs: see manage.py doctor."
        )

    def _accept_restore(self, reason: str) -> None:
        if not 0 < len(reason) <= _LONGEST_REASON:
            raise CommandError(f"Give a reason of at most {_LONGEST_REASON} characters.")
        head = process.accept_restore(conninfo(settings.LEDGER_DATABASES["sealer"]), reason)
        self.stdout.write(f"Head {head.number} says so, over {head.size} records. The sealer goes on.")


def _keys() -> set[str]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT vkey FROM audit_key")
        return {vkey for (vkey,) in cursor.fetchall()}
