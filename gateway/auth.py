"""The bearer of a request becomes a principal, and who is turned away at the door is on record, but cannot flood it."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid

import orjson
import psycopg

from access import policy
from access.snapshot import Principal, Snapshot
from access.tokens import InvalidToken, shown
from audit.floods import source_of, turned_away
from audit.ledger import Entry, Ledger
from gateway import wire
from gateway.unread import Unread
from gateway.wire import WireError

logger = logging.getLogger("gateway.auth")

_USE_SECONDS = 5.0
_USED = (
    "INSERT INTO access_tokenuse (token_id, last_used_at, last_address) "
    "SELECT %s, to_timestamp(%s), %s WHERE EXISTS (SELECT FROM access_apitoken WHERE id = %s) "
    "ON CONFLICT (token_id) DO UPDATE SET last_used_at = excluded.last_used_at, last_address = excluded.last_address"
)


def bearer_of(headers: wire.Headers) -> str:
    """The token of a request that was admitted."""
    return headers[b"authorization"].decode("latin-1").partition(" ")[2].strip()


class Doorman:
    """Admits principals. Notes the last use of tokens every few seconds, away from the call path.

    `unread` takes what is refused for another reason before it is read.
    """

    def __init__(self, conninfo: str, ledger: Ledger) -> None:
        self._conninfo = conninfo
        self._ledger = ledger
        self.unread = Unread(ledger)
        self._used: dict[uuid.UUID, tuple[float, str]] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to note the use of tokens."""
        self._task = asyncio.create_task(self._note_uses())

    async def stop(self) -> None:
        """Note what is left, then stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._tell_counted(at_once=True)
            await self._write_uses()

    def admit(self, snapshot: Snapshot, headers: wire.Headers, address: str, request_id: str) -> Principal:
        """The principal of the request's bearer token. Raises WireError (401)."""
        scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        try:
            if scheme.lower() != "bearer":
                raise InvalidToken
            principal = policy.principal_of(snapshot, token.strip())
        except InvalidToken as error:
            self._turn_away(address, headers, request_id, token.strip(), error.reason)
            message = "A valid token is needed: send it as `Authorization: Bearer …`."
            raise WireError(wire.INVALID_REQUEST, message, status=401) from error
        if principal.token_id is not None:
            self._used[principal.token_id] = (time.time(), address)
        return principal

    def _turn_away(self, address: str, headers: wire.Headers, request_id: str, token: str, reason: str) -> None:
        """One record for each address and minute, which says how many more there were."""
        before = turned_away().take(source_of(address))
        if before is None:
            return
        detail = {"reason": reason if token else "none"} | ({"unrecorded_before": before} if before else {})
        agent = headers.get(b"user-agent", b"").decode("latin-1")
        self._ledger.put(
            Entry(kind="auth", code="invalid_token", decision="deny", door="mcp", address=address, client=agent,
                  request_id=request_id, token=shown(token), detail=orjson.dumps(detail).decode())
        )  # fmt: skip

    def _tell_counted(self, *, at_once: bool = False) -> None:
        """Record what was only counted, by whatever door it came, when its minute is over."""
        self.unread.tell_counted(at_once=at_once)
        for source, times, sources in turned_away().counted(at_once=at_once):
            told = {"unrecorded_before": times} | ({} if source else {"addresses": sources})
            detail = orjson.dumps(told).decode()
            self._ledger.put(Entry(kind="auth", code="invalid_token", decision="deny", address=source, detail=detail))

    async def _note_uses(self) -> None:
        while True:
            await asyncio.sleep(_USE_SECONDS)
            self._tell_counted()
            await self._write_uses()

    async def _write_uses(self) -> None:
        if not self._used:
            return
        used, self._used = self._used, {}
        rows = [(token, at, address, token) for token, (at, address) in sorted(used.items())]
        try:
            connection = await psycopg.AsyncConnection.connect(self._conninfo, connect_timeout=5)
            async with connection, connection.cursor() as cursor:
                await cursor.executemany(_USED, rows)
        except (psycopg.Error, OSError) as error:
            logger.warning("the last use of %d tokens could not be noted: %s", len(rows), str(error).strip())
