"""Requests that are refused before they are read: on record, as each may have been a call, and in bounds."""

from __future__ import annotations

import contextlib
from typing import Any

import orjson

from access import policy
from access.snapshot import Principal, Snapshot
from access.tokens import InvalidToken
from audit.entry import uuid7
from audit.floods import Flood, source_of
from audit.ledger import Entry, Ledger
from gateway import http, wire
from gateway.http import ASGIScope
from gateway.wire import WireError

# Methods of HTTP that carry no call.
_WITHOUT_CALL = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
# What a record says of such a request, as far as it has it.
_SHOWN_HEADERS = (b"origin", b"host", b"content-type", b"accept")
_LONGEST_SHOWN = 200


class Unread:
    """One record for each address and minute, which says how many more there were."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._flood = Flood()

    def refuse(self, scope: ASGIScope, error: WireError, snapshot: Snapshot | None, request_id: str) -> None:
        """Put the request on record, unless it carries no call; of who has no valid token, the doorman has done so.

        A foreign page or host name is on record whatever the method: browsers ask with OPTIONS whether they may call.
        """
        if error.status in (401, 503) or (error.status != 403 and scope["method"] in _WITHOUT_CALL):
            return
        headers = {name: value.strip() for name, value in scope["headers"]}
        address = http.address_of(scope, headers)
        before = self._flood.take(source_of(address))
        if before is None:
            return
        detail = {"message": error.message, "status": error.status, "method": scope["method"]}
        detail |= {name.decode(): _shown(headers, name) for name in _SHOWN_HEADERS if name in headers}
        client = _shown(headers, b"user-agent") or None
        self._put(detail, before, address=address, client=client, request_id=request_id, **_who(snapshot, headers))

    def tell_counted(self, *, at_once: bool = False) -> None:
        """Record what was only counted, when its minute is over."""
        for source, times, sources in self._flood.counted(at_once=at_once):
            self._put({} if source else {"addresses": sources}, times, address=source)

    def _put(self, detail: dict[str, Any], before: int, **said: Any) -> None:
        told = orjson.dumps(detail | ({"unrecorded_before": before} if before else {})).decode()
        entry = Entry(kind="invalid", code="refused_unread", decision="deny", call_id=uuid7(), door="mcp", detail=told)
        self._ledger.put(entry._replace(**said))


def _shown(headers: wire.Headers, name: bytes) -> str:
    return headers.get(name, b"").decode("latin-1")[:_LONGEST_SHOWN]


def _who(snapshot: Snapshot | None, headers: wire.Headers) -> dict[str, Any]:
    """Whose valid token it shows, though it is refused for something else."""
    scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if snapshot is None or scheme.lower() != "bearer":
        return {}
    with contextlib.suppress(InvalidToken):
        who: Principal = policy.principal_of(snapshot, token.strip())
        return {"actor": who.username, "actor_id": str(who.user_id), "token": who.token, "roles": who.role_names}
    return {}
