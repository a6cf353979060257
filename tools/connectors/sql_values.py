"""Values between JSON and PostgreSQL: exact digits, ISO dates, JSON as it is stored."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import orjson
import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import AdaptersMap, Loader
from psycopg.types.json import set_json_loads
from psycopg.types.string import TextLoader


class _Number(Loader):
    """Exact digits as a JSON number; NaN and infinity have no JSON form."""

    def load(self, data: Buffer) -> Any:
        text = bytes(data)
        return None if text in (b"NaN", b"Infinity", b"-Infinity") else orjson.Fragment(text)


class _Moment(Loader):
    """RFC 3339, also for years that Python does not know. The session's time zone is UTC."""

    def load(self, data: Buffer) -> str:
        text = bytes(data).decode().replace(" ", "T", 1)
        return f"{text}:00" if text.endswith("+00") else text


def _adapters() -> AdaptersMap:
    found = AdaptersMap(psycopg.adapters)
    found.register_loader("numeric", _Number)
    for name in ("timestamp", "timestamptz"):
        found.register_loader(name, _Moment)
    for name in ("date", "time", "timetz", "interval", "uuid", "inet", "cidr"):
        found.register_loader(name, TextLoader)
    set_json_loads(orjson.Fragment, found)
    return found


ADAPTERS = _adapters()


def as_json(value: object) -> object:
    """What `orjson` does not know itself."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    return str(value)


def as_parameter(kind: str, value: Any) -> Any:
    """An argument as its PostgreSQL type takes it without loss; JSON Schema counts 3.0 among the integers."""
    if isinstance(value, list):
        return [as_parameter(kind.removesuffix("[]"), each) for each in value]
    if kind == "integer" and isinstance(value, float):
        return int(value)
    if kind == "number" and isinstance(value, float):
        return Decimal(repr(value))
    return value
