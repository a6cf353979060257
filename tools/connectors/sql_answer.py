"""The answer of one statement: rows as JSON, up to the limits, over a connection that is clean again afterwards."""

from __future__ import annotations

import contextlib
from typing import Any

import orjson
import psycopg
from psycopg import pq
from psycopg.abc import PQGen
from psycopg.waiting import Wait

from tools.connectors.base import Context, Result
from tools.connectors.sql_comment import comment
from tools.connectors.sql_options import SqlOptions
from tools.connectors.sql_tool import SqlTool
from tools.connectors.sql_values import as_json

_FETCH = 100
# Column names, rows as JSON, and the notice when it was cut.
Answer = tuple[list[str], list[bytes], dict[str, Any] | None]


class _Commented(psycopg.AsyncCursor[tuple[Any, ...]]):
    """Adds a comment to the statement after psycopg has read it, which reads each text once: this one always differs.

    A stream is never prepared, so that no plan is lost by it either.
    """

    comment = b""

    def _convert_query(self, query: Any, params: Any = None) -> Any:
        converted = super()._convert_query(query, params)
        converted.query += self.comment
        return converted


async def read(
    connection: psycopg.AsyncConnection[tuple[Any, ...]],
    spec: SqlTool,
    arguments: dict[str, Any],
    context: Context,
    limits: SqlOptions,
) -> Answer:
    """Column names, rows as JSON, and the notice when it was cut. Stops reading at the first row too many."""
    rows, size = list[bytes](), 0
    columns: list[str] = []
    async with _Commented(connection) as cursor:
        cursor.comment = comment(context) if limits.comment else b""
        size_of_fetch = min(_FETCH, limits.max_rows + 1)
        stream: Any = cursor.stream(spec.bound, spec.values(arguments), size=size_of_fetch)
        async with contextlib.aclosing(stream):
            async for row in stream:
                columns = columns or unique([column.name for column in cursor.description or ()])
                if len(rows) == limits.max_rows:
                    return columns, rows, {"reason": "max_rows", "limit": limits.max_rows}
                encoded = orjson.dumps(dict(zip(columns, row, strict=True)), default=as_json)
                size += len(encoded) + 1
                if size > limits.max_bytes:
                    return columns, rows, {"reason": "max_bytes", "limit": limits.max_bytes}
                rows.append(encoded)
        if not rows:
            # A stream without rows does not tell its columns.
            await cursor.execute(spec.without_rows, spec.values(arguments))
            columns = unique([column.name for column in cursor.description or ()])
    return columns, rows, None


def unique(names: list[str]) -> list[str]:
    """Column names that can be keys: the second `id` becomes `id_2`, unless there is one of that name."""
    taken, result = set(names), list[str]()
    for name in names:
        chosen, number = name, 1
        while chosen in result or (number > 1 and chosen in taken):
            number += 1
            chosen = f"{name}_{number}"
        result.append(chosen)
    return result


def as_result(columns: list[str], rows: list[bytes], cut: dict[str, Any] | None) -> Result:
    """What the caller gets of it, as structured content and as its text."""
    body = b'{"rows":[' + b",".join(rows) + b'],"columns":' + orjson.dumps(columns)
    body += b',"row_count":%d,"truncated":%s' % (len(rows), b"true" if cut else b"false")
    if cut:
        notice = {**cut, "message": "There are more rows than this answer holds. Narrow the question to see them."}
        body += b',"notice":' + orjson.dumps(notice)
    body += b"}"
    content = [{"type": "text", "text": body.decode()}]
    return Result({"content": content, "structuredContent": orjson.Fragment(body)}, False, {"rows": len(rows)})


async def clean(connection: psycopg.AsyncConnection[Any]) -> None:
    """End the transaction, and what outlives one (advisory locks, settings, LISTEN, named cursors), before the next
    call. A connection of which that cannot be done is closed.
    """
    try:
        async with connection.lock:
            await connection.wait(_cleaned(connection.pgconn))
    except BaseException as error:
        await connection.close()
        if not isinstance(error, psycopg.Error):
            raise


def _cleaned(pg: pq.abc.PGconn) -> PQGen[None]:
    """In one message to the server and one answer: a quarter of what such a call costs is sending and waking up."""
    pg.enter_pipeline_mode()
    pg.send_query_params(b"ROLLBACK", None)
    pg.send_query_params(b"DISCARD ALL", None)
    pg.pipeline_sync()
    while True:
        while not (yield Wait.R):
            continue
        pg.consume_input()
        while not pg.is_busy():
            # Between the answers of two statements there is None.
            result = pg.get_result()
            if result is None:
                continue
            if result.status == pq.ExecStatus.PIPELINE_SYNC:
                return pg.exit_pipeline_mode()
            if result.status == pq.ExecStatus.FATAL_ERROR:
                raise psycopg.errors.error_from_result(result)
