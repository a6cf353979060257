"""One visit of the Python SDK 1.x, made with .venv-mcp1: its task comes as JSON, what it met goes as JSON."""

import asyncio
import json
import sys

import httpx
from mcp import ClientSession, McpError
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CreateMessageResult, ElicitResult, PromptReference
from pydantic import AnyUrl


async def call(session, name, arguments):
    try:
        return (await session.call_tool(name, arguments)).model_dump(mode="json", by_alias=True)
    except McpError as error:
        return {"refused": {"code": error.error.code, "message": error.error.message}}


async def visit(task):
    statuses = []

    async def note(response):
        statuses.append(response.status_code)

    headers = {"Authorization": f"Bearer {task['token']}"} if task["token"] else {}
    async with httpx.AsyncClient(headers=headers, event_hooks={"response": [note]}) as http:
        try:
            return await talk(task, http)
        except BaseExceptionGroup:
            if statuses != [401]:
                raise
            return {"turned_away": statuses[0]}


async def talk(task, http):
    async with (
        streamable_http_client(task["url"], http_client=http) as (reading, writing, _),
        ClientSession(
            reading, writing, elicitation_callback=fill_in, sampling_callback=think, logging_callback=note_log
        ) as session,
    ):
        began = await session.initialize()
        if "asking" in task:
            return {"revision": began.protocolVersion, **await be_asked(session, task["asking"])}
        tools = (await session.list_tools()).tools
        return {
            "revision": began.protocolVersion,
            "tools": [tool.model_dump(mode="json", by_alias=True) for tool in tools],
            "calls": [await call(session, each["name"], each["arguments"]) for each in task["calls"]],
            **await read(session, task),
        }


logged, progress = [], []


async def fill_in(context, params):
    return ElicitResult(action="accept", content={"username": "ada", "email": "ada@example.com"})


async def think(context, params):
    return CreateMessageResult(role="assistant", model="none", content={"type": "text", "text": "Paris"})


async def note_log(params):
    logged.append(params.data)


async def note_progress(done, total, message):
    progress.append(done)


async def be_asked(session, asking):
    await session.set_logging_level("info")
    answers = []
    for each in asking:
        result = await session.call_tool(each["name"], each["arguments"], progress_callback=note_progress)
        answers.append(result.content[0].text)
    return {"answers": answers, "progress": progress, "logged": logged}


async def read(session, task):
    prompt = await session.get_prompt(**task["prompt"])
    ref = PromptReference(type="ref/prompt", name=task["prompt"]["name"])
    return {
        "prompts": [each.name for each in (await session.list_prompts()).prompts],
        "resources": [str(each.uri) for each in (await session.list_resources()).resources],
        "templates": [each.uriTemplate for each in (await session.list_resource_templates()).resourceTemplates],
        "prompt": prompt.messages[0].content.text,
        "text": (await session.read_resource(AnyUrl(task["uri"]))).contents[0].text,
        "completed": (await session.complete(ref, task["argument"])).completion.values,
    }


print(json.dumps(asyncio.run(visit(json.loads(sys.argv[1])))))
