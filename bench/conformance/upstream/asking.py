"""Asks the client, as its era has it: by requests while the call goes on, or by a result that wants a second call."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import BaseModel

Context = ServerRequestContext[Any, Any]
Questions = dict[str, dict[str, Any]]
Answers = dict[str, dict[str, Any]]

INVALID_PARAMS, MISSING_CAPABILITY = -32602, -32021
# The state goes out and comes back in whichever process of the upstream is asked: it protects nothing of value.
_KEY = b"of the conformance suite's upstream"

_METHODS: dict[str, tuple[str, type[BaseModel], type[BaseModel]]] = {
    "elicitation/create": ("elicitation", types.ElicitRequest, types.ElicitResult),
    "sampling/createMessage": ("sampling", types.CreateMessageRequest, types.CreateMessageResult),
    "roots/list": ("roots", types.ListRootsRequest, types.ListRootsResult),
}


class InputRequired(Exception):
    """The call ends here, with this result."""

    def __init__(self, result: dict[str, Any]) -> None:
        super().__init__("input required")
        self.result = result


class CannotAsk(Exception):
    """The client has declared nothing that it could be asked by."""


def elicitation(message: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """A question with a form."""
    schema = {"type": "object", "properties": properties, "required": required}
    return {"method": "elicitation/create", "params": {"message": message, "requestedSchema": schema}}


def sampling(prompt: str, most_tokens: int = 100) -> dict[str, Any]:
    """A question to the client's model."""
    messages = [{"role": "user", "content": {"type": "text", "text": prompt}}]
    return {"method": "sampling/createMessage", "params": {"messages": messages, "maxTokens": most_tokens}}


ROOTS: dict[str, Any] = {"method": "roots/list", "params": {}}


def is_modern(context: Context) -> bool:
    """Whether the client is of 2026-07-28 or later."""
    return context.protocol_version in MODERN_PROTOCOL_VERSIONS


def can(context: Context, capability: str) -> bool:
    """Whether the client has declared it."""
    declared = context.session.client_capabilities
    return declared is not None and getattr(declared, capability) is not None


def missing(capability: str) -> MCPError:
    """The refusal of what needs an undeclared capability."""
    return MCPError(MISSING_CAPABILITY, f"It needs {capability}.", {"requiredCapabilities": {capability: {}}})


async def ask(context: Context, given: Answers, questions: Questions, state: str | None = None) -> Answers:
    """The answers to all questions that the client can be asked. Raises InputRequired, CannotAsk and MCPError."""
    possible = {key: each for key, each in questions.items() if can(context, _METHODS[each["method"]][0])}
    if not possible:
        if is_modern(context):
            raise missing(_METHODS[next(iter(questions.values()))["method"]][0])
        raise CannotAsk
    if not is_modern(context):
        return {key: await _request(context, each) for key, each in possible.items()}
    open_questions = {key: each for key, each in possible.items() if not _is_answer(each, given.get(key))}
    if open_questions:
        result: dict[str, Any] = {"resultType": "input_required", "inputRequests": open_questions}
        raise InputRequired(result if state is None else result | {"requestState": sealed(state)})
    return given


async def _request(context: Context, question: dict[str, Any]) -> dict[str, Any]:
    _, request, result = _METHODS[question["method"]]
    related = ServerMessageMetadata(related_request_id=context.request_id)
    answer = await context.session.send_request(request.model_validate(question), result, metadata=related)  # type: ignore[arg-type]
    return answer.model_dump(by_alias=True, mode="json", exclude_none=True)


def _is_answer(question: dict[str, Any], answer: dict[str, Any] | None) -> bool:
    if answer is None:
        return False
    expected = {"elicitation/create": "action", "sampling/createMessage": "content", "roots/list": "roots"}
    return expected[question["method"]] in answer


def sealed(state: str) -> str:
    """The state with a mark that only we can make."""
    return f"{state}.{hmac.new(_KEY, state.encode(), hashlib.sha256).hexdigest()}"


def opened(token: str | None) -> str | None:
    """The state that was sealed. Raises MCPError."""
    if token is None:
        return None
    state, _, _ = token.rpartition(".")
    if not hmac.compare_digest(sealed(state), token):
        raise MCPError(INVALID_PARAMS, "This requestState is not one of ours.")
    return state
