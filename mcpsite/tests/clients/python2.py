"""One visit of the Python SDK 2.x: its task comes as JSON, what it met goes as JSON."""

import asyncio
import json
import sys
from typing import Any

import httpx2
import mcp
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

    headers = {"Authorization": f"Bearer {task['token']}"}
    async with httpx2.AsyncClient(headers=headers, event_hooks={"response": [note]}) as http:
        try:
            return await talk(task, http)
        except (MCPError, BaseExceptionGroup):
            if set(statuses) != {401}:
                raise
            return {"turned_away": 401}


async def talk(task: dict[str, Any], http: httpx2.AsyncClient) -> dict[str, Any]:
    async with mcp.Client(streamable_http_client(task["url"], http_client=http), mode=task["mode"]) as client:
        tools = (await client.list_tools()).tools
        return {
            "revision": client.protocol_version,
            "tools": [tool.model_dump(mode="json", by_alias=True) for tool in tools],
            "calls": [await call(client, each["name"], each["arguments"]) for each in task["calls"]],
        }


print(json.dumps(asyncio.run(visit(json.loads(sys.argv[1])))))
