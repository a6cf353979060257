"""SQL databases (PostgreSQL): a tool is a statement that an administrator wrote, with typed and bound parameters.

Reading only, behind three walls: the role should have no right to write (the check says whether it has), each call runs
in a READ ONLY transaction that is rolled back, and the statement was read by `sql_guard` when it was saved. The
extended protocol is used always, so that one call is one statement.
"""

from __future__ import annotations

import asyncio
import contextlib
from datetime import date, datetime
from decimal import Decimal
from functools import cached_property
from typing import Any, ClassVar, Literal, Self
from uuid import UUID

import orjson
import psycopg
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout
from pydantic import Field, SecretStr, field_validator, model_validator

from tools.connectors import sql_guard
from tools.connectors.base import Connector, ConnectorError, Context, Options, Result, Source, Spec
from tools.egress import Egress, EgressDenied

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
    "date": {"type": "string", "format": "date"},
    "datetime": {"type": "string", "format": "date-time"},
    "uuid": {"type": "string", "format": "uuid"},
    "string[]": {"type": "array", "items": {"type": "string"}},
    "integer[]": {"type": "array", "items": {"type": "integer"}},
}
_FETCH = 100


class SqlOptions(Options):
    """How to reach the database."""

    host: str = Field(min_length=1, max_length=255, description="Host name, address, or the folder of a unix socket.")
    port: int = Field(default=5432, ge=1, le=65535)
    database: str = Field(min_length=1, max_length=63)
    user: str = Field(min_length=1, max_length=63, description="A role that can only read what the tools need.")
    password: SecretStr | None = Field(default=None)
    # `schema` would shadow a method of pydantic's.
    search_path: str = Field(
        default="public", max_length=255, alias="schema", description="Schema in which names are looked up."
    )
    tls: Literal["disable", "prefer", "require", "verify-full"] = Field(
        default="prefer", description="`verify-full` in production: encrypted, and the server proves its name."
    )
    statement_timeout_seconds: int = Field(
        default=10, ge=1, le=600, description="The database stops a statement after this."
    )
    max_rows: int = Field(default=1000, ge=1, le=100_000, description="Rows of one answer at the most.")
    max_bytes: int = Field(default=1_048_576, ge=1024, le=16_777_216, description="Bytes of one answer at the most.")
    max_connections: int = Field(
        default=5, ge=1, le=100, description="Connections that each process keeps at the most."
    )

    model_config = Options.model_config | {"populate_by_name": True}


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
    minimum: float | None = None
    maximum: float | None = None
    max_length: int | None = Field(default=None, ge=1, le=1_000_000)
    pattern: str | None = Field(default=None, max_length=500)

    def schema(self) -> dict[str, Any]:  # type: ignore[override]
        """Its JSON Schema (2020-12)."""
        schema = dict(_SCHEMAS.get(self.type, {"type": self.type}))
        if self.type == "integer":
            schema |= {"minimum": -(2**63), "maximum": 2**63 - 1}
        limits = {
            "description": self.description or None,
            "enum": self.allowed_values,
            "minimum": _whole(self.minimum),
            "maximum": _whole(self.maximum),
            "maxLength": self.max_length,
            "pattern": self.pattern,
            "default": self.default,
        }
        return schema | {key: value for key, value in limits.items() if value is not None}


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
        return sql_guard.bind(self.statement, {p.name: _POSTGRES[p.type] for p in self.parameters})

    def values(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The value of every parameter; one that is absent is its default."""
        return {p.name: arguments.get(p.name, p.default) for p in self.parameters}


class SqlConnector(Connector):
    """One PostgreSQL database: one pool of connections in each process."""

    kind: ClassVar[str] = "sql"
    label: ClassVar[str] = "PostgreSQL database"
    description: ClassVar[str] = "Statements that you write, as read-only tools with typed parameters."
    Options: ClassVar[type[Options]] = SqlOptions
    ToolSpec: ClassVar[type[Spec]] = SqlTool
    discovers: ClassVar[bool] = False

    def __init__(self, source: Source, egress: Egress) -> None:
        super().__init__(source, egress)
        self._pool: AsyncConnectionPool[psycopg.AsyncConnection[tuple[Any, ...]]] | None = None
        self._opening = asyncio.Lock()

    @property
    def _options(self) -> SqlOptions:
        options: SqlOptions = self.source.options
        return options

    # --- The verbs ----------------------------------------------------------------------------------------------------

    @classmethod
    def define(cls, name: str, spec: Spec) -> dict[str, Any]:
        """The tool with its schema derived from the parameters. Raises StatementRefused."""
        assert isinstance(spec, SqlTool)
        sql_guard.check(spec.statement, (p.name for p in spec.parameters))
        required = [p.name for p in spec.parameters if p.required and p.default is None]
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {p.name: p.schema() for p in spec.parameters},
            "additionalProperties": False,
        }
        if required:
            schema["required"] = required
        title = {"title": spec.title} if spec.title else {}
        hints = {
            **title,
            "readOnlyHint": True,
            "destructiveHint": False,
            "idempotentHint": True,
            "openWorldHint": False,
        }
        return {"name": name, **title, "description": spec.description, "inputSchema": schema, "annotations": hints}

    async def check(self) -> str:
        """Connect, and try whether the role could write."""
        async with self._failures(), asyncio.timeout(self.source.timeout_seconds):
            connection = await self._connect()
            async with connection:
                cursor = await connection.execute(
                    "SELECT current_setting('server_version'), current_user,"
                    " (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),"
                    " EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
                    "  WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema')"
                    "  AND has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE'))",
                    prepare=True,
                )
                version, user, is_superuser, can_write = await cursor.fetchone() or ("?", "?", False, False)
        found = f"PostgreSQL {version} answers as {user}"
        if is_superuser:
            return f"{found}. Warning: this role is a superuser. Use one that can only read what the tools need."
        if can_write:
            return f"{found}. Warning: this role may change tables, though calls cannot. Use one that can only read."
        return f"{found}, which proved unable to write."

    async def call(self, spec: Spec, arguments: dict[str, Any], context: Context) -> Result:
        """Run the statement in a transaction that is rolled back, and take no more rows than allowed."""
        assert isinstance(spec, SqlTool)
        async with self._failures(), asyncio.timeout(context.deadline_seconds):
            pool = await self._opened()
            async with pool.connection(timeout=context.deadline_seconds) as connection:
                try:
                    columns, rows, cut = await self._rows(connection, spec, arguments)
                finally:
                    await connection.rollback()
        return _result(columns, rows, cut)

    async def close(self) -> None:
        """Close the pool."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close(timeout=2)

    # --- Connections --------------------------------------------------------------------------------------------------

    async def _connect(self) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        connection = await psycopg.AsyncConnection.connect(**await self._keywords(), row_factory=tuple_row)
        await connection.set_read_only(True)
        return connection

    async def _keywords(self) -> dict[str, Any]:
        o = self._options
        if o.host.startswith("/"):
            self.egress.check_socket(o.host)
            where: dict[str, Any] = {"host": o.host}
        else:
            addresses = await self.egress.resolve(o.host, o.port)
            where = {"host": ",".join([o.host] * len(addresses)), "hostaddr": ",".join(addresses)}
        limits = (
            f"-c statement_timeout={o.statement_timeout_seconds * 1000} -c default_transaction_read_only=on"
            f" -c idle_in_transaction_session_timeout=60000 -c lock_timeout=1000 -c timezone=UTC"
        )
        return {
            **where,
            "port": o.port,
            "dbname": o.database,
            "user": o.user,
            "password": o.password.get_secret_value() if o.password else None,
            "sslmode": o.tls,
            "connect_timeout": 5,
            "application_name": f"mcpsite {self.source.name}"[:63],
            "options": f"{limits} -c search_path={_escaped(o.search_path)}",
        }

    async def _opened(self) -> AsyncConnectionPool[psycopg.AsyncConnection[tuple[Any, ...]]]:
        if self._pool is not None:
            return self._pool
        async with self._opening:
            if self._pool is None:
                pool = AsyncConnectionPool(
                    kwargs=self._keywords,
                    min_size=0,
                    max_size=self._options.max_connections,
                    max_idle=300,
                    max_lifetime=3600,
                    max_waiting=1000,
                    reconnect_timeout=10,
                    configure=_read_only,
                    open=False,
                )
                # The first connection is made here, so that a wrong address or password is told as such.
                async with await self._connect():
                    pass
                await pool.open()
                self._pool = pool
        assert self._pool is not None
        return self._pool

    async def _rows(
        self, connection: psycopg.AsyncConnection[tuple[Any, ...]], spec: SqlTool, arguments: dict[str, Any]
    ) -> tuple[list[str], list[bytes], dict[str, Any] | None]:
        """Column names, rows as JSON, and the notice when it was cut. Stops reading at the first row too many."""
        limits, rows, size = self._options, list[bytes](), 0
        columns: list[str] = []
        async with connection.cursor() as cursor:
            size_of_fetch = min(_FETCH, limits.max_rows + 1)
            stream: Any = cursor.stream(spec.bound, spec.values(arguments), size=size_of_fetch)
            async with contextlib.aclosing(stream):
                async for row in stream:
                    columns = columns or _unique([column.name for column in cursor.description or ()])
                    if len(rows) == limits.max_rows:
                        return columns, rows, {"reason": "max_rows", "limit": limits.max_rows}
                    encoded = orjson.dumps(
                        dict(zip(columns, row, strict=True)), default=_json, option=orjson.OPT_NON_STR_KEYS
                    )
                    size += len(encoded) + 1
                    if size > limits.max_bytes:
                        return columns, rows, {"reason": "max_bytes", "limit": limits.max_bytes}
                    rows.append(encoded)
            if not columns:
                columns = _unique([column.name for column in cursor.description or ()])
        return columns, rows, None

    @contextlib.asynccontextmanager
    async def _failures(self) -> Any:
        """Tell what went wrong without the database's own words about connections or other rows."""
        try:
            yield
        except EgressDenied as error:
            raise ConnectorError(error.code, str(error), sent=False) from error
        except (TimeoutError, PoolTimeout) as error:
            raise ConnectorError("upstream_timeout", "The database gave no answer in time.") from error
        except psycopg.errors.QueryCanceled as error:
            seconds = self._options.statement_timeout_seconds
            raise ConnectorError(
                "upstream_timeout", f"The database stopped the statement after {seconds} s."
            ) from error
        except psycopg.errors.ReadOnlySqlTransaction as error:
            raise ConnectorError("read_only", "The statement tried to write; this source is read-only.") from error
        except psycopg.errors.InsufficientPrivilege as error:
            raise ConnectorError("upstream_refused", "The database role may not read this.") from error
        except psycopg.DataError as error:
            raise ConnectorError("invalid_arguments", f"The database cannot use a value: {_primary(error)}") from error
        except psycopg.OperationalError as error:
            raise ConnectorError(
                "upstream_unavailable", "The database cannot be reached or refuses the login.", retryable=True
            ) from error
        except psycopg.Error as error:
            raise ConnectorError(
                "upstream_refused", f"The database refused the statement: {_primary(error)}"
            ) from error


async def _read_only(connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.set_read_only(True)


def _primary(error: psycopg.Error) -> str:
    return (error.diag.message_primary or "no reason given")[:300]


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


def _unique(names: list[str]) -> list[str]:
    """Column names that can be keys: the second `id` becomes `id_2`."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return result


def _json(value: object) -> object:
    if isinstance(value, Decimal):
        # Exact digits as a JSON number; NaN and infinity have no JSON form.
        return orjson.Fragment(format(value, "f")) if value.is_finite() else None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    if isinstance(value, (UUID, date, datetime)):
        return str(value)
    if isinstance(value, (set, frozenset)):
        return list(value)
    return str(value)


def _result(columns: list[str], rows: list[bytes], cut: dict[str, Any] | None) -> Result:
    body = b'{"rows":[' + b",".join(rows) + b'],"columns":' + orjson.dumps(columns)
    body += b',"row_count":%d,"truncated":%s' % (len(rows), b"true" if cut else b"false")
    if cut:
        notice = {**cut, "message": "There are more rows than this answer holds. Narrow the question to see them."}
        body += b',"notice":' + orjson.dumps(notice)
    body += b"}"
    content = [{"type": "text", "text": body.decode()}]
    return Result({"content": content, "structuredContent": orjson.Fragment(body)}, False, {"rows": len(rows)})
