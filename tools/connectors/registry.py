"""Which kinds of connectors there are, by the dotted paths of `settings.CONNECTORS`."""

from __future__ import annotations

from functools import cache
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string
from pydantic import SecretStr

from tools.connectors.base import Connector, Options, Source
from tools.models import DataSource


@cache
def kinds() -> dict[str, type[Connector]]:
    """Kind → connector class, in the order of the setting. Raises ImproperlyConfigured."""
    found: dict[str, type[Connector]] = {}
    for path in settings.CONNECTORS:
        try:
            connector = import_string(path)
        except ImportError as error:
            raise ImproperlyConfigured(f"CONNECTORS names {path}, which cannot be imported: {error}") from error
        if connector.kind in found:
            raise ImproperlyConfigured(f"CONNECTORS lists two connectors of kind {connector.kind!r}.")
        found[connector.kind] = connector
    return found


def connector_class(kind: str) -> type[Connector]:
    """The class for `kind`; raises ValueError when there is none."""
    if kind not in kinds():
        raise ValueError(f"There is no connector of kind {kind!r}: choose one of {', '.join(kinds())}.")
    return kinds()[kind]


def secret_names(kind: str) -> list[str]:
    """The names of the options of `kind` that are secrets."""
    fields = connector_class(kind).Options.model_fields
    return [name for name, info in fields.items() if "SecretStr" in str(info.annotation)]


def split_options(options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options as the model keeps them: (without secrets, secrets in the clear)."""
    public: dict[str, Any] = {}
    secret: dict[str, Any] = {}
    for name, value in options:
        if isinstance(value, SecretStr):
            secret[name] = value.get_secret_value()
        else:
            public[name] = value
    return options.model_validate(public | secret).model_dump(mode="json", include=set(public)), secret


def source_of(row: DataSource) -> Source:
    """The row as its connector sees it. Raises pydantic.ValidationError and keyring.keys.DecryptionError."""
    options = connector_class(row.kind).Options.model_validate({**row.options, **(row.secrets or {})})
    return Source(row.id, row.name, options, row.timeout_seconds)
