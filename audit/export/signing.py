"""A signature of the sealer over what people take away: asked for in one table, answered in another."""

from __future__ import annotations

import hashlib
import time

from django.db import connection, transaction

from audit.sealing.requests import request_signature, signature_of

WAIT_SECONDS = 20.0
_POLL_SECONDS = 0.05


class SealerAway(Exception):
    """Nothing was signed in time."""

    code = "sealer_away"


def signature_over(manifest: bytes, purpose: str, seconds: float = WAIT_SECONDS) -> str:
    """The sealer's signed note over the manifest. Raises SealerAway; must not be called within a transaction."""
    if connection.in_atomic_block:
        raise transaction.TransactionManagementError("The sealer cannot see a request that is not committed.")
    request = request_signature(purpose, hashlib.sha256(manifest).digest())
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if note := signature_of(request):
            return note
        time.sleep(_POLL_SECONDS)
    raise SealerAway(
        f"No sealer signed the manifest within {seconds:g} seconds. Is it running? `manage.py doctor` tells."
    )
