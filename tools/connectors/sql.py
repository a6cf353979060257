"""SQL databases (PostgreSQL): a tool is a statement that an administrator wrote, with typed and bound parameters.

Reading only, behind three walls: the role should have no right to write (the check says whether it has), each call runs
in a READ ONLY transaction that is rolled back, and the statement was read by `sql_guard` when it was saved. The
extended protocol is used always, so that one call is one statement.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
from collections.abc import AsyncIterator, Coroutine
from typing import IO, Any, TypeVar, cast

import orjson
import psycopg
from psycopg.rows import tuple_row
from psycopg_pool import AsyncConnectionPool, PoolTimeout, TooManyRequests

from tools.connectors import sql_guard
from tools.connectors.base import Connector, ConnectorError, Context, Result, Source, Spec
from tools.connectors.sql_answer import Answer, as_result, clean, read
from tools.connectors.sql_options import SqlOptions
from tools.connectors.sql_tool import SqlTool
from tools.connectors.sql_values import ADAPTERS
from tools.egress import Egress, EgressDenied
from tools.schemas import compile_schema, problems

T = TypeVar("T")

# How long a statement that was cancelled may take to end before it is left to end by itself.
_GRACE_SECONDS = 1.0


class SqlConnector(Connector):
    """One PostgreSQL database: one pool of connections in each process."""

    kind = "sql"
    label = "PostgreSQL database"
    description = "Statements that you write, as read-only tools with typed parameters."
    Options = SqlOptions
    ToolSpec = SqlTool
    discovers = False

    def __init__(self, source: Source, egress: Egress) -> None:
        super().__init__(source, egress)
        self._pool: _Pool | None = None
        self._opening = asyncio.Lock()
        self._busy = 0
        self._ending: set[asyncio.Task[Any]] = set()
        self._ca: IO[str] | None = None

    @property
    def _options(self) -> SqlOptions:
        options: SqlOptions = self.source.options
        return options

    # --- The verbs ----------------------------------------------------------------------------------------------------

    @classmethod
    def define(cls, name: str, spec: Spec) -> dict[str, Any]:
        """The tool with its schema derived from the parameters. Raises StatementRefused."""
        spec = cast(SqlTool, spec)
        sql_guard.check(spec.statement, (p.name for p in spec.parameters))
        _check_defaults(spec)
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
        async with self._failures():
            version, user, is_superuser, can_write = await self._within(self.source.timeout_seconds, self._look())
        found = f"PostgreSQL {version} answers as {user}"
        if is_superuser:
            return f"{found}. Warning: this role is a superuser. Use one that can only read what the tools need."
        if can_write:
            return f"{found}. Warning: this role may change tables, though calls cannot. Use one that can only read."
        return f"{found}, which proved unable to write."

    async def call(self, spec: Spec, arguments: dict[str, Any], context: Context) -> Result:
        """Run the statement in a transaction that is rolled back, and take no more rows than allowed."""
        seconds = context.deadline_seconds
        async with self._failures():
            work = self._ask(cast(SqlTool, spec), arguments, context)
            columns, rows, cut = await self._within(seconds, work)
        return as_result(columns, rows, cut)

    async def close(self) -> None:
        """Close the pool."""
        pool, self._pool = self._pool, None
        if pool is not None:
            await pool.close(timeout=2)
        if self._ca is not None:
            self._ca.close()

    # --- Asking -------------------------------------------------------------------------------------------------------

    async def _within(self, seconds: float, work: Coroutine[Any, Any, T]) -> T:
        """The outcome of `work`, or TimeoutError. A server that does not react to a cancellation is not waited for."""
        task = asyncio.create_task(work)
        try:
            await asyncio.wait({task}, timeout=seconds)
        finally:
            late = not task.done()
            if late:
                self._ending.add(task)
                task.add_done_callback(self._ended)
                task.cancel()
                await asyncio.wait({task}, timeout=_GRACE_SECONDS)
        if late:
            raise TimeoutError
        return task.result()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._ending.discard(task)
        if not task.cancelled():
            task.exception()

    async def _look(self) -> tuple[str, str, bool, bool]:
        async with await self._connect() as connection:
            cursor = await connection.execute(
                "SELECT current_setting('server_version'), current_user::text,"
                " (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),"
                " EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
                "  WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('pg_catalog', 'information_schema')"
                "  AND has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE'))",
                prepare=True,
            )
            version, user, is_superuser, can_write = await cursor.fetchone() or ("?", "?", False, False)
            return version, user, is_superuser, can_write

    async def _ask(self, spec: SqlTool, arguments: dict[str, Any], context: Context) -> Answer:
        pool = await self._opened()
        try:
            return await self._once(pool, spec, arguments, context)
        except _ConnectionLost:
            # Reading can be repeated. Connections that the server has closed meanwhile leave the pool first.
            await pool.check()
            return await self._once(pool, spec, arguments, context)

    async def _once(self, pool: _Pool, spec: SqlTool, arguments: dict[str, Any], context: Context) -> Answer:
        # A little less than the deadline, so that it is known for what the time was spent.
        async with pool.connection(timeout=context.deadline_seconds * 0.9) as connection:
            self._busy += 1
            try:
                return await read(connection, spec, arguments, context, self._options)
            except psycopg.OperationalError as error:
                if connection.closed:
                    raise _ConnectionLost(str(error)) from error
                raise
            finally:
                self._busy -= 1
                await clean(connection)

    # --- Connections --------------------------------------------------------------------------------------------------

    async def _connect(self) -> psycopg.AsyncConnection[tuple[Any, ...]]:
        connection = await psycopg.AsyncConnection.connect(
            **await self._keywords(), row_factory=tuple_row, context=ADAPTERS
        )
        await connection.set_read_only(True)
        return connection

    async def _keywords(self) -> dict[str, Any]:
        o = self._options
        if o.host.startswith("/"):
            self.egress.check_socket(o.host)
            where: dict[str, Any] = {"host": o.host, "hostaddr": ""}
        else:
            addresses = await self.egress.resolve(o.host, o.port)
            where = {"host": ",".join([o.host] * len(addresses)), "hostaddr": ",".join(addresses)}
        limits = (
            f"-c statement_timeout={o.statement_timeout_seconds * 1000} -c default_transaction_read_only=on"
            " -c idle_in_transaction_session_timeout=60000 -c lock_timeout=1000 -c standard_conforming_strings=on"
            " -c timezone=UTC -c datestyle=ISO -c intervalstyle=iso_8601 -c bytea_output=hex -c extra_float_digits=1"
        )
        return {
            **where,
            "port": o.port,
            "dbname": o.database,
            "user": o.user,
            "password": o.password.get_secret_value() if o.password else "",
            "sslmode": o.tls,
            **self._trusted(),
            "connect_timeout": 5,
            "application_name": f"mcpsite {self.source.name}"[:63],
            "client_encoding": "utf8",
            # What libpq would otherwise take from our own environment and home, and show to a server of others.
            "passfile": "/nonexistent",
            "sslcertmode": "disable",
            "gssencmode": "disable",
            "options": f"{limits} -c search_path={_escaped(o.search_path)}",
        }

    def _trusted(self) -> dict[str, str]:
        """Libpq reads certificates from a file only."""
        if self._options.ca is None:
            return {}
        if self._ca is None or self._ca.closed:
            self._ca = tempfile.NamedTemporaryFile("w", prefix="mcpsite-ca-", suffix=".pem")  # noqa: SIM115
            self._ca.write(f"{self._options.ca}\n")
            self._ca.flush()
        return {"sslrootcert": self._ca.name}

    async def _opened(self) -> _Pool:
        if self._pool is not None:
            return self._pool
        async with self._opening:
            if self._pool is None:
                pool = AsyncConnectionPool(
                    kwargs=self._pool_keywords,
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
            return self._pool

    async def _pool_keywords(self) -> dict[str, Any]:
        # What is prepared would end with the call.
        return {**await self._keywords(), "context": ADAPTERS, "prepare_threshold": None}

    @contextlib.asynccontextmanager
    async def _failures(self) -> AsyncIterator[None]:
        """Tell what went wrong without the database's own words about connections or other rows."""
        try:
            yield
        except EgressDenied as error:
            raise ConnectorError(error.code, str(error), sent=False) from error
        except (PoolTimeout, TooManyRequests) as error:
            raise self._no_connection() from error
        except (TimeoutError, psycopg.errors.ConnectionTimeout) as error:
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
        except (psycopg.DataError, UnicodeEncodeError) as error:
            raise ConnectorError("invalid_arguments", f"The database cannot use a value: {_reason(error)}") from error
        except (orjson.JSONEncodeError, UnicodeDecodeError) as error:
            raise ConnectorError("bad_upstream_answer", "The answer holds a value that JSON cannot.") from error
        except (psycopg.OperationalError, _ConnectionLost, OSError) as error:
            raise ConnectorError(
                "upstream_unavailable", "The database cannot be reached or refuses the login.", retryable=True
            ) from error
        except psycopg.Error as error:
            raise ConnectorError("upstream_refused", f"The database refused the statement: {_reason(error)}") from error

    def _no_connection(self) -> ConnectorError:
        most = self._options.max_connections
        if self._busy >= most:
            return ConnectorError("upstream_busy", f"All {most} connections to the database are in use.", sent=False)
        return ConnectorError("upstream_unavailable", "The database cannot be reached.", sent=False)


_Pool = AsyncConnectionPool[psycopg.AsyncConnection[tuple[Any, ...]]]


class _ConnectionLost(Exception):
    """The server closed the connection before or while it was used."""


async def _read_only(connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.set_read_only(True)


def _reason(error: Exception) -> str:
    """The database's sentence, without the values of rows, which it quotes where a value does not fit."""
    if not isinstance(error, psycopg.Error):
        return "it holds characters that are none"
    said = error.diag.message_primary or str(error) or "no reason given"
    if isinstance(error, psycopg.DataError):
        said = re.sub(r'".*"', '"…"', said, flags=re.DOTALL)
    return said[:300]


def _check_defaults(spec: SqlTool) -> None:
    for parameter in spec.parameters:
        schema = {"type": "object", "properties": {parameter.name: parameter.schema()}}
        given = {} if parameter.default is None else {parameter.name: parameter.default}
        if wrong := problems(compile_schema(schema), given):
            raise ValueError(f"The default does not fit: {wrong[0]}.")


def _escaped(value: str) -> str:
    return re.sub(r"([\\\s])", r"\\\1", value)
