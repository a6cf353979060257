"""What tests of this floor have in common: nobody's failed logins are remembered, and the event loops."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvloop
from django.core.cache import cache

from access import attempts


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Any]:
    """Processes are an event loop's own matter: web workers run on uvloop, checks and synchronisation on asyncio's."""
    both = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return both if item.path.stem == "test_mcp_stdio" else {"asyncio": both["asyncio"]}


@pytest.fixture(autouse=True)
def no_attempts():
    """Each test begins with an empty cache."""
    cache.clear()
    attempts._local.cache_clear()
