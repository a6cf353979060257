"""No cell of an export is a formula, however a spreadsheet splits it."""

from __future__ import annotations

import csv
import io
import re
import unicodedata

import pytest

from audit.export.cells import HEADER, csv_lines, safe

FORMULAS = [
    "=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\ttext", "\rtext", " =1", "\u00a0=1",
    "\u200b=1", "\ufeff=1", "\u00ad=1", "\u200e=1", "\u202e=1", "\u2060=1", "\x1b=1", "\0=1",
    "\uff1d1+1", "\uff0b1", "\uff0d1", "\uff201", '"=1', "'=1", '"" =1', "=cmd|' /C calc'!A0",
    "=HYPERLINK(\"http://x\")",
    'a,=1', "a;=1", 'a";=1', "a\t=1", "a\n=1", "a|=1", 'a","=1', "a;\uff1d1", "a; @x",
]  # fmt: skip


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_becomes_text(text):
    """In any of the ways that spreadsheets split a line."""
    raw = csv_lines([(text,)]).decode()
    cell = next(csv.reader(io.StringIO(raw, newline="")))[0]
    for split in ([cell], *(re.split(each, cell) for each in (",", ";", "\t", r"[\r\n]", r"\|", '"'))):
        for part in split:
            seen = "".join(each for each in part if each != '"' and unicodedata.category(each)[0] not in "CZ")
            assert seen[:1] not in tuple("=+-@\uff1d\uff0b\uff0d\uff20"), (text, part)
            assert part[:1] not in ("\t", "\r") or split != [cell]


@pytest.mark.parametrize(
    "text", ["find_customer", "a-b", "a=b", "d@example.com", "2026-11-23T12:00:00.000000Z", "", "1 - 2"]
)
def test_what_is_no_formula_stays(text):
    assert safe(text) == text


def test_numbers_stay_numbers_and_nothing_stays_nothing():
    assert csv_lines([(1, None, "x")]) == b'"1","","x"\r\n'


def test_the_header_is_safe_too():
    assert [safe(name) for name in HEADER] == list(HEADER)
    assert csv_lines([("=x",)]) == b'"\'=x"\r\n'
    assert "ct" not in HEADER
