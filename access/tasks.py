"""Jobs of access."""

from __future__ import annotations

from procrastinate.contrib.django import app

from access.tokens import forget_expired


@app.periodic(cron="41 * * * *")
@app.task(queueing_lock="access.forget", name="access.forget")
def forget(timestamp: int) -> int:
    """Delete expired sessions and refresh tokens. Returns how many."""
    return forget_expired()
