"""What is to be pasted can be: sound JSON, shell and programs, with the right address and token."""

from __future__ import annotations

import ast
import json
import shlex

import pytest
from django.contrib.auth.models import Permission
from django.test import Client
from django.urls import reverse

from access.models import User
from tools import clients
from tools.models import Toolset

ODD = {"text": 'it\'s $HOME "quoted" \\ ü\n', "number": 2.5, "none": None, "yes": True, "list": [{"a": 1}]}


@pytest.fixture(autouse=True)
def public_url(settings):
    settings.PUBLIC_URL = "https://mcp.example.com"


def by_title(snippets: list[clients.Snippet]) -> dict[str, str]:
    return {snippet.title: snippet.text for snippet in snippets}


def desk() -> dict[str, str]:
    return by_title(clients.configurations("desk", "mcps_secret"))


def test_each_client_is_told_in_its_own_words():
    found = desk()
    url, header = "https://mcp.example.com/mcp/desk", {"Authorization": "Bearer mcps_secret"}
    assert json.loads(found["Cursor"]) == {"mcpServers": {"mcpsite-desk": {"url": url, "headers": header}}}
    other = {"type": "http", "url": url, "headers": header}
    assert json.loads(found["Others"]) == {"mcpServers": {"mcpsite-desk": other}}
    assert shlex.split(found["Claude Code"]) == [
        *("claude", "mcp", "add", "--transport", "http", "mcpsite-desk", url),
        *("--header", "Authorization: Bearer mcps_secret"),
    ]
    bridge = json.loads(found["Claude Desktop"])["mcpServers"]["mcpsite-desk"]
    assert (bridge["command"], bridge["args"][:3]) == ("npx", ["-y", "mcp-remote", url])
    assert bridge["env"] == {"AUTHORIZATION": "Bearer mcps_secret"}
    code = json.loads(found["VS Code"])
    assert code["servers"]["mcpsite-desk"]["headers"] == {"Authorization": "Bearer ${input:mcpsite-desk-token}"}
    assert (code["inputs"][0]["id"], code["inputs"][0]["password"]) == ("mcpsite-desk-token", True)


def test_only_plain_http_has_to_be_allowed(settings):
    assert "--allow-http" not in desk()["Claude Desktop"]
    settings.PUBLIC_URL = "http://localhost:8000"
    assert "--allow-http" in desk()["Claude Desktop"]


def test_without_a_toolset_the_endpoint_is_that_of_all_tools():
    found = by_title(clients.configurations())
    assert json.loads(found["Cursor"])["mcpServers"]["mcpsite"]["url"] == "https://mcp.example.com/mcp"
    assert clients.PLACEHOLDER in found["Cursor"]


def test_what_a_shell_reads_is_what_was_meant():
    words = shlex.split(by_title(clients.calls("find", ODD))["curl"])
    assert words[1] == "https://mcp.example.com/api/v1/tools/find/call/"
    assert json.loads(words[-1]) == {"arguments": ODD}


def test_a_python_program_holds_the_arguments():
    program = ast.parse(by_title(clients.calls("find", ODD))["Python"])
    (given,) = (
        node.value
        for node in ast.walk(program)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "arguments"
    )
    assert ast.literal_eval(given) == ODD


@pytest.mark.django_db
def test_the_page_of_a_toolset_has_them_for_those_who_may_look():
    toolset = Toolset.objects.create(name="desk")
    change, page = (reverse(f"admin:tools_toolset_{name}", args=(toolset.pk,)) for name in ("change", "connect"))
    looking = _staff("view_toolset")
    assert page in looking.get(change).content.decode()
    shown = looking.get(page).content.decode()
    assert "https://mcp.example.com/mcp/desk" in shown
    make = f"access/apitoken/add/?toolset={toolset.pk}"
    assert make not in shown
    assert make in _staff("view_toolset", "add_apitoken").get(page).content.decode()
    assert _staff("view_tool").get(page).status_code == 403


def _staff(*permissions: str) -> Client:
    user = User.objects.create_user(f"dora{User.objects.count()}", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    client = Client()
    client.force_login(user)
    return client


@pytest.mark.django_db
@pytest.mark.parametrize(("scopes", "expected"), [(["tools"], True), (["read"], False)])
def test_a_new_token_comes_with_them_where_it_is_of_use(client, scopes, expected):
    root = User.objects.create_superuser("root")
    client.force_login(root)
    toolset = Toolset.objects.create(name="desk")
    form = {"user": root.pk, "name": "laptop", "scopes": scopes, "toolset": str(toolset.pk)}
    answer = client.post("/admin/access/apitoken/add/", form)
    assert answer.status_code == 200, answer.context["adminform"].form.errors
    page, secret = answer.content.decode(), answer.context["secret"]
    assert ("claude mcp add" in page) == expected
    assert page.count(secret) == (5 if expected else 1)
    if expected:
        assert json.loads(by_title(answer.context["snippets"])["Cursor"])["mcpServers"]["mcpsite-desk"]
