"""Whoever called what became a task: what it is asked stands in the task until the answer comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tools.connectors.base import Client, ClientError

_INTERNAL_ERROR = -32603


class TaskClient(Client):
    """The client of a call that is a task, or may become one.

    Until then it is the client of the request, if that has one. From then on nothing is told to it, since tasks have no
    progress and no log (tasks extension, "Task Status Notifications"), and questions are put into the task.
    """

    asks_together = True

    def __init__(
        self,
        before: Client | None,
        capabilities: Mapping[str, Any],
        put: Callable[[Mapping[str, Any]], Awaitable[str | None]],
    ) -> None:
        self.capabilities = capabilities
        self.log_level = before.log_level if before else None
        self.chose_level = before is not None and before.chose_level
        self.wants_progress = before is not None and before.wants_progress
        self.is_task = False
        self._before = before
        self._put = put
        # Questions stand in the order in which they were asked.
        self._in_turn = asyncio.Lock()
        self._open: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._early: dict[str, dict[str, Any]] = {}

    @property
    def answers_later(self) -> bool:  # type: ignore[override]
        """Questions of the first moments are the result of the call, as for any client of this era."""
        return not self.is_task

    @property
    def told(self) -> int:  # type: ignore[override]
        """How much reached the client of the request."""
        return self._before.told if self._before else 0

    def tell(self, method: str, params: dict[str, Any]) -> None:
        """To the client of the request, as long as that is waited for."""
        if self._before is not None and not self.is_task:
            self._before.tell(method, params)

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Put it into the task, and wait. Raises ClientError when there can be no task."""
        async with self._in_turn:
            key = await self._put({"method": method, "params": params})
        if key is None:
            raise ClientError({"code": _INTERNAL_ERROR, "message": "The client cannot be asked at this moment."})
        if key in self._early:
            return self._early.pop(key)
        self._open[key] = asyncio.get_running_loop().create_future()
        try:
            return await self._open[key]
        finally:
            del self._open[key]

    def deliver(self, answers: Mapping[str, dict[str, Any]]) -> None:
        """Hand answers to whoever waits for them."""
        for key, answer in answers.items():
            future = self._open.get(key)
            if future is None:
                # Its question has been committed, and whoever asked does not know yet.
                self._early[key] = answer
            elif not future.done():
                future.set_result(answer)
