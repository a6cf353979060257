"""Who stands at the door of /mcp, and what serves them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from access.snapshot import Principal, Snapshot
from gateway import wire
from gateway.replies import Reply
from gateway.sessions import Session
from gateway.wire import Message


class Visit(NamedTuple):
    """Who came, from where, and under which policy."""

    snapshot: Snapshot
    principal: Principal
    toolset: str | None
    headers: wire.Headers
    address: str
    request_id: str
    # That of a client of an older revision which has one.
    session: Session | None = None

    def client(self, message: Message | None = None) -> str | None:
        """The client's name: as it says in MCP, or else in HTTP."""
        named = message.client if message else None
        if named is None and self.session is not None:
            named = self.session.client
        return named or self.headers.get(b"user-agent", b"").decode("latin-1")[:200] or None


# Gives the HTTP status and the body of the answer. Raises WireError.
Handler = Callable[[Message, Visit, Reply], Awaitable[tuple[int, bytes]]]
# Takes a notification or a response, which is not answered.
Taker = Callable[[Message, Visit], Awaitable[None]]
