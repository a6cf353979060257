"""The arguments of a call, which the ledger keeps encrypted: opened for one reader at a time, and on record."""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass

from django.db import transaction
from django.http import HttpRequest

from audit.changes import record_event, type_of
from audit.entry import commitment
from audit.models import Record
from audit.opening import KeyDestroyed, payload_of
from keyring.keys import DecryptionError

PERMISSION = "audit.read_arguments"


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
        kept = payload_of(record)
    except (DecryptionError, KeyDestroyed) as error:
        return Arguments(None, problem=str(error))
    if not kept.arguments:
        return Arguments(None)
    made = commitment(kept.salt, b"a", kept.arguments)
    return Arguments(_indented(kept.arguments), hmac.compare_digest(made or b"", bytes(record.args_commit or b"")))


def _indented(raw: bytes) -> str:
    try:
        return json.dumps(json.loads(raw), indent=2, ensure_ascii=False)
    except ValueError:
        return raw.decode("utf-8", "replace")
