"""What is asked of a client in its session, and the answers, which may come in at any worker (gateway/mail.py).

A question names the worker that waits for its answer; only the session that was asked can answer it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from typing import Any

from access import policy
from access.snapshot import Snapshot
from access.tokens import InvalidToken
from gateway import wire
from gateway.mail import Mail
from gateway.sessions import Session
from tools import exact

_ANSWER = "questions.answer"

Response = dict[str, Any]


class Question:
    """One request to a client. As a context manager: an answer that comes after the block finds nobody."""

    def __init__(self, identifier: str, session_id: str, bearer: str, waiting: dict[str, Question]) -> None:
        # The id of the JSON-RPC request.
        self.id = identifier
        self.session_id, self.bearer = session_id, bearer
        self._waiting = waiting
        self._answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

    def __enter__(self) -> Question:
        self._waiting[self.id] = self
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.pop(self.id, None)

    async def answer(self) -> Response:
        """The client's JSON-RPC response, with `result` or `error`, as soon as it is there."""
        return await self._answer

    def take(self, response: Response) -> None:
        """Only the first answer counts."""
        if not self._answer.done():
            self._answer.set_result(response)


class Questions:
    """The questions that this worker waits for, and the way to those of the others."""

    def __init__(self, mail: Mail) -> None:
        self._mail = mail
        self._numbers = itertools.count(1)
        self._waiting: dict[str, Question] = {}
        mail.on(_ANSWER, self._hear)

    def __len__(self) -> int:
        return len(self._waiting)

    def open(self, session_id: str, bearer: str) -> Question:
        """A question to that session, to be sent under its id, as long as the token is good."""
        return Question(f"{self._mail.worker}.{next(self._numbers)}", session_id, bearer, self._waiting)

    async def answered(self, session: Session, response: Mapping[str, Any]) -> bool:
        """Hand a client's response to the worker that waits for it. False when none does."""
        identifier = response.get("id")
        if not isinstance(identifier, str):
            return False
        worker = identifier.partition(".")[0]
        if worker == self._mail.worker and identifier not in self._waiting:
            return False
        # As a text: in a letter, what is nested as deeply as a body may be would be too deep.
        letter = {"session": session.id, "question": identifier, "response": exact.written(response).decode()}
        return await self._mail.send(worker, _ANSWER, letter)

    def drop(self, session_id: str) -> None:
        """The session has ended: nobody will answer what was asked in it."""
        for question in list(self._waiting.values()):
            if question.session_id == session_id:
                question.take(_without_answer("The client has ended its session."))

    def review(self, snapshot: Snapshot) -> None:
        """Nobody can answer with a token that is not valid any more."""
        for question in list(self._waiting.values()):
            try:
                policy.principal_of(snapshot, question.bearer)
            except InvalidToken:
                question.take(_without_answer("The client's token is not valid any more."))

    def _hear(self, letter: dict[str, Any]) -> None:
        question = self._waiting.get(letter["question"])
        if question is not None and question.session_id == letter["session"]:
            question.take(exact.taken(letter["response"]))


def _without_answer(said: str) -> Response:
    return {"error": {"code": wire.INVALID_REQUEST, "message": said}}
