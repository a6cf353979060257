"""Any input schema becomes a form; what the form sends becomes arguments, and arguments become the form again."""

from __future__ import annotations

from typing import Any

import pytest

from tools.arguments import Field, Inexpressible, arguments_of, draft_of, form_of, with_row, without_row

ORDER: dict[str, Any] = {
    "type": "object",
    "$defs": {
        "Item": {
            "type": "object",
            "properties": {"sku": {"type": "string", "maxLength": 20}, "count": {"type": "integer", "minimum": 1}},
            "required": ["sku"],
        }
    },
    "properties": {
        "note": {"type": "string", "description": "For the customer."},
        "weight": {"type": "number", "maximum": 30},
        "priority": {"enum": ["low", "high", 3, None]},
        "gift": {"type": "boolean"},
        "on": {"type": "string", "format": "date"},
        "at": {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}], "description": "When."},
        "tags": {"type": "array", "items": {"type": "string"}},
        "items": {"type": "array", "items": {"$ref": "#/$defs/Item"}},
        "to": {"type": "object", "properties": {"city": {"type": "string"}, "a/b~c": {"type": "string"}}},
        "extra": {"type": "object"},
        "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
    },
    "required": ["note"],
}
ARGUMENTS = {
    "note": "two\nlines",
    "weight": 2.5,
    "priority": 3,
    "gift": False,
    "on": "2026-02-01",
    "at": "2026-02-01T10:00:00Z",
    "tags": ["a", "b"],
    "items": [{"sku": "x", "count": 2}, {"sku": "y"}],
    "to": {"city": "Bonn", "a/b~c": "odd"},
    "extra": {"any": [1]},
    "either": 7,
}


def field_at(form: Field, path: str) -> Field:
    for each in form.children:
        if each.path == path:
            return each
        if path.startswith(f"{each.path}/"):
            return field_at(each, path)
    raise AssertionError(path)


def arguments(schema: dict[str, Any], **draft: str) -> dict[str, Any]:
    found, errors = arguments_of(form_of(schema, {f"arg:/{name}": text for name, text in draft.items()}))
    assert errors == {}
    return found


def test_every_kind_of_value_goes_to_the_form_and_back():
    assert arguments_of(form_of(ORDER, draft_of(ORDER, ARGUMENTS))) == (ARGUMENTS, {})


def test_each_type_has_a_field_of_its_kind():
    form = form_of(ORDER, {"rows:/items": "1"})
    kinds = {each.path: each.kind for each in form.children}
    assert kinds == {
        "/note": "long",
        "/weight": "number",
        "/priority": "choice",
        "/gift": "choice",
        "/on": "date",
        "/at": "datetime",
        "/tags": "list",
        "/items": "list",
        "/to": "object",
        "/extra": "json",
        "/either": "json",
    }
    assert field_at(form, "/items/0/sku").kind == "text"
    assert field_at(form, "/items/0/sku").required
    assert field_at(form, "/items/0/count").limits == "at least 1"
    assert field_at(form, "/at").help == "When."


def test_what_is_left_empty_is_not_sent():
    assert arguments(ORDER) == {}
    assert arguments(ORDER, gift="false", priority="null") == {"gift": False, "priority": None}


def test_a_number_that_is_none_is_left_to_the_schema_to_refuse():
    assert arguments(ORDER, weight="2e3") == {"weight": 2000.0}
    assert arguments(ORDER, weight="heavy") == {"weight": "heavy"}
    assert arguments(ORDER, weight="nan") == {"weight": "nan"}


def test_a_moment_without_seconds_is_completed_in_utc():
    assert arguments(ORDER, at="2026-02-01T10:00") == {"at": "2026-02-01T10:00:00Z"}


def test_json_that_cannot_be_read_is_told_at_its_field():
    found, errors = arguments_of(form_of(ORDER, {"arg:/extra": "{", "arg:/note": "x"}))
    assert found == {"note": "x"}
    assert list(errors) == ["arg:/extra"]


def test_rows_are_added_and_removed_with_what_they_hold():
    draft = draft_of(ORDER, {"note": "n", "items": [{"sku": "a"}, {"sku": "b"}, {"sku": "c"}]})
    less = without_row(draft, "/items/1")
    assert arguments_of(form_of(ORDER, less))[0]["items"] == [{"sku": "a"}, {"sku": "c"}]
    more = with_row(less, "/items")
    assert len(field_at(form_of(ORDER, more), "/items").children) == 3


def test_a_required_list_begins_with_one_row():
    schema = {"type": "object", "properties": {"ids": {"type": "array", "items": {"type": "integer"}}}}
    assert field_at(form_of(schema, {}), "/ids").children == ()
    assert len(field_at(form_of({**schema, "required": ["ids"]}, {}), "/ids").children) == 1


@pytest.mark.parametrize(
    "given",
    [
        {"note": ""},
        {"note": None},
        {"note": 7},
        {"unknown": 1},
        {"at": "2026-02-01T10:00:00+02:00"},
        {"on": "tomorrow"},
        {"priority": "none of them"},
        {"items": ["no object"]},
    ],
)
def test_arguments_that_a_form_cannot_show_are_refused(given):
    with pytest.raises(Inexpressible):
        draft_of(ORDER, given)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"properties": {"self": {"$ref": "#"}}},
        {"properties": {"a": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"properties": {"a": True, "b": {"type": "array", "items": False}, "c": {"type": ["string", "integer"]}}},
        {"properties": {"a": {"$ref": "https://example.com/x"}, "b": {"enum": []}, "c": {"type": "array"}}},
        {"properties": {str(n): {"type": "object", "properties": {"x": {"$ref": "#"}}} for n in range(300)}},
    ],
)
def test_strange_schemas_come_to_an_end(schema):
    form = form_of({"type": "object", **schema}, {"rows:/b": "9999999"})
    assert arguments_of(form) == ({}, {})
    assert _size(form) < 2_000


def _size(form: Field) -> int:
    return 1 + sum(_size(each) for each in form.children)


def test_a_default_is_shown_and_not_sent():
    schema = {"type": "object", "properties": {"limit": {"type": "integer", "default": 20}}}
    assert field_at(form_of(schema, {}), "/limit").placeholder == "default: 20"
    assert arguments(schema) == {}


def test_json_in_a_field_that_is_nested_too_deeply_is_told():
    schema = {"type": "object", "properties": {"any": {}}}
    found, errors = arguments_of(form_of(schema, {"arg:/any": "[" * 1000 + "]" * 1000}))
    assert (found, errors) == ({}, {"arg:/any": "This is nested too deeply."})


def test_a_row_of_a_number_beyond_all_lists_is_the_first():
    draft = {"rows:/list": "2", "value:/list/0": "a", "value:/list/1": "b"}
    assert without_row(draft, "/list/" + "9" * 5_000) == without_row(draft, "/list/0")
