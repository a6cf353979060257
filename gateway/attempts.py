"""Attempts that never became a call: on record as well, within the budget of refusals of their user."""

from __future__ import annotations

from typing import Any

import orjson

from audit.entry import uuid7
from audit.ledger import INTENT_SECONDS, Entry, Ledger, LedgerUnavailable
from gateway import answers, reads, wire
from gateway.limits import Refusals
from gateway.visits import Visit
from gateway.wire import Message, WireError

# Methods that are calls: what was wrong with them is on record.
_RECORDED = reads.METHODS | {"tools/call"}


class Attempts:
    """Records what was sent as a call, or may have been one, and is none."""

    def __init__(self, ledger: Ledger, refusals: Refusals) -> None:
        self._ledger, self._refusals = ledger, refusals

    async def record(self, visit: Visit, message: Message | None, error: WireError) -> None:
        """Put it on record, with what was wrong with it. Raises WireError when that cannot be."""
        principal = visit.principal
        wait, unrecorded = await self._refusals.admit(principal.user_id)
        if wait:
            raise answers.too_many_refusals(wait, error.identifier) from error
        told = {"message": error.message[:2000], "error": error.code}
        named = (message.params.get("name") or message.params.get("uri")) if message else None
        entry = Entry(
            kind="invalid",
            code="malformed",
            decision="deny",
            call_id=uuid7(),
            actor=principal.username,
            actor_id=str(principal.user_id),
            token=principal.token,
            roles=principal.role_names,
            door="mcp",
            client=visit.client(message),
            address=visit.address,
            tool=named if isinstance(named, str) else None,
            policy_version=visit.snapshot.version,
            request_id=visit.request_id,
            detail=orjson.dumps(told | ({"unrecorded_before": unrecorded} if unrecorded else {})).decode(),
        )
        try:
            await self._ledger.write(entry, INTENT_SECONDS)
        except LedgerUnavailable:
            data = {answers.CODE: "ledger_unavailable"}
            refusal = "The audit ledger cannot be written at this moment. Try again in a few seconds."
            raise WireError(
                wire.UNAVAILABLE, refusal, status=503, data=data, identifier=error.identifier, retry_after=2
            ) from error


def is_attempt(content: Any, message: Message | None, error: WireError) -> bool:
    """Whether it was to be a call, or may have been one, and is not on record yet."""
    if isinstance(error.data, dict) and answers.CODE in error.data:
        return False
    method = content.get("method") if isinstance(content, dict) else None
    if isinstance(method, str) and method in _RECORDED:
        return True
    return message is None and error.code != wire.UNSUPPORTED_VERSION
