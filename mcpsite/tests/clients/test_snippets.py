"""The programs that the admin gives to paste are run as they stand, against a whole installation."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mcpsite.tests.clients.visits import NODE, run
from mcpsite.tests.conftest import Site
from tools import clients

INTERPRETERS = {
    "curl": ("bash", "-c"),
    "Python": (sys.executable, "-c"),
    "Python SDK": (sys.executable, "-c"),
    # As a file named `.mts` is read.
    "TypeScript": (str(NODE), "--no-warnings", "--input-type=module-typescript", "--eval"),
    "TypeScript SDK": (str(NODE), "--no-warnings", "--input-type=module-typescript", "--eval"),
}


def ran(snippets: list[clients.Snippet], title: str, site: Site) -> subprocess.CompletedProcess[str]:
    (text,) = (snippet.text for snippet in snippets if snippet.title == title)
    done = run(*INTERPRETERS[title], text, **{clients.VARIABLE: site.tokens["support_agent"]})
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("title", ["curl", "Python", "TypeScript"])
def test_a_call_is_made_as_it_was_tried(demo_site: Site, settings, title: str) -> None:
    settings.PUBLIC_URL = demo_site.mcp_url.removesuffix("/mcp")
    arguments = {"query": 'it\'s "quoted" $HOME ü', "max_results": 3}
    done = ran(clients.calls("find_customer", arguments), title, demo_site)
    assert "row_count" in done.stdout


@pytest.mark.parametrize("title", ["Python SDK", "TypeScript SDK"])
def test_a_program_lists_the_tools_of_a_toolset(demo_site: Site, settings, title: str) -> None:
    settings.PUBLIC_URL = demo_site.mcp_url.removesuffix("/mcp")
    done = ran(clients.configurations("support"), title, demo_site)
    assert "find_customer" in done.stdout.splitlines()
