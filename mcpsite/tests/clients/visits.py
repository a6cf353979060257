"""The programs beside this file, each a client in a process of its own that makes one visit to the site."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcpsite.supervisor import dying_with_us
from mcpsite.tests.conftest import Site

HERE = Path(__file__).resolve().parent
NODE = Path(sys.executable).with_name("node")
PYTHON_OF_1 = HERE.parents[2] / ".venv-mcp1/bin/python"
PYTHON_OF_FASTMCP = HERE.parents[2] / ".venv-fastmcp/bin/python"
MCP_REMOTE = HERE / "node_modules/mcp-remote/dist/proxy.js"

# What of prompts and resources a client is told to ask for.
READING: dict[str, Any] = {
    "prompt": {"name": "answer_customer", "arguments": {"ticket_id": "7", "tone": "sorry"}},
    "argument": {"name": "tone", "value": "f"},
    "uri": "office://shipping/rates",
}


def run(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=HERE, env=environment, preexec_fn=dying_with_us()
    )


@dataclass(frozen=True)
class Client:
    """A program that makes one visit, the mode it is told, and the revision of MCP it must end up with."""

    program: tuple[Path, ...]
    mode: str
    revision: str

    def visit(self, site: Site, token: str, calls: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """What it met: the revision, the lists and what came of the calls; or with which status it was turned away."""
        task = {"url": site.mcp_url, "token": token, "mode": self.mode, "calls": calls, **more}
        done = run(*self.program, json.dumps(task))
        assert done.returncode == 0, done.stderr
        met: dict[str, Any] = json.loads(done.stdout)
        return met


LANGCHAIN = Client((PYTHON_OF_1, HERE / "langchain1.py"), "", "")
PYTHON_2 = Client((Path(sys.executable), HERE / "python2.py"), "auto", "2026-07-28")
CLIENTS = {
    "Python 1.x": Client((PYTHON_OF_1, HERE / "python1.py"), "", "2025-11-25"),
    "Python 2.x": PYTHON_2,
    "Python 2.x legacy": Client((Path(sys.executable), HERE / "python2.py"), "legacy", "2025-11-25"),
    "Python 2.x pinned": Client((Path(sys.executable), HERE / "python2.py"), "2026-07-28", "2026-07-28"),
    "FastMCP": Client((PYTHON_OF_FASTMCP, HERE / "fastmcp4.py"), "auto", "2026-07-28"),
    "FastMCP legacy": Client((PYTHON_OF_FASTMCP, HERE / "fastmcp4.py"), "legacy", "2025-11-25"),
    "TypeScript 1.x": Client((NODE, HERE / "typescript1.mjs"), "", "2025-11-25"),
    "TypeScript 2.x": Client((NODE, HERE / "typescript2.mjs"), "auto", "2026-07-28"),
    "TypeScript 2.x legacy": Client((NODE, HERE / "typescript2.mjs"), "legacy", "2025-11-25"),
    "TypeScript 2.x pinned": Client((NODE, HERE / "typescript2.mjs"), "2026-07-28", "2026-07-28"),
}
