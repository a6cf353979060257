"""What checking one value against a schema may cost at the most, so that no upstream's schema stops the process.

The validator has no limit of time, and goes each way through branches that refer to each other anew: ten of them at
each of twelve levels are a million million steps. Only what recurs it does once for each value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any
from urllib.parse import unquote

# Nobody writes such a thing by hand; a million steps take some 50 milliseconds.
_MOST, _MOST_NAMED = 1_000_000, 200
_LISTED, _SINGLE = ("allOf", "anyOf", "oneOf"), ("not", "if", "then", "else")
_BY_KEY = ("dependentSchemas", "dependencies")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
# What is about what a value holds: all of them may be about the same part of it.
_EVERY = ("additionalItems", "contains", "additionalProperties", "propertyNames")
# To know what these are about, all that is beside them is gone through once more.
_UNEVALUATED = ("unevaluatedProperties", "unevaluatedItems")
_NAMES = ("$anchor", "$dynamicAnchor", "$id")
# So many names of properties, or values to choose from, take as long as one step.
_ENTRIES = 16

# About the value itself, and about any one of those that it holds.
Steps = tuple[int, int]
_LEAF: Steps = (1, 0)


class TooManySteps(ValueError):
    """A single value could take longer than any argument is worth."""

    def __init__(self) -> None:
        super().__init__(f"To check one value could take more than {_MOST:,} steps: its branches lead to each other.")


def steps_for(schema: Any) -> int:
    """How many steps the check takes at the most for each of the values in what is checked. Raises TooManySteps."""
    try:
        return max(_Counting(schema).of(schema))
    except RecursionError as error:
        raise TooManySteps from error


class _Counting:
    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._known: dict[int, Steps] = {}

    def of(self, node: Any) -> Steps:
        if not isinstance(node, dict):
            return _LEAF
        if (known := self._known.get(id(node))) is not None:
            return known
        self._known[id(node)] = _LEAF  # where it recurs
        beside = [self.of(each) for each in _beside(node)]
        beside += [self._greatest(self._targets(node[key])) for key in _REFERENCES if isinstance(node.get(key), str)]
        looks = 1 if node.keys().isdisjoint(_UNEVALUATED) else 2
        here = 1 + _entries(node) // _ENTRIES + looks * sum(each[0] for each in beside)
        inside = self._inside(node) + looks * sum(each[1] for each in beside)
        if max(here, inside) > _MOST:
            raise TooManySteps
        self._known[id(node)] = here, inside
        return here, inside

    def _inside(self, node: dict[str, Any]) -> int:
        held = [node[key] for key in (*_EVERY, *_UNEVALUATED) if key in node]
        if isinstance(by_pattern := node.get("patternProperties"), dict):
            held += by_pattern.values()
        steps = sum(max(self.of(each)) for each in held)
        return steps + sum(max((max(self.of(each)) for each in group), default=0) for group in _one_each(node))

    def _greatest(self, nodes: Iterable[Any]) -> Steps:
        found = [self.of(each) for each in nodes]
        return max(each[0] for each in found), max(each[1] for each in found)

    # --- References ---------------------------------------------------------------------------------------------------

    def _targets(self, reference: str) -> list[Any]:
        """All that it may lead to: at which part of the schema it begins is for the validator to know."""
        fragment = unquote(reference.partition("#")[2])
        starts = [self._schema, *(node for _, node in self._named)]
        if fragment.startswith("/"):
            found = [each for start in starts for each in at(start, fragment)]
        else:
            found = [node for names, node in self._named if fragment in names or f"#{fragment}" in names]
        return found or starts

    @cached_property
    def _named(self) -> list[tuple[set[str], Any]]:
        """The parts that have names of their own. Raises TooManySteps."""
        names = (*_NAMES, "id") if "draft-04" in str(self._schema.get("$schema")) else _NAMES
        objects = (node for node in nodes(self._schema) if isinstance(node, dict))
        every = (({node[key] for key in names if isinstance(node.get(key), str)}, node) for node in objects)
        found = [(own, node) for own, node in every if own]
        if len(found) > _MOST_NAMED:
            raise TooManySteps
        return found


def _beside(node: dict[str, Any]) -> Iterator[Any]:
    """The parts of a schema that are about the same value."""
    for key in _LISTED:
        if isinstance(branches := node.get(key), list):
            yield from branches
    for key in _BY_KEY:
        if isinstance(branches := node.get(key), dict):
            yield from branches.values()
    yield from (node[key] for key in _SINGLE if key in node)


def _entries(node: dict[str, Any]) -> int:
    return sum(len(value) for value in node.values() if isinstance(value, (list, dict)))


def _one_each(node: dict[str, Any]) -> Iterator[Iterable[Any]]:
    """The parts of a schema about what a value holds, in groups: of each group, one is about one part of it."""
    if isinstance(held := node.get("properties"), dict):
        yield held.values()
    for key in ("prefixItems", "items"):
        if key in node:
            yield node[key] if isinstance(node[key], list) else [node[key]]


def nodes(value: Any) -> Iterator[Any]:
    """The JSON value and all that it holds, however deep."""
    stack = [value]
    while stack:
        yield (node := stack.pop())
        stack += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def at(start: Any, pointer: str) -> Iterator[Any]:
    """What the JSON pointer leads to (RFC 6901), if there is anything."""
    node = start
    for part in pointer[1:].split("/"):
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict) and part in node:
            node = node[part]
        else:
            return
    yield node
