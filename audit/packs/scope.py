"""What an evidence pack is about: a period, perhaps some sources, tools or roles; and how samples are chosen."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import Q, QuerySet
from django.utils import timezone

from audit.export.scope import BadScope, moment
from audit.models import Record

MOST_SAMPLES, USUAL_SAMPLES = 200, 10
SAMPLES, ALL = "samples", "all"
NAMES = ("sources", "tools", "roles")
KNOWN = ("since", "until", "as_of", *NAMES, "samples", "seed", "records")
_SEED = re.compile(r"[A-Za-z0-9._-]{1,64}")
_MOST_NAMES = 200


@dataclass(frozen=True, slots=True)
class PackScope:
    """Records from `since` until before `until`. Without names, of every source, tool and role."""

    since: datetime
    until: datetime
    as_of: datetime
    sources: tuple[str, ...]
    tools: tuple[str, ...]
    roles: tuple[str, ...]
    samples: int
    seed: str
    records: str

    def rows(self) -> QuerySet[Record]:
        """Every record of the period."""
        return Record.objects.filter(at__gte=self.since, at__lt=self.until)

    def calls(self) -> QuerySet[Record]:
        """The records of calls, refused ones too, that are in scope."""
        rows = self.rows().filter(kind__in=("call", "intent", "outcome", "denied", "invalid"))
        if self.sources:
            rows = rows.filter(connector__in=self.sources)
        if self.tools:
            rows = rows.filter(tool__in=self.tools)
        if self.roles:
            named = (re.escape(role) for role in self.roles)
            rows = rows.filter(roles__regex=f"(^|,)({'|'.join(named)})(,|$)")
        return rows

    def chosen(self) -> QuerySet[Record]:
        """What the pack's records are chosen from: the calls in scope, and all that is no call."""
        calls = Q(pk__in=self.calls().values("pk")) if self.is_narrowed else Q()
        rest = ~Q(kind__in=("call", "intent", "outcome", "denied", "invalid"))
        return self.rows().filter(calls | rest) if self.is_narrowed else self.rows()

    @property
    def is_narrowed(self) -> bool:
        """Whether it names sources, tools or roles."""
        return bool(self.sources or self.tools or self.roles)

    def told(self) -> str:
        """In a line, for the manifest."""
        names = (f"{name}: {', '.join(getattr(self, name))}" for name in NAMES if getattr(self, name))
        period = f"from {self.since.isoformat()} until before {self.until.isoformat()}"
        return "; ".join((period, *names, f"access as of {self.as_of.isoformat()}", f"records: {self.records}"))


def read(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for, checked and complete, as it is stored. Raises BadScope."""
    for name in given:
        if name not in KNOWN:
            raise BadScope(name, f"There is no option “{name[:80]}”: {', '.join(KNOWN)}.")
    now = timezone.now()
    since, until = _time(given, "since", None), _time(given, "until", now)
    if since is None:
        raise BadScope("since", "Say from when the period is.")
    assert until is not None
    until = min(until, now)
    if since >= until:
        raise BadScope("until", "The period ends before it begins, or lies in the future.")
    as_of = min(_time(given, "as_of", until) or until, now)
    seed = str(given.get("seed") or "").strip() or secrets.token_hex(8)
    if not _SEED.fullmatch(seed):
        raise BadScope("seed", "A seed has up to 64 letters, digits, dots, hyphens and underscores.")
    records = str(given.get("records") or SAMPLES)
    if records not in (SAMPLES, ALL):
        raise BadScope("records", f"“records” is {SAMPLES} or {ALL}.")
    return {
        "since": since.isoformat(),
        "until": until.isoformat(),
        "as_of": as_of.isoformat(),
        **{name: _names(given, name) for name in NAMES},
        "samples": _samples(given),
        "seed": seed,
        "records": records,
    }


def scope_of(stored: Mapping[str, Any]) -> PackScope:
    """What `read` has stored."""
    values: dict[str, Any] = {name: datetime.fromisoformat(stored[name]) for name in ("since", "until", "as_of")}
    values |= {name: tuple(stored[name]) for name in NAMES}
    return PackScope(**values, samples=stored["samples"], seed=stored["seed"], records=stored["records"])


def _time(given: Mapping[str, Any], name: str, usual: datetime | None) -> datetime | None:
    text = str(given.get(name) or "").strip()
    return moment(name, text) if text else usual


def _names(given: Mapping[str, Any], name: str) -> list[str]:
    value = given.get(name) or []
    words: Sequence[Any] = value.split(",") if isinstance(value, str) else value
    found = sorted({str(word).strip() for word in words if str(word).strip()})
    if len(found) > _MOST_NAMES or any("\0" in word or len(word) > 150 for word in found):
        raise BadScope(name, f"Up to {_MOST_NAMES} names of 150 characters, separated by commas.")
    return found


def _samples(given: Mapping[str, Any]) -> int:
    text = str(given.get("samples") or USUAL_SAMPLES)
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= MOST_SAMPLES):
        raise BadScope("samples", f"Between 1 and {MOST_SAMPLES} of each kind.")
    return int(text)
