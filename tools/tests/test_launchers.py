from __future__ import annotations

import json
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from mcpsite import env
from tools.launchers import Launcher, read


def structure(monkeypatch: pytest.MonkeyPatch, value: str | None) -> dict[str, Launcher]:
    if value is None:
        monkeypatch.delenv("MCP_LAUNCHERS", raising=False)
    else:
        monkeypatch.setenv("MCP_LAUNCHERS", value)
    return env.structure("MCP_LAUNCHERS", "Programs.", '{"time": {"command": ["python"]}}', parse=read)


def test_a_launcher_has_what_it_is_given_and_defaults_for_the_rest(monkeypatch):
    full = {"command": ["/a", "b c"], "env": {"KEY": "x"}, "description": "d", "memory_mb": None, "open_files": 64}
    found = structure(monkeypatch, json.dumps({"full": full, "short": {"command": ["a"]}}))
    assert found == {
        "full": Launcher(("/a", "b c"), "d", {"KEY": "x"}, None, 64),
        "short": Launcher(("a",), "", {}, 1024, 256),
    }


def test_without_a_value_there_is_the_default_and_an_empty_object_allows_none(monkeypatch):
    assert set(structure(monkeypatch, None)) == {"time"}
    assert structure(monkeypatch, "{}") == {}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{", "MCP_LAUNCHERS must be JSON: "),
        ("[]", "MCP_LAUNCHERS: it must be a JSON object"),
        ('"x"', "MCP_LAUNCHERS: it must be a JSON object"),
        ('{"A b": {}}', "MCP_LAUNCHERS: 'A b' cannot name a launcher"),
        ('{"": {}}', "cannot name a launcher"),
        ('{"x": []}', "the launcher x must be a JSON object"),
        ('{"x": {}}', "the command of the launcher x must be a list"),
        ('{"x": {"command": "sh -c id"}}', "must be a list of texts"),
        ('{"x": {"command": []}}', "must be a list of texts"),
        ('{"x": {"command": [""]}}', "has no program"),
        ('{"x": {"command": [1]}}', "must be a list of texts"),
        ('{"x": {"command": ["a\\u0000b"]}}', "must be a list of texts"),
        ('{"x": {"command": ["a"], "args": []}}', "the launcher x has 'args', which is none of command, env"),
        ('{"x": {"command": ["a"], "env": []}}', "env of the launcher x must be a JSON object"),
        ('{"x": {"command": ["a"], "env": {"A=B": "c"}}}', "'A=B' is no variable"),
        ('{"x": {"command": ["a"], "env": {"A": 1}}}', "'A' is no variable with a text"),
        ('{"x": {"command": ["a"], "env": {"A": "canary\\u0000"}}}', "'A' is no variable with a text"),
        ('{"x": {"command": ["a"], "description": 1}}', "the description of the launcher x must be a text"),
        ('{"x": {"command": ["a"], "memory_mb": 1}}', "memory_mb of the launcher x must be a whole number from 16"),
        ('{"x": {"command": ["a"], "memory_mb": true}}', "memory_mb of the launcher x must be a whole number"),
        ('{"x": {"command": ["a"], "open_files": null}}', "open_files of the launcher x must be a whole number"),
    ],
)
def test_a_wrong_value_stops_the_start_with_a_sentence(monkeypatch, value: str, said: str):
    with pytest.raises(ImproperlyConfigured) as caught:
        structure(monkeypatch, value)
    assert said in str(caught.value)
    assert str(caught.value).startswith("MCP_LAUNCHERS")
    assert "canary" not in str(caught.value)


def test_the_environment_of_a_launcher_is_not_shown():
    launcher: Any = Launcher(("a",), environment={"KEY": "canary"})
    assert "canary" not in repr(launcher)
