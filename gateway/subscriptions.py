"""What clients ask to be told of: `subscriptions/listen` (MCP 2026-07-28, basic/patterns/subscriptions), and what older
clients hear of on the stream of their session: changes of lists, and of resources that they subscribed to.

To hear of a resource is a use of it: the pipeline finds the grant, spends the budget, has its source subscribed to, and
puts it on record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, NamedTuple

import orjson

from access import policy
from gateway import answers, wire
from gateway.auth import bearer_of
from gateway.hearing import Hearing
from gateway.http import takes_events
from gateway.listening import CHANGES, Listener, TooManyStreams
from gateway.mail import Mail
from gateway.replies import Reply
from gateway.sessions import Session, Sessions, SessionsAway
from gateway.terms import Answer, Refused
from gateway.visits import Handler, Visit
from gateway.wire import Id, Message, WireError
from tools.templates import is_uri

SUBSCRIBE, _UNSUBSCRIBE = "resources/subscribe", "resources/unsubscribe"
_ACKNOWLEDGED = "notifications/subscriptions/acknowledged"
_RESOURCES = "resourceSubscriptions"
_MOST_URIS = 100
_ALL_LISTS = frozenset(change.method for change in CHANGES)
# The letter to whichever worker has the stream of a session: it wants to hear of a resource, or no more.
_WANTED = "subscriptions.wanted"

# Has the source of a resource subscribed to, on somebody's behalf. Raises Refused.
Subscribe = Callable[[Message, Visit, Reply, str], Awaitable[Answer]]


class Filter(NamedTuple):
    """What a client wants to be told of."""

    lists: frozenset[str]
    uris: tuple[str, ...]


class Subscriptions:
    """Serves them at one worker. `attend` is for the stream of a session."""

    def __init__(self, hearing: Hearing, sessions: Sessions, mail: Mail, subscribe: Subscribe) -> None:
        self._hearing, self._listening = hearing, hearing.listening
        self._sessions, self._mail, self._subscribe = sessions, mail, subscribe
        # Session → its stream.
        self._attending: dict[str, Listener] = {}
        self.modern: dict[str, Handler] = {"subscriptions/listen": self._listen}
        self.legacy: dict[str, Handler] = {SUBSCRIBE: self._want, _UNSUBSCRIBE: self._want_no_more}
        mail.on(_WANTED, self._hear_of_wish)

    # --- MCP 2026-07-28 -----------------------------------------------------------------------------------------------

    async def _listen(self, message: Message, visit: Visit, reply: Reply) -> tuple[int, bytes]:
        """Serve one stream until the client or the server ends it."""
        if not takes_events(visit.headers):
            said = "subscriptions/listen is answered with an event stream: accept text/event-stream."
            raise WireError(wire.INVALID_REQUEST, said, status=406)
        wanted = _filter(message.params.get("notifications"))
        over = _never()
        tell = partial(_tell, reply, message.identifier)
        listener = Listener(bearer_of(visit.headers), visit.toolset, wanted.lists, tell, partial(_end, over))
        try:
            self._listening.admit(visit.principal.user_id)
            honoured = [uri for uri in wanted.uris if await self._is_watched(uri, listener, message, visit, reply)]
            self._listening.join(listener, visit.principal)
            told: dict[str, Any] = {change.wanted: True for change in CHANGES if change.method in wanted.lists}
            tell(_ACKNOWLEDGED, {"notifications": told | ({_RESOURCES: honoured} if honoured else {})})
            reply.check()
            await over
        except TooManyStreams as error:
            raise _too_many(error) from error
        finally:
            self._listening.leave(listener)
        meta = {wire.SUBSCRIPTION_KEY: message.identifier, wire.SERVER_INFO_KEY: answers.SERVER}
        return 200, wire.result_body(message.identifier, {"resultType": "complete", "_meta": meta})

    async def _is_watched(self, uri: str, listener: Listener, message: Message, visit: Visit, reply: Reply) -> bool:
        """Whether the listener is told of the resource from now on. Raises WireError when that cannot be on record."""
        try:
            return (await self._watched(uri, listener, message, visit, reply)).code == "ok"
        except Refused as refusal:
            if refusal.code in ("ledger_unavailable", "outcome_unknown"):
                raise WireError(wire.UNAVAILABLE, str(refusal), status=503, retry_after=2) from refusal
            return False

    async def _watched(self, uri: str, listener: Listener, message: Message, visit: Visit, reply: Reply) -> Answer:
        """Have the source subscribed to, for the listener. Raises Refused."""
        found = policy.find_offered(visit.snapshot, visit.principal, "resource", uri, visit.toolset)
        if found is None:
            return await self._subscribe(message, visit, reply, uri)  # which refuses, on record
        source, is_watched = found[0].source.source.id, False
        self._listening.watch(listener, source, uri)
        try:
            answer = await self._subscribe(message, visit, reply, uri)
            is_watched = answer.code == "ok"
            return answer
        finally:
            if not is_watched:
                self._listening.unwatch(listener, source, uri)

    def admit(self, user_id: int) -> None:
        """Raises WireError (429) when the user can have no other stream here."""
        try:
            self._listening.admit(user_id)
        except TooManyStreams as error:
            raise _too_many(error) from error

    # --- Older revisions ----------------------------------------------------------------------------------------------

    async def attend(self, visit: Visit, reply: Reply) -> None:
        """Tell the stream of a session what it wants to hear, until it ends. Raises WireError."""
        session = visit.session
        assert session is not None
        over = _never()
        listener = Listener(
            bearer_of(visit.headers), visit.toolset, _ALL_LISTS, partial(_tell_plainly, reply), partial(_end, over)
        )
        try:
            self._listening.join(listener, visit.principal)
            self._attending[session.id] = listener
            for uri in session.subscribed:
                await self._watch_anyway(listener, uri)
            await self._tell_missed(listener, visit, session)
            reply.check()
            await over
        except TooManyStreams as error:
            raise _too_many(error) from error
        finally:
            self._listening.leave(listener)
            if self._attending.get(session.id) is listener:
                del self._attending[session.id]
                await self._remember(visit, session)

    async def _tell_missed(self, listener: Listener, visit: Visit, session: Session) -> None:
        """Which lists are not as they were when the client last had a stream."""
        now = self._listening.marks(visit.principal, visit.toolset)
        for change, before, mark in zip(CHANGES, session.lists, now, strict=False):
            if before != mark:
                listener.tell(change.method, {})
        await self._remember(visit, session)

    async def _remember(self, visit: Visit, session: Session) -> None:
        marks = self._listening.marks(visit.principal, visit.toolset)
        if marks != session.lists:
            try:
                await self._sessions.change(session, lists=marks)
            except SessionsAway:
                return  # then the client may be told of what it knows

    async def _want(self, message: Message, visit: Visit, reply: Reply) -> tuple[int, bytes]:
        """resources/subscribe: whichever worker has the stream of the session, or gets it, tells of the resource."""
        uri, session = _uri(message), _needed(visit)
        if len({*session.subscribed, uri}) > _MOST_URIS:
            raise _wrong(f"A session subscribes to at most {_MOST_URIS} resources.", status=200)
        held = Listener(bearer_of(visit.headers), visit.toolset, frozenset(), _tell_nobody, _tell_nobody)
        try:
            try:
                body = answers.used(message, await self._watched(uri, held, message, visit, reply))
            except Refused as refusal:
                return 200, answers.refused(message, refusal)
            await self._change(session, lambda kept: tuple(dict.fromkeys((*kept.subscribed, uri))))
            await self._mail.broadcast(_WANTED, {"session": session.id, "uri": uri, "wanted": True})
        finally:
            self._listening.leave(held)
        return 200, body

    async def _want_no_more(self, message: Message, visit: Visit, reply: Reply) -> tuple[int, bytes]:
        """resources/unsubscribe."""
        uri, session = _uri(message), _needed(visit)
        await self._change(session, lambda kept: tuple(each for each in kept.subscribed if each != uri))
        await self._mail.broadcast(_WANTED, {"session": session.id, "uri": uri, "wanted": False})
        return 200, wire.result_body(message.identifier, {})

    async def _change(self, session: Session, subscribed: Callable[[Session], tuple[str, ...]]) -> None:
        try:
            changed = await self._sessions.edit(session, lambda kept: kept._replace(subscribed=subscribed(kept)))
        except SessionsAway as error:
            raise WireError(
                wire.UNAVAILABLE,
                "Sessions cannot be changed at this moment. Try again in a few seconds.",
                status=503,
                data={answers.CODE: "sessions_unavailable"},
                retry_after=2,
            ) from error
        if changed is None:
            raise WireError(
                wire.INVALID_REQUEST, "This session has ended: begin a new one with initialize.", status=404
            )

    def _hear_of_wish(self, letter: dict[str, Any]) -> None:
        listener = self._attending.get(letter["session"])
        if listener is None:
            return
        if letter["wanted"]:
            self._hearing.start(self._watch_anyway(listener, letter["uri"]))
        else:
            for source, uri in tuple(listener.watched):
                if uri == letter["uri"]:
                    self._listening.unwatch(listener, source, uri)

    async def _watch_anyway(self, listener: Listener, uri: str) -> None:
        """Watch what was asked for, and put on record, before: at whatever worker."""
        source = self._listening.source_of(listener, uri)
        if source is not None:
            self._listening.watch(listener, source, uri)
            await self._hearing.watch_again(source, uri)


def _filter(wanted: Any) -> Filter:
    if not isinstance(wanted, dict):
        raise _wrong("subscriptions/listen needs notifications (object): what it is to hear of.")
    if any(not isinstance(wanted.get(change.wanted, False), bool) for change in CHANGES):
        raise _wrong(f"{', '.join(change.wanted for change in CHANGES)} are true or false.")
    uris = wanted.get(_RESOURCES, [])
    if not isinstance(uris, list) or len(uris) > _MOST_URIS or not all(isinstance(u, str) and is_uri(u) for u in uris):
        raise _wrong(f"{_RESOURCES} is a list of at most {_MOST_URIS} URIs.")
    lists = frozenset(change.method for change in CHANGES if wanted.get(change.wanted))
    return Filter(lists, tuple(dict.fromkeys(uris)))


def _uri(message: Message) -> str:
    uri = message.params.get("uri")
    if not isinstance(uri, str) or not is_uri(uri):
        raise _wrong("A uri has a scheme and visible ASCII characters, at most 1,024.", status=200)
    return uri


def _needed(visit: Visit) -> Session:
    if visit.session is None:
        said = "Subscribing needs a session: send the Mcp-Session-Id that the answer to initialize has as a header."
        raise WireError(wire.INVALID_REQUEST, said)
    return visit.session


def _never() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


def _end(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)


def _tell(reply: Reply, identifier: Id, method: str, params: dict[str, Any]) -> None:
    _tell_plainly(reply, method, {"_meta": {wire.SUBSCRIPTION_KEY: identifier}, **params})


def _tell_plainly(reply: Reply, method: str, params: dict[str, Any]) -> None:
    reply.event(orjson.dumps({"jsonrpc": "2.0", "method": method} | ({"params": params} if params else {})))


def _tell_nobody(*said: Any) -> None:
    """Of a subscription that is only held."""


def _too_many(error: TooManyStreams) -> WireError:
    said = f"{error} Close one, or try again later."
    code = "too_many_listeners"
    return WireError(wire.UNAVAILABLE, said, status=429, data={answers.CODE: code}, retry_after=30)


def _wrong(said: str, status: int = 400) -> WireError:
    return WireError(wire.INVALID_PARAMS, said, status=status)
