"""What a server may ask of whoever called, by what that client has declared (MCP 2026-07-28, patterns/mrtr)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tools.connectors.base import Client, ClientError, ConnectorError, Context
from tools.nesting import is_writable

INPUT_REQUIRED = "input_required"
# The requests whose results may ask for input.
ASKING_METHODS = frozenset({"tools/call", "prompts/get", "resources/read"})
_META = "io.modelcontextprotocol/"
_CAPABILITIES_KEY, _LOG_LEVEL_KEY = f"{_META}clientCapabilities", f"{_META}logLevel"
# A server that is told of these may end a call with a task; tasks are made by the site, of its own.
_NOT_CARRIED = f"{_META}tasks"
# What a question needs of the client, by its method.
_NEEDS = {"elicitation/create": "elicitation", "sampling/createMessage": "sampling", "roots/list": "roots"}
_MOST_QUESTIONS, _MOST_ROUNDS = 100, 8
_LONGEST_STATE = 256 * 1024


def carried(capabilities: Mapping[str, Any]) -> dict[str, Any]:
    """The client's capabilities as an upstream is told of them: those and no others."""
    extensions = capabilities.get("extensions")
    if not isinstance(extensions, dict) or _NOT_CARRIED not in extensions:
        return dict(capabilities)
    left = {name: value for name, value in extensions.items() if name != _NOT_CARRIED}
    return {**capabilities, "extensions": left}


def told(params: dict[str, Any], always: Mapping[str, Any], context: Context | None) -> dict[str, Any]:
    """The parameters as a server of the modern era gets them: with what each request says of the client."""
    meta = {**always, **params.get("_meta", {})}
    if context is None:
        return {**params, "_meta": meta}
    if context.client is not None:
        if context.client.capabilities:
            meta[_CAPABILITIES_KEY] = carried(context.client.capabilities)
        if context.client.log_level is not None:
            meta[_LOG_LEVEL_KEY] = context.client.log_level
    return {**params, **(context.continuation or {}), "_meta": meta}


def questions_of(result: Mapping[str, Any], client: Client | None) -> dict[str, dict[str, Any]]:
    """What the client is to be asked. Raises ConnectorError for what it has not declared, or what is no question."""
    questions = result.get("inputRequests", {})
    if not isinstance(questions, dict) or len(questions) > _MOST_QUESTIONS:
        raise _bad("asks for input in a form that is none")
    if not questions and not isinstance(result.get("requestState"), str):
        raise _bad("asks for input without saying for what")
    state = result.get("requestState", "")
    if not isinstance(state, str):
        raise _bad("gives a requestState that is no text")
    if len(state) > _LONGEST_STATE:  # sealed, and with answers, it must fit into a request
        raise _bad(f"gives a requestState of more than {_LONGEST_STATE} characters")
    for question in questions.values():
        if not isinstance(question, dict) or not isinstance(question.get("params", {}), dict):
            raise _bad("asks for input in a form that is none")
        method, params = question.get("method"), question.get("params", {})
        if fault := fault_of(params):
            raise _bad(f"asks for input that cannot be passed on: {fault}")
        if not is_declared(client.capabilities if client else {}, method, params):
            raise _bad(f"asks for {shown(method)!r}, which the client did not declare")
    return questions


def asks(result: Mapping[str, Any], method: str) -> bool:
    """Whether the result asks for input instead of being one. Raises ConnectorError for a type that has no place."""
    kind = result.get("resultType", "complete")
    if kind == "complete":
        return False
    if kind == INPUT_REQUIRED and method in ASKING_METHODS:
        return True
    said = f"The upstream's result is of the type {shown(kind)!r}, which has no place here."
    raise ConnectorError("unsupported_result", said)


async def answered(
    result: dict[str, Any], method: str, context: Context, ask: Callable[[Context], Awaitable[dict[str, Any]]]
) -> dict[str, Any]:
    """What the upstream answers at last, once its questions were put to a client that can be asked meanwhile.

    A client that answers with its next request gets the questions themselves. Raises ConnectorError.
    """
    for _ in range(_MOST_ROUNDS):
        questions = questions_of(result, context.client)
        if context.client is not None and context.client.answers_later:
            return result
        given = {"inputResponses": await _asked(questions, context.client)} if questions and context.client else {}
        state = {"requestState": result["requestState"]} if "requestState" in result else {}
        result = await ask(context._replace(continuation=given | state))
        if not asks(result, method):
            return result
    raise _bad(f"asks for input more than {_MOST_ROUNDS} times")


async def _asked(questions: Mapping[str, dict[str, Any]], client: Client) -> dict[str, dict[str, Any]]:
    """One after the other, since it is one person who reads them; in a task all of them, and the client may choose."""
    try:
        if not client.asks_together:
            return {key: await client.ask(each["method"], each.get("params", {})) for key, each in questions.items()}
        answers = (client.ask(each["method"], each.get("params", {})) for each in questions.values())
        return dict(zip(questions, await asyncio.gather(*answers), strict=True))
    except ClientError as error:
        said = f"The client did not answer what the upstream asks: {error}"
        raise ConnectorError("client_refused", said) from error


def shown(value: object, longest: int = 60) -> str:
    """What an upstream says, in a sentence of ours: the text of anything nested could be of any length and depth."""
    return str(value)[:longest] if isinstance(value, (str, int, float)) else f"a {type(value).__name__}"


def is_declared(capabilities: Mapping[str, Any], method: object, params: Mapping[str, Any]) -> bool:
    """Whether the client can be asked this: also a mode of elicitation and tools of sampling are declared."""
    need = _NEEDS.get(method) if isinstance(method, str) else None
    declared = capabilities.get(need) if need else None
    if not isinstance(declared, dict):
        return False
    if need == "elicitation":
        # Without a mode it is a form, and so is a declaration that names none (client/elicitation, "Capabilities").
        mode = params.get("mode", "form")
        return isinstance(mode, str) and (mode in declared or (mode == "form" and "url" not in declared))
    if need == "sampling" and ("tools" in params or "toolChoice" in params):
        return "tools" in declared
    return True


def fault_of(params: Mapping[str, Any]) -> str | None:
    """Why a question with these parameters is not put to a client; None where it can be."""
    if not is_writable(params):
        return "it is nested too deeply"
    if params.get("mode") == "url" and not _is_web_address(params.get("url")):
        return "the URL is not one of http or https"  # what else there is may run in whatever shows it
    return None


def _is_web_address(url: object) -> bool:
    return isinstance(url, str) and url.lower().startswith(("https://", "http://"))


def _bad(what: str) -> ConnectorError:
    return ConnectorError("bad_upstream_answer", f"The upstream {what}.")
