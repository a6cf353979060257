from __future__ import annotations

import gc
import time
from typing import Any

import orjson
import pytest

from tools.schemas import SchemaRefused, compile_schema, problems
from tools.tests.servers import Counter, make_server

UNTOLD = "The arguments do not fit the schema, which is too intertwined to say where."


def make_schema(properties: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties or {}, **more}


def wrong_with(arguments: Any, properties: dict[str, Any] | None = None, **more: Any) -> list[str]:
    return problems(compile_schema(make_schema(properties, **more)), arguments)


def nested(depth: int, key: str = "c") -> dict[str, Any]:
    value: Any = 0
    for _ in range(depth):
        value = {key: value, "q": 1}
    return {key: value}


def ladder(rungs: int, keyword: str) -> dict[str, Any]:
    """Two ways at every rung, none like the other: 2 ** rungs ways through a small schema."""
    rung = {
        f"r{n}": {keyword: [{"$ref": f"#/$defs/r{n + 1}", "maxProperties": 99 + way} for way in (0, 1)]}
        for n in range(rungs)
    }
    return make_schema({"x": {"$ref": "#/$defs/r0"}}, **{"$defs": {**rung, f"r{rungs}": {"type": "string"}}})


class Stopwatch:
    """Time of this thread's own work, without what tests before it left to be collected."""

    seconds = 0.0

    def __enter__(self) -> Stopwatch:
        gc.collect()
        self.started = time.thread_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.thread_time() - self.started


def test_what_fits_has_no_problems():
    assert wrong_with({"a": "x"}, {"a": {"type": "string"}}) == []


def test_problems_are_sentences_that_name_the_place():
    found = wrong_with({"a": {"b": ["x", 1]}, "n": 11}, {
        "a": {"properties": {"b": {"items": {"type": "string"}}}}, "n": {"maximum": 10},
    })  # fmt: skip
    assert sorted(found) == [
        'a/b/1: the value is not of type "string"',
        "n: the value is greater than the maximum of 10",
    ]


def test_missing_and_unknown_arguments_are_named():
    found = wrong_with({"zz": 1}, {"a": {}}, required=["a"], additionalProperties=False)
    assert sorted(found) == [
        '"a" is a required property',
        "Additional properties are not allowed ('zz' was unexpected)",
    ]


@pytest.mark.parametrize(
    "schema",
    [{"type": "integer"}, {"enum": ["a"]}, {"maxLength": 3}, {"pattern": "^x$"}, {"const": 1}, {"format": "date"},
     {"not": {}}, {"anyOf": [{"type": "integer"}]}],
)  # fmt: skip
def test_a_problem_does_not_repeat_the_value(schema):
    found = wrong_with({"a": "canary-secret"}, {"a": schema})
    assert len(found) == 1
    assert "canary" not in found[0]


def test_a_problem_is_never_longer_than_300_characters():
    long = "k" * 100_000
    for arguments in ({long: 1}, {long: {long: {long: 1}}}, {f"{n}{long}": 1 for n in range(20)}):
        for found in (
            wrong_with(arguments, additionalProperties=False),
            wrong_with(arguments, additionalProperties={"type": "string"}),
            wrong_with(arguments, propertyNames={"maxLength": 5}),
        ):
            assert 0 < len(found) <= 5
            assert max(map(len, found)) <= 300


def test_no_more_than_five_problems_are_told():
    assert len(wrong_with({"a": list(range(20))}, {"a": {"items": {"type": "string"}}})) == 5


def test_a_dialect_that_is_not_known_is_refused_with_those_that_are():
    with pytest.raises(SchemaRefused, match=r"its dialect is not known here\. Known are JSON Schema 2020-12"):
        compile_schema(make_schema(**{"$schema": "https://json-schema.org/draft/2042-01/schema"}))
    for known in ("2020-12/schema", "2019-09/schema"):
        compile_schema(make_schema(**{"$schema": f"https://json-schema.org/draft/{known}"}))
    for number in (7, 6, 4):
        compile_schema(make_schema(**{"$schema": f"http://json-schema.org/draft-0{number}/schema#"}))


