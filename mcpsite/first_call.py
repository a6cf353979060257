"""Makes one real tool call through the control plane with the official client, to show that all of it works.

`python -m mcpsite.first_call --url URL --token-file FILE [--when-ready]` prints one JSON line. It is a process of its
own, since the client costs a second and 60 MB to import: `--when-ready` does that while everything else starts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, Implementation, TextContent

TOOL, ARGUMENTS = "get_current_time", {"timezone": "Europe/Berlin"}
RECORD_KEY, CALL_KEY = "mcpsite/record", "mcpsite/call"
_TIMEOUT_SECONDS = 20.0


class FirstCallFailed(Exception):
    """The call did not come back with an answer; the text is a sentence for people."""


async def first_call(url: str, token: str) -> dict[str, Any]:
    """List the tools, call one, and tell what came back. Raises FirstCallFailed and what the client raises."""
    headers = {"Authorization": f"Bearer {token}"}
    hooks: dict[str, list[Any]] = {"response": [_refuse_unauthorized]}
    async with httpx2.AsyncClient(headers=headers, timeout=_TIMEOUT_SECONDS, event_hooks=hooks) as http:
        transport = streamable_http_client(url, http_client=http)
        who = Implementation(name="mcpsite-first-call", version="1.0.0")
        async with Client(transport, client_info=who, read_timeout_seconds=_TIMEOUT_SECONDS) as client:
            await _require_tool(client)
            started = time.perf_counter()
            result = await client.call_tool(TOOL, ARGUMENTS)
            milliseconds = round((time.perf_counter() - started) * 1000, 1)
            return _told(result) | {"protocol": client.protocol_version, "milliseconds": milliseconds}


async def _refuse_unauthorized(response: httpx2.Response) -> None:
    # The client itself would say no more than "an error response".
    if response.status_code in (401, 403):
        raise FirstCallFailed(f"{response.request.url} answered with HTTP status {response.status_code}.")


async def _require_tool(client: Client) -> None:
    names = [tool.name for tool in (await client.list_tools()).tools]
    if TOOL not in names:
        raise FirstCallFailed(
            f"The tool {TOOL} is not offered to this token; offered are: {', '.join(names) or 'none'}."
        )


def _told(result: CallToolResult) -> dict[str, Any]:
    text = "\n".join(block.text for block in result.content if isinstance(block, TextContent))
    if result.is_error:
        raise FirstCallFailed(f"{TOOL} answered with an error: {text}")
    meta = dict(result.meta or {})
    return {
        "tool": TOOL,
        "arguments": ARGUMENTS,
        "answer": result.structured_content or text,
        "record_id": meta.get(RECORD_KEY),
        "call_id": meta.get(CALL_KEY),
    }


def _causes(error: BaseException) -> str:
    """The innermost reasons, since the client wraps what went wrong in exception groups."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(dict.fromkeys(_causes(inner) for inner in error.exceptions))
    return str(error) or type(error).__name__


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m mcpsite.first_call", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--url", required=True, help="the MCP endpoint")
    parser.add_argument("--token-file", required=True, type=Path, help="file that holds the bearer token")
    parser.add_argument("--when-ready", action="store_true", help="wait for one line on standard input before the call")
    return parser.parse_args()


def main() -> None:
    """Print the JSON line; or say on standard error what failed, and exit with 1."""
    arguments = _arguments()
    if arguments.when_ready and not sys.stdin.readline():
        sys.exit("The first call was not asked for: standard input ended.")
    try:
        token = arguments.token_file.read_text(encoding="utf-8").strip()
        told = asyncio.run(first_call(arguments.url, token))
    except Exception as error:  # noqa: BLE001 - a door: whatever went wrong becomes one line
        sys.exit(f"The first call failed: {_causes(error)}")
    print(json.dumps(told, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
