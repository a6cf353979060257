"""The upstream itself: the official SDK's server, of both eras or pinned to one."""

from __future__ import annotations

import warnings
from typing import Any

import mcp_types as types
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.models import InitializationOptions
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ResourceUpdated,
    ToolsListChanged,
)
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError

from bench.conformance.upstream.asking import Answers, CannotAsk, Context, InputRequired, ask, elicitation, is_modern
from bench.conformance.upstream.content import (
    ASKING_PROMPT,
    CHANGING_PROMPT,
    PROMPTS,
    RESOURCES,
    TEMPLATES,
    WATCHED,
    completions,
    contents,
    text,
    user,
)
from bench.conformance.upstream.tools import CHANGING, TOOLS, Call, Tool, ToolError

_INVALID_PARAMS, _NOT_FOUND = -32602, -32002
_HINTS = {"ttlMs": 60_000, "cacheScope": "public"}


class NotifyingServer(Server[Any]):
    """Declares to older clients as well that its lists change."""

    def create_initialization_options(
        self,
        notification_options: NotificationOptions | None = None,
        experimental_capabilities: dict[str, dict[str, Any]] | None = None,
        extensions: dict[str, dict[str, Any]] | None = None,
    ) -> InitializationOptions:
        """With all notifications."""
        everything = NotificationOptions(prompts_changed=True, resources_changed=True, tools_changed=True)
        return super().create_initialization_options(everything, experimental_capabilities, extensions)


