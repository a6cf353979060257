"""Which tools a role or a user can call, and through which grants: for people to look at, not for the call path."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from access.grants import Catalogue, callable_tools, compiled, row_of
from access.models import Grant, Role, User
from tools.models import Tool

_EVERY_ROLE = 0


@dataclass(frozen=True, slots=True)
class Reach:
    """A tool, the calls per minute that are allowed, and the grants that lead to it."""

    tool: Tool
    per_minute: int
    through: tuple[str, ...]


def reach_of_role(role: Role) -> list[Reach]:
    """The tools that the role's grants come to, by name."""
    return reach_of_grants(role.grants.select_related("toolset", "tool"))


def reach_of_user(user: User) -> list[Reach]:
    """The tools of all roles of the user, by name."""
    grants = Grant.objects.filter(role__user=user).select_related("toolset", "tool", "role")
    return reach_of_grants(grants, lambda grant: f"{grant.role}: {target_of(grant)}")


def target_of(grant: Grant) -> str:
    """What the grant names, as `toolset support`."""
    if grant.toolset is not None:
        return f"toolset {grant.toolset}"
    return f"tool {grant.tool}" if grant.tool is not None else f"tag {grant.tag}"


def reach_of_grants(grants: Iterable[Grant], label: Callable[[Grant], str] = target_of) -> list[Reach]:
    """The tools that the grants, saved or not, come to together, by name."""
    wanted = list(grants)
    tools = {tool.name: tool for tool in callable_tools().select_related("source").order_by("name")}
    catalogue = Catalogue.of({tool.pk: name for name, tool in tools.items()})
    rows = [row_of(grant)._replace(role_id=_EVERY_ROLE) for grant in wanted]
    budgets = compiled(rows, catalogue).get(_EVERY_ROLE, {})
    through: dict[str, set[str]] = {}
    for grant, row in zip(wanted, rows, strict=True):
        for name in catalogue.reached(row):
            through.setdefault(name, set()).add(label(grant))
    return [Reach(tools[name], budgets[name], tuple(sorted(through[name]))) for name in sorted(budgets)]


def grants_of(tool: Tool, role_ids: Iterable[int]) -> list[Grant]:
    """The grants of these roles that lead to the tool."""
    catalogue = Catalogue.of({tool.pk: tool.name})
    grants = Grant.objects.filter(role_id__in=role_ids).select_related("toolset", "tool", "role")
    return [grant for grant in grants if catalogue.reached(row_of(grant))]
