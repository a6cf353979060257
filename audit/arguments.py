"""What a record keeps encrypted: opened for one reader at a time, with a reason, and on record."""

from __future__ import annotations

import hmac
import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from audit.caller import caller_of, stated
from audit.changes import record_event, type_of
from audit.entry import commitment
from audit.masking import known
from audit.models import Record
from audit.opening import KeyDestroyed, payload_of
from keyring.keys import DecryptionError

PERMISSION = "audit.read_arguments"
READ, SOUGHT = "arguments_read", "value_sought"


class ReadingRefused(ValueError):
    """Nothing is shown; the message says why."""

    code = "reading_refused"


class TooManyReadings(ReadingRefused):
    """This reader has read as much as one may in an hour."""

    code = "too_many_readings"


@dataclass(frozen=True, slots=True)
class Arguments:
    """Arguments and result, indented, and whether they are what the record commits to; None when they were not kept.

    `partial` arguments lack those that a policy drops; a `partial` result was cut or masked. `masked` is whether known
    secrets were replaced in what is shown.
    """

    text: str | None
    proven: bool = False
    problem: str = ""
    partial: bool = False
    result: str | None = None
    result_proven: bool = False
    result_partial: bool = False
    masked: bool = False
    erased: bool = False


def may_read_now(reason: str, request: Any = None, actor: Any = None) -> None:
    """Raise ReadingRefused for a reading without a reason, or when the reader has had enough for this hour."""
    if not stated(reason):
        raise ReadingRefused("Say why you need to read it: the reason stands in the record of the reading.")
    most, who = settings.ARGUMENT_READS_PER_HOUR, caller_of(request, actor).actor
    since = timezone.now() - timedelta(hours=1)
    lately = Record.objects.filter(code__in=(READ, SOUGHT), actor=who, at__gte=since).order_by()
    if most and who and lately.count() >= most:
        raise TooManyReadings(
            f"You have read {most} times within an hour, which is as much as one may. Try again later."
        )


def open_arguments(request: Any, record: Record, reason: str, door: str = "admin", actor: Any = None) -> Arguments:
    """Decrypt and compare with the commitments. That they were read is recorded first, or they are not shown.

    Raises ReadingRefused.
    """
    with transaction.atomic():
        may_read_now(reason, request, actor)
        record_event(
            Record.Kind.SYSTEM,
            "arguments_read",
            door=door,
            request=request,
            actor=actor,
            object_type=type_of(Record),
            object_id=str(record.rid),
            detail={"label": str(record), "record": record.pk, "reason": stated(reason)},
        )
        return _opened(record)


def _opened(record: Record) -> Arguments:
    try:
        kept = payload_of(record)
    except KeyDestroyed as error:
        return Arguments(None, problem=str(error), erased=True)
    except DecryptionError as error:
        return Arguments(None, problem=str(error))
    arguments, result = kept.arguments or kept.some_arguments, kept.result or kept.some_result
    shown = [_indented(raw) if raw else None for raw in (arguments, result)]
    masked = [known().refresh().text(text) if text else None for text in shown]
    return Arguments(
        masked[0],
        proven=_fits(commitment(kept.salt, b"a", kept.arguments), record.args_commit),
        partial=not kept.arguments and bool(kept.some_arguments),
        result=masked[1],
        result_proven=_fits(commitment(kept.salt, b"r", kept.result), record.result_commit),
        result_partial=kept.result is None and kept.some_result is not None,
        masked=masked != shown,
    )


def _fits(made: bytes | None, committed: Any) -> bool:
    return made is not None and hmac.compare_digest(made, bytes(committed or b""))


def _indented(raw: bytes) -> str:
    try:
        return json.dumps(json.loads(raw), indent=2, ensure_ascii=False)
    except ValueError:
        return raw.decode("utf-8", "replace")
