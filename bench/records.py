"""`python -m bench.records`: how long the pages of the ledger take with a million records, as a browser asks."""

from __future__ import annotations

import argparse
import http.cookiejar
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, OpenerDirector, build_opener

import orjson

from bench.ledger_rows import RARE_ACTOR, RARE_CODE, RARE_SOURCE, RARE_TOOL
from bench.processes import BenchError, Stage, free_port, machine_ms, python, tree
from bench.targets import own_engines

_ROOT = Path(__file__).resolve().parent.parent
_LIST = "/admin/audit/record/"
_GOAL_MS = 500.0
# What is asked for → how. `older` goes on with the next pages instead of asking for the same one again.
PAGES: dict[str, dict[str, str]] = {
    "open": {},
    "next page": {"older": ""},
    "next page of a tool": {"older": "", "tool": "tool_3"},
    "last hour": {"last": "1h"},
    "last 24 hours": {"last": "24h"},
    "last 7 days": {"last": "7d"},
    "last 30 days": {"last": "30d"},
    "a tool that everybody calls": {"tool": "tool_0"},
    "a rare tool, long ago": {"tool": RARE_TOOL},
    "no such tool": {"tool": "no_such_tool"},
    "a busy actor": {"actor": "person.0"},
    "a rare actor": {"actor": RARE_ACTOR},
    "a busy data source": {"connector": "source-0"},
    "a rare data source": {"connector": RARE_SOURCE},
    "kind: calls": {"kind": "call"},
    "kind: changes": {"kind": "config"},
    "kind: system": {"kind": "system"},
    "denied": {"decision": "deny"},
    "calls that failed": {"result": "failed"},
    "code ok": {"code": "ok"},
    "code tool_error": {"code": "tool_error"},
    "a rare code": {"code": RARE_CODE},
    "door: REST": {"door": "rest"},
    "door: none came through": {"door": "agent"},
    "words, many": {"text": "desk"},
    "words, few": {"text": "batch5000"},
    "search for a tool": {"q": "tool_30"},
    "search for nothing": {"q": "nothing of this name"},
    "call id": {"call_id": "{call_id}"},
    "trace id": {"trace_id": "{trace_id}"},
    "request id": {"request_id": "{request_id}"},
    "tool and actor, busy": {"tool": "tool_0", "actor": "person.0"},
    "tool and code": {"tool": "tool_3", "code": "tool_error"},
    "tool, denied, last 30 days": {"tool": "tool_3", "decision": "deny", "last": "30d"},
    "a record": {"record": ""},
}


@dataclass(frozen=True, slots=True)
class Timing:
    """The answers to one sort of question, in milliseconds."""

    name: str
    p50: float
    p95: float
    longest: float
    cpu: float


class Browser:
    """Logged in to the admin of one installation."""

    def __init__(self, base: str, user: str, password: str) -> None:
        self.base = base
        self._opener: OpenerDirector = build_opener(HTTPCookieProcessor(http.cookiejar.CookieJar()))
        token = self.found(r'name="csrfmiddlewaretoken" value="(\w+)"', self.get("/admin/login/"))
        form = {"csrfmiddlewaretoken": token, "username": user, "password": password, "next": _LIST}
        with self._opener.open(f"{base}/admin/login/", urlencode(form).encode(), timeout=60) as answer:
            if not answer.url.endswith(_LIST):
                raise BenchError("The login to the admin was refused.")

    def get(self, path: str) -> str:
        """The page. Raises BenchError."""
        try:
            with self._opener.open(self.base + path, timeout=60) as answer:
                text: str = answer.read().decode()
                return text
        except OSError as error:
            raise BenchError(f"{path} could not be read: {error}") from error

    @staticmethod
    def found(pattern: str, page: str) -> str:
        """What the pattern's group finds. Raises BenchError."""
        match = re.search(pattern, page)
        if match is None:
            raise BenchError(f"A page does not hold {pattern}")
        return match[1].replace("&amp;", "&")


def cpu_of(pid: int) -> float:
    """What the installation has used so far, its PostgreSQL included, in ms."""
    return sum(process.cpu_ms for group in tree(pid).values() for process in group)


