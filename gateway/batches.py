"""Batches (MCP 2025-03-26, basic, "Batching"): several messages in one body, each on the path that it would take alone.

No other revision has them. The messages are taken one by one, in their order, so that a batch is worth no more than
its messages sent one after the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from django.conf import settings

from gateway import wire
from gateway.replies import Reply
from gateway.wire import Message, WireError

logger = logging.getLogger("gateway")

# Gives the HTTP status and the body of the answer to one message. Raises WireError.
Answering = Callable[[Any], Awaitable[tuple[int, bytes]]]


def check(message: Message) -> None:
    """The header need not name the revision, where a session does. Raises WireError."""
    if message.version != wire.BATCHING:
        said = f"Only revision {wire.BATCHING} has batches: send one message in each request."
        raise WireError(wire.INVALID_REQUEST, said)


async def answered(messages: list[Any], answer: Answering, reply: Reply) -> tuple[int, bytes]:
    """The answers in one array; 202 and nothing where none is due (JSON-RPC 2.0, section 6)."""
    bodies: list[bytes] = []
    for message in messages:
        is_full = sum(map(len, bodies)) > settings.MAX_RESULT_BYTES
        if body := await _one(message, _refuse if is_full else answer, reply):
            bodies.append(body)
    return (200, b"[" + b",".join(bodies) + b"]") if bodies else (202, b"")


async def _one(message: Any, answer: Answering, reply: Reply) -> bytes:
    try:
        return (await answer(message))[1]
    except WireError as error:
        # To a response nothing is said, not even that nobody waits for it.
        return b"" if isinstance(message, dict) and "method" not in message else wire.error_body(error)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if not reply.is_withdrawn or task is None:
            raise
        # The client wants no answer to this one, but to those that follow.
        task.uncancel()
        reply.is_withdrawn = False
        return b""
    except Exception:
        logger.exception("a message of a batch failed")
        return wire.error_body(WireError(wire.INTERNAL_ERROR, "Internal error.", identifier=_identifier(message)))


async def _refuse(message: Any) -> tuple[int, bytes]:
    said = f"The answers to this batch are larger than {settings.MAX_RESULT_BYTES} bytes: send the rest on its own."
    raise WireError(wire.UNAVAILABLE, said, identifier=_identifier(message))


def _identifier(message: Any) -> wire.Id:
    found = message.get("id") if isinstance(message, dict) else None
    return found if type(found) in (str, int) else None
