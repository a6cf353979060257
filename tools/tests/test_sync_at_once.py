"""Synchronising twice at the same time, which needs transactions that really commit."""

from __future__ import annotations

import threading
from typing import Any

from django.db import connections

from tools.connectors.base import Offer
from tools.connectors.mcp import McpConnector
from tools.models import DataSource, Tool
from tools.sync import sync_source
from tools.tests.test_sync import make_definition, make_source


def test_two_synchronisations_at_once_make_one_version_of_each_tool(committed_db, monkeypatch):
    both = threading.Barrier(2, timeout=20)

    async def discover(self: McpConnector) -> list[Offer]:
        both.wait()
        return [self._offer(make_definition(f"t{n}")) for n in range(5)]

    monkeypatch.setattr(McpConnector, "discover", discover)
    source = make_source()
    outcomes: list[Any] = []

    def run() -> None:
        try:
            outcomes.append(sync_source(DataSource.objects.get(pk=source.pk)))
        finally:
            connections["default"].close()

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(len(outcome.created) for outcome in outcomes) == [0, 5]
    assert [found.versions.count() for found in Tool.objects.all()] == [1] * 5
