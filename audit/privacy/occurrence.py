"""Does this value occur? Asked of records whose content is committed to, kept encrypted, or not kept at all.

Whole arguments or a whole result are found by recomputing the commitment, which needs no more than the salt. The value
of one argument is compared with what is kept. Where the key is destroyed, nobody can tell any more.
"""

from __future__ import annotations

import hmac
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import islice
from typing import Any

import orjson
from django.db import transaction

from audit.arguments import ReadingRefused, may_read_now
from audit.caller import stated
from audit.changes import record_event, type_of
from audit.entry import commitment
from audit.models import Record
from audit.opening import KeyDestroyed, keys_of, payload_of
from audit.payload import Payload
from keyring.keys import DecryptionError

MOST_RECORDS = 2_000
_SECONDS = 8.0
_AT_ONCE = 200


class Verdict(StrEnum):
    """What can be said of one record."""

    OCCURS = "occurs"
    ABSENT = "absent"
    UNDECIDABLE = "undecidable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One of `arguments`, `result` (raw JSON), or `value` (of `argument`: a name or JSON pointer; of any, if empty)."""

    arguments: str = ""
    result: str = ""
    value: str = ""
    argument: str = ""
    tool: str = ""
    record: str = ""
    since: datetime | None = None
    until: datetime | None = None
    most: int = MOST_RECORDS

    def wrong(self) -> str:
        """What is missing or too much, as a sentence; empty for a question that can be answered."""
        if sum(map(bool, (self.arguments, self.result, self.value))) != 1:
            return "Give one of: whole arguments, a whole result, or a value."
        if self.argument and not self.value:
            return "Give the value that the argument should have."
        if not self.tool and not self.record:
            return "Name a tool, or one record."
        return ""


@dataclass(frozen=True, slots=True)
class Finding:
    """What can be said of one record, and why not more."""

    record: Record
    verdict: Verdict
    why: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """`findings` are those that occur and those that cannot be decided; `complete` is whether all were looked at."""

    looked_at: int
    counts: Counter[str]
    findings: list[Finding]
    complete: bool

    @property
    def verdict(self) -> Verdict:
        """Of all together."""
        if self.counts[Verdict.OCCURS]:
            return Verdict.OCCURS
        whole = self.complete and not self.counts[Verdict.UNDECIDABLE]
        return Verdict.ABSENT if whole and self.looked_at else Verdict.UNDECIDABLE


def search(question: Question, reason: str, *, door: str, request: Any = None, actor: Any = None) -> Report:
    """Look at the newest records that the question names, for some seconds at most, and record that it was asked.

    Raises audit.arguments.ReadingRefused, and ValueError for a question that is none.
    """
    if wrong := question.wrong():
        raise ValueError(wrong)
    with transaction.atomic():
        may_read_now(reason, request, actor)
        report = _report(question)
        _record(question, report, stated(reason), door, request, actor)
    return report


def _report(question: Question) -> Report:
    until, counts, findings = time.monotonic() + _SECONDS, Counter[str](), list[Finding]()
    rows = _rows(question)
    found = iter(rows[: question.most + 1].iterator(chunk_size=_AT_ONCE))
    looked = 0
    while some := list(islice(found, min(_AT_ONCE, question.most - looked))):
        keys = keys_of(some)
        for record in some:
            finding = _finding(question, record, keys)
            counts[finding.verdict] += 1
            if finding.verdict != Verdict.ABSENT:
                findings.append(finding)
        looked += len(some)
        if looked >= question.most or time.monotonic() > until:
            break
    complete = next(found, None) is None
    return Report(looked, counts, findings, complete)


def _rows(question: Question) -> Any:
    rows = Record.objects.exclude(**{"result_commit" if question.result else "args_commit": None})
    if question.record:
        rows = rows.filter(rid=question.record)
    if question.tool:
        rows = rows.filter(tool=question.tool)
    if question.since:
        rows = rows.filter(at__gte=question.since)
    if question.until:
        rows = rows.filter(at__lt=question.until)
    return rows.defer("detail").order_by("-at", "-id")


