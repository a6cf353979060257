"""What grants come to: the one place where a toolset, a tool or a tag becomes names of tools and budgets.

The snapshot compiles with it what decides calls, and the admin shows with it what a role would come to.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from django.conf import settings
from django.db.models import QuerySet

from access.models import Grant
from tools.models import Tool, Toolset


class GrantRow(NamedTuple):
    """A grant as the compiler needs it: one of `toolset_id`, `tool_id` and `tag` is set."""

    role_id: int
    toolset_id: uuid.UUID | None
    tool_id: uuid.UUID | None
    tag: str
    calls_per_minute: int | None


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The names of tools that can be called: by id, by toolset (with the toolset's name), and by tag."""

    names: Mapping[uuid.UUID, str]
    toolsets: Mapping[uuid.UUID, tuple[str, set[str]]]
    tagged: Mapping[str, list[str]]

    @classmethod
    def of(cls, names: Mapping[uuid.UUID, str]) -> Catalogue:
        """Read which toolsets and tags the named tools are in."""
        toolsets: dict[uuid.UUID, tuple[str, set[str]]] = {
            pk: (name, set()) for pk, name in Toolset.objects.values_list("pk", "name")
        }
        for toolset_id, tool_id in Toolset.tools.through.objects.values_list("toolset_id", "tool_id"):
            if tool_id in names:
                toolsets[toolset_id][1].add(names[tool_id])
        tagged: dict[str, list[str]] = {}
        for pk, tags in Tool.objects.filter(pk__in=names).values_list("pk", "tags"):
            for tag in tags:
                tagged.setdefault(tag, []).append(names[pk])
        return cls(names, toolsets, tagged)

    def reached(self, row: GrantRow) -> Iterable[str]:
        """The names of the tools that the grant leads to."""
        if row.toolset_id is not None and row.toolset_id in self.toolsets:
            return self.toolsets[row.toolset_id][1]
        if row.tool_id is not None and row.tool_id in self.names:
            return [self.names[row.tool_id]]
        return self.tagged.get(row.tag, ())


def callable_tools() -> QuerySet[Tool]:
    """The tools that are on, published, and of a source that is on."""
    return Tool.objects.filter(enabled=True, current__isnull=False, source__enabled=True)


def stored_rows() -> Iterable[GrantRow]:
    """All grants that there are."""
    return map(GrantRow._make, Grant.objects.values_list(*GrantRow._fields))


def row_of(grant: Grant) -> GrantRow:
    """The grant, saved or not."""
    return GrantRow(grant.role_id, grant.toolset_id, grant.tool_id, grant.tag, grant.calls_per_minute)


def compiled(rows: Iterable[GrantRow], catalogue: Catalogue) -> dict[int, dict[str, int]]:
    """Role → tool name → calls per minute: of several grants the largest budget, the site's where none is named."""
    grants: dict[int, dict[str, int]] = {}
    for row in rows:
        allowed = grants.setdefault(row.role_id, {})
        for name in catalogue.reached(row):
            allowed[name] = max(allowed.get(name, 0), row.calls_per_minute or settings.CALLS_PER_MINUTE)
    return grants
