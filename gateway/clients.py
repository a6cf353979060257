"""Whoever called, as an upstream may turn to them while it works on the call: one class for each way to do so."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

import orjson

from gateway import wire
from gateway.auth import bearer_of
from gateway.http import takes_events
from gateway.questions import Questions
from gateway.replies import Reply
from gateway.sessions import Session
from gateway.visits import Visit
from gateway.wire import Id, Message, WireError
from tools import exact
from tools.connectors.base import Client, ClientError

# RFC 5424, from the least severe to the most.
LEVELS = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
# What clients of older revisions get who did not choose.
_USUAL_LEVEL = "info"
# People are asked.
_ANSWER_SECONDS = 600.0
_NOTHING: Mapping[str, Any] = {}


class Told(Client):
    """Hears on the stream of its call. What it is asked is the result of the call (MCP 2026-07-28)."""

    answers_later = True

    def __init__(
        self,
        capabilities: Mapping[str, Any],
        reply: Reply | None = None,
        progress_token: Id = None,
        log_level: str | None = None,
    ) -> None:
        self.capabilities = capabilities
        self._reply, self._token = reply, progress_token
        self.log_level, self.wants_progress = log_level, progress_token is not None
        self.chose_level = log_level is not None
        self._progress = -math.inf

    def tell(self, method: str, params: dict[str, Any]) -> None:
        """See `Client`."""
        if self._reply is None or not self._wants(method, params):
            return
        if method == "notifications/progress":
            params = {"progressToken": self._token, **params}
        try:
            event = exact.written({"jsonrpc": "2.0", "method": method, "params": params})
        except orjson.JSONEncodeError:  # Nested too deeply.
            return
        self.told += 1
        self._reply.event(event)

    def _wants(self, method: str, params: dict[str, Any]) -> bool:
        if method == "notifications/progress":
            return self.wants_progress and self._grows(params.get("progress"))
        return method != "notifications/message" or is_at_least(params.get("level"), self.log_level)

    def _grows(self, progress: object) -> bool:
        """Whether it is more than before, as it must be (basic/utilities/progress), also when a call is tried again."""
        if type(progress) not in (int, float) or progress <= self._progress:  # type: ignore[operator]
            return False
        self._progress = progress  # type: ignore[assignment]
        return True

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Raises ClientError: no request ever goes to such a client."""
        said = "This client is asked with the result of its call."
        raise ClientError({"code": wire.METHOD_NOT_FOUND, "message": said})


class LegacyClient(Told):
    """A client of an older revision, in its session: it is asked on the stream of the call, and answers by POST."""

    answers_later = False

    def __init__(self, session: Session, bearer: str, questions: Questions, reply: Reply, progress_token: Id) -> None:
        super().__init__(session.capabilities, reply, progress_token, session.log_level or _USUAL_LEVEL)
        self.chose_level = session.log_level is not None
        self._session, self._bearer, self._questions, self._stream = session, bearer, questions, reply

    def linger(self) -> None:
        """See `Client`."""
        if self._stream.primes:
            self._stream.open()

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """See `Client`. The client has ten minutes."""
        if self._stream.is_lost and self._stream.log is None:
            raise _unanswered("The client is gone.")
        with self._questions.open(self._session.id, self._bearer) as question:
            try:
                request = exact.written({"jsonrpc": "2.0", "id": question.id, "method": method, "params": params})
            except orjson.JSONEncodeError as error:
                raise _unanswered("The question is nested too deeply, or holds what JSON cannot.") from error
            self._stream.event(request)
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    response = await question.answer()
            except BaseException as error:
                withdrawn = {"requestId": question.id, "reason": "Nobody waits for the answer any more."}
                self._stream.event({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": withdrawn})
                if isinstance(error, TimeoutError):
                    raise _unanswered(f"The client gave no answer within {_ANSWER_SECONDS:g} s.") from error
                raise
        return _result_of(response)


def _result_of(response: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(error := response.get("error"), dict):
        raise ClientError(error)
    if not isinstance(result := response.get("result"), dict):
        raise _unanswered("The client's answer has neither result nor error.")
    return result


def _unanswered(said: str) -> ClientError:
    return ClientError({"code": wire.INTERNAL_ERROR, "message": said})


def is_at_least(level: object, least: str | None) -> bool:
    """Whether a message of this level is wanted by who wants the least one, or nothing at all."""
    return least is not None and level in LEVELS and LEVELS.index(str(level)) >= LEVELS.index(least)


def peer_of(message: Message, visit: Visit, reply: Reply, questions: Questions) -> Client | None:
    """Who can be told and asked about this request; None where the client wants nothing of it. Raises WireError."""
    session = None if message.modern else visit.session
    if not message.capabilities and not message.wants_news and session is None:
        return None
    stream = reply if takes_events(visit.headers) else None
    if session is not None and stream is not None:
        return LegacyClient(session, bearer_of(visit.headers), questions, stream, message.progress_token)
    capabilities = message.capabilities if message.modern else _NOTHING
    token = message.progress_token if stream else None
    level = _level_of(message) if stream and message.modern else None
    if not capabilities and token is None and level is None:
        return None
    told = Told(capabilities, stream, token, level)
    told.answers_later = message.modern
    return told


def _level_of(message: Message) -> str | None:
    level = message.log_level
    if level is not None and level not in LEVELS:
        raise WireError(wire.INVALID_PARAMS, f"A level of log messages is one of {', '.join(LEVELS)}.")
    return level
