"""What the page of the evidence shows: how far sealing is, who holds which heads outside, the keys, the heads."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connection

from audit.models import Head
from audit.sealing.progress import PROGRESS, Progress
from audit.verify import parse_head, parse_note, parse_vkey

PER_PAGE = 50
_RECENT = 500

# Bounded by the newest rows: in a year there may be millions of heads, and as many signatures of each witness.
_WITNESSES = f"""
SELECT witness, max(head), max(at) FROM
(SELECT witness, head, at FROM audit_cosignature ORDER BY head DESC LIMIT {_RECENT}) AS recent GROUP BY 1 ORDER BY 1
"""  # noqa: S608 - constants
_SINKS = f"""
SELECT sink, max(head), max(at) FROM
(SELECT sink, head, at FROM audit_anchor ORDER BY id DESC LIMIT {_RECENT}) AS recent GROUP BY 1 ORDER BY 1
"""  # noqa: S608
_REQUESTS = """
SELECT count(*) FILTER (WHERE s.request IS NULL), count(s.request), max(s.at)
FROM audit_signing_request r LEFT JOIN audit_signature s ON s.request = r.id WHERE r.at > now() - interval '1 hour'
"""


@dataclass(frozen=True, slots=True)
class Holder:
    """A witness or a place outside, and the newest head that it has."""

    name: str
    head: int
    at: datetime


@dataclass(frozen=True, slots=True)
class KeyShown:
    """A key that signed, and from which head on."""

    id: str
    vkey: str
    since: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Row:
    """One head of the list. `special` names what it says besides: a new key, a restore."""

    head: Head
    records: int
    cosignatures: int
    anchors: int
    special: str


def progress() -> Progress:
    """How far sealing has come."""
    return Progress.of(_all(PROGRESS)[0])


def witnesses() -> list[Holder]:
    """Who signed recent heads."""
    return [Holder(*row) for row in _all(_WITNESSES)]


def sinks() -> list[Holder]:
    """Where recent heads were written."""
    return [Holder(*row) for row in _all(_SINKS)]


def keys() -> list[KeyShown]:
    """Every key that ever signed, the newest first."""
    rows = _all("SELECT vkey, since, at FROM audit_key ORDER BY since DESC, at DESC")
    return [KeyShown(parse_vkey(vkey).id.hex(), vkey, since, at) for vkey, since, at in rows]


def requests() -> tuple[int, int, datetime | None]:
    """Of the last hour: signatures that are asked for, those that were given, and when the last one was."""
    ((waiting, answered, last),) = _all(_REQUESTS)
    return waiting, answered, last


def page(before: int | None) -> tuple[list[Row], int | None]:
    """A page of heads, the newest first, with smaller numbers than `before`; and where the next one begins."""
    heads = Head.objects.order_by("-number")
    if before is not None:
        heads = heads.filter(number__lt=before)
    found = list(heads[: PER_PAGE + 1])
    return _rows(found[:PER_PAGE], found), found[PER_PAGE - 1].number if len(found) > PER_PAGE else None


def _rows(shown: list[Head], found: list[Head]) -> list[Row]:
    numbers = [head.number for head in shown]
    cosignatures = _counted("audit_cosignature", numbers)
    anchors = _counted("audit_anchor", numbers)
    sizes = {head.number: head.size for head in found}
    return [
        Row(
            head,
            head.size - sizes.get(head.number - 1, head.size if head.number else 0),
            cosignatures.get(head.number, 0),
            anchors.get(head.number, 0),
            special(head),
        )
        for head in shown
    ]


def special(head: Head) -> str:
    """What the head says besides how far the tree is; empty where it says nothing."""
    try:
        said = parse_head(parse_note(head.note).text)
    except ValueError:
        return "Cannot be read"
    return "Restore accepted" if said.broken is not None else "New key" if said.successor else ""


def root_of(head: Head) -> str:
    """The root as it stands in the note."""
    return base64.b64encode(bytes(head.root)).decode()


def _counted(table: str, numbers: list[int]) -> dict[int, int]:
    query = f"SELECT head, count(*) FROM {table} WHERE head = ANY(%s) GROUP BY head"  # noqa: S608 - our own tables
    return dict(_all(query, numbers))


def _all(query: str, *values: Any) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(query, list(values))
        found: list[Any] = cursor.fetchall()
        return found
