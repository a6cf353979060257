"""What only clients of the older revisions do: begin a session, read its event streams, answer in it, end it.

MCP 2025-11-25, basic/transports, "Streamable HTTP". Without Redis a session id is taken at its word, and what can do
without a session is served as if there were none.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import orjson

from audit.floods import Flood
from audit.ledger import Entry, Ledger
from gateway import answers, reads, wire
from gateway.auth import bearer_of
from gateway.clients import LEVELS
from gateway.events import Events, EventsAway, Place
from gateway.http import takes_events
from gateway.listening import Listening
from gateway.mail import Mail
from gateway.questions import Questions
from gateway.replies import Reply
from gateway.sessions import ENDED, Session, Sessions, SessionsAway, TooLarge
from gateway.visits import Handler, Taker, Visit
from gateway.wire import Message, WireError

SESSION = b"mcp-session-id"
_READING = "legacy.reading"
# The stream of a session that belongs to no request; ids of its events begin so.
_OWN = "get"
# The first revision whose streams begin with an event without data.
_PRIMED = "2025-11-25"
# What may take its time becomes a stream after a while, which the client can come back to.
_LONG = reads.METHODS | {"tools/call"}
_LONG_SECONDS = 0.5
# How often an open stream makes sure of its session, which lives on by that.
_SURE_SECONDS = 60.0
_AGAIN_SECONDS = 1.0
# Streams of one user that are read on at each worker: each holds a connection to Redis.
_MOST_RESUMED = 20


class Legacy:
    """Sessions as HTTP has them. `attend` is what an open stream of a session does until it is cancelled, and `admit`
    refuses one too many of a user.
    """

    def __init__(
        self,
        sessions: Sessions,
        events: Events,
        questions: Questions,
        mail: Mail,
        ledger: Ledger,
        listening: Listening,
    ) -> None:
        self._sessions, self._events, self._questions = sessions, events, questions
        self._mail, self._ledger, self._listening = mail, ledger, listening
        self._begun = Flood()
        # Whoever reads a stream of a session here: (session, stream) → its number, and where it reads.
        self._readers: dict[tuple[str, str], tuple[int, Reply]] = {}
        self._resumed: Counter[int] = Counter()
        self._is_closed = False
        self.admit: Callable[[int], None] = lambda user_id: None
        self.attend: Callable[[Visit, Reply], Awaitable[None]] = _wait
        self.methods: dict[str, Handler] = {"initialize": self._initialize, "logging/setLevel": self._set_level}
        self.unanswered: dict[str, Taker] = {"": self._take_answer}
        mail.on(_READING, self._hear_of_reader)
        mail.on(ENDED, self._hear_of_end)

    def __len__(self) -> int:
        return len(self._readers)

    def close(self) -> None:
        """Let no other stream be read on here: their clients go on at another worker."""
        self._is_closed = True

    # --- A request in a session ---------------------------------------------------------------------------------------

    async def bind(self, message: Message, visit: Visit) -> tuple[Message, Visit]:
        """The request as one of its session, if it names one. Raises WireError (404) when that has ended."""
        if message.modern or message.method == "initialize" or SESSION not in visit.headers:
            return message, visit
        try:
            session = await self._session_of(visit, self._sessions.known)
        except SessionsAway:
            return message, visit
        client = message.client or session.client
        message = message._replace(version=session.revision, client=client, capabilities=session.capabilities)
        return message, visit._replace(session=session)

    def keep(self, message: Message, visit: Visit, session: Session, reply: Reply) -> None:
        """Have what is said of this request kept, so that a client that loses the answer can come back for it."""
        if reply.log is not None:  # of a batch, which has one stream
            return
        reply.log = self._events.log(session, message.identifier)
        if session.revision >= _PRIMED:
            reply.primes = True
            named = b"text/event-stream" in visit.headers.get(b"accept", b"")
            if message.method in _LONG and named and takes_events(visit.headers):
                reply.open_after(_LONG_SECONDS)

    async def _session_of(self, visit: Visit, found: Callable[[str, int, str], Awaitable[Session | None]]) -> Session:
        who, identifier = visit.principal, visit.headers[SESSION].decode("latin-1")
        session = await found(identifier, who.user_id, who.token)
        if session is None:
            raise _ended()
        return session

    async def _needed(self, visit: Visit) -> Session:
        """The session of a request that makes no sense without one. Raises WireError (400, 404, 503)."""
        if visit.session is not None:
            return visit.session
        if SESSION not in visit.headers:
            message = "This needs a session: send the Mcp-Session-Id that the answer to initialize has as a header."
            raise WireError(wire.INVALID_REQUEST, message)
        try:
            return await self._session_of(visit, self._sessions.find)
        except SessionsAway as error:
            raise _away() from error

    async def _initialize(self, message: Message, visit: Visit, reply: Reply) -> tuple[int, bytes]:
        revision = answers.negotiated(message)
        capabilities = message.params.get("capabilities", {})
        if not isinstance(capabilities, dict):
            raise WireError(wire.INVALID_PARAMS, "capabilities must be an object.", status=200)
        try:
            session = await self._sessions.open(visit.principal, revision, message.client, capabilities)
        except TooLarge as error:
            raise WireError(wire.INVALID_PARAMS, f"This is too much: {error}", status=200) from error
        if session is not None:
            reply.headers = [(SESSION, session.id.encode())]
            self._record("session_opened", visit, session)
        return 200, answers.initialized(message, revision, in_session=session is not None)

    async def _set_level(self, message: Message, visit: Visit, reply: Reply) -> tuple[int, bytes]:
        level = message.params.get("level")
        if level not in LEVELS:
            raise WireError(wire.INVALID_PARAMS, f"level must be one of {', '.join(LEVELS)}.", status=200)
        session = await self._needed(visit)
        try:
            if await self._sessions.change(session, log_level=level) is None:
                raise _ended()
        except SessionsAway as error:
            raise _away() from error
        return 200, wire.result_body(message.identifier, {})

    async def _take_answer(self, message: Message, visit: Visit) -> None:
        """A client's answer to what it was asked. 404 would have it begin a new session: nobody asked is 400."""
        session = await self._needed(visit)
        if not await self._questions.answered(session, message.params):
            raise WireError(wire.INVALID_REQUEST, "Nobody waits for this answer (any more): it is dropped.")

    # --- GET and DELETE -----------------------------------------------------------------------------------------------

    async def serve(self, method: str, visit: Visit, reply: Reply) -> tuple[int, bytes]:
        """GET reads a stream of the session, DELETE ends it. Raises WireError."""
        session = await self._needed(visit)
        visit = visit._replace(session=session)
        if method == "DELETE":
            return await self._end(visit, session)
        said = visit.headers.get(b"last-event-id", b"").decode("latin-1")
        reply.ends_with_client()
        try:
            if not said or said.startswith(f"{_OWN}."):
                await self._read_own(visit, session, reply)
            else:
                await self._read_on(visit, session, said, reply)
        except (SessionsAway, EventsAway) as error:
            if not reply.is_open:
                raise _away() from error
        return 200, b""  # the end of the stream: the client comes back to it

    async def _end(self, visit: Visit, session: Session) -> tuple[int, bytes]:
        try:
            await self._sessions.end(session)
        except SessionsAway as error:
            raise _away() from error
        self._record("session_ended", visit, session)
        return 200, b""

    async def _read_own(self, visit: Visit, session: Session, reply: Reply) -> None:
        """What belongs to no request, for as long as the client stays and its session lives."""
        self.admit(session.user_id)
        number = await self._sessions.number(session)
        with self._reading(session, _OWN, number, reply):
            await self._tell_reading(session, _OWN, number)
            reply.open()
            if session.revision >= _PRIMED:
                reply.prime(f"{_OWN}.{number}")
            await self._attended(visit, session, reply)

    async def _attended(self, visit: Visit, session: Session, reply: Reply) -> None:
        attending = asyncio.ensure_future(self.attend(visit, reply))
        try:
            reply.check()
            while not (await asyncio.wait({attending}, timeout=_SURE_SECONDS))[0]:
                if not await self._lives(session):
                    return
                reply.check()
            attending.result()
        finally:
            while not attending.done():  # It may swallow that, too.
                attending.cancel()
                await asyncio.wait({attending}, timeout=_AGAIN_SECONDS)

    async def _lives(self, session: Session) -> bool:
        try:
            return await self._sessions.find(session.id, session.user_id, session.token) is not None
        except SessionsAway:
            return True

    async def _read_on(self, visit: Visit, session: Session, event_id: str, reply: Reply) -> None:
        """What a client missed of a stream, and what is still to come of it."""
        place = Place.of(event_id)
        if place is None:
            raise WireError(wire.INVALID_REQUEST, "Last-Event-ID is not the id of an event of ours.")
        self.admit(session.user_id)
        bearer = bearer_of(visit.headers)
        with self._counted(session), self._listening.staying(bearer, visit.toolset, visit.principal, reply.withdraw):
            number = await self._sessions.number(session)
            with self._reading(session, place.stream, number, reply):
                try:
                    await self._send_on(session, place, number, reply)
                except LookupError as error:
                    if not reply.is_open:
                        message = "The events after this one are not kept (any more)."
                        raise WireError(wire.INVALID_REQUEST, message) from error

    async def _send_on(self, session: Session, place: Place, number: int, reply: Reply) -> None:
        async with self._events.reading(session.id, place, partial(self._lives, session)) as events:
            await self._tell_reading(session, place.stream, number)
            reply.open()
            if session.revision >= _PRIMED:
                reply.prime(f"{place.stream}.{place.number}")
            reply.check()
            async for event in events:
                reply.check()
                reply.event(event.data, event.id)
                await reply.drain()

    # --- One reader a stream ------------------------------------------------------------------------------------------

    @contextmanager
    def _counted(self, session: Session) -> Iterator[None]:
        """Raises WireError when the user reads on in too many streams here (429), or the worker stops (503)."""
        user = session.user_id
        if self._is_closed:
            message = "This worker stops. Come back: another one goes on with the stream."
            raise WireError(wire.UNAVAILABLE, message, status=503, retry_after=1)
        if self._resumed[user] >= _MOST_RESUMED:
            message = f"You read on in {_MOST_RESUMED} streams at this worker, which is the most: close some."
            raise WireError(wire.UNAVAILABLE, message, status=429, retry_after=5)
        self._resumed[user] += 1
        try:
            yield
        finally:
            self._resumed[user] -= 1
            if not self._resumed[user]:
                del self._resumed[user]

    @contextmanager
    def _reading(self, session: Session, stream: str, number: int, reply: Reply) -> Iterator[None]:
        key = session.id, stream
        if (before := self._readers.get(key)) is not None:
            (before[1] if before[0] < number else reply).withdraw()
        if before is None or before[0] < number:
            self._readers[key] = number, reply
        try:
            yield
        finally:
            if key in self._readers and self._readers[key][1] is reply:
                del self._readers[key]

    async def _tell_reading(self, session: Session, stream: str, number: int) -> None:
        """No message may go out on two streams: whoever read this one before, at whatever worker, stops."""
        await self._mail.broadcast(_READING, {"session": session.id, "stream": stream, "number": number})

    def _hear_of_reader(self, letter: dict[str, Any]) -> None:
        key = letter["session"], letter["stream"]
        if key in self._readers and self._readers[key][0] < letter["number"]:
            self._readers.pop(key)[1].withdraw()
        self._events.taken_over(letter["stream"])

    def _hear_of_end(self, letter: dict[str, Any]) -> None:
        for key in [key for key in self._readers if key[0] == letter["session"]]:
            self._readers.pop(key)[1].withdraw()
        self._questions.drop(letter["session"])

    # --- On record ----------------------------------------------------------------------------------------------------

    def _record(self, code: str, visit: Visit, session: Session) -> None:
        """At most one record a minute for each user, token, client and code: clients may begin a session each call."""
        before = self._begun.take(f"{code} {visit.principal.user_id} {visit.principal.token} {session.client}")
        if before is None:
            return
        detail: dict[str, Any] = {"revision": session.revision, "capabilities": sorted(session.capabilities)[:20]}
        if before:
            detail["unrecorded_before"] = before
        principal = visit.principal
        self._ledger.put(
            Entry(kind="auth", code=code, decision="allow", actor=principal.username, actor_id=str(principal.user_id),
                  token=principal.token, roles=principal.role_names, door="mcp", client=session.client,
                  address=visit.address, policy_version=visit.snapshot.version, object_type="mcp.session",
                  object_id=session.id, request_id=visit.request_id, detail=orjson.dumps(detail).decode())
        )  # fmt: skip


async def _wait(visit: Visit, reply: Reply) -> None:
    await asyncio.get_running_loop().create_future()


def _ended() -> WireError:
    message = "There is no such session (any more): begin a new one with initialize."
    return WireError(wire.INVALID_REQUEST, message, status=404)


def _away() -> WireError:
    message = "Sessions cannot be looked up at this moment. Try again in a few seconds."
    code = "sessions_unavailable"
    return WireError(wire.UNAVAILABLE, message, status=503, data={answers.CODE: code}, retry_after=2)
