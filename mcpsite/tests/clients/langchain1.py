"""One visit of LangChain's adapters, made with .venv-mcp1: its task comes as JSON, what it met goes as JSON."""

import asyncio
import json
import sys

from langchain_mcp_adapters.client import MultiServerMCPClient
from mcp.types import PromptReference


async def visit(task):
    headers = {"Authorization": f"Bearer {task['token']}"}
    client = MultiServerMCPClient({"site": {"transport": "streamable_http", "url": task["url"], "headers": headers}})
    try:
        tools = {tool.name: tool for tool in await client.get_tools()}
    except BaseExceptionGroup as group:
        if statuses(group) != [401]:
            raise
        return {"turned_away": 401}
    return {
        "tools": {name: tool.args_schema for name, tool in tools.items()},
        "calls": [await call(tools, **each) for each in task["calls"]],
        **await read(client, task),
    }


def statuses(error):
    if isinstance(error, BaseExceptionGroup):
        return [status for each in error.exceptions for status in statuses(each)]
    return [error.response.status_code] if hasattr(error, "response") else []


async def call(tools, name, arguments):
    """As an agent makes it: what the model reads, and what the program gets besides."""
    if name not in tools:
        return None
    answer = await tools[name].ainvoke({"type": "tool_call", "id": "1", "name": name, "args": arguments})
    return {"status": answer.status, "text": answer.text, "artifact": answer.artifact}


async def read(client, task):
    async with client.session("site") as session:
        prompts = [each.name for each in (await session.list_prompts()).prompts]
        ref = PromptReference(type="ref/prompt", name=task["prompt"]["name"])
        completed = (await session.complete(ref, task["argument"])).completion.values
    prompt = await client.get_prompt("site", task["prompt"]["name"], arguments=task["prompt"]["arguments"])
    (blob,) = await client.get_resources("site", uris=[task["uri"]])
    return {"prompts": prompts, "prompt": prompt[0].text, "text": blob.as_string(), "completed": completed}


print(json.dumps(asyncio.run(visit(json.loads(sys.argv[1]))), default=str))
