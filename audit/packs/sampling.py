"""Samples that nobody could pick by hand: who knows the seed can choose them again from the list of record ids.

Of each stratum, the records with the smallest SHA-256(seed || id), where the seed is its UTF-8 and the id the 16 bytes
of `rid`. The seed stands in the pack, and in the record of the request, which was sealed before anything was chosen.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from django.db.models import BinaryField, F, Func, Q, QuerySet, Value

from audit.models import Record
from audit.packs.scope import PackScope


@dataclass(frozen=True, slots=True)
class Stratum:
    """A part of the population that is sampled by itself."""

    name: str
    title: str
    what: Q
    calls: bool = True


STRATA = (
    Stratum("reads", "Calls that only read", Q(kind="call")),
    Stratum("effects", "Calls with effects", Q(kind="outcome")),
    Stratum("refusals", "Refused calls", Q(kind__in=("denied", "invalid"))),
    Stratum("changes", "Changes of configuration", Q(kind="config"), calls=False),
    Stratum("logins", "Logins and tokens", Q(kind="auth"), calls=False),
)


class _Sha256(Func):
    function = "sha256"
    output_field = BinaryField()


class _Bytes(Func):
    function = "uuid_send"
    output_field = BinaryField()


class _Joined(Func):
    template, arg_joiner, output_field = "(%(expressions)s)", " || ", BinaryField()


def rank(seed: str, rid: uuid.UUID) -> bytes:
    """The number by which a record is chosen: the smallest are."""
    return hashlib.sha256(seed.encode() + rid.bytes).digest()


def ranked(rows: QuerySet[Record], seed: str) -> QuerySet[Record]:
    """The rows by their rank; PostgreSQL keeps no more of them in memory than are taken."""
    joined = _Joined(Value(seed.encode(), output_field=BinaryField()), _Bytes(F("rid")))
    return rows.annotate(rank=_Sha256(joined)).order_by("rank")


def samples_of(scope: PackScope) -> Iterator[tuple[Stratum, list[Record]]]:
    """The samples of each stratum, in the order in which they were chosen."""
    for stratum in STRATA:
        rows = scope.calls() if stratum.calls else scope.rows()
        yield stratum, list(ranked(rows.filter(stratum.what), scope.seed)[: scope.samples])
