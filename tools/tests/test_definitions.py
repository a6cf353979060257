from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from tools.connectors.sql_tool import Parameter, SqlTool
from tools.definitions import DefinitionRefused, derive, fingerprint, named, publish
from tools.models import DataSource, Tool, ToolVersion

DEFINITION = {"name": "t", "description": "d", "inputSchema": {"type": "object", "properties": {"b": {}, "a": {}}}}
SPEC = {"name": "t"}


def make_tool(name: str = "t", kind: str = "mcp", spec: dict[str, Any] | None = None) -> Tool:
    source = DataSource.objects.create(name=f"s-{uuid.uuid4().hex[:8]}", kind=kind)
    return Tool.objects.create(source=source, name=name, spec=SPEC if spec is None else spec)


def shuffled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return value


def test_the_order_of_keys_does_not_matter_to_the_fingerprint():
    assert json.dumps(shuffled(DEFINITION)) != json.dumps(DEFINITION)
    assert fingerprint(shuffled(DEFINITION), SPEC) == fingerprint(DEFINITION, SPEC)


@pytest.mark.parametrize(
    "other",
    [
        {**DEFINITION, "description": "d "},
        {**DEFINITION, "description": "d\u200b"},
        {**DEFINITION, "annotations": {}},
        {**DEFINITION, "inputSchema": {**DEFINITION["inputSchema"], "default": None}},  # type: ignore[dict-item]
        {**DEFINITION, "_meta": {"x": 1}},
        {**DEFINITION, "_meta": {"x": "1"}},
        {**DEFINITION, "_meta": {"x": True}},
        {**DEFINITION, "_meta": {"x": [1, 2]}},
        {**DEFINITION, "_meta": {"x": [2, 1]}},
    ],
)
def test_everything_else_does(other):
    assert fingerprint(other, SPEC) != fingerprint(DEFINITION, SPEC)
    assert fingerprint(DEFINITION, {"name": "other"}) != fingerprint(DEFINITION, SPEC)


def test_a_new_name_changes_nothing_but_the_name():
    assert named(DEFINITION, "t") is DEFINITION
    assert named(DEFINITION, "new") == {**DEFINITION, "name": "new"}
    assert list(named(DEFINITION, "new")) == list(DEFINITION)


@pytest.mark.django_db
def test_a_version_is_made_only_when_the_fingerprint_changes():
    tool = make_tool()
    first = publish(tool, DEFINITION)
    assert publish(tool, DEFINITION) == publish(tool, shuffled(DEFINITION)) == first
    second = publish(tool, {**DEFINITION, "title": "T"})
    assert (first.number, second.number) == (1, 2)
    assert publish(tool, DEFINITION).number == 3
    assert [version.fingerprint for version in tool.versions.order_by("number")][0::2] == [first.fingerprint] * 2


@pytest.mark.django_db
def test_a_definition_is_stored_as_it_came():
    version = publish(make_tool(), DEFINITION)
    assert version.definition == json.dumps(DEFINITION, separators=(",", ":"))


@pytest.mark.django_db
def test_renaming_keeps_the_content():
    tool = make_tool()
    publish(tool, DEFINITION)
    tool.name = "renamed"
    tool.save()
    version = publish(tool)
    assert json.loads(version.definition) == {**DEFINITION, "name": "renamed"}
    assert publish(tool) == version


@pytest.mark.django_db
def test_a_discovered_tool_without_a_definition_says_what_to_do():
    with pytest.raises(DefinitionRefused, match="synchronise its data source"):
        publish(make_tool())


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("offered", "said"),
    [
        ({**DEFINITION, "inputSchema": None}, "An input schema is an object"),
        ({"name": "t"}, "An input schema is an object"),
        ({**DEFINITION, "description": "x" * 300_000}, "larger than 256 KB"),
        ({**DEFINITION, "description": "\ud800"}, "something that JSON cannot"),
    ],
)
def test_what_cannot_be_published_is_refused_and_leaves_the_tool_as_it_was(offered, said):
    tool = make_tool()
    first = publish(tool, DEFINITION)
    with pytest.raises(DefinitionRefused, match=said):
        publish(tool, offered)
    tool.refresh_from_db()
    assert tool.current == first
    assert ToolVersion.objects.filter(tool=tool).count() == 1


@pytest.mark.django_db
def test_a_version_that_another_process_just_made_is_taken_over():
    tool = make_tool()
    stale = Tool.objects.get(pk=tool.pk)
    first = publish(tool, DEFINITION)
    assert publish(stale, DEFINITION) == first
    assert stale.current == first


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({}, "description: Field required"),
        ({"description": "d", "statement": "DROP TABLE x"}, "Only SELECT"),
        ({"description": "d", "statement": "SELECT :a"}, "uses :a"),
        ({"description": "d", "statement": "SELECT 1", "unknown": 1}, "unknown: Extra inputs"),
        ({"description": "d", "statement": "SELECT :a", "parameters": [{"name": "a"}, {"name": "a"}]}, "occurs twice"),
        ({"description": "d", "statement": "SELECT :a", "parameters": [{"name": "a", "type": "x"}]}, r"parameters\.0"),
    ],
)
def test_a_hand_written_tool_that_cannot_be_defined_says_why(spec, said):
    with pytest.raises(DefinitionRefused, match=said):
        derive(make_tool(kind="sql", spec=spec))


@pytest.mark.django_db
def test_a_hand_written_tool_is_derived_from_its_spec():
    spec = SqlTool(description="d", statement="SELECT 1", title="T").model_dump(mode="json")
    definition = derive(make_tool("one", "sql", spec))
    assert definition is not None
    assert (definition["name"], definition["title"]) == ("one", "T")
    assert definition["annotations"]["readOnlyHint"] is True


def test_an_optional_parameter_may_be_null_and_a_required_one_may_not():
    optional = Parameter(name="status", required=False, allowed_values=["open"]).schema()
    assert (optional["type"], optional["enum"]) == (["string", "null"], ["open", None])
    assert Parameter(name="status").schema()["type"] == "string"
    assert Parameter(name="limit", type="integer", required=False, default=5).schema()["type"] == "integer"


@pytest.mark.django_db
def test_bounds_of_any_size_are_kept_as_they_came():
    bound = 2**256 - 1
    schema = {"type": "object", "properties": {"wei": {"type": "integer", "maximum": bound}}}
    tool = make_tool()
    version = publish(tool, {**DEFINITION, "inputSchema": schema})
    assert f'"maximum":{bound}}}' in version.definition
    assert publish(tool, {**DEFINITION, "inputSchema": schema}) == version
    tool.name = "renamed"
    tool.save()
    assert f'"maximum":{bound}}}' in publish(tool).definition
