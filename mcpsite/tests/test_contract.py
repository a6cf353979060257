"""The description of the API is true: schemathesis reads it, asks what it allows and what it does not, and compares."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import httpx2
import pytest
import uvicorn
from django.core.management import call_command

from access import tokens
from access.models import Grant, Role, User
from gateway.tests.conftest import make_tool
from mcpsite.asgi import Site
from tools.models import DataSource, Toolset

HERE = Path(__file__).parent
SCOPES = ["read", "write", "tools"]


def test_the_description_is_valid_and_nothing_in_it_is_guessed():
    out = StringIO()
    call_command("spectacular", "--validate", "--fail-on-warn", stdout=out)
    assert "openapi: 3.1.0" in out.getvalue()


@pytest.fixture
def site(committed_db: None) -> Iterator[str]:
    """The whole site on a real socket; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(Site(), log_config=None, log_level="critical", interface="asgi3", lifespan="on")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        until = time.monotonic() + 20
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)


@dataclass(frozen=True)
class Asker:
    """Who asks."""

    token: str
    token_id: str


@pytest.fixture
def company(committed_db: None) -> Role:
    """One of everything, and the role that may call it."""
    source = DataSource.objects.create(name="office", kind="mcp", options={"url": "http://127.0.0.1:9/mcp"})
    tool = make_tool(source, "echo")
    Toolset.objects.create(name="desk").tools.add(tool)
    role = Role.objects.create(name="clerk")
    Grant.objects.create(role=role, tool=tool)
    User.objects.create_user("carla", is_service=True)
    return role


def make_asker(role: Role, is_superuser: bool = False) -> Asker:
    user = User.objects.create_user("asker", is_superuser=is_superuser)
    user.groups.add(role)
    token, secret = tokens.issue(user, name="contract", scopes=SCOPES)
    return Asker(secret, str(token.pk))


def run(site: str, asker: Asker, folder: Path, *options: str) -> None:
    """Ask what the description allows, and some of what it does not."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "contract.toml")]
    command += ["run", f"{site}/api/v1/schema/", "--no-color", "--header", f"Authorization: Bearer {asker.token}"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE.parents[1]),
        "SCHEMATHESIS_HOOKS": "mcpsite.tests.contract_hooks",
        "CONTRACT_TOKEN_ID": asker.token_id,
    }
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=480, cwd=folder, env=environment
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]


def status_of(site: str, asker: Asker, path: str) -> int:
    headers = {"Authorization": f"Bearer {asker.token}"}
    return httpx2.get(f"{site}{path}", headers=headers).status_code


def test_an_administrator_gets_what_is_described(company: Role, site: str, tmp_path: Path) -> None:
    asker = make_asker(company, is_superuser=True)
    run(site, asker, tmp_path, "--max-examples", "3")
    assert status_of(site, asker, "/api/v1/users/") == 200, "the token did not survive: most of the run was refused"


def test_who_may_do_little_gets_what_is_described(company: Role, site: str, tmp_path: Path) -> None:
    asker = make_asker(company)
    run(site, asker, tmp_path, "--phases", "fuzzing", "--max-examples", "2")
    assert status_of(site, asker, "/api/v1/users/") == 403
    assert status_of(site, asker, "/api/v1/runs/") == 200
