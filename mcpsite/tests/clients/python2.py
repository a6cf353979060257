"""One visit of the Python SDK 2.x: its task comes as JSON, what it met goes as JSON."""

import asyncio
import json
import sys
from typing import Any

import httpx2
import mcp
import mcp_types
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError


async def call(client: mcp.Client, name: str, arguments: dict[str, Any]) -> Any:
    try:
        return (await client.call_tool(name, arguments)).model_dump(mode="json", by_alias=True)
    except MCPError as error:
        return {"refused": {"code": error.error.code, "message": error.error.message}}


async def visit(task: dict[str, Any]) -> dict[str, Any]:
    statuses = []

    async def note(response: httpx2.Response) -> None:
        statuses.append(response.status_code)

    headers = {"Authorization": f"Bearer {task['token']}"} if task["token"] else {}
    async with httpx2.AsyncClient(headers=headers, event_hooks={"response": [note]}) as http:
        try:
            return await talk(task, http)
        except (MCPError, BaseExceptionGroup):
            if set(statuses) != {401}:
                raise
            return {"turned_away": 401}


async def talk(task: dict[str, Any], http: httpx2.AsyncClient) -> dict[str, Any]:
    if "asking" in task:
        return await be_asked(task, http)
    async with mcp.Client(transport(task, http), mode=task["mode"]) as client:
        tools = (await client.list_tools()).tools
        return {
            "revision": client.protocol_version,
            "tools": [tool.model_dump(mode="json", by_alias=True) for tool in tools],
            "calls": [await call(client, each["name"], each["arguments"]) for each in task["calls"]],
            **(await read(client, task) if "prompt" in task else {}),
        }


def transport(task: dict[str, Any], http: httpx2.AsyncClient) -> Any:
    """To the site itself, or to a program that passes on to it."""
    if server := task.get("server"):
        return mcp.StdioServerParameters(**server)
    return streamable_http_client(task["url"], http_client=http)


async def be_asked(task: dict[str, Any], http: httpx2.AsyncClient) -> dict[str, Any]:
    answers, steps, logged = [], [], []

    async def fill_in(context: Any, params: Any) -> mcp_types.ElicitResult:
        return mcp_types.ElicitResult(action="accept", content={"username": "ada", "email": "ada@example.com"})

    async def think(context: Any, params: Any) -> mcp_types.CreateMessageResult:
        said = mcp_types.TextContent(type="text", text="Paris")
        return mcp_types.CreateMessageResult(role="assistant", model="none", content=said)

    async def note_log(params: mcp_types.LoggingMessageNotificationParams) -> None:
        logged.append(params.data)

    async def note_progress(progress: float, total: float | None, message: str | None) -> None:
        steps.append(progress)

    async with mcp.Client(
        transport(task, http),
        mode=task["mode"],
        elicitation_callback=fill_in,
        sampling_callback=think,
        logging_callback=note_log,
    ) as client:
        meta: Any = {"io.modelcontextprotocol/logLevel": "info"}
        if task["mode"] == "legacy":
            await client.set_logging_level("info")
            meta = {}
        for each in task["asking"]:
            called = await client.call_tool(each["name"], each["arguments"], progress_callback=note_progress, meta=meta)
            answers.append(called.content[0].model_dump()["text"])
        return {"revision": client.protocol_version, "answers": answers, "progress": steps, "logged": logged}


async def read(client: mcp.Client, task: dict[str, Any]) -> dict[str, Any]:
    prompt = await client.get_prompt(**task["prompt"])
    ref = mcp_types.PromptReference(type="ref/prompt", name=task["prompt"]["name"])
    return {
        "prompts": [each.name for each in (await client.list_prompts()).prompts],
        "resources": [each.uri for each in (await client.list_resources()).resources],
        "templates": [each.uri_template for each in (await client.list_resource_templates()).resource_templates],
        "prompt": prompt.messages[0].content.model_dump()["text"],
        "text": (await client.read_resource(task["uri"])).contents[0].model_dump()["text"],
        "completed": (await client.complete(ref, task["argument"])).completion.values,
    }


print(json.dumps(asyncio.run(visit(json.loads(sys.argv[1])))))
