"""Records as they are exported: read in pages, so that the memory stays flat, and written as docs/evidence.md says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from django.db import connection
from django.db.models import Q, QuerySet

from audit.entry import COLUMNS
from audit.masking import known
from audit.models import Record
from audit.opening import KeyDestroyed, payload_of
from audit.patience import at_most
from audit.payload import Payload
from audit.plain import columns_json, record_json
from keyring.keys import DecryptionError

_NAMES = tuple(name for name, _ in COLUMNS)
_AT = _NAMES.index("at")
_PAGE, _PATIENCE_MS = 1_000, 120_000


@dataclass(frozen=True, slots=True)
class Line:
    """A record with its place in the tree; `seq` is None while it is not sealed. `values` are those of `COLUMNS`.

    `payload` is what its `ct` keeps, decrypted, where that was asked for.
    """

    seq: int | None
    id: int
    leaf: bytes
    values: tuple[Any, ...]
    payload: dict[str, str | None] | None = None

    @property
    def place(self) -> tuple[datetime, int]:
        """Where it stands among the records."""
        return self.values[_AT], self.id

    def shown(self) -> dict[str, Any]:
        """The record as JSON has it."""
        return columns_json(self.values)


def as_json(line: Line) -> dict[str, Any]:
    """One object of docs/evidence.md, "Record as JSON"."""
    found = record_json(line.seq, line.id, line.leaf, line.values)
    return found if line.payload is None else {**found, "payload": line.payload}


def json_line(line: Line) -> bytes:
    """The object in one line."""
    return orjson.dumps(as_json(line), option=orjson.OPT_APPEND_NEWLINE)


def pages(
    rows: QuerySet[Record],
    size: int = _PAGE,
    *,
    payloads: bool = False,
    after: tuple[datetime, int] | None = None,
) -> Iterator[list[Line]]:
    """The records of `rows`, oldest first, at most `size` at a time; no transaction is held between two pages.

    With `payloads`, what they keep is decrypted; with `after`, only those behind that place. Raises TooSlow.
    """
    wanted = rows.order_by("at", "id").values_list("id", "leaf", *_NAMES)
    while True:
        with at_most(_PATIENCE_MS):
            found: list[Any] = list(wanted.filter(_behind(after))[:size])
        if found:
            yield _placed(found, payloads)
        if len(found) < size:
            return
        after = found[-1][2 + _AT], found[-1][0]


def _behind(place: tuple[datetime, int] | None) -> Q:
    if place is None:
        return Q()
    at, number = place
    return Q(Q(at__gt=at) | Q(at=at, id__gt=number), at__gte=at)


def _placed(found: list[Any], payloads: bool) -> list[Line]:
    places = places_of(each[0] for each in found)
    return [
        Line(places.get(row[0]), row[0], bytes(row[1]), tuple(row[2:]), _payload(row[2:]) if payloads else None)
        for row in found
    ]


def _payload(values: tuple[Any, ...]) -> dict[str, str | None] | None:
    """What the record keeps as text, and the salt of its commitments; or why it cannot be read. None for nothing."""
    kept = dict(zip(_NAMES, values, strict=True))
    if kept["ct"] is None:
        return None
    try:
        payload = payload_of(Record(rid=kept["rid"], ct=kept["ct"], key_id=kept["key_id"]))
    except (KeyDestroyed, DecryptionError) as error:
        return {"problem": str(error)}
    texts = {name: None if raw is None else raw.decode("utf-8", "replace") for name, raw in _parts(payload)}
    mask = known().current().text
    return {"salt": payload.salt.hex(), **{name: text and mask(text) for name, text in texts.items()}}


def _parts(payload: Payload) -> Iterator[tuple[str, bytes | None]]:
    return ((name, getattr(payload, name)) for name in Payload._fields if name != "salt")


def places_of(records: Iterable[int]) -> dict[int, int]:
    """Number of a record → its `seq`, for those that are sealed."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT record_id, seq FROM audit_leaf WHERE record_id = ANY(%s)", [list(records)])
        return dict(cursor.fetchall())
