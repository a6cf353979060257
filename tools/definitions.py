"""What a tool looks like to clients: derived or discovered, fingerprinted, and kept as versions."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import orjson
import pydantic
from django.db import transaction
from django.db.models import Max

from tools import exact
from tools.connectors.registry import connector_class
from tools.models import Tool, ToolVersion
from tools.schemas import compile_schema

_LARGEST = 256 * 1024
# In the spec of a tool that was switched off because its source did not offer it any more.
MISSING = "missing"


class DefinitionRefused(ValueError):
    """The tool cannot be published like this; the message says why and what to do."""


def fingerprint(definition: dict[str, Any], spec: dict[str, Any]) -> str:
    """SHA-256 over definition and spec with sorted keys, so that only what matters changes it."""
    return hashlib.sha256(
        json.dumps([definition, spec], sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    ).hexdigest()


def named(definition: dict[str, Any], name: str) -> dict[str, Any]:
    """The definition under the name that clients see; nothing else in it is touched."""
    return definition if definition.get("name") == name else {**definition, "name": name}


def derive(tool: Tool) -> dict[str, Any] | None:
    """The definition of a hand-written tool; None when its source provides it. Raises DefinitionRefused."""
    connector = connector_class(tool.source.kind)
    try:
        return connector.define(tool.name, connector.ToolSpec.model_validate(without_marks(tool.spec)))
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DefinitionRefused(f"{place}: {first['msg']}" if place else first["msg"]) from error
    except ValueError as error:
        raise DefinitionRefused(str(error)) from error


def publish(tool: Tool, offered: dict[str, Any] | None = None) -> ToolVersion:
    """Make the tool's definition current, as a new version if it differs, and return that version.

    `offered` is what the source said of it. Without one, a hand-written tool is derived from its spec and a discovered
    one keeps its definition (under its present name). Raises DefinitionRefused; the tool then stays as it was.
    """
    definition = named(offered or derive(tool) or _present(tool), tool.name)
    try:
        text = exact.written(definition)
    except orjson.JSONEncodeError as error:
        raise DefinitionRefused("The definition holds something that JSON cannot.") from error
    if len(text) > _LARGEST:
        raise DefinitionRefused(f"The definition is larger than {_LARGEST // 1024} KB.")
    try:
        compile_schema(definition.get("inputSchema"))
    except ValueError as error:
        raise DefinitionRefused(str(error)) from error
    spec = without_marks(tool.spec)
    mark = fingerprint(definition, spec)
    if tool.current is not None and tool.current.fingerprint == mark:
        return tool.current
    return _add_version(tool, text.decode(), spec, mark)


def without_marks(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec without our notes about it."""
    return {key: value for key, value in spec.items() if key != MISSING}


def _present(tool: Tool) -> dict[str, Any]:
    if tool.current is None:
        raise DefinitionRefused("The tool has no definition yet: synchronise its data source.")
    found: dict[str, Any] = exact.taken(tool.current.definition)
    return found


@transaction.atomic
def _add_version(tool: Tool, text: str, spec: dict[str, Any], mark: str) -> ToolVersion:
    current = Tool.objects.select_for_update(of=("self",)).select_related("current").get(pk=tool.pk).current
    if current is None or current.fingerprint != mark:
        last = ToolVersion.objects.filter(tool=tool).aggregate(Max("number"))["number__max"] or 0
        current = ToolVersion.objects.create(tool=tool, number=last + 1, definition=text, spec=spec, fingerprint=mark)
    tool.current = current
    tool.save(update_fields=["current", "updated_at"])
    return current
