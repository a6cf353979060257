"""How many tools, prompts and resources belong to something, without one join multiplying the other."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db.models import Count, Model, OuterRef, Subquery
from django.db.models.functions import Coalesce

from audit.theme import display
from tools.models import Prompt, Resource, Tool, Toolset


def count_of(model: type[Model], column: str) -> Coalesce:
    """The number of rows of the model whose column leads to the row that is asked for."""
    rows = model._default_manager.filter(**{column: OuterRef("pk")}).order_by().values(column)
    return Coalesce(Subquery(rows.annotate(how_many=Count("pk")).values("how_many")), 0)


OF_SOURCES = {
    "tool_count": count_of(Tool, "source"),
    "prompt_count": count_of(Prompt, "source"),
    "resource_count": count_of(Resource, "source"),
}
OF_TOOLSETS = {
    "tool_count": count_of(Toolset.tools.through, "toolset"),
    "prompt_count": count_of(Toolset.prompts.through, "toolset"),
    "resource_count": count_of(Toolset.resources.through, "toolset"),
}


class Counted:
    """The columns of a list that show the numbers."""

    columns: ClassVar = ("tools_shown", "prompts_shown", "resources_shown")

    @display(description="Tools", ordering="tool_count")
    def tools_shown(self, row: Any) -> int:
        """How many tools."""
        return int(row.tool_count)

    @display(description="Prompts", ordering="prompt_count")
    def prompts_shown(self, row: Any) -> int:
        """How many prompts."""
        return int(row.prompt_count)

    @display(description="Resources", ordering="resource_count")
    def resources_shown(self, row: Any) -> int:
        """How many resources and templates."""
        return int(row.resource_count)
