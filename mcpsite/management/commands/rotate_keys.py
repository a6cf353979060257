"""`rotate_keys`: bring every encrypted field under the first key of `ENCRYPTION_KEYS`."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db.models import Count

from audit.ledger import Entry, record
from audit.models import Record
from keyring.fields import EncryptedJSONField
from keyring.keys import ring
from keyring.rotation import Batch, by_key, encrypted_fields, label, rotate


class Command(BaseCommand):
    """Walks through `keyring.rotation`, and records each batch in its transaction."""

    help = (
        "Re-encrypt every encrypted field with the first key of ENCRYPTION_KEYS. Put the new key first, keep the old"
        " ones behind it, restart every process, and run this. It may be stopped and started again at any time. At the"
        " end it says which keys are still needed."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """How much at once, or nothing at all."""
        parser.add_argument("--batch", type=int, default=200, help="Rows in one transaction (default 200).")
        parser.add_argument("--dry-run", action="store_true", help="Only say what is under which key.")

    def handle(self, *args: Any, **options: Any) -> None:
        """Rotate, then say what remains. Fails when a value cannot be read, after all others were rotated."""
        if options["batch"] < 1:
            raise CommandError("--batch must be at least 1.")
        failed: list[str] = []
        for each in [] if options["dry_run"] else encrypted_fields():
            failed += self._rotate(each, options["batch"])
        self._tell_what_remains()
        for sentence in failed:
            self.stderr.write(sentence)
        if failed:
            raise CommandError(f"{len(failed)} values could not be read and were left as they are.")

    def _rotate(self, each: EncryptedJSONField, size: int) -> list[str]:
        seen, changed, failed = 0, 0, list[str]()
        for batch, _ in rotate(each, size):
            if batch.changed:
                _record(each, batch)
            seen, changed = seen + batch.rows, changed + batch.changed.total()
            failed += batch.failed
            self.stdout.write(f"{label(each)}: {seen} looked at, {changed} re-encrypted")
        return failed

    def _tell_what_remains(self) -> None:
        fields = sum((by_key(each) for each in encrypted_fields()), Counter[str]())
        # Records under data keys need what these are wrapped with, which are values like any other.
        own = Record.objects.exclude(key_id=None).exclude(key_id__contains="-")
        rows = own.order_by().values_list("key_id").annotate(Count("id"))
        records = Counter(dict(rows))
        primary = ring().primary
        for name in dict.fromkeys((*ring().key_ids, *fields, *records)):
            needed = fields[name] or records[name]
            said = "encrypts" if name == primary else "is still needed" if needed else "decrypts nothing any more"
            self.stdout.write(f"{name}: {fields[name]} values, {records[name]} records of the ledger: {said}")
        remaining = fields.total() - fields[primary]
        self.stdout.write(f"{remaining} values remain under other keys than {primary}.")
        # A record's MAC is made with the key of its time, also where nothing is encrypted.
        self.stdout.write("Keep a key that decrypts nothing for as long as records of its time are to be verified.")


def _record(each: EncryptedJSONField, batch: Batch) -> None:
    detail = {"field": label(each), "from": dict(batch.changed), "to": ring().primary}
    record(Entry(kind=Record.Kind.SYSTEM.value, code="keys_rotated", door="command", detail=json.dumps(detail)))
