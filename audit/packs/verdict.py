"""What the verifier says of the period, at the time when a pack is made."""

from __future__ import annotations

from typing import Any

from django.db import connection
from django.utils import timezone

from audit.export.lines import rfc3339
from audit.packs.scope import PackScope
from audit.verify import NoteError, Options, Unusable, verify_database

_NAMES = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
UNKNOWN = "UNKNOWN"


def verdict_of(scope: PackScope) -> dict[str, Any]:
    """The verifier's report over the period of the scope; `UNKNOWN` where it could not look, with the reason."""
    ran_at = rfc3339(timezone.now())
    try:
        report = verify_database(_conninfo(), Options(since=scope.since, until=scope.until)).as_json()
    except (Unusable, NoteError) as error:
        report = {"verdict": UNKNOWN, "counts": {}, "findings": [], "notes": [str(error)]}
    return {"ran_at": ran_at, "since": scope.since.isoformat(), "until": scope.until.isoformat(), **report}


def _conninfo() -> str:
    """The connection of the site, as libpq reads it."""
    known = connection.settings_dict
    pairs = ((theirs, str(known[ours])) for ours, theirs in _NAMES.items() if known.get(ours))
    return " ".join(f"{name}='{_escaped(value)}'" for name, value in pairs)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("'", "\\'")
