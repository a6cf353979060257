"""The result of a call as a page shows it: texts, tables, images. What comes from outside is never markup."""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import dataclass
from typing import Any

# What a browser draws without running anything.
_IMAGES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
_LONGEST_TEXT, _LONGEST_CELL = 100_000, 300
_MOST_ROWS, _MOST_COLUMNS, _MOST_BLOCKS = 100, 30, 50


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of a structured result; `more` says how many are not shown."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    more: int


@dataclass(frozen=True, slots=True)
class Block:
    """One block of content; `source` is a data URL of an image."""

    title: str
    text: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Shown:
    """A CallToolResult ready for the template."""

    is_error: bool
    tables: list[Table]
    structured: str
    blocks: list[Block]


def shown(result: dict[str, Any]) -> Shown:
    """What a page shows of a CallToolResult."""
    structured = result.get("structuredContent")
    content = result.get("content")
    blocks = [_block(each) for each in content[:_MOST_BLOCKS]] if isinstance(content, list) else []
    said = None if structured is None else pretty(structured)
    # The protocol has servers repeat structured content as text, for older clients.
    blocks = [block for block in blocks if said is None or block.text != said]
    return Shown(result.get("isError") is True, _tables(structured), _cut(said or ""), blocks)


def pretty(value: Any) -> str:
    """JSON for people."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def _block(block: Any) -> Block:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "text":
        return Block("Text", _cut(_reformatted(str(block.get("text", "")))))
    if kind == "image" and str(block.get("mimeType")) in _IMAGES and _is_base64(block.get("data")):
        return Block("Image", source=f"data:{block['mimeType']};base64,{block['data']}")
    if kind == "resource" and isinstance(held := block.get("resource"), dict) and isinstance(held.get("text"), str):
        return Block(f"Resource {held.get('uri', '')}"[:200], _cut(held["text"]))
    return Block(f"Content of the type {kind or 'unknown'}"[:200], _cut(pretty(block)))


def _is_base64(data: Any) -> bool:
    try:
        return bool(data) and isinstance(data, str) and bool(b64decode(data, validate=True))
    except ValueError:
        return False


def _reformatted(text: str) -> str:
    """Text that is a JSON object or list, as people read JSON."""
    if not text.startswith(("{", "[")):
        return text
    try:
        return pretty(json.loads(text))
    except (ValueError, RecursionError):
        return text


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}\n… ({len(text)} characters in all)"


def _tables(structured: Any) -> list[Table]:
    """The lists of flat objects that stand at the top of a structured result."""
    if not isinstance(structured, dict):
        return []
    lists = ((name, rows) for name, rows in structured.items() if isinstance(rows, list) and rows)
    return [_table(name, rows) for name, rows in lists if all(isinstance(row, dict) and row for row in rows)]


def _table(name: str, rows: list[dict[str, Any]]) -> Table:
    columns = list(dict.fromkeys(key for row in rows[:_MOST_ROWS] for key in row))[:_MOST_COLUMNS]
    cells = [[_cell(row.get(column)) for column in columns] for row in rows[:_MOST_ROWS]]
    return Table(name.replace("_", " ").capitalize(), columns, cells, len(rows) - len(cells))


def _cell(value: Any) -> str:
    text = "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_CELL else f"{text[:_LONGEST_CELL]}…"
