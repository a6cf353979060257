"""What an upstream may tell and ask its caller while one call goes on, and how long it may take to be answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tools.connectors.base import Client, ClientError
from tools.connectors.mcp_input import fault_of, is_declared

METHOD_NOT_FOUND, _INVALID_PARAMS = -32601, -32602
# Questions of one call: those that wait for answers at once, and all of them.
_MOST_OPEN, _MOST_ASKED = 64, 256
# Notifications that are about one call; `notifications/progress` is the fourth.
_TOLD = frozenset({"notifications/message", "notifications/elicitation/complete"})

Send = Callable[[dict[str, Any]], Awaitable[None]]


class Turn(Client):
    """The client, for the time of one call. While it is asked, the deadline of the upstream stands still."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.capabilities = client.capabilities
        self.log_level, self.chose_level = client.log_level, client.chose_level
        self.wants_progress, self.asks_together = client.wants_progress, client.asks_together
        self._limit: asyncio.Timeout | None = None
        self._left = 0.0
        self._open = self._taken_up = 0
        self._is_over = False
        self._answering: dict[object, asyncio.Task[None]] = {}

    @property
    def answers_later(self) -> bool:  # type: ignore[override]
        """See `Client`; it may change while the call goes on."""
        return self._client.answers_later

    def tell(self, method: str, params: dict[str, Any]) -> None:
        """See `Client`."""
        self._client.tell(method, params)

    def linger(self) -> None:
        """See `Client`."""
        self._client.linger()

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """See `Client`."""
        self._client.asked += 1
        self._hold()
        try:
            return await self._client.ask(method, params)
        finally:
            self._release()

    # --- What comes from the upstream ---------------------------------------------------------------------------------

    def hear(self, message: dict[str, Any], token: int | None) -> None:
        """A notification about the call, whose progress has the token. What is not about it is dropped."""
        method, params = message["method"], message.get("params")
        if not isinstance(params, dict) or self._is_over:
            return
        if method in _TOLD:
            self.tell(method, params)
        elif method == "notifications/progress" and token is not None and params.get("progressToken") == token:
            self.tell(method, {name: value for name, value in params.items() if name != "progressToken"})
        elif method == "notifications/cancelled" and (task := self._answering.get(_key(params.get("requestId")))):
            task.cancel()

    def answer(self, request: dict[str, Any], send: Send) -> None:
        """Have a request of the upstream answered, as soon as the client has done so.

        Where too many wait, it is left without an answer, as is one whose id says nothing.
        """
        key = _key(request["id"])
        if key is None or key in self._answering or len(self._answering) >= _MOST_OPEN:
            return
        self._taken_up += 1
        self._answering[key] = task = asyncio.create_task(self._answered(request, send))
        task.add_done_callback(lambda done: self._answering.pop(key, None))

    async def _answered(self, request: dict[str, Any], send: Send) -> None:
        params = request.get("params", {})
        if (
            self._is_over
            or self._taken_up > _MOST_ASKED
            or not isinstance(params, dict)
            or not is_declared(self.capabilities, request["method"], params)
        ):
            await send(declined(request))
            return
        try:
            if fault := fault_of(params):
                raise ClientError({"code": _INVALID_PARAMS, "message": f"The question cannot be passed on: {fault}."})
            result = await self.ask(request["method"], params)
        except ClientError as error:
            await send({"jsonrpc": "2.0", "id": request["id"], "error": error.error})
        else:
            await send({"jsonrpc": "2.0", "id": request["id"], "result": result})

    def close(self) -> None:
        """The call is over: nobody waits for answers any more, and what is said now is about no call."""
        self._is_over = True
        for task in tuple(self._answering.values()):
            task.cancel()

    # --- The deadline -------------------------------------------------------------------------------------------------

    @contextmanager
    def holding(self, limit: asyncio.Timeout) -> Iterator[None]:
        """The deadline within which the upstream has to answer, and which is not that of its client."""
        self._limit = limit
        try:
            yield
        finally:
            self._limit = None

    def _hold(self) -> None:
        self._open += 1
        if self._open > 1 or self._limit is None or self._limit.expired():
            return
        if (when := self._limit.when()) is not None:
            self._left = when - asyncio.get_running_loop().time()
            self._limit.reschedule(None)

    def _release(self) -> None:
        self._open -= 1
        if self._open == 0 and self._limit is not None and self._limit.when() is None:
            self._limit.reschedule(asyncio.get_running_loop().time() + self._left)


def reporting(turn: Turn, params: dict[str, Any], token: int) -> dict[str, Any]:
    """The parameters of a request, with the token under which the upstream is to tell of its progress.

    The client's own says nothing to the upstream: several clients may have the same.
    """
    if not turn.wants_progress:
        return params
    return {**params, "_meta": {**params.get("_meta", {}), "progressToken": token}}


def cancelled(identifier: int) -> dict[str, Any]:
    """Tells a server that nobody waits for the answer to a request any more."""
    params = {"requestId": identifier, "reason": "Nobody waits for the answer any more."}
    return {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}


def declined(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to what a server asks of a client that cannot be asked: no, so that it does not wait."""
    message: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"]}
    if request["method"] == "ping":
        message["result"] = {}
    else:
        message["error"] = {"code": METHOD_NOT_FOUND, "message": "The client did not declare this capability."}
    return message


def _key(identifier: object) -> object:
    """An id as a key: what is no id at all is the key of nothing."""
    return (type(identifier), identifier) if isinstance(identifier, (str, int)) else None