def measure(browser: Browser, pid: int, name: str, asked: dict[str, str], rounds: int) -> Timing:
    """Ask that often, after one question that does not count, and go on through pages where that is asked for."""
    if "record" in asked:
        keys = re.findall(rf"{_LIST}(\d+)/change/", browser.get(_LIST))
        paths = [f"{_LIST}{key}/change/" for key in keys]
    else:
        paths = [
            _LIST + (f"?{urlencode(query)}" if (query := {k: v for k, v in asked.items() if k != "older"}) else "")
        ]
    took = []
    page = browser.get(paths[0])
    before = cpu_of(pid)
    for number in range(rounds):
        path = paths[number % len(paths)]
        if "older" in asked:
            path = _LIST + browser.found(r'href="(\?[^"]*older_than=\d+[^"]*)"', page)
        started = time.perf_counter()
        page = browser.get(path)
        took.append((time.perf_counter() - started) * 1000)
        if "took too long and was given up" in page:
            raise BenchError(f"{name}: the list was given up.")
    used = (cpu_of(pid) - before) / rounds
    return Timing(name, sorted(took)[len(took) // 2], quantiles(took, n=20, method="inclusive")[-1], max(took), used)


def _ids(browser: Browser) -> dict[str, str]:
    """Ids of a record in the middle of the ledger, from its page."""
    listed = browser.get(f"{_LIST}?tool=tool_5&kind=intent&last=30d")
    page = browser.get(browser.found(rf"({_LIST}\d+/change/)", listed))
    names = ("call_id", "request_id")
    found = {name: browser.found(rf"\?{name}=([\w-]+)", page) for name in names}
    traced = re.search(r"\?trace_id=([\w-]+)", page)
    return {**found, "trace_id": traced[1] if traced else "ab" * 16}


def _start(stage: Stage, rows: int) -> tuple[Browser, int]:
    port, data, ready = free_port(), stage.folder / "data", stage.folder / "ready.json"
    pid = stage.start(
        "mcpsite", sys.executable, str(_ROOT / "manage.py"), "up", "--data", str(data), "--no-demo", "--workers", "1",
        "--port", str(port), "--ready-file", str(ready), environment=own_engines(data),
    )  # fmt: skip
    stage.wait("mcpsite", ready, 180)
    print(f"Inserting {rows:,} records …", file=sys.stderr, flush=True)
    command = python("bench.ledger_rows", "--rows", str(rows))
    done = subprocess.run(command, env=own_engines(data), capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"The records could not be inserted:\n{done.stderr.strip()[-3000:]}")
    access = orjson.loads(ready.read_bytes())
    return Browser(f"http://localhost:{port}", access["admin_user"], access["admin_password"]), pid


def main() -> int:
    """Measure and print: 0, or 1 when a page is slower than the goal or something did not start."""
    parser = argparse.ArgumentParser(prog="python -m bench.records", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="records in the ledger (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="questions of each sort (default %(default)s)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="mcpsite-bench-"))
    try:
        with Stage(folder) as stage:
            browser, pid = _start(stage, options.rows)
            ids = _ids(browser)
            timings, machine = [], machine_ms()
            for name, asked in PAGES.items():
                query = {key: value.format(**ids) for key, value in asked.items()}
                try:
                    timings.append(measure(browser, pid, name, query, options.rounds))
                except BenchError as error:
                    raise BenchError(f"{error}{stage.last_lines('mcpsite')}") from error
                print(f"{name:30} p95 {timings[-1].p95:7.1f} ms", file=sys.stderr, flush=True)
    except BenchError as error:
        print(f"The benchmark failed. {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    others = 1 - (sum(each.cpu for each in timings) * options.rounds / max(machine_ms() - machine, 1))
    print(f"\n{options.rows:,} records, {options.rounds} questions of each sort, in ms.")
    print("CPU: user and system time of the installation with its PostgreSQL.")
    print(f"Others had {others:.0%} of the CPU time that was used meanwhile.\n")
    print("| Question | p50 | p95 | longest | CPU |\n| --- | --- | --- | --- | --- |")
    for each in timings:
        print(f"| {each.name} | {each.p50:.0f} | {each.p95:.0f} | {each.longest:.0f} | {each.cpu:.0f} |")
    slow = [each.name for each in timings if each.p95 >= _GOAL_MS]
    print(f"\nSlower than {_GOAL_MS:.0f} ms at p95: {', '.join(slow) or 'nothing'}.")
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
