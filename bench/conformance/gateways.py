"""An installation of its own with two gateways, on ports of their own, and the upstream of the suite behind them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from bench.processes import BenchError, Stage, free_port, python
from mcpsite import env

ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 180.0
_LAUNCHER = "conformance"


@dataclass(frozen=True, slots=True)
class Gateways:
    """The ports of both gateways; only `second` has no supervisor that starts it again. `token` may use everything."""

    first: int
    second: int
    second_pid: int
    token: str
    data: Path

    @property
    def ports(self) -> tuple[int, int]:
        """Both."""
        return self.first, self.second


def start_behind(stage: Stage, transport: str, era: str, allowed_origin: str = "") -> Gateways:
    """Start upstream and installation. Raises BenchError."""
    upstream = python("bench.conformance.upstream", "--era", era)
    if transport == "stdio":
        launchers = {_LAUNCHER: {"command": list(upstream), "env": {"PYTHONPATH": str(ROOT)}}}
        variables = {"MCP_LAUNCHERS": orjson.dumps(launchers).decode(), "MCP_ALLOWED_ORIGINS": allowed_origin}
        return _start(stage, "mcp-stdio", {"launcher": _LAUNCHER}, variables)
    return _start(stage, "mcp", {"url": start_upstream(stage, era)}, {"MCP_ALLOWED_ORIGINS": allowed_origin})


def start_upstream(stage: Stage, era: str) -> str:
    """The URL of the upstream. Raises BenchError."""
    port = free_port()
    stage.start("upstream", *python("bench.conformance.upstream", "--era", era, "--port", str(port)))
    stage.wait("upstream", port, 30)
    return f"http://localhost:{port}/mcp"


def _start(stage: Stage, kind: str, options: Mapping[str, str], variables: Mapping[str, str]) -> Gateways:
    first, second = free_port(), free_port()
    data, ready = stage.folder / "data", stage.folder / "ready.json"
    environment = env.for_child(
        MCPSITE_DATA=str(data),
        **dict.fromkeys(("DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL", "SECRET_KEY", "ENCRYPTION_KEYS"), ""),
        TASK_AFTER_SECONDS="1",
        **variables,
    )
    stage.start(
        "site", sys.executable, str(ROOT / "manage.py"), "up", "--data", str(data), "--no-demo",
        "--workers", "1", "--port", str(first), "--ready-file", str(ready), environment=environment,
    )  # fmt: skip
    stage.wait("site", ready, _START_SECONDS)
    pid = stage.start("gateway", *python("mcpsite.web", "--port", str(second)), environment=environment)
    command = python("bench.conformance.configure", "--kind", kind, "--options", orjson.dumps(options).decode())
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"The site could not be configured:\n{done.stderr.strip()[-3000:]}")
    stage.wait("gateway", second, 30)
    token = orjson.loads(done.stdout.splitlines()[-1])["token"]
    return Gateways(first, second, pid, token, data)