class Upstream:
    """What the handlers share."""

    def __init__(self) -> None:
        self._bus = InMemorySubscriptionBus()
        self._tools: dict[str, Tool] = {tool.definition["name"]: tool for tool in (*TOOLS, CHANGING)}
        self._prompts = [{"name": name, **more} for name, (more, _) in PROMPTS.items()]
        self._prompts += [{"name": ASKING_PROMPT, "description": "Asks for a context."}, CHANGING_PROMPT]
        self._subscribed: set[str] = set()
        for name, run in (
            ("test_trigger_tool_change", self._change_tools),
            ("test_trigger_prompt_change", self._change_prompts),
            ("test_trigger_resource_update", self._update_resource),
        ):
            definition = {"name": name, "description": "Changes something.", "inputSchema": {"type": "object"}}
            self._tools[name] = Tool(definition, run)

    def server(self) -> Server[Any]:
        """The server with all handlers."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MCPDeprecationWarning)
            return NotifyingServer(
                "conformance-upstream",
                version="1",
                get_tool_input_schema=self._schema,
                on_list_tools=self._list_tools,
                on_call_tool=self._call,
                on_list_resources=self._list_resources,
                on_list_resource_templates=self._list_templates,
                on_read_resource=self._read,
                on_subscribe_resource=self._subscribe,
                on_unsubscribe_resource=self._unsubscribe,
                on_subscriptions_listen=ListenHandler(self._bus),
                on_list_prompts=self._list_prompts,
                on_get_prompt=self._prompt,
                on_completion=self._complete,
                on_set_logging_level=self._set_level,
            )

    # --- Tools --------------------------------------------------------------------------------------------------------

    def _schema(self, name: str) -> dict[str, Any] | None:
        tool = self._tools.get(name)
        return tool.definition["inputSchema"] if tool else None

    async def _list_tools(self, context: Context, params: Any) -> Any:
        return _listed(context, {"tools": [tool.definition for tool in self._tools.values()]})

    async def _call(self, context: Context, params: types.CallToolRequestParams) -> Any:
        tool = self._tools.get(params.name)
        if tool is None:
            raise MCPError(_INVALID_PARAMS, f"Unknown tool: {params.name}")
        call = Call(context, params.arguments or {}, _answers(params), params.request_state)
        try:
            return _complete(context, {"content": await tool.run(call)})
        except InputRequired as asked:
            return asked.result
        except (ToolError, CannotAsk, KeyError) as error:
            said = str(error) or "The client cannot be asked."
            return _complete(context, {"content": [text(said)], "isError": True})

    async def _change_tools(self, call: Call) -> list[dict[str, Any]]:
        name = CHANGING.definition["name"]
        if self._tools.pop(name, None) is None:
            self._tools[name] = CHANGING
        await self._bus.publish(ToolsListChanged())
        if not is_modern(call.context):
            await call.context.session.send_tool_list_changed()
        return [text("The list of tools has changed.")]

    async def _change_prompts(self, call: Call) -> list[dict[str, Any]]:
        if CHANGING_PROMPT in self._prompts:
            self._prompts.remove(CHANGING_PROMPT)
        else:
            self._prompts.append(CHANGING_PROMPT)
        await self._bus.publish(PromptsListChanged())
        if not is_modern(call.context):
            await call.context.session.send_prompt_list_changed()
        return [text("The list of prompts has changed.")]

    async def _update_resource(self, call: Call) -> list[dict[str, Any]]:
        await self._bus.publish(ResourceUpdated(uri=WATCHED))
        if not is_modern(call.context) and WATCHED in self._subscribed:
            await call.context.session.send_resource_updated(WATCHED)
        return [text("The watched resource has changed.")]

    # --- Resources ----------------------------------------------------------------------------------------------------

    async def _list_resources(self, context: Context, params: Any) -> Any:
        return _listed(context, {"resources": RESOURCES})

    async def _list_templates(self, context: Context, params: Any) -> Any:
        return _listed(context, {"resourceTemplates": TEMPLATES})

    async def _read(self, context: Context, params: types.ReadResourceRequestParams) -> Any:
        found = contents(params.uri)
        if found is None:
            code = _INVALID_PARAMS if is_modern(context) else _NOT_FOUND
            raise MCPError(code, "Resource not found", {"uri": params.uri})
        return _listed(context, {"contents": found})

    async def _subscribe(self, context: Context, params: types.SubscribeRequestParams) -> types.EmptyResult:
        self._subscribed.add(str(params.uri))
        return types.EmptyResult()

    async def _unsubscribe(self, context: Context, params: types.UnsubscribeRequestParams) -> types.EmptyResult:
        self._subscribed.discard(str(params.uri))
        return types.EmptyResult()

    # --- Prompts ------------------------------------------------------------------------------------------------------

    async def _list_prompts(self, context: Context, params: Any) -> Any:
        return _listed(context, {"prompts": self._prompts})

    async def _prompt(self, context: Context, params: types.GetPromptRequestParams) -> Any:
        if params.name == ASKING_PROMPT:
            return await _asking_prompt(context, params)
        if params.name not in PROMPTS:
            raise MCPError(_INVALID_PARAMS, f"Unknown prompt: {params.name}")
        described, messages = PROMPTS[params.name]
        found = {"description": described["description"], "messages": messages(params.arguments or {})}
        return _complete(context, found)

    async def _complete(self, context: Context, params: types.CompleteRequestParams) -> Any:
        ref = params.ref.model_dump(by_alias=True, mode="json")
        values = completions(ref, params.argument.name, params.argument.value)
        return _complete(context, {"completion": {"values": values, "total": len(values), "hasMore": False}})

    async def _set_level(self, context: Context, params: types.SetLevelRequestParams) -> types.EmptyResult:
        return types.EmptyResult()


async def _asking_prompt(context: Context, params: types.GetPromptRequestParams) -> Any:
    question = elicitation("What context should the prompt use?", {"context": {"type": "string"}}, ["context"])
    try:
        answer = (await ask(context, _answers(params), {"user_context": question}))["user_context"]
    except InputRequired as asked:
        return asked.result
    except CannotAsk as error:
        raise MCPError(_INVALID_PARAMS, "The prompt asks the user, which the client cannot.") from error
    said = answer.get("content", {}).get("context", "none")
    return _complete(context, {"messages": [user(text(f"The context is: {said}"))]})


def _answers(params: types.CallToolRequestParams | types.GetPromptRequestParams) -> Answers:
    given = params.model_dump(by_alias=True, mode="json", exclude_none=True).get("inputResponses")
    return given if isinstance(given, dict) else {}


def _complete(context: Context, result: dict[str, Any]) -> dict[str, Any]:
    return result | {"resultType": "complete"} if is_modern(context) else result


def _listed(context: Context, result: dict[str, Any]) -> dict[str, Any]:
    return _complete(context, result | _HINTS) if is_modern(context) else result
