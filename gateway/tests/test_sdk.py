"""The official Python SDK's client, unmodified, in each of its modes, over real HTTP."""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import AsyncIterator

import httpx2
import mcp
import pytest
import uvicorn
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from gateway.app import Gateway
from gateway.tests.conftest import Company, records, until


@pytest.fixture
async def url(gateway: Gateway) -> AsyncIterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(gateway, lifespan="off", log_config=None, http="httptools", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        task = asyncio.create_task(server.serve([listening]))
        await until(lambda: server.started)
        yield f"http://localhost:{listening.getsockname()[1]}/mcp"
        server.should_exit = True
        await task


@pytest.mark.parametrize("mode", ["auto", "legacy", "2026-07-28"])
async def test_the_official_client_lists_and_calls(gateway: Gateway, company: Company, url: str, mode: str) -> None:
    async with (
        httpx2.AsyncClient(headers={"Authorization": f"Bearer {company.token}"}) as http,
        mcp.Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
        listed = await client.list_tools()
        assert [tool.name for tool in listed.tools] == ["echo", "write"]
        for name in ("echo", "write"):
            result = await client.call_tool(name, {"text": f"from {mode}"})
            assert result.content[0].text == f"from {mode}"
            assert result.meta is not None
            assert await records(rid=result.meta["mcpsite/record"])
        wrong = await client.call_tool("echo", {"text": 7})
        assert wrong.is_error
        with pytest.raises(MCPError, match="Unknown tool: hidden"):
            await client.call_tool("hidden", {"text": "x"})


@pytest.mark.parametrize("mode", ["auto", "legacy", "2026-07-28"])
async def test_the_official_client_shows_why_it_is_turned_away(
    gateway: Gateway, company: Company, url: str, mode: str
) -> None:
    said = {"A valid token is needed": {}, "Calls from this origin": {"Origin": "https://evil.example"}}
    for sentence, headers in said.items():
        with pytest.raises((MCPError, ExceptionGroup)) as caught:
            async with (
                httpx2.AsyncClient(headers=headers) as http,
                mcp.Client(streamable_http_client(url, http_client=http), mode=mode) as client,
            ):
                await client.list_tools()
        assert sentence in "".join(traceback.format_exception(caught.value))
