"""The names under which clients see what upstreams offer: one each, for good, and such that every client takes them."""

from __future__ import annotations

from typing import TypeVar

from django.core.exceptions import ValidationError
from django.db import connection

from tools.definitions import DefinitionRefused
from tools.models import DataSource, Prompt, Tool, tool_name
from tools.outcome import printable

# Any number will do, as long as every process uses the same one.
_LOCK = 5_118_402_637
_LONGEST = 64
# MCP allows them in names; not every client does.
_REPLACED = str.maketrans("./", "__")

Named = TypeVar("Named", Tool, Prompt)


def hold_names() -> None:
    """Let nobody else give out names and URIs before this transaction has ended."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])


def free_name(source: DataSource, offered: str, model: type[Named]) -> str:
    """The name of what the source offers: with its prefix, and `_` for dots and slashes. Raises DefinitionRefused."""
    name = (source.prefix + offered).translate(_REPLACED)
    if len(name) > _LONGEST:
        said = f"Its name has {len(name)} characters with the prefix, and clients take {_LONGEST}"
        raise DefinitionRefused(f"{said}: shorten the prefix, or the name at the server.")
    try:
        tool_name(name)
    except ValidationError as error:
        said = f"The name {printable(name)!r} cannot be used: 1 to {_LONGEST} letters, digits, _ and -."
        raise DefinitionRefused(f"{said} Change it at the server.") from error
    other = model._default_manager.filter(name=name).select_related("source").first()
    if other is not None:
        said = f"There is another {model._meta.verbose_name} named {name!r}"
        if other.source_id == source.pk:
            raise DefinitionRefused(f"{said}, of this data source: change one of the names at the server.")
        raise DefinitionRefused(f"{said}, of the data source {other.source}: give this data source a prefix.")
    return name
