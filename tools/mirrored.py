"""Arguments that are mirrored as `Mcp-Param-*` headers (MCP 2026-07-28, transports, "Custom headers from tool
parameters").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_ANNOTATION = "x-mcp-header"
# RFC 9110, section 5.6.2.
TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}")
_TYPES = ("string", "integer", "boolean")
# Where a schema has others below it (JSON Schema 2020-12): one, a list of them, or some by name.
_ONE = ("additionalProperties", "items", "contains", "contentSchema", "else", "if", "not", "propertyNames", "then",
        "unevaluatedItems", "unevaluatedProperties")  # fmt: skip
_LISTED = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_NAMED = ("$defs", "definitions", "dependentSchemas", "patternProperties")


def fault(schema: Any) -> str | None:
    """Why the annotations of a tool's input schema cannot be followed, in one sentence; None when they can."""
    seen: dict[str, str] = {}
    for path, sub in _subschemas(schema):
        if _ANNOTATION not in sub:
            continue
        if not path:
            return f"An {_ANNOTATION} stands where no argument can be read: only `properties` may lead to it."
        where, name = repr(dotted(path)[:80]), sub[_ANNOTATION]
        if not isinstance(name, str) or not TOKEN.fullmatch(name):
            return f"The {_ANNOTATION} of the argument {where} cannot be the name of a header."
        if sub.get("type") not in _TYPES:
            return f"The argument {where} has an {_ANNOTATION}, but is of none of the types {', '.join(_TYPES)}."
        if (other := seen.setdefault(name.lower(), where)) != where:
            return f"The arguments {other} and {where} are mirrored as one header."
    return None


def _subschemas(root: Any) -> Iterator[tuple[tuple[str, ...] | None, dict[str, Any]]]:
    """The schema and all below it, each with its path where nothing but `properties` leads to it."""
    waiting: list[tuple[tuple[str, ...] | None, Any]] = [((), root)]
    while waiting:
        path, schema = waiting.pop()
        if not isinstance(schema, dict):
            continue
        yield path, schema
        properties = schema.get("properties")
        for name, sub in properties.items() if isinstance(properties, dict) else ():
            waiting.append((None if path is None else (*path, name), sub))
        waiting += [(None, sub) for sub in _elsewhere(schema)]


def _elsewhere(schema: dict[str, Any]) -> Iterator[Any]:
    yield from (schema.get(keyword) for keyword in _ONE)
    for keyword in _LISTED:
        yield from found if isinstance(found := schema.get(keyword), list) else ()
    for keyword in _NAMED:
        yield from found.values() if isinstance(found := schema.get(keyword), dict) else ()


def mirrored(schema: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """Path of the argument → header name, for every `x-mcp-header` that is reached through `properties` alone."""
    properties = schema.get("properties") if isinstance(schema, dict) else None
    found: dict[tuple[str, ...], str] = {}
    for name, sub in properties.items() if isinstance(properties, dict) else ():
        if isinstance(sub, dict) and isinstance(header := sub.get(_ANNOTATION), str):
            found[*path, name] = header
        found |= mirrored(sub, (*path, name))
    return found


def dotted(path: tuple[str, ...]) -> str:
    """The path as one text; a dot inside a name is `~1` there, as in a JSON Pointer (RFC 6901)."""
    return ".".join(part.replace("~", "~0").replace(".", "~1") for part in path)


def undotted(text: str) -> tuple[str, ...]:
    """The path that `dotted` wrote."""
    return tuple(part.replace("~1", ".").replace("~0", "~") for part in text.split("."))


def value_at(arguments: Any, path: tuple[str, ...]) -> Any:
    """The value at `path`, or None."""
    for part in path:
        arguments = arguments.get(part) if isinstance(arguments, dict) else None
    return arguments
