"""CSV that a spreadsheet shows and does not run: what it could take for a formula is text in every cell.

A cell is a formula by how it begins, also behind blanks, and also behind a quote or a separator: a program that expects
another separator than ours begins a cell there. Such places get an apostrophe. CSV is for reading; JSON lines are what
can be verified.
"""

from __future__ import annotations

import csv
import io
import re
from typing import Any

from audit.entry import COLUMNS
from audit.export.lines import Line

# What spreadsheets take for a sign, with the wide forms that East Asian versions take too.
_SIGNS = "=+\\-@\uff1d\uff0b\uff0d\uff20"
# Blanks, controls, and what nobody sees (soft hyphens, joiners, marks of direction).
_BLANK = "\\s\\x00-\\x1f\\x7f-\\x9f\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"
_FORMULA = re.compile(f"(^|[\"',;|:\t\r\n])([{_BLANK}\"']*)(?=[{_SIGNS}])")
_CONTROL = re.compile(r"^(?=[\t\r\n])")
# Encrypted, or for programs only.
_LEFT_OUT = frozenset({"ct"})
_PLACES = tuple(place for place, (name, _) in enumerate(COLUMNS) if name not in _LEFT_OUT)
# `arguments` is empty where they were not asked for.
HEADER = ("seq", "id", "leaf", *(COLUMNS[place][0] for place in _PLACES), "arguments")


def safe(value: Any) -> Any:
    """The value as a cell; a text with an apostrophe wherever a formula could begin."""
    if not isinstance(value, str) or value.isalnum():
        return value
    return _CONTROL.sub("'", _FORMULA.sub(r"\1\2'", value))


def csv_lines(rows: list[tuple[Any, ...]]) -> bytes:
    """Rows of cells in UTF-8, each cell in quotes (RFC 4180)."""
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n").writerows(
        [safe(cell) for cell in row] for row in rows
    )
    return text.getvalue().encode()


def cells(line: Line) -> tuple[Any, ...]:
    """The cells under `HEADER`: times in UTC, bytes as hexadecimal digits, nothing for NULL."""
    shown = tuple(line.shown().values())
    payload = line.payload or {}
    arguments = payload.get("problem") or payload.get("arguments") or payload.get("some_arguments")
    return (line.seq, line.id, line.leaf.hex(), *(shown[place] for place in _PLACES), arguments)
