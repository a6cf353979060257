"""`manage.py up`, for real: a whole installation in a directory of its own, and everything that may befall it."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from mcpsite import env
from mcpsite.datadir import OWNER_ROLE, SITE_ROLE, DataDir
from mcpsite.supervisor import dying_with_us

ROOT = Path(__file__).resolve().parents[2]
MANAGE = str(ROOT / "manage.py")
NOBODY = 65534


class Up:
    """One `manage.py up` and what it is known by."""

    def __init__(self, folder: Path, *options: str, command: tuple[str, ...] = (sys.executable,), **popen: Any) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.ready_file = folder / "ready.json"
        self.port = free_port()
        self.options = options
        self.command = command
        self.manage = MANAGE
        self.popen_options = popen
        self.process: subprocess.Popen[str] | None = None
        self.output = folder / "output"

    def start(self, *more: str, expect: str = "is ready after|are ready after") -> None:
        arguments = ("--data", str(self.data), "--port", str(self.port), "--ready-file", str(self.ready_file))
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [*self.command, self.manage, "up", *arguments, *self.options, *more],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
                cwd="/",
                preexec_fn=dying_with_us(),
                **self.popen_options,
            )
        wait_for(lambda: re.search(expect, self.said) or self.ended, lambda: self.said, seconds=180)
        assert not self.ended, self.said

    @property
    def said(self) -> str:
        return self.output.read_text()

    @property
    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def run(self, *more: str) -> subprocess.CompletedProcess[str]:
        """Another `up` on the same data directory, of which nothing but its end is expected."""
        command = [*self.command, self.manage, "up", "--data", str(self.data), "--port", str(free_port()), *more]
        return subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=60, preexec_fn=dying_with_us())

    def processes(self) -> dict[int, str]:
        assert self.process is not None
        return descendants(self.process.pid)

    def get(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path, headers={"Host": f"localhost:{self.port}"})
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=60)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def wait_for(condition: Any, tell: Any = lambda: "", seconds: float = 60.0) -> float:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"waited {seconds} s in vain: {tell()}"
        time.sleep(0.02)
    return time.monotonic() - started


def exists(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(parent: int) -> dict[int, str]:
    """Process id → command line of those that `parent` has started."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def descendants(parent: int) -> dict[int, str]:
    found = children(parent)
    for child in list(found):
        found.update(descendants(child))
    return found


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(scope="module")
def site() -> Iterator[Up]:
    """One installation that the tests share; each leaves it running."""
    with tempfile.TemporaryDirectory(prefix="mcpsite-up-") as folder:
        up = Up(Path(folder), "--no-demo", "--workers", "2")
        try:
            up.start()
            yield up
        finally:
            if not up.ended:
                up.stop()


def test_it_says_what_it_does_and_where_everything_is(site):
    for line in ("PostgreSQL 18", "Valkey", "Migrations", "2 web workers"):
        assert re.search(rf"^  {line}.*\d\.\d s$", site.said, re.MULTILINE), site.said
    assert f"http://localhost:{site.port}/admin/" in site.said
    assert f'"url": "http://localhost:{site.port}/mcp"' in site.said
    assert json.loads(site.ready_file.read_text())["admin_password"] in site.said


def test_the_ready_file_is_private_and_complete(site):
    assert mode(site.ready_file) == 0o600
    ready = json.loads(site.ready_file.read_text())
    base = f"http://localhost:{site.port}"
    assert ready["admin_url"] == f"{base}/admin/"
    assert ready["api_url"] == f"{base}/api/v1/"
    assert ready["mcp_url"] == f"{base}/mcp"
    assert ready["health_url"] == f"{base}/health"
    assert ready["metrics_url"] == f"{base}/metrics"
    assert ready["admin_user"] == "admin"
    assert ready["tokens"] == {}


def test_secrets_are_private(site):
    assert mode(site.data) == 0o700
    for secret in (site.data / "secrets").iterdir():
        assert mode(secret) == 0o600


def test_the_metrics_are_summed_over_processes_and_never_go_back(site):
    """The administrator of the ready file logs in, and reads them. Two web workers and the agent worker count."""
    ready = json.loads(site.ready_file.read_text())
    assert site.get("/metrics") == 401
    token = obtain(ready)

    def count() -> float:
        """Requests of REST that the site answered, over all processes."""
        samples = scrape(ready["metrics_url"], token)
        assert samples["mcpsite_processes"] <= 3
        return sum(value for name, value in samples.items() if name.startswith("mcpsite_http_requests_total"))

    wait_for(lambda: scrape(ready["metrics_url"], token)["mcpsite_processes"] == 3)
    before = count()
    asked = [site.get("/api/v1/tools/") for _ in range(40)]
    assert set(asked) == {401}
    wait_for(lambda: count() >= before + 40)
    victim = next(pid for pid, line in children(site.process.pid).items() if "mcpsite.web" in line)
    known = count()
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: victim not in children(site.process.pid) and site.get("/readyz") == 200)
    for _ in range(20):
        now = count()
        assert now >= known
        known = now
    wait_for(lambda: scrape(ready["metrics_url"], token)["mcpsite_processes"] == 3)
    assert count() >= known


