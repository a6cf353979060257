"""Requests that clients of the older revisions may withdraw, whichever worker hears of it.

Unlike a modern client's, their call goes on when the connection is lost: `notifications/cancelled` alone ends it (MCP
2025-11-25, basic/utilities/cancellation).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gateway import wire
from gateway.mail import Mail, Payload
from gateway.replies import Reply
from gateway.sessions import Session
from gateway.visits import Taker, Visit
from gateway.wire import Id, Message

_WITHDRAWN = "withdrawals.withdrawn"


class Withdrawals:
    """The requests of sessions that this worker carries out."""

    def __init__(self, mail: Mail) -> None:
        self._mail = mail
        self._open: dict[tuple[str, Id], Reply] = {}
        self.unanswered: dict[str, Taker] = {"notifications/cancelled": self._take}
        mail.on(_WITHDRAWN, self._hear)

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def of(self, session: Session, identifier: Id, reply: Reply) -> Iterator[None]:
        """While the block runs, its task is cancelled when the client withdraws the request."""
        reply.can_be_withdrawn()
        key = session.id, identifier
        self._open[key] = reply
        try:
            yield
        finally:
            if self._open.get(key) is reply:  # A client may use an id twice.
                del self._open[key]

    async def _take(self, message: Message, visit: Visit) -> None:
        """A notification for a session; what is no longer under way, or never was, is as good as withdrawn."""
        identifier = message.params.get("requestId")
        if visit.session is not None and wire.is_id(identifier):
            await self._mail.broadcast(_WITHDRAWN, {"session": visit.session.id, "request": identifier})

    def _hear(self, letter: Payload) -> None:
        if (reply := self._open.get((letter["session"], letter["request"]))) is not None:
            reply.withdraw()
