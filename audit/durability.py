"""Whether PostgreSQL keeps what it has committed: a ledger on a database that may forget is none."""

from __future__ import annotations

from collections.abc import Iterable

# A session can ask for more than the server's `synchronous_commit`; the other two are the server's alone.
SWITCHED_OFF = """
SELECT name FROM pg_settings WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off'
"""


def complaint(switched_off: Iterable[str]) -> str:
    """What to say of a server with these settings switched off; empty when there are none."""
    names = sorted(switched_off)
    if not names:
        return ""
    which = f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} off"
    return f"PostgreSQL can lose what it has committed: {which}. Switch that on (ALTER SYSTEM, postgresql.conf)."
