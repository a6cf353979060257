"""Records as JSON has them: docs/evidence.md, "Record as JSON"."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from audit.verify import COLUMNS, time_text

_AS_JSON: dict[str, Callable[[Any], Any]] = {
    "uuid": str,
    "timestamptz": time_text,
    "text": str,
    "bigint": int,
    "bytea": lambda value: bytes(value).hex(),
}
_WRITERS = tuple((name, _AS_JSON[kind]) for name, kind in COLUMNS)


def columns_json(values: Iterable[Any]) -> dict[str, Any]:
    """The columns that the leaf covers; `values` are those of `COLUMNS`, in that order."""
    pairs = zip(_WRITERS, values, strict=True)
    return {name: None if value is None else write(value) for (name, write), value in pairs}


def record_json(seq: int | None, number: int, leaf: bytes, values: Iterable[Any]) -> dict[str, Any]:
    """The record with its place in the tree, its number and its leaf."""
    return {"seq": seq, "id": number, "leaf": leaf.hex(), "record": columns_json(values)}
