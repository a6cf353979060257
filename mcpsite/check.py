"""What a check of the doctor is, and how it asks PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from django.db import connection, transaction

PATIENCE_MS = 5_000


class State(StrEnum):
    """How it is."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, how it is, and what to do where it is not as it should be."""

    name: str
    state: State
    found: str
    advice: str = ""


@contextmanager
def question() -> Iterator[Any]:
    """A cursor that does not wait long for anybody."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"SET LOCAL statement_timeout = {PATIENCE_MS}")
        yield cursor


def rows(query: str, *values: Any) -> list[tuple[Any, ...]]:
    """The rows that PostgreSQL answers."""
    with question() as cursor:
        cursor.execute(query, list(values))
        found: list[tuple[Any, ...]] = cursor.fetchall()
        return found


def listed(names: list[str]) -> str:
    """`a, b and c`; at least one."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
