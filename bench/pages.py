"""How long the pages of the ledger take, as a browser asks for them."""

from __future__ import annotations

import http.cookiejar
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from statistics import quantiles
from urllib.parse import urlencode
from urllib.request import HTTPCookieProcessor, OpenerDirector, build_opener

from bench.ledger_rows import RARE_ACTOR, RARE_CODE, RARE_SOURCE, RARE_TOOL
from bench.processes import BenchError, tree

_LIST = "/admin/audit/record/"
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


def measure_all(browser: Browser, pid: int, rounds: int) -> Iterator[Timing]:
    """Each question in turn, that often."""
    ids = _ids(browser)
    for name, asked in PAGES.items():
        yield measure(browser, pid, name, {key: value.format(**ids) for key, value in asked.items()}, rounds)


def table(timings: Iterable[Timing]) -> str:
    """One line for each question."""
    lines = [
        f"| {each.name} | {each.p50:.0f} | {each.p95:.0f} | {each.longest:.0f} | {each.cpu:.0f} |" for each in timings
    ]
    return "\n".join(("| Question | p50 | p95 | longest | CPU |", "| --- | --- | --- | --- | --- |", *lines))
