"""What an administrator writes to make a tool of a statement: its text, and its typed parameters."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tools.connectors import sql_guard
from tools.connectors.base import Spec
from tools.connectors.sql_values import as_parameter

_POSTGRES = {
    "string": "text",
    "integer": "bigint",
    "number": "numeric",
    "boolean": "boolean",
    "date": "date",
    "datetime": "timestamptz",
    "uuid": "uuid",
    "string[]": "text[]",
    "integer[]": "bigint[]",
}
_SCHEMAS: dict[str, dict[str, Any]] = {
    "integer": {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    "date": {"type": "string", "format": "date"},
    "datetime": {"type": "string", "format": "date-time"},
    "uuid": {"type": "string", "format": "uuid"},
}


class Parameter(Spec):
    """One typed parameter of a statement."""

    name: str = Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$")
    type: Literal["string", "integer", "number", "boolean", "date", "datetime", "uuid", "string[]", "integer[]"] = (
        "string"
    )
    description: str = Field(default="", max_length=1000)
    required: bool = True
    default: Any = None
    allowed_values: list[Any] | None = Field(default=None, max_length=500)
    minimum: float | None = Field(default=None, allow_inf_nan=False)
    maximum: float | None = Field(default=None, allow_inf_nan=False)
    max_length: int | None = Field(default=None, ge=1, le=1_000_000)
    pattern: str | None = Field(default=None, max_length=500)

    def schema(self) -> dict[str, Any]:  # type: ignore[override]
        """Its JSON Schema (2020-12). The limits of a list are those of its items; what may be absent may be null."""
        known = {"description": self.description or None, "default": self.default}
        kind, is_list, _ = self.type.partition("[]")
        limits = {
            "enum": self.allowed_values,
            "minimum": _whole(self.minimum),
            "maximum": _whole(self.maximum),
            "maxLength": self.max_length,
            "pattern": self.pattern,
        }
        one = _SCHEMAS.get(kind, {"type": kind}) | _without_none(limits)
        schema = ({"type": "array", "items": one} if is_list else one) | _without_none(known)
        return schema if self.required or self.default is not None else _or_null(schema)


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The same, or null: models like to name every argument."""
    enum = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
    return {**schema, "type": [schema["type"], "null"], **enum}


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _whole(value: float | None) -> float | int | None:
    return int(value) if value is not None and value == int(value) else value


class SqlTool(Spec):
    """A statement and what it is called with."""

    title: str = Field(default="", max_length=120)
    description: str = Field(
        min_length=1, max_length=4000, description="What the model reads to decide whether to call it."
    )
    statement: str = Field(
        min_length=1, max_length=20_000, description="One SELECT. Parameters are written as `:name`."
    )
    parameters: list[Parameter] = Field(default_factory=list, max_length=50)

    @field_validator("parameters")
    @classmethod
    def _names_are_unique(cls, value: list[Parameter]) -> list[Parameter]:
        names = [parameter.name for parameter in value]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"the parameter {sorted(twice)[0]!r} occurs twice")
        return value

    @model_validator(mode="after")
    def _placeholders_are_declared(self) -> Self:
        used, declared = set(sql_guard.placeholders(self.statement)), {p.name for p in self.parameters}
        if used - declared:
            raise ValueError(f"the statement uses :{sorted(used - declared)[0]}, which is not among the parameters")
        return self

    @cached_property
    def bound(self) -> str:
        """The statement as psycopg takes it."""
        return sql_guard.bind(self.statement, self._types)

    @property
    def without_rows(self) -> str:
        """A statement of the same columns that is not executed."""
        return f"SELECT * FROM ({sql_guard.bind(sql_guard.bare(self.statement), self._types)}) AS q LIMIT 0"  # noqa: S608

    @property
    def _types(self) -> dict[str, str]:
        return {p.name: _POSTGRES[p.type] for p in self.parameters}

    def values(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The value of every parameter; one that is absent is its default."""
        return {p.name: as_parameter(p.type, arguments.get(p.name, p.default)) for p in self.parameters}
