"""Which tools a role or a user can call, and through which grants: for people to look at, not for the call path."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from access.models import Grant, Role, User
from tools.models import Tool


@dataclass(frozen=True, slots=True)
class Reach:
    """A tool and the grants that lead to it."""

    tool: Tool
    through: tuple[str, ...]


def reach_of_role(role: Role) -> list[Reach]:
    """The tools that the role's grants come to, by name."""
    return _reach(role.grants.select_related("toolset", "tool", "role"))


def reach_of_user(user: User) -> list[Reach]:
    """The tools of all roles of the user, by name."""
    return _reach(Grant.objects.filter(role__user=user).select_related("toolset", "tool", "role"))


def _reach(grants: Iterable[Grant]) -> list[Reach]:
    wanted = list(grants)
    live = Tool.objects.filter(enabled=True, source__enabled=True, current__isnull=False)
    found = []
    for tool in live.select_related("source").prefetch_related("toolsets").order_by("name"):
        sets = {toolset.pk for toolset in tool.toolsets.all()}
        through = [str(grant) for grant in wanted if _covers(grant, tool, sets)]
        if through:
            found.append(Reach(tool, tuple(sorted(set(through)))))
    return found


def grants_of(tool: Tool, role_ids: Iterable[int]) -> list[Grant]:
    """The grants of these roles that lead to the tool."""
    sets = set(tool.toolsets.values_list("pk", flat=True))
    grants = Grant.objects.filter(role_id__in=role_ids).select_related("toolset", "tool", "role")
    return [grant for grant in grants if _covers(grant, tool, sets)]


def _covers(grant: Grant, tool: Tool, toolsets: set[UUID]) -> bool:
    if grant.tool_id:
        return grant.tool_id == tool.pk
    return grant.toolset_id in toolsets if grant.toolset_id else grant.tag in tool.tags
