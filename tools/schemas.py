"""Argument checks: a tool's input schema, vetted and compiled once.

JSON Schema 2020-12 unless the schema names another dialect. No `$ref` is ever fetched; patterns run in linear time;
depth, size and what a check can cost are bounded, since schemas come from upstreams as well (MCP 2026-07-28,
server/tools, "Security considerations").
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jsonschema_rs

from tools.schema_steps import TooManySteps, at, nodes, steps_for

_DEEPEST, _MOST_NODES = 24, 5_000
# What is compared or matched one by one with every value of the arguments.
_MOST_PATTERNS, _LONGEST_PATTERN, _MOST_KEY_PATTERNS, _MOST_COMPOUND_VALUES = 200, 2_000, 20, 20
_PATTERNS = jsonschema_rs.RegexOptions(size_limit=1_000_000, dfa_size_limit=1_000_000)
_BRANCHING = frozenset({"anyOf", "oneOf", "allOf", "if", "dependentSchemas", "$dynamicRef", "$recursiveRef"})
_MOST_EXPANDED, _MOST_WAYS = 20_000, 1_000
_DIALECTS = "2020-12 (where none is named), 2019-09, 7, 6 and 4"
_WHOLE = "urn:mcpsite:input-schema"
_MOST_ERRORS = 5
_LONGEST_ERROR, _LONGEST_PLACE = 300, 100
# Arguments of more nodes are told by their first problem: to gather all takes time with each of them.
_SMALL = 50
# What the check of some arguments may take: about a second.
_MOST_STEPS, _LONG = 20_000_000, 2**31
_TOO_LARGE = "The arguments are too large for this schema: to check them could take too long."
_UNTOLD = "The arguments do not fit the schema, which is too intertwined to say where."


class SchemaRefused(ValueError):
    """The schema cannot be used; the message says why."""


class Check(NamedTuple):
    """A schema, compiled, and how many steps it takes at the most for each value in the arguments."""

    validator: jsonschema_rs.Validator
    steps: int


def compile_schema(schema: Any) -> Check:
    """The check of arguments against `schema`. Raises SchemaRefused."""
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise SchemaRefused('An input schema is an object with "type": "object".')
    _vet(schema)
    try:
        steps = steps_for(schema)
        validator = _validator(schema)
        return Check(validator if _explainable(schema) else _verdict_only(schema), steps)
    except TooManySteps as error:
        raise SchemaRefused(str(error)) from error
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        raise SchemaRefused(_sentence(error)) from error


def problems(check: Check, arguments: Any, length: int = _LONG) -> list[str]:
    """What is wrong with the arguments, as sentences that name the place; empty when nothing is.

    `length` is that of their JSON, where it is known. A sentence has no more than 300 characters, and repeats no value:
    it goes into the clear part of a record.
    """
    validator, steps = check
    if steps * length > _MOST_STEPS and _holds_more(arguments, _MOST_STEPS // steps):
        return [_TOO_LARGE]
    try:
        if validator.is_valid(arguments):
            return []
        if not _is_small(arguments):
            return [_first(validator, arguments)]
        return [_told(error) for error, _ in zip(validator.iter_errors(arguments), range(_MOST_ERRORS), strict=False)]
    except ValueError:
        return ["The arguments are nested too deeply."]


# --- Compiling --------------------------------------------------------------------------------------------------------


def _validator(schema: dict[str, Any], registry: jsonschema_rs.Registry | None = None) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(
        schema, offline=True, validate_formats=True, pattern_options=_PATTERNS, mask="the value", registry=registry
    )


def _verdict_only(schema: dict[str, Any]) -> jsonschema_rs.Validator:
    """The validator of a schema whose errors would take exponential time to gather: below `not`, none are."""
    registry = jsonschema_rs.Registry([(_WHOLE, schema)])
    return _validator({"not": {"not": {"$ref": _WHOLE}}}, registry)


def _sentence(error: Exception) -> str:
    if (
        isinstance(error, jsonschema_rs.ValidationError)
        and "pattern" in [*error.schema_path, *error.instance_path][-2:]
    ):
        return "A pattern cannot be used: it must be one that runs in linear time (no look-around, no back references)."
    if str(error).startswith("Unknown meta-schema"):
        return f"The schema is not valid: its dialect is not known here. Known are JSON Schema {_DIALECTS}."
    return f"The schema is not valid: {(str(error).splitlines() or [''])[0][:_LONGEST_ERROR]}"


def _vet(schema: Any) -> None:
    nodes = patterns = 0
    stack = [(schema, 1)]
    while stack:
        node, depth = stack.pop()
        nodes += 1
        if depth > _DEEPEST or nodes > _MOST_NODES:
            raise SchemaRefused(f"The schema is deeper than {_DEEPEST} levels or larger than {_MOST_NODES} nodes.")
        if isinstance(node, dict):
            patterns += _patterns_of(node)
            _vet_lists(node)
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        stack += [(child, depth + 1) for child in children]
    if patterns > _MOST_PATTERNS:
        raise SchemaRefused(f"The schema has more than {_MOST_PATTERNS} patterns.")


def _patterns_of(node: dict[str, Any]) -> int:
    found = [node["pattern"]] if isinstance(node.get("pattern"), str) else []
    by_key = node.get("patternProperties")
    found += by_key if isinstance(by_key, dict) else ()
    if any(len(pattern) > _LONGEST_PATTERN for pattern in found):
        raise SchemaRefused(f"A pattern is longer than {_LONGEST_PATTERN} characters.")
    return len(found)


def _vet_lists(node: dict[str, Any]) -> None:
    by_key, values = node.get("patternProperties"), node.get("enum")
    if isinstance(by_key, dict) and len(by_key) > _MOST_KEY_PATTERNS:
        raise SchemaRefused(f"There are more than {_MOST_KEY_PATTERNS} patternProperties in one place.")
    compound = sum(isinstance(value, (dict, list)) for value in values) if isinstance(values, list) else 0
    if compound > _MOST_COMPOUND_VALUES:
        raise SchemaRefused(f"An enum has more than {_MOST_COMPOUND_VALUES} objects or lists.")


def _explainable(schema: dict[str, Any]) -> bool:
    """Whether the errors of any arguments can be gathered in reasonable time.

    The validator remembers what it has checked, but not what it has explained: there, each way through the branches is
    gone anew. So the ways are counted, with every reference followed, and where branches recur there is no end of them.
    """
    if not _branches(schema):
        return True
    ways = 0
    stack: list[tuple[Any, tuple[str, ...], bool]] = [(schema, (), False)]
    for _ in range(_MOST_EXPANDED):
        if not stack:
            return True
        node, followed, branched = stack.pop()
        ways += branched
        if ways > _MOST_WAYS:
            return False
        if isinstance(node, list):
            stack += [(child, followed, branched) for child in node]
        if not isinstance(node, dict):
            continue
        for key, child in node.items():
            if key not in ("$defs", "definitions"):
                stack.append((child, followed, branched or key in _BRANCHING))
        if isinstance(reference := node.get("$ref"), str):
            if reference in followed:
                return False
            stack.append((_target(schema, reference), (*followed, reference), branched))
    return False


def _branches(schema: Any) -> bool:
    return any(isinstance(node, dict) and not _BRANCHING.isdisjoint(node) for node in nodes(schema))


def _target(schema: Any, reference: str) -> Any:
    """What a reference leads to; the whole schema where it is not a plain path into it (an anchor, an id)."""
    if not reference.startswith("#/"):
        return schema
    return next(at(schema, reference[1:]), schema)


# --- Telling ----------------------------------------------------------------------------------------------------------


def _is_small(arguments: Any) -> bool:
    return not _holds_more(arguments, _SMALL)


def _holds_more(arguments: Any, most: int) -> bool:
    return any(count >= most for count, _ in enumerate(nodes(arguments)))


def _first(validator: jsonschema_rs.Validator, arguments: Any) -> str:
    try:
        validator.validate(arguments)
    except jsonschema_rs.ValidationError as error:
        return _told(error)
    return _UNTOLD


def _told(error: jsonschema_rs.ValidationError) -> str:
    if list(error.schema_path) == ["not"]:
        return _UNTOLD
    place = _shortened("/".join(str(part) for part in error.instance_path), _LONGEST_PLACE)
    message = error.message[:1].upper() + error.message[1:] if not place else error.message
    return _shortened(f"{place}: {message}" if place else message, _LONGEST_ERROR)


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
