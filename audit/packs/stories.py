"""The samples of a pack: each record as a story that a program can read, with its proof."""

from __future__ import annotations

from typing import Any

from django.db.models import Q
from django.http import HttpRequest

from audit.models import Record
from audit.proofs.documents import NotSealed, proof_of, record_document
from audit.proofs.paths import TreeIncomplete
from audit.story import Story
from audit.verify import time_text

_MOST_RELATED = 20


def story_of(record: Record, stratum: str, number: int) -> dict[str, Any]:
    """What happened, in words and in records, and the proof that the record is in the tree, or why there is none."""
    story = Story(HttpRequest(), record)
    told = {
        "sample": number,
        "stratum": stratum,
        "headline": story.headline,
        "meaning": story.meaning,
        "decided": story.decided if record.decision else "",
        "at": time_text(record.at),
        "changes": [dict(zip(("field", "before", "after"), each, strict=True)) for each in story.changes],
        "related": [record_document(other) for other in _related(record)],
    }
    try:
        return {**told, "proof": proof_of(record)}
    except (NotSealed, TreeIncomplete) as error:
        return {**told, "record": record_document(record), "proof": None, "why_no_proof": str(error)}


def _related(record: Record) -> list[Record]:
    """The other records of the call, and of its trace."""
    wanted = Q(pk__in=())
    if record.call_id:
        wanted |= Q(call_id=record.call_id)
    if record.trace_id:
        wanted |= Q(trace_id=record.trace_id)
    return list(Record.objects.filter(wanted).exclude(pk=record.pk).order_by("at", "id")[:_MOST_RELATED])
