"""Prompts and resources in the policy snapshot: what can be used, and by whom."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from access.grants import Catalogue, GrantRow, compiled, usable
from tools.connectors.base import Kind, Source
from tools.models import DataSource, Prompt, Resource
from tools.recording import Recording, below, effective
from tools.recording import compiled as compiled_policy
from tools.templates import literal_length, pattern_of

logger = logging.getLogger("access.offered")

Key = tuple[str, str]


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """A data source with the state it was read in; `mark` changes when a new connection is needed."""

    kind: str
    source: Source
    mark: str


@dataclass(frozen=True, slots=True)
class OfferedEntry:
    """A prompt, a resource or a template that can be used. `name` is its name or URI, also for clients."""

    id: uuid.UUID
    kind: Kind
    name: str
    source: SourceEntry
    source_name: str
    fingerprint: bytes
    definition: bytes
    pattern: re.Pattern[str] | None = None
    # What its records keep and show; None where that is the ordinary: everything encrypted.
    recording: Recording | None = None
    # To read is all that can be done.
    effect: ClassVar[str] = "read"

    @property
    def key(self) -> Key:
        """What tells it from all others."""
        return self.kind, self.name

    @property
    def label(self) -> str:
        """What metrics call it: there may be thousands."""
        return self.kind

    @property
    def about(self) -> tuple[str, str]:
        """What records name as their object."""
        return ("tools.Prompt" if self.kind == "prompt" else "tools.Resource"), str(self.id)


@dataclass(frozen=True, slots=True)
class OfferedPolicy:
    """All of them, with their grants: role → key → calls per minute."""

    entries: Mapping[Key, OfferedEntry] = field(default_factory=dict)
    # The closest first: those with the longest fixed beginning.
    templates: tuple[OfferedEntry, ...] = ()
    # URIs of resources that are there and cannot be used: no template leads to them.
    closed: frozenset[str] = frozenset()
    grants: Mapping[int, Mapping[Key, int]] = field(default_factory=dict)
    toolsets: Mapping[str, frozenset[Key]] = field(default_factory=dict)


def known_offered(offered: OfferedPolicy, kind: str, name: str) -> OfferedEntry | None:
    """The entry of that name, or the template that leads to that URI, whoever may use it."""
    entry = offered.entries.get((kind, name))
    if entry is not None or kind != "resource" or name in offered.closed:
        return entry
    return next((each for each in offered.templates if each.pattern and each.pattern.fullmatch(name)), None)


def load_offered(sources: Mapping[uuid.UUID, SourceEntry], rows: Iterable[GrantRow], key: bytes) -> OfferedPolicy:
    """Read them, with the grants that lead to them. `key` is that of the subjects' hashes."""
    recorded = _recordings(sources, key)
    of = {"source_id__in": recorded}
    prompts = {row.pk: _prompt(row, sources[row.source_id], recorded) for row in usable(Prompt).filter(**of)}
    resources = {row.pk: _resource(row, sources[row.source_id], recorded) for row in usable(Resource).filter(**of)}
    catalogues = (
        Catalogue.of({pk: entry.key for pk, entry in prompts.items()}, Prompt),
        Catalogue.of({pk: entry.key for pk, entry in resources.items()}, Resource),
    )
    grants: dict[int, dict[Key, int]] = {}
    toolsets: dict[str, frozenset[Key]] = {}
    stored = list(rows)
    for catalogue in catalogues:
        for role, budgets in compiled(stored, catalogue).items():
            grants.setdefault(role, {}).update(budgets)
        for name, members in catalogue.toolsets.values():
            toolsets[name] = toolsets.get(name, frozenset()) | members
    entries = {entry.key: entry for entry in (*prompts.values(), *resources.values())}
    templates = sorted((e for e in entries.values() if e.pattern), key=lambda e: (-literal_length(e.name), e.name))
    closed = Resource.objects.filter(is_template=False).exclude(pk__in=resources).values_list("uri", flat=True)
    return OfferedPolicy(entries, tuple(templates), frozenset(closed), grants, toolsets)


def _recordings(sources: Iterable[uuid.UUID], key: bytes) -> dict[uuid.UUID, Recording | None]:
    """What the policy of each source and the site's come to; without those whose policy is broken."""
    found = {}
    for pk, name, said in DataSource.objects.filter(pk__in=sources).values_list("pk", "name", "recording"):
        try:
            found[pk] = compiled_policy(below("arguments", effective(said)), key)
        except ValueError as error:
            logger.error("prompts and resources of %s cannot be used: its policy of recording: %s", name, error)
    return found


def _prompt(row: Prompt, source: SourceEntry, recorded: Mapping[uuid.UUID, Recording | None]) -> OfferedEntry:
    return OfferedEntry(
        id=row.pk,
        kind="prompt",
        name=row.name,
        source=source,
        source_name=row.source_name,
        fingerprint=bytes.fromhex(row.fingerprint),
        definition=row.definition.encode(),
        recording=recorded[row.source_id],
    )


def _resource(row: Resource, source: SourceEntry, recorded: Mapping[uuid.UUID, Recording | None]) -> OfferedEntry:
    return OfferedEntry(
        id=row.pk,
        kind="template" if row.is_template else "resource",
        name=row.uri,
        source=source,
        source_name=row.uri,
        fingerprint=bytes.fromhex(row.fingerprint),
        definition=row.definition.encode(),
        pattern=pattern_of(row.uri) if row.is_template else None,
        recording=recorded[row.source_id],
    )
