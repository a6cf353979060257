"""What a web worker must not load before a call needs it: each costs tens of megabytes and most of a second."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNUSED = ("requests", "jinja2", "pygments", "opentelemetry")
HEAVY = ("langchain", "langchain_core", "langgraph", "mcp", "mcp_types", "sqlalchemy", "sqlglot", "httpx", "httpx2")

# Runs in a process of its own. A finder before all others sees who asks for what first.
PROBE = """
import importlib.abc, json, os, sys

heavy, found = set(json.loads(sys.argv[1])), {}

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if (top in heavy or top.startswith("langchain")) and top not in found:
            frame, chain = sys._getframe(1), []
            while frame is not None:
                if frame.f_code.co_name == "<module>" or "importlib" not in frame.f_code.co_filename:
                    where = frame.f_globals.get("__name__", "?")
                    if where not in chain and not where.startswith("importlib"):
                        chain.append(where)
                frame = frame.f_back
            found[top] = chain[::-1]
        return None

sys.meta_path.insert(0, Watch())
os.environ["DJANGO_SETTINGS_MODULE"] = "mcpsite.settings"
exec(sys.argv[2])
print(json.dumps(found))
"""

SITE = "import django; django.setup(); from django.urls import get_resolver; get_resolver().url_patterns"


def imported_by(code: str, heavy: tuple[str, ...] = HEAVY) -> dict[str, list[str]]:
    """Heavy package → the modules that lead to it, for what `code` imports."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(heavy), code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("code", "heavy"),
    [(SITE, HEAVY), ("from mcpsite.web import import_site; import_site()", HEAVY + UNUSED)],
    ids=["the site", "a web worker"],
)
def test_nothing_heavy_is_loaded(code, heavy):
    found = imported_by(code, heavy)
    told = [f"{name} is imported: {' → '.join([*chain, name])}" for name, chain in found.items()]
    assert not told, "\n".join(told)


def test_the_workers_load_nothing_heavy_before_a_run_needs_it():
    assert imported_by("import django; django.setup(); import mcpsite.management.commands.worker") == {}


def test_running_an_agent_is_what_loads_langchain():
    found = imported_by("import django; django.setup(); import agents.engine")
    assert found["langchain"][-1] == "agents.engine"


def test_a_culprit_would_be_named():
    found = imported_by("import django; django.setup(); import mcpsite.first_call")
    assert found["mcp"][-1] == "mcpsite.first_call"
    assert {"mcp", "httpx2"} <= set(found)
