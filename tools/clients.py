"""What people paste into their MCP clients and programs, with the address and the token of this installation in it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pprint import pformat
from typing import Any

from django.conf import settings
from django.utils.safestring import SafeString

from audit.theme import with_code

PLACEHOLDER = "<your token>"
VARIABLE = "MCPSITE_TOKEN"
_NAME = "mcpsite"
# How to install the SDK, and how to run a program that uses it.
_PYTHON = ("pip install mcp", "python call.py")
_TYPESCRIPT = ("npm install @modelcontextprotocol/client", "node call.mts")


@dataclass(frozen=True, slots=True)
class Snippet:
    """A text to copy: for whom, and where it goes (a sentence in which backticks mark code)."""

    title: str
    where: str
    text: str

    @property
    def told(self) -> SafeString:
        """`where`, as HTML."""
        return with_code(self.where)


def configurations(toolset: str | None = None, token: str = PLACEHOLDER) -> list[Snippet]:
    """How each client is told of the MCP endpoint, of all tools or of one toolset, one snippet each."""
    url = endpoint(toolset)
    name = f"{_NAME}-{toolset}" if toolset else _NAME
    return [
        Snippet("Claude Code", "Run it in a terminal.", _claude_code(name, url, token)),
        Snippet(
            "Claude Desktop",
            "Settings → Developer → Edit Config opens `claude_desktop_config.json`. The file knows local servers only:"
            " `mcp-remote`, which needs Node.js, passes on to this one. Restart Claude afterwards.",
            _json({"mcpServers": {name: _bridged(url, token)}}),
        ),
        Snippet(
            "Cursor",
            "Into `~/.cursor/mcp.json`, or `.cursor/mcp.json` of a project.",
            _json({"mcpServers": {name: {"url": url, "headers": _bearer(token)}}}),
        ),
        Snippet(
            "VS Code",
            "Into `.vscode/mcp.json` of a workspace, or the file that the command *MCP: Open User Configuration* opens."
            " The token is asked for once and kept by VS Code.",
            _json(_vs_code(name, url)),
        ),
        Snippet(
            "Others",
            "What most other clients read, in a file of their own; Claude Code reads it from `.mcp.json` of a project.",
            _json(mcp_servers(url, token, name)),
        ),
        Snippet("Python SDK", _sdk_where(*_PYTHON), python_listing(url)),
        Snippet("TypeScript SDK", _sdk_where(*_TYPESCRIPT), typescript_listing(url)),
    ]


def mcp_servers(url: str, token: str, name: str = _NAME) -> dict[str, Any]:
    """What most clients read under the name `mcpServers`."""
    return {"mcpServers": {name: {"type": "http", "url": url, "headers": _bearer(token)}}}


def endpoint(toolset: str | None = None) -> str:
    """The address of the MCP endpoint: of all tools, or of one toolset."""
    return f"{settings.PUBLIC_URL}/mcp/{toolset}" if toolset else f"{settings.PUBLIC_URL}/mcp"


def calls(tool: str, arguments: dict[str, Any]) -> list[Snippet]:
    """How a program calls the tool with these arguments: by REST, and with the official SDKs."""
    url = endpoint()
    first = f"Put the token into the environment first: `export {VARIABLE}=…`"
    return [
        Snippet("curl", first, _curl(tool, arguments)),
        Snippet("Python", _sdk_where(*_PYTHON), python_call(url, tool, arguments)),
        Snippet("TypeScript", _sdk_where(*_TYPESCRIPT), typescript_call(url, tool, arguments)),
    ]


def python_listing(url: str) -> str:
    """A Python program that lists the tools."""
    return _python(url, "for tool in (await client.list_tools()).tools:\n                print(tool.name)")


def python_call(url: str, tool: str, arguments: dict[str, Any]) -> str:
    """A Python program that makes one call."""
    literal = pformat(arguments, width=88, sort_dicts=False).replace("\n", "\n" + " " * 12)
    call = f"arguments = {literal}\n            result = await client.call_tool({tool!r}, arguments)\n"
    return _python(url, f"{call}            print(result.structured_content or result.content)")


def typescript_listing(url: str) -> str:
    """A TypeScript program that lists the tools."""
    return _typescript(url, "for (const tool of (await client.listTools()).tools) console.log(tool.name);")


def typescript_call(url: str, tool: str, arguments: dict[str, Any]) -> str:
    """A TypeScript program that makes one call."""
    given = json.dumps({"name": tool, "arguments": arguments}, indent=2, ensure_ascii=False)
    return _typescript(
        url,
        f"const result = await client.callTool({given});\nconsole.log(result.structuredContent ?? result.content);",
    )


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _sdk_where(install: str, run: str) -> str:
    return f"`{install}`, put the token into the environment with `export {VARIABLE}=…`, and run it with `{run}`."


def _claude_code(name: str, url: str, token: str) -> str:
    header = shlex.quote(f"Authorization: Bearer {token}")
    return f"claude mcp add --transport http {name} {shlex.quote(url)} --header {header}"


def _bridged(url: str, token: str) -> dict[str, Any]:
    # A header with a space in it is broken apart on Windows: so the value comes from the environment.
    arguments = ["-y", "mcp-remote", url, "--header", "Authorization:${AUTHORIZATION}"]
    if url.startswith("http://"):
        arguments.append("--allow-http")
    return {"command": "npx", "args": arguments, "env": {"AUTHORIZATION": f"Bearer {token}"}}


def _vs_code(name: str, url: str) -> dict[str, Any]:
    asked = {"type": "promptString", "id": f"{name}-token", "description": f"Token for {name}", "password": True}
    server = {"type": "http", "url": url, "headers": _bearer(f"${{input:{name}-token}}")}
    return {"inputs": [asked], "servers": {name: server}}


def _curl(tool: str, arguments: dict[str, Any]) -> str:
    body = json.dumps({"arguments": arguments}, ensure_ascii=False)
    return (
        f"curl {shlex.quote(f'{settings.PUBLIC_URL}/api/v1/tools/{tool}/call/')} \\\n"
        f'  --header "Authorization: Bearer ${VARIABLE}" \\\n'
        "  --header 'Content-Type: application/json' \\\n"
        f"  --data {shlex.quote(body)}"
    )


def _python(url: str, work: str) -> str:
    return f"""import asyncio
import os

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client


async def main() -> None:
    headers = {{"Authorization": f"Bearer {{os.environ['{VARIABLE}']}}"}}
    async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
        async with Client(streamable_http_client({url!r}, http_client=http)) as client:
            {work}


asyncio.run(main())
"""


def _typescript(url: str, work: str) -> str:
    return f"""import {{ Client, StreamableHTTPClientTransport }} from "@modelcontextprotocol/client";

const transport = new StreamableHTTPClientTransport(new URL({json.dumps(url)}), {{
  authProvider: {{ token: async () => process.env.{VARIABLE} }},
}});
const client = new Client({{ name: "my-program", version: "1.0.0" }});
await client.connect(transport);
{work}
await client.close();
"""
