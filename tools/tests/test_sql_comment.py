"""The comment at the end of each statement: it names the call, and no value of it gets out of it."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import unquote

import pytest

from tools.connectors.base import Context
from tools.connectors.sql import SqlConnector
from tools.connectors.sql_comment import comment
from tools.tests.database import READER, Server, make_connector, make_tool, started

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
# A statement that reads its own text, as it stands in pg_stat_activity and in the log.
OWN_TEXT = "SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid()"


def make_context(**said: Any) -> Context:
    known = {"call_id": uuid.uuid4(), "deadline_seconds": 5.0, "actor": "ada", "traceparent": TRACE, "tool": "find"}
    return Context(**{**known, **said})


def pairs_of(text: str) -> dict[str, str]:
    """As a reader of the log takes it apart."""
    (found,) = re.findall(r"/\*(.*?)\*/", text)
    return {name: unquote(value) for name, value in re.findall(r"(\w+)='(.*?)'(?:,|$)", found)}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with started() as server:
        yield server


@pytest.fixture
async def connector(server: Server) -> AsyncIterator[SqlConnector]:
    connector = make_connector(server, READER)
    yield connector
    await connector.close()


async def text_of(connector: SqlConnector, context: Context, statement: str = OWN_TEXT) -> str:
    result = await connector.call(make_tool(statement), {}, context)
    return str(result.content["content"][0]["text"]).encode().decode("unicode_escape")


async def test_the_database_sees_who_asks_and_for_which_call(connector: SqlConnector) -> None:
    context = make_context(on_behalf_of="bob")
    assert pairs_of(await text_of(connector, context)) == {
        "actor": "ada",
        "call": str(context.call_id),
        "on_behalf_of": "bob",
        "tool": "find",
        "traceparent": TRACE,
    }


@pytest.mark.parametrize(
    "evil", ["*/ ; DROP TABLE shop.items; --", "a' , call='x", "100%s %(a)s %%", "ü\n\0\ud800", "/*", "x" * 5000]
)
async def test_no_value_gets_out_of_the_comment(connector: SqlConnector, evil: str) -> None:
    context = make_context(actor=evil)
    found = pairs_of(await text_of(connector, context))
    assert found["call"] == str(context.call_id)
    assert found["actor"] == evil[:150].encode(errors="replace").decode()


@pytest.mark.parametrize("end", ["", ";", " -- the end", " /* the end */", " -- 100 %"])
async def test_whatever_ends_the_statement_the_comment_follows_it(connector: SqlConnector, end: str) -> None:
    result = await connector.call(make_tool(f"SELECT 1 AS one, '%s' AS sign{end}"), {}, make_context())
    assert b'"one":1,"sign":"%s"' in str(result.content["content"][0]["text"]).encode()


async def test_a_source_can_do_without(server: Server) -> None:
    connector = make_connector(server, READER, comment=False)
    assert "/*" not in await text_of(connector, make_context())
    await connector.close()


def test_what_is_not_known_is_left_out() -> None:
    assert set(pairs_of(comment(Context(uuid.uuid4(), 5.0, "ada")).decode())) == {"actor", "call"}
