"""What the verifier says of the period, at the time when a pack is made."""

from __future__ import annotations

from typing import Any

from django.db import connection
from django.utils import timezone

from audit.packs.scope import PackScope
from audit.verify import NoteError, Unusable, time_text
from audit.verifying import verify_installation

UNKNOWN = "UNKNOWN"


def verdict_of(scope: PackScope) -> dict[str, Any]:
    """The verifier's report over the period of the scope, which is on record; `UNKNOWN` where it could not look."""
    ran_at = time_text(timezone.now())
    try:
        report = verify_installation(
            door="command", since=scope.since, until=scope.until, database=connection.settings_dict
        ).as_json()
    except (Unusable, NoteError) as error:
        report = {"verdict": UNKNOWN, "counts": {}, "findings": [], "notes": [str(error)]}
    return {"ran_at": ran_at, "since": scope.since.isoformat(), "until": scope.until.isoformat(), **report}
