"""The containers run for real, without Docker: what they copy, their commands, their environment and nothing else.

PostgreSQL is a fresh server that has run the init script of its container, as the image of PostgreSQL runs it.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import aiohttp
import psycopg
import pytest
import redis
from dotenv import dotenv_values

from bench.chaos.load import WRITE, Load, outside
from bench.chaos.site import configuration
from mcpsite import env
from mcpsite.datadir import DataDir, write_private
from mcpsite.engines import Postgres, postgres_bin_dir, valkey_server
from mcpsite.supervisor import Program, Supervisor, dying_with_us
from mcpsite.tests.containers import ROOT, compose, context, environment, exec_form, filled, final_stage, instructions
from mcpsite.tests.test_up import children, free_port, scrape, wait_for

SECONDS = 60


class Stack:
    """The services of docker-compose.yml as processes. What stands for a name in the network is put into their URLs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.app = folder / "app"
        self.port, self.redis_port = free_port(), free_port()
        self.services = compose()["services"]
        self.given: dict[str, str] = {}
        self.built: dict[str, int] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.engines = Supervisor()
        self.data = DataDir(folder / "engines")
        (folder / "tmp").mkdir()
        (folder / "sealer").mkdir()

    # --- As `docker compose build` and the first command of the quick start ---

    def build(self) -> None:
        for path in context():
            (self.app / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, self.app / path)
        (collect,) = [rest for word, rest in instructions() if word == "RUN" and "collectstatic" in rest]
        script = collect.replace("/opt/venv/bin/python", sys.executable).replace("/app", str(self.app))
        subprocess.run(
            ["sh", "-c", script], cwd=self.app, env=self.plain(), check=True, capture_output=True, timeout=SECONDS
        )

    def make_secrets(self) -> None:
        (self.folder / "deploy").mkdir()
        script = shutil.copy(ROOT / "deploy/new-env.sh", self.folder / "deploy")
        subprocess.run(
            ["sh", script, f"http://localhost:{self.port}"], check=True, capture_output=True, timeout=SECONDS
        )
        found = dotenv_values(self.folder / ".env")
        self.given = {name: value or "" for name, value in found.items()}

    def plain(self) -> dict[str, str]:
        """What any container has."""
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
            "HOME": str(self.folder / "tmp"),
            "TMPDIR": str(self.folder / "tmp"),
        }

    def environment(self, name: str) -> dict[str, str]:
        """The variables of the service and of the image, with the places of this machine."""
        image = " ".join(rest for word, rest in final_stage() if word == "ENV")
        fixed = dict(re.findall(r"(\w+)=(\S+)", image))
        del fixed["PATH"]
        found = {**self.plain(), **fixed, **environment(self.services[name], self.given)}
        return {variable: self.here(value) for variable, value in found.items()}

    def here(self, value: str) -> str:
        """A path, host or port of the containers as it is on this machine."""
        for theirs, ours in (
            ("@postgres:5432", f"@{quote(str(self.data.run_dir), safe='')}"),
            ("@redis:6379", f"@127.0.0.1:{self.redis_port}"),
            ("/app/", f"{self.app}/"),
            ("/var/lib/mcpsite", str(self.folder / "sealer")),
            ("/var/lib/witness", str(self.folder / "witness")),
            ("http://web:8000", f"http://localhost:{self.port}"),
            ("/run/mcpsite", str(self.folder / "metrics")),
        ):
            value = value.replace(theirs, ours)
        return value

    def command(self, words: list[str]) -> list[str]:
        """The command with this interpreter, and this stack's port."""
        port = {"8000": str(self.port), "python": sys.executable}
        return [self.here(port.get(word, word)) for word in words]

    # --- As `docker compose up` ---

    def start_postgres(self) -> None:
        """As the image does on an empty volume: initdb, the database, the scripts, and then the server."""
        service = self.services["postgres"]
        variables = environment(service, self.given)
        self.data.create()
        write_private(self.data.path / "secrets/postgres_password", variables["POSTGRES_PASSWORD"])
        postgres = Postgres(self.data)
        self._initdb(postgres, variables)
        postgres.prepare()
        program = postgres.program(0)
        program = replace(program, command=(*program.command, *service["command"][1:]))
        self.engines.start(program)
        self.engines.wait_ready("postgres", seconds=SECONDS)
        self.psql("postgres", variables, "-c", f'CREATE DATABASE "{variables["POSTGRES_DB"]}"')
        (scripts,) = [mount.split(":")[0] for mount in service["volumes"] if "initdb.d" in mount]
        for script in sorted((ROOT / scripts).iterdir()):
            assert script.suffix == ".sql"
            self.psql(variables["POSTGRES_DB"], variables, "-f", str(script))

    def _initdb(self, postgres: Postgres, variables: dict[str, str]) -> None:
        runtime = postgres._runtime
        postgres.cluster.parent.mkdir(mode=0o700)
        password = self.folder / "superuser"
        password.write_text(variables["POSTGRES_PASSWORD"])
        for path in (postgres.cluster.parent, password, self.data.run_dir):
            runtime.own(path)
        arguments = (f"--pgdata={postgres.cluster}", "--username=postgres", f"--pwfile={password}")
        more = ("--auth=scram-sha-256", *variables["POSTGRES_INITDB_ARGS"].split())
        runtime.run("initdb", *arguments, *more)

    def psql(self, database: str, variables: dict[str, str], *arguments: str) -> str:
        """The command line of docker-entrypoint.sh, with the environment of the container."""
        options = ("-v", "ON_ERROR_STOP=1", "--username", "postgres", "--no-password", "--no-psqlrc")
        return self.in_postgres("psql", *options, "--dbname", database, *arguments, variables=variables).decode()

    def in_postgres(
        self, program: str, *arguments: str, variables: dict[str, str] | None = None, given: bytes = b""
    ) -> bytes:
        """The output of a program in the container of PostgreSQL, where its socket lets the superuser in."""
        variables = variables or environment(self.services["postgres"], self.given)
        place = {"PGHOST": str(self.data.run_dir), "PGPASSWORD": variables["POSTGRES_PASSWORD"]}
        done = subprocess.run(
            [postgres_bin_dir() / program, *arguments], env={**self.plain(), **variables, **place}, input=given,
            capture_output=True, timeout=SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def start_redis(self) -> None:
        words = filled(self.services["redis"]["command"], self.given)
        folder = self.folder / "redis"
        folder.mkdir()
        place = ("--bind", "127.0.0.1", "--port", str(self.redis_port), "--dir", str(folder))
        self.engines.start(
            Program(
                name="redis", order=0, command=(str(valkey_server()), *words[1:], *place), ready=self.redis_answers,
                log=self.folder / "redis.log",
            )
        )  # fmt: skip
        self.engines.wait_ready("redis", seconds=SECONDS)

    def redis_answers(self) -> bool:
        with redis.Redis.from_url(self.environment("web")["REDIS_URL"]) as client:
            try:
                return bool(client.ping())
            except redis.exceptions.ConnectionError:
                return False

    def run(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """A command in the container of the service, to its end."""
        return subprocess.run(
            self.command([*words] or self.services[name]["command"]), cwd=self.app, env=self.environment(name),
            capture_output=True, text=True, timeout=SECONDS, preexec_fn=dying_with_us(),
        )  # fmt: skip

    def start(self, name: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                self.command(self.services[name]["command"]), cwd=self.app, env=self.environment(name),
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=dying_with_us(),
            )  # fmt: skip

    def stop_one(self, name: str) -> None:
        process = self.processes.pop(name)
        process.terminate()
        process.wait(SECONDS)

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def is_healthy(self) -> bool:
        """What the image's HEALTHCHECK says."""
        return self.run("web", *exec_form("HEALTHCHECK", final_stage())).returncode == 0

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait(SECONDS)
        self.engines.stop()

    def files(self) -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in self.app.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """All services, started in the order of their dependencies."""
    with tempfile.TemporaryDirectory(prefix="mcpsite-stack-") as folder:
        Path(folder).chmod(0o755)
        stack = Stack(Path(folder))
        try:
            stack.build()
            stack.make_secrets()
            stack.start_postgres()
            stack.start_redis()
            stack.built = stack.files()
            for name in ("witness-key", "migrate"):
                done = stack.run(name)
                assert done.returncode == 0, done.stderr
            for name in ("web", "worker", "agents", "sealer"):
                stack.start(name)
            wait_for(stack.is_healthy, lambda: stack.said("web"), SECONDS)
            yield stack
        finally:
            stack.stop()


def quick_start() -> list[str]:
    """The commands that docs/deployment.md begins with."""
    page = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
    return re.search(r"```sh\n(.*?)```", page, re.DOTALL)[1].strip().splitlines()


def test_three_commands_are_the_whole_start(stack):
    secrets, up, administrator = quick_start()
    assert secrets.startswith("sh deploy/new-env.sh https://")
    assert up == "docker compose up --build --detach --wait"
    words = administrator.removeprefix("docker compose exec web ").split()
    assert words != administrator.split()
    done = stack.run("web", *words)
    assert done.returncode == 0, done.stderr
    user, password = re.search(r"user +(\S+)\npassword +(\S+)", done.stdout).groups()
    body = json.dumps({"username": user, "password": password}).encode()
    url = f"http://localhost:{stack.port}/api/v1/auth/token/"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.load(answer)["access"]
    again = stack.run("web", *words)
    assert f"There is an administrator already: {user}." in again.stdout
    assert password not in again.stdout


async def test_a_call_is_answered_recorded_and_counted(stack: Stack) -> None:
    trace, record = "4bf92f3577b34da6a3ce929d0e0e4736", None
    async with outside(random.Random(1)) as upstream, aiohttp.ClientSession() as session:
        shell = ("python", "manage.py", "shell", "-v", "0", "-c", configuration(upstream.url))
        done = await asyncio.to_thread(stack.run, "web", *shell)
        found = re.search(r"TOKEN (\S+)", done.stdout)
        assert found, done.stderr
        load = Load(f"http://localhost:{stack.port}", found[1])
        wait_until = time.monotonic() + 10
        while record is None and time.monotonic() < wait_until:  # the policy reaches the workers in a moment
            record = await load.by_mcp(WRITE, trace, session)
    assert upstream.effects == {trace: 1}
    with psycopg.connect(stack.environment("web")["DATABASE_URL"]) as connection:
        row = connection.execute("SELECT code, actor FROM audit_record WHERE rid = %s", [record]).fetchone()
    assert row == ("ok", "load")
    name = 'mcpsite_calls_total{code="ok",connector="outside",decision="allow",tool="effect"}'
    wait_for(lambda: metrics(stack).get(name) == 1, lambda: str(metrics(stack)), 10)


def metrics(stack: Stack) -> dict[str, float]:
    return scrape(f"http://localhost:{stack.port}/metrics", stack.given["METRICS_TOKEN"])


def test_all_processes_and_both_workers_are_in_the_metrics(stack):
    """Two web workers and the agent worker carry out calls; the job worker and the agent worker work on jobs."""
    wait_for(lambda: metrics(stack).get("mcpsite_processes") == 3, lambda: str(metrics(stack)), 20)
    wait_for(lambda: metrics(stack).get("mcpsite_job_workers") == 2, lambda: str(metrics(stack)), 20)
    assert metrics(stack)["mcpsite_database_up"] == 1


def test_the_witness_signs_heads_once_there_is_an_administrator(stack):
    """As docs/deployment.md says: the first start has made its key, and its account is made with the administrator."""
    assert stack.run("web", "python", "manage.py", "first_administrator").returncode == 0
    stack.start("witness")
    with psycopg.connect(stack.environment("web")["DATABASE_URL"], autocommit=True) as connection:
        signed = lambda: connection.execute("SELECT count(*) FROM audit_cosignature").fetchone() != (0,)  # noqa: E731
        wait_for(signed, lambda: stack.said("witness"), SECONDS)
    page = (ROOT / "docs/deployment.md").read_text(encoding="utf-8").partition("## The witness")[2]
    status = re.search(r"docker compose exec witness (.+)", page)[1].split()
    done = stack.run("witness", *status)
    assert done.returncode == 0, done.stdout


def test_prometheus_may_use_the_name_inside_of_the_network(stack):
    request = urllib.request.Request(
        f"http://127.0.0.1:{stack.port}/metrics",
        headers={"Host": "web:8000", "Authorization": f"Bearer {stack.given['METRICS_TOKEN']}"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


def test_pages_have_their_files(stack):
    for path in ("unfold/css/styles.css", "mcpsite/admin.css"):
        with urllib.request.urlopen(f"http://localhost:{stack.port}/static/{path}", timeout=10) as answer:
            assert answer.status == 200


def test_the_site_can_neither_alter_the_schema_nor_become_the_owner(stack):
    url = stack.environment("web")["DATABASE_URL"]
    with psycopg.connect(url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("CREATE TABLE mine (id int)")
    with psycopg.connect(url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("DELETE FROM audit_record")
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(stack.environment("web")["DATABASE_OWNER_URL"])
    owner = stack.environment("migrate")["DATABASE_OWNER_URL"]
    with psycopg.connect(owner) as connection:
        row = connection.execute("SELECT rolsuper, rolcreaterole FROM pg_roles WHERE rolname = current_user").fetchone()
    assert row == (False, False)
    assert "One database role" not in stack.said("web")


def test_others_may_not_even_connect(stack):
    variables = environment(stack.services["postgres"], stack.given)
    stack.psql("mcpsite", variables, "-c", "CREATE ROLE stranger LOGIN PASSWORD 'x'")
    place = f"postgresql://stranger:x@{quote(str(stack.data.run_dir), safe='')}/mcpsite"
    with pytest.raises(psycopg.OperationalError, match="CONNECT privilege"):
        psycopg.connect(place)


def test_a_backup_comes_back_as_the_page_says(stack):
    """Into another database of the same server: the roles are there, as they are on a new volume."""
    page = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
    dump, restore = (
        re.search(rf"docker compose exec .*?postgres ({program} .*?) [<>] mcpsite.dump", page)[1].split()
        for program in ("pg_dump", "pg_restore")
    )
    saved = stack.in_postgres(*dump)
    variables = environment(stack.services["postgres"], stack.given)
    stack.psql("postgres", variables, "-c", "CREATE DATABASE restored OWNER mcpsite_owner")
    stack.in_postgres(*(word.replace("mcpsite", "restored") for word in restore), given=saved)
    count = ("-At", "-c", "SELECT count(*) FROM audit_record")
    assert int(stack.psql("restored", variables, *count)) >= 1
    owner = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'"
    assert stack.psql("restored", variables, "-At", "-c", owner) == "mcpsite_owner\n"


def test_postgresql_is_healthy_by_its_own_question(stack):
    kind, program, *words = stack.services["postgres"]["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "pg_isready")
    words = [word.replace("127.0.0.1", str(stack.data.run_dir)) for word in words]
    assert subprocess.run([postgres_bin_dir() / program, *words], capture_output=True).returncode == 0


def test_the_health_of_the_image_tells_when_nothing_answers(stack):
    health = exec_form("HEALTHCHECK", final_stage())
    other = [word if word != "8000" else str(free_port()) for word in health]
    assert stack.run("web", *other).returncode == 1


def test_migrating_again_changes_nothing_and_succeeds(stack):
    done = stack.run("migrate")
    assert done.returncode == 0, done.stderr
    assert "No migrations to apply" in done.stdout


def test_a_web_worker_that_is_killed_comes_back(stack):
    parent = stack.processes["web"].pid
    before = [pid for pid, line in children(parent).items() if "mcpsite.web" in line]
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    wait_for(lambda: before[0] not in children(parent) and len(children(parent)) == 2, lambda: stack.said("web"), 20)
    wait_for(stack.is_healthy, lambda: stack.said("web"), 20)


def test_the_container_is_left_as_it_was_built(stack):
    """It is read-only, so it must not need to write."""
    assert stack.files() == stack.built


@pytest.mark.parametrize("name", ["agents", "worker", "web"])
def test_sigterm_ends_a_container_in_time_and_in_order(stack, name):
    process = stack.processes[name]
    family = children(process.pid)
    started = time.monotonic()
    process.terminate()
    assert process.wait(SECONDS) == 0, stack.said(name)
    grace = re.fullmatch(r"(\d+)s", stack.services[name]["stop_grace_period"])
    assert time.monotonic() - started < int(grace[1])
    assert not [pid for pid in family if Path(f"/proc/{pid}").exists()]
    assert "Traceback" not in stack.said(name)


def test_a_port_in_use_is_told_in_one_sentence(tmp_path):
    port = free_port()
    mine = env.for_child(MCPSITE_DATA=str(env.data_dir()))
    first = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=dying_with_us(),
    )  # fmt: skip
    try:
        wait_for(lambda: _listens(port))
        done = subprocess.run(
            [sys.executable, ROOT / "manage.py", "serve", "--port", str(port)],
            capture_output=True, text=True, env=mine, timeout=SECONDS,
        )  # fmt: skip
    finally:
        first.kill()
        first.wait()
    assert done.returncode == 1
    assert done.stderr.startswith(f"Port {port} on 127.0.0.1 is in use")
    assert done.stderr.count("\n") == 1


def _listens(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1):
            return True
    except OSError:
        return False
