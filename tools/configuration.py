"""What a data source and a tool are set up with, checked by their connector: the one way in for admin and REST."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pydantic

from keyring.keys import DecryptionError
from tools.connectors.base import SAVING
from tools.connectors.registry import connector_class, secret_names, split_options
from tools.definitions import DefinitionRefused, derive
from tools.models import DataSource, Tool

# Whoever may change where a secret is sent must know the secret: otherwise they could have it sent to themselves.
_WHERE = ("url", "base_url", "host", "port", "tls", "ca")


class Refused(ValueError):
    """`errors` says what is wrong with each option; under the empty name, with all of them together."""

    def __init__(self, errors: Mapping[str, list[str]]) -> None:
        super().__init__("; ".join(f"{name}: {' '.join(said)}".removeprefix(": ") for name, said in errors.items()))
        self.errors = dict(errors)


def configure(source: DataSource, options: Mapping[str, Any], secrets: Mapping[str, str | None]) -> None:
    """Set the source's options and secrets, unsaved. A secret not named is kept; None removes it. Raises Refused.

    `source.kind` must be set. A kept secret must be given again when the address that it is sent to changes.
    """
    names = secret_names(source.kind)
    if misplaced := sorted(set(options) & set(names)):
        raise Refused({name: ["This is a secret: give it among the secrets."] for name in misplaced})
    if unknown := sorted(set(secrets) - set(names)):
        raise Refused({name: ["There is no such secret."] for name in unknown})
    kept = {name: value for name, value in stored_secrets(source).items() if name not in secrets}
    given = {name: value for name, value in secrets.items() if value is not None}
    found = _validated(connector_class(source.kind).Options, {**options, **kept, **given})
    public, secret = split_options(found)
    if kept and source.options and _where(source.kind, source.options) != _where(source.kind, public):
        raise Refused(
            {name: ["The address changed: give this again, so that it is not sent elsewhere."] for name in kept}
        )
    source.options, source.secrets = public, secret or None


def _where(kind: str, options: Mapping[str, Any]) -> list[Any]:
    fields = connector_class(kind).Options.model_fields
    return [options.get(name, fields[name].default) for name in _WHERE if name in fields]


def stored_secrets(source: DataSource) -> dict[str, Any]:
    """The secrets that the source has; none when they cannot be decrypted any more."""
    try:
        return dict(source.secrets or {})
    except DecryptionError:
        return {}


def specify(tool: Tool, spec: Mapping[str, Any]) -> None:
    """Set the tool's spec, unsaved, if its connector can define it. Needs `tool.source`. Raises Refused."""
    checked = _validated(connector_class(tool.source.kind).ToolSpec, dict(spec))
    tool.spec = checked.model_dump(mode="json", by_alias=True)
    try:
        derive(tool)
    except DefinitionRefused as error:
        raise Refused({"": [str(error)]}) from error


def _validated(model: type[pydantic.BaseModel], values: dict[str, Any]) -> Any:
    try:
        return model.model_validate(values, context=SAVING)
    except pydantic.ValidationError as error:
        raise Refused(_by_field(model, error)) from error


def _by_field(model: type[pydantic.BaseModel], error: pydantic.ValidationError) -> dict[str, list[str]]:
    names = {info.alias: name for name, info in model.model_fields.items() if info.alias}
    found: dict[str, list[str]] = {}
    for each in error.errors(include_url=False, include_input=False, include_context=False):
        first, *rest = each["loc"] or ("",)
        place = ".".join(str(part) for part in rest)
        message = each["msg"].removeprefix("Value error, ")
        said = f"{place}: {message}." if place else f"{message[:1].upper()}{message[1:]}."
        found.setdefault(names.get(str(first), str(first)), []).append(said.replace("..", "."))
    return found
