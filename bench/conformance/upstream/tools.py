"""The tools that the conformance suite calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError

from bench.conformance.upstream.asking import (
    ROOTS,
    Answers,
    Context,
    ask,
    can,
    elicitation,
    is_modern,
    missing,
    opened,
    sampling,
)
from bench.conformance.upstream.content import AUDIO, IMAGE, embedded, text

_STEP_SECONDS = 0.05
# More than the site waits before it makes a task of a call.
_LATE_SECONDS = 2.5
# Long enough that whoever stands between makes a stream of its own of the answer.
_RECONNECTION_SECONDS = 1.0


class Call(NamedTuple):
    """One call: where it came from, its arguments, and what came back from the client before."""

    context: ServerRequestContext[Any, Any]
    arguments: dict[str, Any]
    answers: Answers
    state: str | None


Content = list[dict[str, Any]]
Run = Callable[[Call], Awaitable[Content]]


class ToolError(Exception):
    """The call ends with a result that says so."""


class Tool(NamedTuple):
    """A tool as it is listed, and what it does."""

    definition: dict[str, Any]
    run: Run


def _says(*content: dict[str, Any]) -> Run:
    async def run(call: Call) -> Content:
        return list(content)

    return run


async def _fail(call: Call) -> Content:
    raise ToolError("This tool intentionally returns an error for testing")


async def _progress(call: Call) -> Content:
    for done in (0, 50, 100):
        await call.context.session.report_progress(done, 100)
        await asyncio.sleep(_STEP_SECONDS)
    return [text("Done.")]


async def _log(call: Call) -> Content:
    for said in ("Tool execution started", "Tool processing data", "Tool execution completed"):
        await _send_log(call.context, said)
        await asyncio.sleep(_STEP_SECONDS)
    return [text("Done.")]


async def _send_log(context: Context, said: str) -> None:
    related = None if context.request_id is None else str(context.request_id)
    await context.session.send_log_message("info", said, related_request_id=related)


async def _reconnect(call: Call) -> Content:
    """Close the stream of the call while it goes on: the client comes back for the rest."""
    if call.context.close_sse_stream is not None:
        await call.context.close_sse_stream()
    await asyncio.sleep(_RECONNECTION_SECONDS)
    return [text("The stream was closed and the client came back.")]


# --- Tools that ask --------------------------------------------------------------------------------------------------


async def _sample(call: Call) -> Content:
    answers = await ask(call.context, call.answers, {"answer": sampling(call.arguments["prompt"])})
    return [text(f"LLM response: {_text_of(answers['answer'])}")]


def _text_of(answer: dict[str, Any]) -> str:
    content = answer["content"]
    return str(content.get("text", "")) if isinstance(content, dict) else json.dumps(content)


def _elicits(said: str, properties: dict[str, Any], required: list[str]) -> Run:
    async def run(call: Call) -> Content:
        message = call.arguments.get("message", "Please fill in the form.")
        answer = (await ask(call.context, call.answers, {"form": elicitation(message, properties, required)}))["form"]
        return [text(f"{said}: action={answer['action']}, content={json.dumps(answer.get('content', {}))}")]

    return run


_NAME = elicitation("What is your name?", {"name": {"type": "string"}}, ["name"])
_CONFIRM = elicitation("Please confirm", {"ok": {"type": "boolean"}}, ["ok"])
_CAPITAL = sampling("What is the capital of France?")
_GREETING = sampling("Generate a greeting", 50)


async def _greet(call: Call) -> Content:
    answer = (await ask(call.context, call.answers, {"user_name": _NAME}))["user_name"]
    return [text(f"Hello, {answer.get('content', {}).get('name', 'stranger')}!")]


async def _capital(call: Call) -> Content:
    answer = (await ask(call.context, call.answers, {"capital_question": _CAPITAL}))["capital_question"]
    return [text(_text_of(answer))]


async def _roots(call: Call) -> Content:
    answer = (await ask(call.context, call.answers, {"client_roots": ROOTS}))["client_roots"]
    return [text("Roots: " + ", ".join(str(root["uri"]) for root in answer["roots"]))]


async def _confirmed(call: Call) -> Content:
    await ask(call.context, call.answers, {"confirm": _CONFIRM}, "confirm")
    if is_modern(call.context) and opened(call.state) != "confirm":
        raise MCPError(-32602, "The requestState is missing.")
    return [text("state-ok")]


async def _all_at_once(call: Call) -> Content:
    questions = {"user_name": _NAME, "greeting": _GREETING, "client_roots": ROOTS}
    answers = await ask(call.context, call.answers, questions, "all")
    return [text(f"Answered: {', '.join(sorted(answers))}")]


async def _two_steps(call: Call) -> Content:
    first = elicitation("Step 1: What is your name?", {"name": {"type": "string"}}, ["name"])
    second = elicitation("Step 2: What is your favorite color?", {"color": {"type": "string"}}, ["color"])
    if opened(call.state) != "named":
        await ask(call.context, call.answers, {"step1": first}, "begun")
    await ask(call.context, call.answers, {"step2": second}, "named")
    return [text("Both steps are done.")]


async def _what_it_can(call: Call) -> Content:
    answers = await ask(call.context, call.answers, {"user_name": _NAME, "capital_question": _CAPITAL})
    return [text(f"Answered: {', '.join(sorted(answers))}")]


async def _needs_sampling(call: Call) -> Content:
    if not can(call.context, "sampling"):
        raise missing("sampling") if is_modern(call.context) else ToolError("It needs sampling.")
    return [text("The client can sample.")]


async def _streams_and_asks(call: Call) -> Content:
    await call.context.session.report_progress(1, 2)
    return await _greet(call)


async def _logs_when_wanted(call: Call) -> Content:
    await _send_log(call.context, "It was called.")
    return [text("Done.")]


# --- Tools that take their time, or that a client can watch as tasks ------------------------------------------------


async def _greets(call: Call) -> Content:
    return [text(f"Hello, {call.arguments['name']}!")]


async def _greets_late(call: Call) -> Content:
    answer = (await ask(call.context, call.answers, {"user_name": _NAME}))["user_name"]
    await asyncio.sleep(_LATE_SECONDS)
    return [text(f"Hello, {answer.get('content', {}).get('name', 'stranger')}!")]


async def _compute(call: Call) -> Content:
    await asyncio.sleep(call.arguments["seconds"])
    return [text(f"Computed for {call.arguments['seconds']} s.")]


async def _fails_late(call: Call) -> Content:
    await asyncio.sleep(1)
    raise ToolError("The job failed.")


async def _breaks(call: Call) -> Content:
    raise MCPError(-32603, "The job broke.")


async def _deletes(call: Call) -> Content:
    question = elicitation(f"Delete {call.arguments.get('filename', 'it')}?", {"confirm": {"type": "boolean"}}, [])
    answer = (await ask(call.context, call.answers, {"confirm": question}))["confirm"]
    return [text("Deleted." if answer.get("content", {}).get("confirm") else "Kept.")]


async def _asks_two(call: Call) -> Content:
    color = elicitation("Which color?", {"color": {"type": "string"}}, [])
    await ask(call.context, call.answers, {"name": _NAME, "color": color})
    return [text("Both questions are answered.")]


# --- The list --------------------------------------------------------------------------------------------------------

_STRING = {"type": "string"}
_2020_12 = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": _STRING, "city": _STRING},
        }
    },
    "properties": {
        "name": _STRING,
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": _STRING,
        "email": _STRING,
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}
_DEFAULTS = {
    "name": {"type": "string", "default": "John Doe"},
    "age": {"type": "integer", "default": 30},
    "score": {"type": "number", "default": 95.5},
    "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
    "verified": {"type": "boolean", "default": True},
}
_OPTIONS = ["option1", "option2", "option3"]
_ENUMS = {
    "untitledSingle": {"type": "string", "enum": _OPTIONS},
    "titledSingle": {
        "type": "string",
        "oneOf": [
            {"const": "value1", "title": "First Option"},
            {"const": "value2", "title": "Second Option"},
            {"const": "value3", "title": "Third Option"},
        ],
    },
    "legacyEnum": {
        "type": "string",
        "enum": ["opt1", "opt2", "opt3"],
        "enumNames": ["Option One", "Option Two", "Option Three"],
    },
    "untitledMulti": {"type": "array", "items": {"type": "string", "enum": _OPTIONS}},
    "titledMulti": {
        "type": "array",
        "items": {
            "anyOf": [
                {"const": "value1", "title": "First Choice"},
                {"const": "value2", "title": "Second Choice"},
                {"const": "value3", "title": "Third Choice"},
            ]
        },
    },
}
_USER = {
    "username": {"type": "string", "description": "User's response"},
    "email": {"type": "string", "description": "User's email address"},
}


def _tool(name: str, description: str, run: Run, schema: dict[str, Any] | None = None, /, **properties: Any) -> Tool:
    shape = schema or {"type": "object", "properties": properties, "required": list(properties)}
    return Tool({"name": name, "description": description, "inputSchema": shape}, run)


_MIXED = (
    text("Multiple content types test:"),
    IMAGE,
    embedded("test://mixed-content-resource", "application/json", '{"test":"data","value":123}'),
)
# Each call of `test_trigger_tool_change` takes it off the list, or puts it back.
CHANGING = _tool("test_changing_tool", "It comes and goes.", _says(text("It is there.")))

TOOLS: list[Tool] = [
    _tool("test_simple_text", "Text.", _says(text("This is a simple text response for testing."))),
    _tool("test_image_content", "An image.", _says(IMAGE)),
    _tool("test_audio_content", "A sound.", _says(AUDIO)),
    _tool(
        "test_embedded_resource",
        "A resource.",
        _says(embedded("test://embedded-resource", "text/plain", "This is an embedded resource content.")),
    ),
    _tool("test_multiple_content_types", "Text, image and resource.", _says(*_MIXED)),
    _tool("test_error_handling", "Fails.", _fail),
    _tool("test_tool_with_progress", "Tells how far it is.", _progress),
    _tool("json_schema_2020_12_tool", "Tool with JSON Schema 2020-12 features", _says(text("It fits.")), _2020_12),
    _tool("test_tool_with_logging", "Logs three times.", _log),
    _tool("test_sampling", "Asks the client's model.", _sample, prompt=_STRING),
    _tool("test_elicitation", "Asks the user.", _elicits("User response", _USER, list(_USER)), message=_STRING),
    _tool("test_elicitation_sep1034_defaults", "Asks with defaults.", _elicits("Completed", _DEFAULTS, [])),
    _tool("test_elicitation_sep1330_enums", "Asks with choices.", _elicits("Completed", _ENUMS, [])),
    _tool("test_reconnection", "Closes its stream.", _reconnect),
    _tool("test_missing_capability", "Needs sampling.", _needs_sampling),
    _tool("test_streaming_elicitation", "Asks on a stream.", _streams_and_asks),
    _tool("test_logging_tool", "Logs, when that is wanted.", _logs_when_wanted),
    _tool(
        "test_x_mcp_header",
        "Has an argument that is a header as well.",
        _says(text("The region is served.")),
        {
            "type": "object",
            "properties": {"region": {"type": "string", "x-mcp-header": "Region"}},
            "required": ["region"],
        },
    ),
    _tool("test_input_required_result_elicitation", "Asks for a name.", _greet),
    _tool("test_input_required_result_sampling", "Asks for a capital.", _capital),
    _tool("test_input_required_result_list_roots", "Asks for roots.", _roots),
    _tool("test_input_required_result_request_state", "Asks with a state.", _confirmed),
    _tool("test_input_required_result_multiple_inputs", "Asks three things at once.", _all_at_once),
    _tool("test_input_required_result_multi_round", "Asks twice.", _two_steps),
    _tool("test_input_required_result_tampered_state", "Refuses a changed state.", _confirmed),
    _tool("test_input_required_result_capabilities", "Asks what the client can answer.", _what_it_can),
    _tool("greet", "Answers at once.", _greets, name=_STRING),
    _tool(
        "slow_compute",
        "Takes its time.",
        _compute,
        {
            "type": "object",
            "properties": {"seconds": {"type": "number", "minimum": 0, "maximum": 60}, "label": _STRING},
            "required": ["seconds"],
        },
    ),
    _tool("failing_job", "Fails after a second.", _fails_late),
    _tool("protocol_error_job", "Ends with an error of the protocol.", _breaks),
    _tool(
        "confirm_delete",
        "Asks before it deletes.",
        _deletes,
        {"type": "object", "properties": {"filename": _STRING}},
    ),
    _tool("multi_input", "Asks two things at once.", _asks_two),
    _tool("test_tool_with_task", "Asks before it begins its work, which takes its time.", _greets_late),
]