def _finding(question: Question, record: Record, keys: Any) -> Finding:
    try:
        kept = payload_of(record, keys)
    except KeyDestroyed:
        return Finding(record, Verdict.UNDECIDABLE, "erased")
    except DecryptionError:
        return Finding(record, Verdict.UNDECIDABLE, "its key is not here")
    if question.arguments:
        return _committed(record, kept, b"a", question.arguments, record.args_commit)
    if question.result:
        return _committed(record, kept, b"r", question.result, record.result_commit)
    return _compared(question, record, kept)


def _committed(record: Record, kept: Payload, tag: bytes, candidate: str, committed: Any) -> Finding:
    right = any(
        hmac.compare_digest(commitment(kept.salt, tag, form) or b"", bytes(committed)) for form in _forms(candidate)
    )
    return Finding(record, Verdict.OCCURS if right else Verdict.ABSENT)


def _forms(candidate: str) -> list[bytes]:
    """As it was given, and as programs write the same JSON."""
    forms = [candidate.encode()]
    try:
        value = json.loads(candidate)
        for separators in (None, (",", ":")):
            forms += (json.dumps(value, separators=separators, ensure_ascii=ascii).encode() for ascii in (True, False))
    except (ValueError, RecursionError):
        # No JSON, or what no call can hold: half a surrogate pair, a thousand brackets.
        pass
    return forms


def _compared(question: Question, record: Record, kept: Payload) -> Finding:
    raw = kept.arguments or kept.some_arguments
    here = [] if raw is None else list(_values(orjson.loads(raw), question.argument))
    if any(_same(value, question.value) for value in here):
        return Finding(record, Verdict.OCCURS)
    if kept.arguments is not None or (here and question.argument and "*" not in question.argument):
        return Finding(record, Verdict.ABSENT)
    return Finding(record, Verdict.UNDECIDABLE, "the argument was not kept")


def _values(value: Any, argument: str) -> Iterator[Any]:
    """The values that the name or pointer leads to; without one, every value there is."""
    if not argument:
        yield value
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from _values(each, "")
        return
    steps = argument[1:].split("/") if argument.startswith("/") else [argument]
    found = [value]
    for step in steps:
        found = [each for node in found for each in _children(node, step.replace("~1", "/").replace("~0", "~"))]
    yield from found


def _children(node: Any, step: str) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values()) if step == "*" else [node[step]] if step in node else []
    if isinstance(node, list):
        return node if step == "*" else [node[int(step)]] if step.isdecimal() and int(step) < len(node) else []
    return []


def _same(value: Any, candidate: str) -> bool:
    """A text as it is; everything else as JSON."""
    if isinstance(value, str):
        return value == candidate
    try:
        return bool(orjson.loads(candidate) == value)
    except ValueError:
        return False


def _record(question: Question, report: Report, reason: str, door: str, request: Any, actor: Any) -> None:
    """What was asked, but for the value itself."""
    asked = "arguments" if question.arguments else "result" if question.result else "value"
    detail = {
        "label": f"whether a {asked} occurs" if asked != "arguments" else "whether arguments occur",
        "reason": reason,
        "asked": asked,
        "argument": question.argument or None,
        "tool": question.tool or None,
        "record": question.record or None,
        "since": question.since.isoformat() if question.since else None,
        "until": question.until.isoformat() if question.until else None,
        "looked_at": report.looked_at,
        "complete": report.complete,
        **{verdict.value: report.counts[verdict] for verdict in Verdict},
    }
    record_event(
        Record.Kind.SYSTEM,
        "value_sought",
        door=door,
        request=request,
        actor=actor,
        object_type=type_of(Record),
        object_id=question.record or None,
        detail=detail,
    )


__all__ = ["MOST_RECORDS", "Finding", "Question", "ReadingRefused", "Report", "Verdict", "search"]
