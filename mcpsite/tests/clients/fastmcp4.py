"""One visit of FastMCP's client, made with .venv-fastmcp: its task comes as JSON, what it met goes as JSON."""

import asyncio
import json
import sys

import httpx2
from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport
from mcp.shared.exceptions import MCPError
from mcp_types import PromptReference


async def call(client, name, arguments):
    try:
        return (await client.call_tool_mcp(name, arguments)).model_dump(mode="json", by_alias=True)
    except MCPError as error:
        return {"refused": {"code": error.error.code, "message": error.error.message}}


async def be_asked(task, transport):
    answers, progress, logged = [], [], []

    async def fill_in(message, response_type, params, context):
        return {"username": "ada", "email": "ada@example.com"}

    async def think(messages, params, context):
        return "Paris"

    async def note_log(message):
        logged.append(message.data)

    async def note_progress(done, total, message):
        progress.append(done)

    handlers = {"elicitation_handler": fill_in, "sampling_handler": think, "log_handler": note_log}
    async with Client(transport, mode=task["mode"], progress_handler=note_progress, **handlers) as client:
        meta = {"io.modelcontextprotocol/logLevel": "info"}
        if task["mode"] == "legacy":
            await client.set_logging_level("info")
            meta = {}
        for each in task["asking"]:
            called = await client.call_tool_mcp(each["name"], each["arguments"], meta=meta)
            answers.append(called.content[0].text)
        revision = client.session.protocol_version
        return {"revision": revision, "answers": answers, "progress": progress, "logged": logged}


async def visit(task):
    statuses = []

    async def note(response):
        statuses.append(response.status_code)

    def client(**options):
        return httpx2.AsyncClient(event_hooks={"response": [note]}, **options)

    headers = {"Authorization": f"Bearer {task['token']}"} if task["token"] else {}
    try:
        return await talk(task, StreamableHttpTransport(task["url"], headers=headers, httpx_client_factory=client))
    except MCPError:
        if set(statuses) != {401}:
            raise
        return {"turned_away": 401}


async def talk(task, transport):
    if "asking" in task:
        return await be_asked(task, transport)
    async with Client(transport, mode=task["mode"]) as client:
        prompt = await client.get_prompt(**task["prompt"])
        ref = PromptReference(type="ref/prompt", name=task["prompt"]["name"])
        return {
            "revision": client.session.protocol_version,
            "tools": [tool.model_dump(mode="json", by_alias=True) for tool in await client.list_tools()],
            "calls": [await call(client, each["name"], each["arguments"]) for each in task["calls"]],
            "prompts": [each.name for each in await client.list_prompts()],
            "resources": [each.uri for each in await client.list_resources()],
            "templates": [each.uri_template for each in await client.list_resource_templates()],
            "prompt": prompt.messages[0].content.text,
            "text": (await client.read_resource(task["uri"]))[0].text,
            "completed": (await client.complete(ref, task["argument"])).values,
        }


print(json.dumps(asyncio.run(visit(json.loads(sys.argv[1])))))
