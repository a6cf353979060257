"""Who asks, as a comment at the end of a statement (google.github.io/sqlcommenter/spec), for the database's own log."""

from __future__ import annotations

import re
from urllib.parse import quote

from tools.connectors.base import Context

_LONGEST = 150
_PLAIN = re.compile(r"[A-Za-z0-9_.~-]{1,150}").fullmatch


def comment(context: Context) -> bytes:
    """The comment on a line of its own: what else ends the statement cannot swallow it, nor can a value end it."""
    said = {
        "actor": context.actor,
        "call": str(context.call_id),
        "on_behalf_of": context.on_behalf_of,
        "tool": context.tool,
        "traceparent": context.traceparent,
    }
    pairs = (f"{name}='{_encoded(value)}'" for name, value in said.items() if value)
    return f"\n/*{','.join(pairs)}*/".encode()


def _encoded(value: str) -> str:
    """Percent-encoded: letters, digits and `_.-~` stay as they are."""
    return value if _PLAIN(value) else quote(value[:_LONGEST], safe="", errors="replace")
