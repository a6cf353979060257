"""Which records an export holds: the parameters of the list of records, and of REST, read strictly."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.db.models import QuerySet
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from audit.filters import RESULTS, SPANS, TOPICS, says, sought
from audit.models import Record

EXACT = (
    "kind",
    "decision",
    "code",
    "tool",
    "actor",
    "connector",
    "door",
    "trace_id",
    "request_id",
    "object_type",
    "object_id",
)
IDS, TIMES = ("call_id", "rid"), ("since", "until")
KNOWN = (*TIMES, "last", *EXACT, *IDS, "result", "topic", "text", "q")
_LONGEST = 512

Scope = Mapping[str, str]


class BadScope(ValueError):
    """A parameter is none, or has a value that it cannot have; `name` is the parameter."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


def read(given: Mapping[str, Any]) -> dict[str, str]:
    """The parameters that have a value, checked, with times as RFC 3339 and `last` as the time it means now.

    Raises BadScope: to leave out what cannot be read would export more than was asked for.
    """
    found: dict[str, str] = {}
    for name, value in given.items():
        text = str(value).strip()
        if name not in KNOWN:
            raise BadScope(name, f"There is no filter “{name[:80]}”: {', '.join(KNOWN)}.")
        if "\0" in text or len(text) > _LONGEST:
            raise BadScope(name, f"“{name}” has at most {_LONGEST} characters, and no NUL.")
        if text:
            found[name] = _checked(name, text)
    if last := found.pop("last", None):
        found |= {"since": (timezone.now() - SPANS[last][1]).isoformat()}
        found.pop("until", None)
    return found


def _checked(name: str, text: str) -> str:
    if name in TIMES:
        return moment(name, text).isoformat()
    if name in IDS:
        try:
            return str(uuid.UUID(text))
        except ValueError as error:
            raise BadScope(name, f"“{name}” is a UUID.") from error
    known = {"result": tuple(RESULTS), "topic": tuple(TOPICS), "last": tuple(SPANS), "kind": Record.Kind.values}
    choices = known.get(name)
    if choices is not None and text not in choices:
        raise BadScope(name, f"“{name}” is one of {', '.join(choices)}.")
    return text


def moment(name: str, text: str) -> datetime:
    """The time; without an offset it is UTC. Raises BadScope."""
    try:
        found = parse_datetime(text) or datetime.fromisoformat(text)
    except ValueError as error:
        raise BadScope(name, f"“{name}” is a time such as 2026-11-23T12:00:00Z.") from error
    return found if timezone.is_aware(found) else timezone.make_aware(found)


def rows_of(scope: Scope, until: datetime | None = None) -> QuerySet[Record]:
    """The records that a scope of `read` names, none at or after `until`."""
    rows: QuerySet[Record] = Record.objects.filter(**{name: scope[name] for name in (*EXACT, *IDS) if name in scope})
    ends = [moment("until", scope["until"])] if "until" in scope else []
    if ends or until:
        rows = rows.filter(at__lt=min([*ends, *([until] if until else [])]))
    if "since" in scope:
        rows = rows.filter(at__gte=moment("since", scope["since"]))
    if "result" in scope:
        rows = rows.filter(RESULTS[scope["result"]][1])
    if "topic" in scope:
        rows = rows.filter(TOPICS[scope["topic"]][1])
    if "text" in scope:
        rows = rows.filter(says(scope["text"]))
    return rows.filter(sought(scope["q"])) if "q" in scope else rows


_WORDS = {"since": "from", "until": "until", "text": "words", "q": "search", "connector": "data source"}


def words_for(name: str) -> str:
    """What people call a parameter."""
    return _WORDS.get(name, name.replace("_", " "))


def told(scope: Scope) -> str:
    """The scope as a line of text, for the manifest."""
    return "; ".join(f"{words_for(name)}: {scope[name]}" for name in KNOWN if name in scope) or "every record"
