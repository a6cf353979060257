"""The tables of a pack: changes, refusals, the policies in force, keys, retention."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from django.db import connection
from django.db.models import Count, Max, Min, Q, QuerySet

from audit.codes import meaning_of
from audit.doors import changes_of, detail_of
from audit.export.cells import csv_lines
from audit.export.writing import Files
from audit.models import Record
from audit.packs.scope import PackScope
from audit.retention.models import LegalHold, RetentionClass
from audit.verify import time_text

_A_WRITE = 500
CHANGES = ("at", "record", "actor", "door", "change", "object_type", "object_id", "label", "field", "before", "after")
REFUSALS = ("actor", "tool", "code", "records", "first", "last")
POLICIES = ("policy_version", "records", "first", "last")
EVENTS = ("at", "code", "meaning", "record", "actor", "door", "detail")
KEYS = ("at", "what", "record", "actor", "detail")
# Codes of records that tell of keys and credentials.
_OF_KEYS = (
    "keys_rotated",
    "token_created",
    "token_revoked",
    "refresh_reused",
    "ledger_key_rotated",
    "subject_erased",
)


def write_csv(files: Files, name: str, header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> int:
    """Write a table, safe against formulas. Returns how many rows."""
    number, waiting = 0, [header]
    with files.file(name) as stream:
        for row in rows:
            waiting.append(row)
            number += 1
            if len(waiting) >= _A_WRITE:
                stream.write(csv_lines(waiting))
                waiting = []
        stream.write(csv_lines(waiting))
    return number


def changes(scope: PackScope) -> Iterator[tuple[Any, ...]]:
    """A row for each field that changed, and one for what was done without a field."""
    changed = Q(kind=Record.Kind.CONFIG) | Q(code="configuration_changed")
    rows: QuerySet[Record] = scope.rows().filter(changed).order_by("at", "id")
    for record in rows.iterator(_A_WRITE):
        detail = detail_of(record)
        known = (
            time_text(record.at),
            str(record.rid),
            record.actor,
            record.door,
            record.code,
            record.object_type,
            record.object_id,
            str(detail.get("label", "")),
        )
        for name, before, after in changes_of(detail) or [("", "", "")]:
            yield (*known, name, before, after)


def refusals(scope: PackScope) -> Iterator[tuple[Any, ...]]:
    """Who was refused which tool, how often and why."""
    rows = scope.calls().filter(Q(decision=Record.Decision.DENY) | Q(kind__in=("denied", "invalid"))).order_by()
    grouped = rows.values("actor", "tool", "code").annotate(records=Count("id"), first=Min("at"), last=Max("at"))
    for each in grouped.order_by("-records", "actor", "tool", "code").iterator():
        times = (time_text(each["first"]), time_text(each["last"]))
        yield (each["actor"], each["tool"], each["code"], each["records"], *times)


def policies(found: Iterable[dict[str, Any]]) -> Iterator[tuple[Any, ...]]:
    """The versions of the policy that decided calls, and when."""
    for each in found:
        yield (each["policy_version"], each["records"], time_text(each["first"]), time_text(each["last"]))


def keys(scope: PackScope) -> Iterator[tuple[Any, ...]]:
    """The keys that sign the ledger, then what was done with keys and credentials in the period."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT at, vkey, since FROM audit_key ORDER BY since, at, vkey")
        for at, vkey, since in cursor.fetchall():
            yield (time_text(at), "signs the ledger", "", "", f"{vkey} since head {since}")
    for record in scope.rows().filter(code__in=_OF_KEYS).order_by("at", "id").iterator(_A_WRITE):
        detail = detail_of(record)
        said = json.dumps({name: value for name, value in detail.items() if name != "links"}, ensure_ascii=False)
        yield (time_text(record.at), record.code, str(record.rid), record.actor, said)


def events(scope: PackScope) -> Iterator[tuple[Any, ...]]:
    """Events of the system: verifications, readings of arguments, exports, erasures, gaps, faults."""
    for record in scope.rows().filter(kind=Record.Kind.SYSTEM).order_by("at", "id").iterator(_A_WRITE):
        told = (time_text(record.at), record.code, meaning_of(record.code), str(record.rid))
        yield (*told, record.actor, record.door, record.detail)


def retention() -> dict[str, Any]:
    """How long records are kept, what is held, and which gaps are certified."""
    classes = RetentionClass.objects.values("name", "description", "months", "kinds", "tools", "sources")
    holds = LegalHold.objects.values("name", "matter", "scope", "value", "placed_by", "placed_at", "released_at")
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT month, first_seq, last_seq, records, at, EXISTS (SELECT FROM audit_gap_drop d WHERE d.gap = id)"
            " FROM audit_gap ORDER BY id"
        )
        names = ("month", "first_seq", "last_seq", "records", "certified_at", "dropped")
        gaps = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
    return {"classes": list(classes.order_by("name")), "holds": list(holds.order_by("placed_at")), "gaps": gaps}
