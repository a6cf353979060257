"""What a role or a user can use, and through which grants: for people to look at, not for the call path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from access.grants import Catalogue, callable_tools, compiled, row_of, usable
from access.models import Grant, Role, User
from tools.connectors.base import Kind
from tools.models import Prompt, Resource, Tool

Callee = Tool | Prompt | Resource
_EVERY_ROLE = 0
_ORDER: tuple[Kind, ...] = ("tool", "prompt", "resource", "template")


@dataclass(frozen=True, slots=True)
class Reach:
    """A tool, prompt or resource, the calls per minute that are allowed, and the grants that lead to it."""

    callee: Callee
    per_minute: int
    through: tuple[str, ...]

    @property
    def kind(self) -> Kind:
        """What it is."""
        return kind_of(self.callee)

    @property
    def place(self) -> tuple[int, str]:
        """Where it stands in a list: tools first, each kind by name."""
        return _ORDER.index(self.kind), str(self.callee)

    @property
    def page(self) -> str:
        """The name of the address of its page in the admin."""
        return f"admin:tools_{self.callee._meta.model_name}_change"


def kind_of(callee: Callee) -> Kind:
    """What it is."""
    if isinstance(callee, Resource):
        return "template" if callee.is_template else "resource"
    return "prompt" if isinstance(callee, Prompt) else "tool"


def reach_of_role(role: Role) -> list[Reach]:
    """What the role's grants come to, in the order of `Reach.place`."""
    return reach_of_grants(role.grants.select_related("toolset", "tool"))


def reach_of_user(user: User) -> list[Reach]:
    """What the grants of all roles of the user come to, in the order of `Reach.place`."""
    grants = Grant.objects.filter(role__user=user).select_related("toolset", "tool", "role")
    return reach_of_grants(grants, lambda grant: f"{grant.role}: {target_of(grant)}")


def target_of(grant: Grant) -> str:
    """What the grant names, as `toolset support`."""
    if grant.toolset is not None:
        return f"toolset {grant.toolset}"
    return f"tool {grant.tool}" if grant.tool is not None else f"tag {grant.tag}"


def reach_of_grants(grants: Iterable[Grant], label: Callable[[Grant], str] = target_of) -> list[Reach]:
    """What the grants, saved or not, come to together, in the order of `Reach.place`."""
    wanted = list(grants)
    sets = (callable_tools(), usable(Prompt), usable(Resource))
    found = [each for rows in sets for each in _reached(wanted, label, rows.select_related("source"))]
    return sorted(found, key=lambda each: each.place)


def _reached(grants: list[Grant], label: Callable[[Grant], str], callees: Iterable[Callee]) -> Iterator[Reach]:
    by_name = {str(callee): callee for callee in callees}
    if not by_name:
        return
    model = type(next(iter(by_name.values())))
    catalogue = Catalogue.of({callee.pk: name for name, callee in by_name.items()}, model)
    rows = [row_of(grant)._replace(role_id=_EVERY_ROLE) for grant in grants]
    through: dict[str, set[str]] = {}
    for grant, row in zip(grants, rows, strict=True):
        for name in catalogue.reached(row):
            through.setdefault(name, set()).add(label(grant))
    for name, per_minute in compiled(rows, catalogue).get(_EVERY_ROLE, {}).items():
        yield Reach(by_name[name], per_minute, tuple(sorted(through[name])))


def grants_of(tool: Tool, role_ids: Iterable[int]) -> list[Grant]:
    """The grants of these roles that lead to the tool."""
    catalogue = Catalogue.of({tool.pk: tool.name})
    grants = Grant.objects.filter(role_id__in=role_ids).select_related("toolset", "tool", "role")
    return [grant for grant in grants if catalogue.reached(row_of(grant))]