def obtain(ready: dict[str, Any]) -> str:
    body = json.dumps({"username": ready["admin_user"], "password": ready["admin_password"]}).encode()
    request = urllib.request.Request(
        f"{ready['api_url']}auth/token/", body, {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.load(answer)["access"])


def scrape(url: str, token: str) -> dict[str, float]:
    """Sample with its labels → value; empty while no process answers."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
    except (ConnectionError, urllib.error.URLError, http.client.HTTPException):
        return {"mcpsite_processes": 0}
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def test_it_serves(site):
    assert site.get("/readyz") == 200


def test_a_second_start_on_the_same_data_is_refused_in_one_sentence(site):
    second = site.run("--no-demo")
    assert second.returncode == 1
    assert second.stderr.count("\n") == 1
    assert f"already runs on {site.data} as process {site.process.pid}" in second.stderr
    assert site.get("/readyz") == 200


def test_a_port_in_use_is_told_in_one_sentence(site, tmp_path):
    other = Up(tmp_path, "--no-demo")
    done = other.run("--port", str(site.port))
    assert done.returncode == 1
    assert done.stderr == f"Port {site.port} on 127.0.0.1 is in use: stop what listens there, " + (
        "or choose another one with --port.\n"
    )


@pytest.mark.parametrize(
    "part",
    ["mcpsite.web", "postgres -D", "valkey-server", "worker jobs", "worker agents", "worker sealer", "audit.witness"],
)
def test_what_is_killed_comes_back_within_ten_seconds(site, part):
    before = [pid for pid, line in children(site.process.pid).items() if part in line]
    os.kill(before[0], signal.SIGKILL)

    def is_back() -> bool:
        now = [pid for pid, line in children(site.process.pid).items() if part in line]
        return before[0] not in now and len(now) == len(before) and site.get("/readyz") == 200

    assert wait_for(is_back, lambda: site.said) < 10


def test_it_hides_no_child_that_it_did_not_start(site):
    lines = list(children(site.process.pid).values())
    assert sum("mcpsite.web" in line for line in lines) == 2
    assert len(lines) == 8


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that other users may enter, since pytest's own are closed to them."""
    with tempfile.TemporaryDirectory(prefix="mcpsite-up-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_sigterm_stops_all_and_the_data_stay(folder):
    up = Up(folder, "--no-demo", "--workers", "1")
    up.start()
    first = json.loads(up.ready_file.read_text())
    processes = up.processes()
    assert len(processes) > 5
    assert up.stop(signal.SIGTERM) == 0
    assert not [line for pid, line in processes.items() if exists(pid)]
    assert not up.ready_file.exists()
    up.start()
    assert json.loads(up.ready_file.read_text()) == first
    assert first["admin_password"] not in up.said
    processes = up.processes()
    up.process.kill()
    up.process.wait()
    wait_for(lambda: not [pid for pid in processes if exists(pid)], lambda: str(processes), 20)
    up.start("--services")
    assert not up.ready_file.exists()
    assert up.stop(signal.SIGINT) == 0


@contextmanager
def listening(up: Up, token: str) -> Iterator[http.client.HTTPResponse]:
    """An open `subscriptions/listen`."""
    ours = {"protocolVersion": "2026-07-28", "clientCapabilities": {}}
    meta = {f"io.modelcontextprotocol/{name}": value for name, value in ours.items()}
    params = {"notifications": {"toolsListChanged": True}, "_meta": meta}
    body = {"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen", "params": params}
    headers = {
        "Host": f"localhost:{up.port}",
        "Authorization": f"Bearer {token}",
        "Content-Type": "application/json",
        "MCP-Protocol-Version": "2026-07-28",
        "Mcp-Method": "subscriptions/listen",
    }
    connection = http.client.HTTPConnection("127.0.0.1", up.port, timeout=30)
    connection.request("POST", "/mcp", json.dumps(body), headers)
    with closing(connection), connection.getresponse() as stream:
        stream.readline()
        assert b"acknowledged" in stream.readline()
        yield stream


def test_the_demo_answers_a_first_call_through_the_front_door(folder):
    up = Up(folder, "--workers", "1")
    up.start()
    ready = json.loads(up.ready_file.read_text())
    assert set(ready["tokens"]) == {"administrator", "support_agent", "analyst", "operations", "auditor"}
    assert re.search(r"^    call +get_current_time ", up.said, re.MULTILINE), up.said
    record = re.search(r"^    record +(\S+)  (\S+)$", up.said, re.MULTILINE)
    assert record is not None, up.said
    assert record[2] == f"http://localhost:{up.port}/admin/audit/record/?q={record[1]}"
    port = (up.data / "demo-port").read_text()
    with listening(up, ready["tokens"]["support_agent"]) as stream:
        assert up.stop() == 0
        assert b'"resultType":"complete"' in stream.read(), "it is ended, not cut off"
    with socket.create_server(("127.0.0.1", int(port))):
        up.start()
    assert (up.data / "demo-port").read_text() != port, "another port is found when the kept one is taken"
    assert json.loads(up.ready_file.read_text())["tokens"] == ready["tokens"]
    assert "get_current_time" in up.said
    assert up.stop() == 0


def test_engines_that_are_named_are_used_and_none_is_started(folder):
    mine = DataDir(env.data_dir())
    urls = {
        "DATABASE_URL": mine.database_url(SITE_ROLE),
        "DATABASE_OWNER_URL": mine.database_url(OWNER_ROLE),
        "REDIS_URL": mine.redis_url,
    }
    up = Up(folder, "--workers", "1", env=env.for_child(**urls))
    up.start()
    assert not {"postgres", "valkey"} & {path.name for path in up.data.iterdir()}
    assert sorted(line.split()[-1] for line in up.processes().values() if " worker " in line) == [
        "agents",
        "jobs",
        "sealer",
    ]
    assert json.loads(up.ready_file.read_text())["tokens"] == {}, (
        "the demo is not loaded by itself on engines of others"
    )
    assert up.stop() == 0


def test_services_alone_need_an_engine_to_start(tmp_path):
    mine = DataDir(env.data_dir())
    urls = {"DATABASE_URL": mine.database_url(SITE_ROLE), "REDIS_URL": mine.redis_url}
    command = [sys.executable, MANAGE, "up", "--services", "--data", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=env.for_child(**urls), preexec_fn=dying_with_us()
    )
    assert done.returncode == 1
    assert "no engine to start" in done.stderr


def test_an_unusable_data_directory_is_told_in_one_sentence(tmp_path):
    (tmp_path / "data").write_text("a file")
    done = Up(tmp_path).run()
    assert done.returncode == 1
    assert done.stderr.startswith(f"The data directory {tmp_path / 'data'} cannot be used")
    assert done.stderr.count("\n") == 1


def test_help_makes_no_data_directory(tmp_path):
    done = Up(tmp_path).run("--help")
    assert done.returncode == 0
    assert "--ready-file" in done.stdout
    assert not (tmp_path / "data").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as an ordinary user already")
def test_it_runs_as_an_ordinary_user(folder):
    """With this interpreter, or with the system's when this one lies where only root may go."""
    packages = next(path for path in sys.path if path.endswith("site-packages"))
    code = copy_of_the_code(folder)
    variables = env.for_child(HOME=str(folder), PYTHONPATH=packages, PYTHONDONTWRITEBYTECODE="1")
    account = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    tries = [sys.executable, "/usr/bin/python3"]
    probe = f"import sys, django, psycopg, redis; assert sys.version_info[:2] == {sys.version_info[:2]}"
    usable = [python for python in tries if succeeds([python, "-c", probe], env=variables, cwd="/", **account)]
    if not usable:
        pytest.skip(f"No interpreter of {tries} can import {packages} as another user")
    up = Up(folder, "--no-demo", "--workers", "1", command=(usable[0],), env=variables, **account)
    up.manage = str(code / "manage.py")
    os.chown(folder, NOBODY, NOBODY)
    up.start()
    assert up.data.stat().st_uid == NOBODY
    assert all(Path(f"/proc/{pid}").stat().st_uid == NOBODY for pid in up.processes())
    assert up.get("/readyz") == 200
    assert up.stop() == 0


def succeeds(command: list[str], **options: Any) -> bool:
    try:
        return subprocess.run(command, capture_output=True, **options).returncode == 0
    except PermissionError:
        return False


def copy_of_the_code(folder: Path) -> Path:
    code = folder / "code"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "node_modules", "bench", "docs")
    shutil.copytree(ROOT, code, ignore=ignored)
    return code
