"""Sessions of clients of the older revisions, in Redis: whichever worker a request reaches knows what was agreed.

A session never authenticates: the bearer does, with each request. It is bound to its user and token, since another
token of the same user may open less; to others it looks as if it had ended. Requests of one turn of the event loop ask
Redis together, which costs a third of asking one by one.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from django.conf import settings
from redis.asyncio.client import Pipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import WatchError

from access.snapshot import Principal
from gateway.limits import Budgets
from gateway.mail import AWAY, Mail
from gateway.redis_client import connected
from tools import exact

logger = logging.getLogger("gateway.sessions")

_ID = re.compile("[0-9a-f]{32}")
# A session that was opened and never used needs not be kept as long as others.
_UNUSED_SECONDS = 300
_MOST_BYTES = 16 * 1024
_TIMEOUT_SECONDS = 0.25
_AWAY_SECONDS = 2.0
_BATCH = 256
# Session → until when it lives, as far as it was told.
_ALL = "mcpsite:sessions"
_LISTED_SECONDS = 60.0
# The letters that tell all workers of it.
ENDED, CHANGED = "sessions.ended", "sessions.changed"
# How long what was found serves further requests, should the letter be lost that says that it changed.
_KNOWN_SECONDS = 1.0
_MOST_KNOWN = 10_000


class SessionsAway(Exception):
    """Redis does not answer, so that nothing is known of any session."""


class TooLarge(Exception):
    """What the client declared of itself is more than is kept."""


class Session(NamedTuple):
    """What was agreed with a client, and what it wants since."""

    id: str
    user_id: int
    # The public part of the token that began it.
    token: str
    revision: str
    client: str | None
    capabilities: Mapping[str, Any]
    # The least level of log messages that the client wants; None: it did not say.
    log_level: str | None = None
    # URIs of resources whose changes it wants to hear of.
    subscribed: tuple[str, ...] = ()
    # Marks of the lists as they were when it last had a stream.
    lists: tuple[str, ...] = ()


class Sessions:
    """Opens, finds, changes and ends sessions. One for each process."""

    def __init__(self, url: str, budgets: Budgets, mail: Mail) -> None:
        self._budgets, self._mail = budgets, mail
        self._waiting: list[tuple[str, asyncio.Future[bytes | None]]] = []
        self._asking: asyncio.Task[None] | None = None
        self._away_until = 0.0
        # Those of whom the list of all has been told, and those of whom it is to be told with the next question.
        self._listed: set[str] = set()
        self._unlisted: list[str] = []
        self._listed_since = 0.0
        # Nothing here does harm when it is done twice, and a pooled connection may have been closed meanwhile.
        self._redis = connected(url, _TIMEOUT_SECONDS, retry=Retry(NoBackoff(), 1))
        # Until when what was found is good, and how often any worker said that something changed.
        self._known: dict[str, tuple[float, Session]] = {}
        self._changes = 0
        mail.on(CHANGED, self._hear)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def open(
        self, principal: Principal, revision: str, client: str | None, capabilities: Mapping[str, Any]
    ) -> Session | None:
        """A new session of the principal. None when it opens more of them than it may call tools, or Redis is away: it
        is served without one then. Raises TooLarge.
        """
        session = Session(secrets.token_hex(16), principal.user_id, principal.token, revision, client, capabilities)
        packed = _packed(session)
        if len(packed) > _MOST_BYTES:
            raise TooLarge(f"capabilities and clientInfo may have {_MOST_BYTES} bytes together.")
        if await self._budgets.spend(principal.user_id, "session", settings.CALLS_PER_MINUTE):
            return None
        try:
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.set(_key(session.id), packed, ex=_UNUSED_SECONDS)
            pipeline.zadd(_ALL, {session.id: time.time() + _UNUSED_SECONDS})
            await pipeline.execute()
        except AWAY as error:
            self._note_away(error)
            return None
        return session

    async def find(self, identifier: str, user_id: int, token: str) -> Session | None:
        """The session, which lives on from now; None when it has ended, or is not of the user with this token (the
        public part of it). Raises SessionsAway.
        """
        if _ID.fullmatch(identifier) is None:
            return None
        if time.monotonic() < self._away_until:
            raise SessionsAway
        found = await self._ask(identifier)
        if found is None:
            return None
        session = _unpacked(identifier, found)
        if session is None or (session.user_id, session.token) != (user_id, token):
            return None
        if identifier not in self._listed:
            self._listed.add(identifier)
            self._unlisted.append(identifier)
        return session

    async def known(self, identifier: str, user_id: int, token: str) -> Session | None:
        """As `find`, without asking Redis again for what was found within the last second: a client that is busy costs
        no more than one that has no session. What a worker changes or ends, all forget at once.
        """
        good_until, session = self._known.get(identifier, (0.0, None))
        if session is not None and time.monotonic() < good_until:
            return session if (session.user_id, session.token) == (user_id, token) else None
        changes = self._changes
        session = await self.find(identifier, user_id, token)
        if session is not None and changes == self._changes:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[identifier] = (time.monotonic() + _KNOWN_SECONDS, session)
        return session

    def _hear(self, letter: dict[str, Any]) -> None:
        self._changes += 1
        self._known.pop(str(letter.get("session")), None)

    async def change(self, session: Session, **fields: Any) -> Session | None:
        """The session with these fields changed, for all workers; None when it has ended. Raises SessionsAway."""
        return await self.edit(session, lambda kept: kept._replace(**fields))

    async def edit(self, session: Session, edit: Callable[[Session], Session]) -> Session | None:
        """The session as `edit` makes it of what is kept, whoever else changes it. As `change` otherwise."""
        key = _key(session.id)
        try:
            async with self._redis.pipeline() as pipeline:
                while True:
                    await pipeline.watch(key)
                    found = await pipeline.get(key)
                    kept = _unpacked(session.id, found) if found is not None else None
                    if kept is None:
                        return None
                    changed = edit(kept)
                    pipeline.multi()  # type: ignore[no-untyped-call]
                    pipeline.set(key, _packed(changed), keepttl=True)
                    try:
                        await pipeline.execute()
                        break
                    except WatchError:
                        continue
        except AWAY as error:
            raise self._note_away(error) from error
        await self._mail.broadcast(CHANGED, {"session": session.id})
        return changed

    async def end(self, session: Session) -> None:
        """End it for all workers, and have them close its streams. Raises SessionsAway."""
        try:
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.delete(_key(session.id))
            pipeline.zrem(_ALL, session.id)
            await pipeline.execute()
        except AWAY as error:
            raise self._note_away(error) from error
        for kind in (CHANGED, ENDED):
            await self._mail.broadcast(kind, {"session": session.id})

    async def number(self, session: Session) -> int:
        """A number that is larger than those before it, of whatever worker: the reader of a stream with the largest is
        the newest. Raises SessionsAway.
        """
        key = f"mcpsite:reading:{session.id}"
        try:
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.incr(key)
            pipeline.expire(key, 2 * settings.MCP_SESSION_SECONDS)
            number, _ = await pipeline.execute()
        except AWAY as error:
            raise self._note_away(error) from error
        return int(number)

    async def count(self) -> int | None:
        """How many sessions live, give or take those of the last minute; None when Redis is away."""
        try:
            return int(await self._redis.zcount(_ALL, time.time(), "+inf"))
        except AWAY:
            return None

    # --- Asking Redis -------------------------------------------------------------------------------------------------

    def _ask(self, identifier: str) -> asyncio.Future[bytes | None]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes | None] = loop.create_future()
        self._waiting.append((identifier, answer))
        if self._asking is None:
            self._asking = loop.create_task(self._ask_all())
        return answer

    async def _ask_all(self) -> None:
        """Ask for all that wait, together; who comes meanwhile is of the next round."""
        try:
            await asyncio.sleep(0)  # the others of this turn
            while self._waiting:
                asked, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
                await self._ask_for(asked)
        finally:
            self._asking = None

    async def _ask_for(self, asked: list[tuple[str, asyncio.Future[bytes | None]]]) -> None:
        try:
            pipeline = self._redis.pipeline(transaction=False)
            for identifier, _ in asked:
                pipeline.execute_command("GETEX", _key(identifier), "EX", settings.MCP_SESSION_SECONDS)
            self._list_more(pipeline)
            found = await pipeline.execute()
        except AWAY as error:
            self._note_away(error)
            asked, self._waiting = asked + self._waiting, []
            for _, answer in asked:
                if not answer.done():
                    answer.set_exception(SessionsAway(str(error)))
            return
        for (_, answer), value in zip(asked, found, strict=False):
            if not answer.done():
                answer.set_result(value)

    def _list_more(self, pipeline: Pipeline) -> None:
        """Keep the list of all sessions, by which they are counted: what is used once a minute, what is over goes."""
        now = time.time()
        if self._unlisted:
            listed, self._unlisted = self._unlisted, []
            pipeline.zadd(_ALL, dict.fromkeys(listed, now + settings.MCP_SESSION_SECONDS))
        if now - self._listed_since > _LISTED_SECONDS:
            self._listed_since = now
            self._listed.clear()
            pipeline.zremrangebyscore(_ALL, "-inf", now)

    def _note_away(self, error: BaseException) -> SessionsAway:
        if time.monotonic() >= self._away_until:
            logger.warning("Redis is away, clients of older revisions are served without their sessions: %s", error)
        self._away_until = time.monotonic() + _AWAY_SECONDS
        return SessionsAway(str(error))


def _key(identifier: str) -> str:
    return f"mcpsite:session:{identifier}"


def _packed(session: Session) -> bytes:
    return exact.written(session[1:])


def _unpacked(identifier: str, packed: bytes | str) -> Session | None:
    """The session, unless another version of this program wrote it in another way: then it has ended."""
    fields = exact.taken(packed)
    if len(fields) != len(Session._fields) - 1:
        return None
    user_id, token, revision, client, capabilities, log_level, *lists = fields
    return Session(identifier, user_id, token, revision, client, capabilities, log_level, *map(tuple, lists))
