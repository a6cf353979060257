"""A call that is sent twice under one key is carried out once (draft-ietf-httpapi-idempotency-key-header).

A key is claimed by a row that is committed before the call begins, so whatever happens to the process, the claim stays.
What is not known to be finished is not called again if it could have had an effect. Blocking: for the REST door alone.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone
from django.utils.crypto import salted_hmac

from audit.entry import uuid7
from gateway.models import KeyedCall
from tools import exact

KEPT = timedelta(hours=24)
# How long a call may be under way beyond its own time limit: its records, and a busy process.
_GRACE_SECONDS = 15
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\]){1,255})"')
_BARE = re.compile(r"[A-Za-z0-9._~:/+=-]{1,255}")


class KeyRefused(Exception):
    """The key cannot be used like this. `code` is the stable word for why."""

    def __init__(self, code: str, message: str, *, call_id: uuid.UUID | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.call_id = call_id


def key_of(header: str) -> str:
    """The key in the header: a string (RFC 9651, section 3.3.3), or the same without quotes. Raises KeyRefused."""
    text = header.strip()
    if quoted := _QUOTED.fullmatch(text):
        return re.sub(r"\\(.)", r"\1", quoted[1])
    if _BARE.fullmatch(text):
        return text
    raise KeyRefused("invalid_idempotency_key", "Give one key of 1 to 255 printable ASCII characters in quotes.")


def claim(user_id: int, tool: str, key: str, arguments: dict[str, Any], *, repeatable: bool) -> KeyedCall:
    """What stands for the key: a finished call, or one for the caller to carry out. Raises KeyRefused."""
    now = timezone.now()
    place = {"user_id": user_id, "tool": tool, "key": hashlib.sha256(key.encode()).hexdigest()}
    rows = KeyedCall.objects.filter(**place)
    rows.filter(expires_at__lte=now).delete()
    request = _digest(arguments)
    new = KeyedCall(
        **place, request=request, repeatable=repeatable, call_id=uuid7(), started_at=now, expires_at=now + KEPT
    )
    try:
        with transaction.atomic(durable=True):
            new.save(force_insert=True)
    except IntegrityError:
        return _known(rows.first(), request)
    return new


def _digest(arguments: dict[str, Any]) -> str:
    raw = exact.ordered(arguments)
    return salted_hmac("gateway.idempotency", raw, algorithm="sha256").hexdigest()


def _known(call: KeyedCall | None, request: str) -> KeyedCall:
    if call is None:
        raise _in_progress()  # it was refused at this very moment, and its key is free again
    if call.request != request:
        message = "This key was used for a call with other arguments: choose a new key for a new call."
        raise KeyRefused("idempotency_key_reused", message)
    if call.state == KeyedCall.State.FINISHED:
        return call
    late = call.started_at + timedelta(seconds=settings.CALL_TIMEOUT_SECONDS + _GRACE_SECONDS) < timezone.now()
    if call.state == KeyedCall.State.RUNNING and not late:
        raise _in_progress()
    return _taken_over(call)


def _taken_over(call: KeyedCall) -> KeyedCall:
    """The call of a process that died, to be carried out again where that can do no harm."""
    if not call.repeatable:
        message = (
            f"What became of this call is not known. The ledger tells under the call {call.call_id} whether it began "
            "and how it ended. It is not repeated; where it did not begin, send it under a new key."
        )
        raise KeyRefused("outcome_unknown", message, call_id=call.call_id)
    before, call.call_id, call.started_at = call.call_id, uuid7(), timezone.now()
    new = {"call_id": call.call_id, "started_at": call.started_at, "state": KeyedCall.State.RUNNING}
    if not KeyedCall.objects.filter(pk=call.pk, call_id=before).update(**new):
        raise _in_progress()  # by somebody else, just now
    return call


def _in_progress() -> KeyRefused:
    return KeyRefused("idempotency_in_progress", "The first call with this key is under way. Try again in a second.")


def finish(call: KeyedCall, answer: dict[str, Any]) -> None:
    """Keep the answer for whoever sends the call again."""
    with transaction.atomic():
        row = KeyedCall.objects.select_for_update().filter(pk=call.pk, call_id=call.call_id).first()
        if row is not None:
            row.answer, row.state = answer, KeyedCall.State.FINISHED
            row.save(update_fields=["answer", "state"])


def release(call: KeyedCall) -> None:
    """Nothing was called: the key is free again."""
    KeyedCall.objects.filter(pk=call.pk, call_id=call.call_id).delete()


def give_up(call: KeyedCall) -> None:
    """The tool was called, and nobody can say what came of it."""
    KeyedCall.objects.filter(pk=call.pk, call_id=call.call_id).update(state=KeyedCall.State.UNKNOWN)


def forget_expired() -> int:
    """Delete the calls whose keys are no longer kept. Returns how many."""
    deleted, _ = KeyedCall.objects.filter(expires_at__lte=timezone.now()).delete()
    return deleted
