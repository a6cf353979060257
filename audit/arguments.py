"""The arguments of a call, which the ledger keeps encrypted: opened for one reader at a time, and on record."""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass

from django.db import transaction
from django.http import HttpRequest

from audit.changes import record_event, type_of
from audit.entry import CT_PURPOSE, commitment
from audit.models import Record
from keyring.keys import DecryptionError, ring

PERMISSION = "audit.read_arguments"
_SALT_BYTES = 32


@dataclass(frozen=True, slots=True)
class Arguments:
    """The JSON, indented, and whether it is what the record commits to. `text` is None when it was not kept."""

    text: str | None
    proven: bool = False
    problem: str = ""


def open_arguments(request: HttpRequest, record: Record) -> Arguments:
    """Decrypt and compare with the commitment. That they were read is recorded first, or they are not shown."""
    with transaction.atomic():
        record_event(
            Record.Kind.SYSTEM,
            "arguments_read",
            door="admin",
            request=request,
            object_type=type_of(Record),
            object_id=str(record.rid),
            detail={"label": str(record), "record": record.pk},
        )
        return _opened(record)


def _opened(record: Record) -> Arguments:
    try:
        plain = ring().decrypt(bytes(record.ct or b""), purpose=CT_PURPOSE, context=record.rid.bytes)
    except DecryptionError as error:
        return Arguments(None, problem=str(error))
    salt, raw = plain[:_SALT_BYTES], plain[_SALT_BYTES:]
    if not raw:
        return Arguments(None)
    made = commitment(salt, b"a", raw)
    return Arguments(_indented(raw), hmac.compare_digest(made or b"", bytes(record.args_commit or b"")))


def _indented(raw: bytes) -> str:
    try:
        return json.dumps(json.loads(raw), indent=2, ensure_ascii=False)
    except ValueError:
        return raw.decode("utf-8", "replace")
