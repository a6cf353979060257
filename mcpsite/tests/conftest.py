"""One installation with its demo, for the tests that come through its front door: clients and browsers."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from mcpsite.datadir import OWNER_ROLE, DataDir
from mcpsite.tests.test_up import Up


@dataclass(frozen=True)
class Site:
    """A running installation: what its ready file says, and its ledger."""

    up: Up
    url: str
    mcp_url: str
    admin_user: str
    admin_password: str
    tokens: dict[str, str]

    @property
    def upstream_url(self) -> str:
        """Where the demo's own MCP server listens."""
        return f"http://127.0.0.1:{(self.up.data / 'demo-port').read_text().strip()}/mcp"

    @property
    def upstream_token(self) -> str:
        """What that server wants to see."""
        return (self.up.data / "secrets/demo_upstream_token").read_text().strip()

    def record(self, rid: str) -> dict[str, Any]:
        """The record of that id, as its owner reads it."""
        with psycopg.connect(DataDir(self.up.data).database_url(OWNER_ROLE), row_factory=dict_row) as connection:
            found = connection.execute("SELECT * FROM audit_record WHERE rid = %s", [rid]).fetchall()
        assert len(found) == 1, f"{rid}: {found}"
        return found[0]


@contextmanager
def running_site() -> Iterator[Site]:
    """Started as `make run` does it, in a directory of its own that is thrown away."""
    with tempfile.TemporaryDirectory(prefix="mcpsite-site-") as folder:
        up = Up(Path(folder), "--demo", "--workers", "1")
        try:
            up.start()
            ready = json.loads(up.ready_file.read_text())
            url = f"http://localhost:{up.port}"
            yield Site(up, url, ready["mcp_url"], ready["admin_user"], ready["admin_password"], ready["tokens"])
        finally:
            if not up.ended:
                up.stop()


@pytest.fixture(scope="session")
def demo_site() -> Iterator[Site]:
    """Started once; tests may add to it, and take nothing away."""
    with running_site() as site:
        yield site
