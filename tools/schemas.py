"""Argument checks: a tool's input schema, vetted and compiled once.

JSON Schema 2020-12 unless the schema names another dialect. No `$ref` is ever fetched; patterns run in linear time;
depth and size are bounded, since schemas come from upstreams as well (MCP 2026-07-28, server/tools, "Security
considerations").
"""

from __future__ import annotations

from typing import Any

import jsonschema_rs

_DEEPEST, _MOST_NODES = 24, 5_000
_MOST_ERRORS = 5


class SchemaRefused(ValueError):
    """The schema cannot be used; the message says why."""


def _vet(schema: Any) -> None:
    stack, nodes = [(schema, 1)], 0
    while stack:
        node, depth = stack.pop()
        nodes += 1
        if depth > _DEEPEST or nodes > _MOST_NODES:
            raise SchemaRefused(f"The schema is deeper than {_DEEPEST} levels or larger than {_MOST_NODES} nodes.")
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        stack += [(child, depth + 1) for child in children]


def compile_schema(schema: Any) -> jsonschema_rs.Validator:
    """A validator for `schema`. Raises SchemaRefused."""
    if not isinstance(schema, dict) or schema.get("type") != "object":
        raise SchemaRefused('An input schema is an object with "type": "object".')
    _vet(schema)
    try:
        return jsonschema_rs.validator_for(
            schema,
            offline=True,
            validate_formats=True,
            pattern_options=jsonschema_rs.RegexOptions(),
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        raise SchemaRefused(f"The schema is not valid: {str(error).splitlines()[0][:300]}") from error


def problems(validator: jsonschema_rs.Validator, arguments: Any) -> list[str]:
    """What is wrong with the arguments, as sentences that name the place; empty when nothing is."""
    if validator.is_valid(arguments):
        return []
    found = []
    for error in validator.iter_errors(arguments):
        place = "/".join(str(part) for part in error.instance_path)
        found.append(f"{place}: {error.message[:300]}" if place else error.message[:300])
        if len(found) == _MOST_ERRORS:
            break
    return found
