"""What grants come to: the one place where a toolset, a tool or a tag becomes names and budgets.

The snapshot compiles with it what decides calls, and the admin shows with it what a role would come to.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from django.conf import settings
from django.db.models import Model, QuerySet

from access.models import Grant
from tools.models import Prompt, Resource, Tool, Toolset

Name = TypeVar("Name", str, tuple[str, str])
OfferedModel = TypeVar("OfferedModel", Prompt, Resource)
_MEMBERS: dict[type[Model], tuple[type[Model], str]] = {
    Tool: (Toolset.tools.through, "tool_id"),
    Prompt: (Toolset.prompts.through, "prompt_id"),
    Resource: (Toolset.resources.through, "resource_id"),
}


class GrantRow(NamedTuple):
    """A grant as the compiler needs it: one of `toolset_id`, `tool_id` and `tag` is set."""

    role_id: int
    toolset_id: uuid.UUID | None
    tool_id: uuid.UUID | None
    tag: str
    calls_per_minute: int | None


@dataclass(frozen=True, slots=True)
class Catalogue(Generic[Name]):
    """The names of what can be used: by id, by toolset (with the toolset's name), and by tag."""

    names: Mapping[uuid.UUID, Name]
    toolsets: Mapping[uuid.UUID, tuple[str, set[Name]]]
    tagged: Mapping[str, list[Name]]

    @classmethod
    def of(cls, names: Mapping[uuid.UUID, Name], model: type[Tool | Prompt | Resource] = Tool) -> Catalogue[Name]:
        """Read which toolsets and tags the named tools, prompts or resources are in."""
        toolsets: dict[uuid.UUID, tuple[str, set[Name]]] = {
            pk: (name, set()) for pk, name in Toolset.objects.values_list("pk", "name")
        }
        through, column = _MEMBERS[model]
        for toolset_id, member_id in through._default_manager.values_list("toolset_id", column):
            if member_id in names:
                toolsets[toolset_id][1].add(names[member_id])
        tagged: dict[str, list[Name]] = {}
        for pk, tags in model._default_manager.filter(pk__in=names).values_list("pk", "tags"):
            for tag in tags:
                tagged.setdefault(tag, []).append(names[pk])
        return cls(names, toolsets, tagged)

    def reached(self, row: GrantRow) -> Iterable[Name]:
        """The names of what the grant leads to."""
        if row.toolset_id is not None and row.toolset_id in self.toolsets:
            return self.toolsets[row.toolset_id][1]
        if row.tool_id is not None and row.tool_id in self.names:
            return [self.names[row.tool_id]]
        return self.tagged.get(row.tag, ())


def callable_tools() -> QuerySet[Tool]:
    """The tools that are on, published, and of a source that is on."""
    return Tool.objects.filter(enabled=True, current__isnull=False, source__enabled=True)


def usable(model: type[OfferedModel]) -> QuerySet[OfferedModel]:
    """The prompts or resources that are on, offered, and of a source that is on."""
    return model._default_manager.filter(enabled=True, missing=False, source__enabled=True)


def stored_rows() -> Iterable[GrantRow]:
    """All grants that there are."""
    return map(GrantRow._make, Grant.objects.values_list(*GrantRow._fields))


def row_of(grant: Grant) -> GrantRow:
    """The grant, saved or not."""
    return GrantRow(grant.role_id, grant.toolset_id, grant.tool_id, grant.tag, grant.calls_per_minute)


def compiled(rows: Iterable[GrantRow], catalogue: Catalogue[Name]) -> dict[int, dict[Name, int]]:
    """Role → name → calls per minute: of several grants the largest budget, the site's where none is named."""
    grants: dict[int, dict[Name, int]] = {}
    for row in rows:
        allowed = grants.setdefault(row.role_id, {})
        for name in catalogue.reached(row):
            allowed[name] = max(allowed.get(name, 0), row.calls_per_minute or settings.CALLS_PER_MINUTE)
    return grants