async def test_a_remote_reference_is_refused_and_never_fetched():
    canary = Counter()
    async with make_server(canary) as port:
        url = f"http://127.0.0.1:{port}/schema"
        for schema in (
            make_schema({"a": {"$ref": url}}),
            make_schema({"a": {"$dynamicRef": url}}),
            make_schema({"a": {"$ref": "other"}}, **{"$id": url}),
            make_schema(**{"$schema": url}),
            make_schema({"a": {"$ref": "file:///etc/passwd"}}),
            make_schema({"a": {"$ref": "#/$defs/b"}}, **{"$defs": {"b": {"$id": url, "$ref": "c"}}}),
        ):
            with pytest.raises(SchemaRefused, match="The schema is not valid"):
                compile_schema(schema)
    assert canary.count == 0


@pytest.mark.parametrize(
    "schema", [None, [], "x", {}, {"type": "string"}, {"type": ["object", "null"]}, {"type": 1}, True]
)
def test_what_is_no_input_schema_is_refused(schema):
    with pytest.raises(SchemaRefused, match='An input schema is an object with "type": "object"'):
        compile_schema(schema)


@pytest.mark.parametrize(
    ("properties", "said"),
    [
        ({"a": {"type": "strin"}}, "The schema is not valid"),
        ({"a": {"$ref": "#/$defs/none"}}, "The schema is not valid"),
        ({"a": {"minimum": "x"}}, "The schema is not valid"),
        ({"a": {"pattern": "("}}, "A pattern cannot be used"),
        ({"a": {"pattern": "(?=a)b"}}, "A pattern cannot be used: it must be one that runs in linear time"),
        ({"a": {"pattern": r"(a)\1"}}, "A pattern cannot be used"),
        ({"a": {"pattern": "(a{1000}){1000}"}}, "A pattern cannot be used"),
        ({"a": {"pattern": "a" * 2001}}, "longer than 2000 characters"),
        ({f"p{n}": {"pattern": f"^{n}$"} for n in range(201)}, "more than 200 patterns"),
        ({"a": {"patternProperties": {f"^{n}": {} for n in range(21)}}}, "more than 20 patternProperties"),
        ({"a": {"enum": [{"n": n} for n in range(21)]}}, "more than 20 objects or lists"),
        ({f"p{n}": {"type": "string", "title": "x"} for n in range(2000)}, "larger than 5000 nodes"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused_with_the_reason_and_fast(properties, said):
    with Stopwatch() as watch, pytest.raises(SchemaRefused, match=said) as caught:
        compile_schema(make_schema(properties))
    assert watch.seconds < 0.2
    assert len(str(caught.value)) < 400


def test_a_deep_schema_is_refused():
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"items": deep}
    with pytest.raises(SchemaRefused, match="deeper than 24 levels"):
        compile_schema(make_schema({"a": deep}))
    while deep:  # Python would recurse to free it.
        deep = deep.pop("items", None)


def test_a_thousand_branches_compile_fast():
    schema = make_schema({"a": {"anyOf": [{"const": n} for n in range(1000)]}})
    with Stopwatch() as watch:
        assert problems(compile_schema(schema), {"a": 1001})
    assert watch.seconds < 0.2


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|aa)+$", "(.*)*x(.*)*y", r"^(\w+\s?)*$", "(a*)*b"])
def test_no_pattern_takes_more_than_linear_time(pattern):
    validator = compile_schema(make_schema({"a": {"pattern": pattern}}))
    with Stopwatch() as watch:
        for text in ("a" * 100_000 + "!", "x " * 50_000 + "!"):
            problems(validator, {"a": text})
    assert watch.seconds < 0.2


@pytest.mark.parametrize("keyword", ["anyOf", "oneOf", "allOf"])
def test_branches_below_branches_are_bounded(keyword):
    with Stopwatch() as watch:
        validator = compile_schema(ladder(6, keyword))
        assert problems(validator, {"x": 1}) != []
        validator = compile_schema(ladder(14, keyword))
        assert problems(validator, {"x": 1}) == [
            "The arguments do not fit the schema, which is too intertwined to say where."
        ]
    assert watch.seconds < 0.2


def bomb(branch: dict[str, Any], rungs: int, reference: str = "#/$defs/r{}", **root: Any) -> dict[str, Any]:
    """Ten to the power of its rungs are the ways through it; `branch` holds what leads to the next rung ten times."""
    text = orjson.dumps(branch).decode()
    defs: dict[str, Any] = {f"r{rungs}": {"type": ["object", "string"], "$anchor": f"r{rungs}"}}
    for n in range(rungs):
        lead = orjson.dumps({"$ref": reference.format(n + 1)}).decode()
        defs[f"r{n}"] = {"$anchor": f"r{n}", **orjson.loads(text.replace('"NEXT"', lead))}
    return {"type": "object", "$defs": defs, "$ref": "#/$defs/r0", **root}


TEN: list[Any] = ["NEXT"] * 10
BOMBS: dict[str, Any] = {
    "all of": bomb({"allOf": TEN}, 12),
    "any of": bomb({"anyOf": TEN}, 12),
    "one of": bomb({"oneOf": TEN}, 12),
    "if": bomb({"if": "NEXT", "then": "NEXT", "else": "NEXT"}, 40),
    "not": bomb({"not": {"anyOf": TEN}}, 12),
    "dependent": bomb({"dependentSchemas": {"a": {"allOf": TEN}, "b": "NEXT"}}, 12),
    "unevaluated": bomb({"allOf": ["NEXT"], "unevaluatedProperties": False}, 40),
    "further down": bomb({"allOf": [{"properties": {"c": "NEXT"}}] * 10}, 12),
    "by pattern": bomb({"patternProperties": {f"c{{0,{n}}}": "NEXT" for n in range(9)}}, 12),
    "by anchor": bomb({"allOf": TEN}, 12, "#r{}"),
    "by escaped path": bomb({"allOf": TEN}, 12, "#/%24defs/r{}"),
    "by another path": bomb({"allOf": TEN}, 12, "inner#/$defs/r{}") | {"$id": "https://example.com/inner"},
    "within a part": {"type": "object", "$ref": "part", "$defs": {"p": {"$id": "part", **bomb({"allOf": TEN}, 12)}}},
    "a chain": {
        "type": "object",
        "$ref": "#/$defs/0",
        "$defs": {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(2000)},
    },
}


@pytest.mark.parametrize("schema", BOMBS.values(), ids=BOMBS)
def test_a_schema_that_could_take_for_ever_is_refused(schema):
    with (
        Stopwatch() as watch,
        pytest.raises(SchemaRefused, match="To check one value could take more"),
    ):
        compile_schema(schema)
    assert watch.seconds < 0.2


def test_arguments_that_a_schema_could_take_long_for_are_told_so():
    check = compile_schema(
        make_schema({"a": {"items": {"$ref": "#/$defs/r0"}}}) | {"$defs": bomb({"allOf": TEN}, 4)["$defs"]}
    )
    with Stopwatch() as watch:
        assert problems(check, {"a": ["x"] * 100}) == []
        assert problems(check, {"a": ["x"] * 5_000}, 20_000) == [
            "The arguments are too large for this schema: to check them could take too long."
        ]
    assert watch.seconds < 0.5


def test_a_schema_of_many_parts_is_none_that_takes_long():
    """Each kind of block holds lists of all kinds, and three levels of them are written out."""
    kinds: dict[str, Any] = {"anyOf": [{"type": "string"}]}
    for _ in range(3):
        kinds = {"anyOf": [make_schema({"kind": {"const": n}, "parts": {"items": kinds}}) for n in range(6)]}
    check = compile_schema(make_schema({"page": kinds}))
    assert problems(check, {"page": {"kind": 1, "parts": [{"kind": 2, "parts": [{"kind": 3}]}]}}) == []


def test_a_schema_that_is_too_intertwined_still_lets_pass_what_fits():
    assert problems(compile_schema(ladder(14, "anyOf")), {"x": "text"}) == []


def test_branches_for_every_item_are_bounded():
    schema = ladder(6, "anyOf")
    schema["properties"] = {"a": {"items": {"$ref": "#/$defs/r0"}}}
    validator = compile_schema(schema)
    with Stopwatch() as watch:
        assert "anyOf" in problems(validator, {"a": [1] * 40})[0]
        assert len(problems(validator, {"a": [1] * 10_000})) == 1
    assert watch.seconds < 0.2


def test_branches_that_recur_are_bounded():
    branch = [{"type": "object", "maxProperties": most, "properties": {"c": {"$ref": "#/$defs/n"}}} for most in (9, 8)]
    schema = make_schema({"c": {"$ref": "#/$defs/n"}}, **{"$defs": {"n": {"anyOf": branch}}})
    validator = compile_schema(schema)
    with Stopwatch() as watch:
        assert len(problems(validator, nested(20))) == 1
        assert len(problems(validator, nested(200))) == 1
    assert watch.seconds < 0.2


def test_a_plain_recursion_is_explained():
    schema = make_schema({"c": {"$ref": "#"}, "q": {"type": "string"}})
    assert wrong_with({"c": {"q": 1}}, **schema | {"properties": None}) == []
    assert problems(compile_schema(schema), {"c": {"q": 1}}) == ['c/q: the value is not of type "string"']


@pytest.mark.parametrize("self_reference", [{"$ref": "#"}, {"anyOf": [{"$ref": "#"}]}, {"not": {"$ref": "#"}}])
def test_a_schema_that_refers_to_itself_ends(self_reference):
    with Stopwatch() as watch:
        problems(compile_schema({"type": "object", **self_reference}), {"a": 1})
    assert watch.seconds < 0.2


@pytest.mark.parametrize("depth", [100, 250, 1000])
def test_deep_arguments_end_in_a_verdict(depth):
    for schema in (make_schema({"c": {"$ref": "#"}}, required=["c"]), make_schema(additionalProperties=False)):
        assert len(problems(compile_schema(schema), nested(depth))) > 0


def test_thousands_of_unique_objects_are_compared_fast():
    validator = compile_schema(make_schema({"a": {"type": "array", "uniqueItems": True}}))
    objects = [{"id": n, "nested": {"list": [n, {"x": n}]}} for n in range(3000)]
    with Stopwatch() as watch:
        assert problems(validator, {"a": objects}) == []
        assert problems(validator, {"a": [*objects, objects[0]]}) == ["a: the value has non-unique elements"]
    assert watch.seconds < 0.2


def test_a_million_wrong_values_are_told_by_the_first():
    validator = compile_schema(make_schema({"a": {"items": {"type": "string"}}}))
    with Stopwatch() as watch:
        found = problems(validator, {"a": list(range(100_000))})
    assert found == ['a/0: the value is not of type "string"']
    assert watch.seconds < 0.2


def test_older_dialects_are_understood():
    schema = make_schema({"a": {"exclusiveMinimum": True, "minimum": 1}})
    schema["$schema"] = "http://json-schema.org/draft-04/schema#"
    assert problems(compile_schema(schema), {"a": 1}) != []


def test_formats_are_checked():
    assert wrong_with({"a": "2024-02-30"}, {"a": {"format": "date"}}) == ['a: the value is not a "date"']
    assert wrong_with({"a": "anything"}, {"a": {"format": "something-else"}}) == []


def test_references_into_the_schema_work():
    for reference in ("#/$defs/b", "#anchored", "#/properties/c~1d"):
        schema = make_schema(
            {"a": {"$ref": reference}, "c/d": {"type": "string"}},
            **{"$defs": {"b": {"type": "string", "$anchor": "anchored"}}},
        )
        assert problems(compile_schema(schema), {"a": 1}) == ['a: the value is not of type "string"']
