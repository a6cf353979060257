from __future__ import annotations

import asyncio
import os
import signal
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from tools.connectors.base import ConnectorError
from tools.connectors.sql import SqlConnector, _escaped
from tools.connectors.sql_answer import unique
from tools.connectors.sql_tool import Parameter
from tools.schemas import compile_schema, problems
from tools.tests.database import READER, WRITER, Server, ask, make_connector, make_context, make_tool, started
from tools.tests.test_mcp import make_certificate

SLOW = "SELECT count(*) FROM items a, items b, items c, items AS endless"


@pytest.fixture(scope="module")
def server():
    with started() as server:
        yield server


@pytest.fixture
async def connect(server):
    """Makes connectors to the server, and closes them."""
    made = []

    def connect(user: str = READER, **options: Any) -> SqlConnector:
        made.append(make_connector(server, user, **options))
        return made[-1]

    yield connect
    for connector in made:
        await connector.close()


@pytest.fixture
async def connector(connect):
    return connect()


def body(result: Any) -> dict[str, Any]:
    structured: dict[str, Any] = orjson.loads(orjson.dumps(result.content["structuredContent"]))
    assert orjson.loads(result.content["content"][0]["text"]) == structured
    return structured


async def value(connector: SqlConnector, expression: str, *parameters: dict[str, Any], **arguments: Any) -> Any:
    result = await ask(connector, make_tool(f"SELECT {expression} AS v", *parameters), **arguments)
    return body(result)["rows"][0]["v"]


async def until(condition, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.02)


async def failure(awaitable) -> ConnectorError:
    with pytest.raises(ConnectorError) as caught:
        await awaitable
    assert "canary" not in str(caught.value)
    return caught.value


# --- Parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("string", "it's :x %s ü \\ \"", "it's :x %s ü \\ \""),
        ("string", "'; DROP TABLE shop.items; --", "'; DROP TABLE shop.items; --"),
        ("string", "", ""),
        ("integer", 2**63 - 1, 2**63 - 1),
        ("integer", -(2**63), -(2**63)),
        ("integer", 3.0, 3),
        ("number", 0.12345678901234567, 0.12345678901234567),
        ("number", 1e20, 100000000000000000000),
        ("number", 7, 7),
        ("boolean", True, True),
        ("boolean", False, False),
        ("date", "2024-02-29", "2024-02-29"),
        ("datetime", "2024-02-29T12:00:00+02:00", "2024-02-29T10:00:00+00:00"),
        ("uuid", "6F9619FF-8B86-D011-B42D-00C04FC964FF", "6f9619ff-8b86-d011-b42d-00c04fc964ff"),
        ("string[]", ["a", "b,c", '"{}', ""], ["a", "b,c", '"{}', ""]),
        ("string[]", [], []),
        ("integer[]", [1, 2**40, -3], [1, 2**40, -3]),
        ("integer[]", [1, 2.0], [1, 2]),
        ("integer[]", [], []),
        *[(kind, None, None) for kind in ("string", "integer", "number", "boolean", "date", "datetime", "uuid",
                                          "string[]", "integer[]")],
    ],
)  # fmt: skip
async def test_a_parameter_of_each_type_arrives_as_it_was_given(connector, kind, given, expected):
    parameter = {"name": "p", "type": kind, "required": False}
    assert await value(connector, ":p", parameter, **({} if given is None else {"p": given})) == expected


async def test_an_absent_parameter_takes_its_default(connector):
    assert await value(connector, ":p", {"name": "p", "type": "integer", "default": 7}) == 7


async def test_a_parameter_may_be_used_more_than_once_and_never_changes_the_statement(connector):
    tool = make_tool("SELECT :a || :a AS v, '%s :a' AS t, 7 % 4 AS m", {"name": "a"})
    row = body(await ask(connector, tool, a="%(a)s"))["rows"][0]
    assert row == {"v": "%(a)s%(a)s", "t": "%s :a", "m": 3}


def derived(**parameter: Any) -> Any:
    tool = make_tool("SELECT :p", {"name": "p", **parameter})
    return SqlConnector.define("t", tool)["inputSchema"]


@pytest.mark.parametrize(
    ("parameter", "good", "bad"),
    [
        ({"type": "integer"}, [1, 2.0, 2**63 - 1], [1.5, "1", None, 2**63, True]),
        ({"type": "integer", "minimum": 1, "maximum": 5}, [1, 5], [0, 6]),
        ({"type": "number", "minimum": 0.5}, [0.5], [0.4, "x"]),
        ({"type": "boolean"}, [True], [1, "true"]),
        ({"type": "date"}, ["2024-02-29"], ["2023-02-29", "x", "2024-02-29T00:00:00Z"]),
        ({"type": "datetime"}, ["2024-02-29T00:00:00Z"], ["2024-02-29", "now"]),
        ({"type": "uuid"}, ["6f9619ff-8b86-d011-b42d-00c04fc964ff"], ["x"]),
        ({"type": "string", "max_length": 2, "pattern": "^a"}, ["a", "ab"], ["b", "abc"]),
        ({"type": "string", "allowed_values": ["x", "y"]}, ["x"], ["z"]),
        ({"type": "string[]", "allowed_values": ["x", "y"]}, [["x"], []], [["z"], "x"]),
        ({"type": "string[]", "max_length": 2}, [["ab"]], [["abc"]]),
        ({"type": "integer[]", "maximum": 3}, [[3]], [[4], [1.5], [2**63]]),
    ],
)
def test_the_derived_schema_lets_pass_what_the_parameter_says(parameter, good, bad):
    validator = compile_schema(derived(**parameter))
    assert [problems(validator, {"p": each}) for each in good] == [[] for _ in good]
    assert all(problems(validator, {"p": each}) for each in bad)
    assert problems(validator, {}) == ['"p" is a required property']
    assert problems(validator, {"p": good[0], "q": 1}) != []


def test_a_parameter_with_a_default_may_be_left_out_and_the_schema_shows_it():
    schema = derived(type="integer", default=3, description="How many.")
    assert schema["properties"]["p"]["default"] == 3
    assert schema["properties"]["p"]["description"] == "How many."
    assert problems(compile_schema(schema), {}) == []


@pytest.mark.parametrize(
    "parameter",
    [
        {"type": "integer", "default": "x"},
        {"type": "integer", "default": 9, "maximum": 5},
        {"type": "date", "default": "x"},
        {"default": "c", "allowed_values": ["a"]},
        {"pattern": "("},
    ],
)
def test_a_default_that_would_be_refused_is_refused_when_the_tool_is_written(parameter):
    with pytest.raises(ValueError, match=r"The default does not fit|pattern cannot be used"):
        derived(**parameter)


def test_limits_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="finite"):
        Parameter(name="p", minimum=float("inf"))


# --- Results ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("1.10::numeric", 1.10),
        ("'NaN'::numeric", None),
        ("'Infinity'::float8", None),
        ("'NaN'::float8", None),
        ("date '2024-02-29'", "2024-02-29"),
        ("timestamp '2024-02-29 01:02:03.5'", "2024-02-29T01:02:03.5"),
        ("timestamptz '2024-02-29 01:02:03+02'", "2024-02-28T23:02:03+00:00"),
        ("'infinity'::timestamptz", "infinity"),
        ("date '0044-03-15 BC'", "0044-03-15 BC"),
        ("date '20240-01-01'", "20240-01-01"),
        ("time '24:00'", "24:00:00"),
        ("timetz '12:00+02'", "12:00:00+02"),
        ("interval '1 month 2 days 3 hours'", "P1M2DT3H"),
        ("'6f9619ff-8b86-d011-b42d-00c04fc964ff'::uuid", "6f9619ff-8b86-d011-b42d-00c04fc964ff"),
        (r"'\xdeadbeef'::bytea", "deadbeef"),
        ("""'{"a": [1, 2.50], "b": 123456789012345678901234567890}'::jsonb""",
         {"a": [1, 2.5], "b": 1.2345678901234568e29}),
        ("'null'::json", None),
        ("NULL::json", None),
        ("ARRAY[1.5, 'NaN']::numeric[]", [1.5, None]),
        ("ARRAY['2024-01-01'::date]", ["2024-01-01"]),
        ("""ARRAY['{"a":1}'::jsonb]""", [{"a": 1}]),
        ("ARRAY[[1,2],[3,4]]", [[1, 2], [3, 4]]),
        ("int4range(1, 5)", "[1, 5)"),
        ("inet '10.0.0.1/8'", "10.0.0.1/8"),
        ("ROW(1, 'x')", ["1", "x"]),
        ("true", True),
        ("E'a\\u00fc\\n\"'", "aü\n\""),
        ("9223372036854775807", 2**63 - 1),
    ],
)  # fmt: skip
async def test_a_value_of_each_type_has_its_json_form(connector, expression, expected):
    assert await value(connector, expression) == expected


async def test_numbers_keep_all_their_digits(connector):
    result = await ask(connector, "SELECT 123456789012345678901234.5678900 AS v")
    assert '"v":123456789012345678901234.5678900}' in result.content["content"][0]["text"]


async def test_columns_of_one_name_are_all_there(connector):
    found = body(await ask(connector, "SELECT 1 AS id, 2 AS id, 3 AS id_2, 4 AS id"))
    assert found["columns"] == ["id", "id_3", "id_2", "id_4"] or len(set(found["columns"])) == 4
    assert sorted(found["rows"][0].values()) == [1, 2, 3, 4]


@pytest.mark.parametrize("names", [["a"] * 5, ["a", "a", "a_2", "a_2"], ["a_2", "a", "a"], ["?column?"] * 2, []])
def test_names_are_made_unique_and_first_come_first_served(names):
    found = unique(names)
    assert len(set(found)) == len(names)
    assert all(name in found for name in names)


async def test_no_rows_still_have_columns(connector):
    with_more = "WITH x AS (TABLE items) SELECT id, name FROM x LIMIT 0; -- x"
    for statement in ("SELECT id, name FROM items WHERE false", with_more):
        assert body(await ask(connector, statement)) == {
            "rows": [], "columns": ["id", "name"], "row_count": 0, "truncated": False,
        }  # fmt: skip


async def test_rows_without_columns_are_counted(connector):
    found = body(await ask(connector, "SELECT FROM items WHERE id <= 3"))
    assert (found["rows"], found["columns"], found["row_count"]) == ([{}, {}, {}], [], 3)


async def test_more_rows_than_allowed_are_cut_with_a_notice(connect):
    connector = connect(max_rows=10)
    found = body(await ask(connector, "SELECT id FROM items ORDER BY id"))
    exactly = body(await ask(connector, "SELECT id FROM items ORDER BY id LIMIT 10"))
    assert [row["id"] for row in found["rows"]] == list(range(1, 11))
    assert found["truncated"] is True
    assert found["notice"]["reason"] == "max_rows"
    assert found["notice"]["limit"] == 10
    assert "Narrow the question" in found["notice"]["message"]
    assert exactly["truncated"] is False
    assert "notice" not in exactly


async def test_more_bytes_than_allowed_are_cut_with_a_notice(connect):
    connector = connect(max_bytes=2000)
    found = body(await ask(connector, "SELECT repeat('x', 100) AS v FROM items"))
    none = body(await ask(connector, "SELECT repeat('x', 5000) AS v"))
    assert 10 < found["row_count"] < 20
    assert found["notice"]["reason"] == none["notice"]["reason"] == "max_bytes"
    assert none["rows"] == []


async def test_an_endless_answer_is_cut_at_the_cursor(server, connect):
    connector = connect(max_rows=100, statement_timeout_seconds=30)
    started_at = time.monotonic()
    found = body(await ask(connector, "SELECT generate_series(1, 2000000000) AS endless_rows"))
    assert (found["row_count"], found["truncated"]) == (100, True)
    assert time.monotonic() - started_at < 3
    assert server.running("endless_rows") == []


# --- Time -------------------------------------------------------------------------------------------------------------


async def test_the_database_stops_a_statement_that_takes_too_long(connect):
    connector = connect(statement_timeout_seconds=1)
    error = await failure(ask(connector, SLOW))
    assert error.code == "upstream_timeout"
    assert str(error) == "The database stopped the statement after 1 s."
    assert await value(connector, "1") == 1


async def test_the_deadline_is_kept_and_the_statement_stopped(server, connector):
    started_at = time.monotonic()
    error = await failure(ask(connector, SLOW, deadline_seconds=0.3))
    assert time.monotonic() - started_at < 1
    assert error.code == "upstream_timeout"
    await until(lambda: not server.running("endless"))
    assert await value(connector, "1") == 1


async def test_the_deadline_is_kept_when_the_server_does_not_react_at_all(connect):
    connector = connect(max_connections=1)
    pid = await value(connector, "pg_backend_pid()")
    os.kill(pid, signal.SIGSTOP)
    try:
        started_at = time.monotonic()
        error = await failure(ask(connector, "SELECT 1 AS v", deadline_seconds=0.3))
        # It may have been stopped while it was cleaned, and then does not come back to the pool.
        assert error.code in ("upstream_timeout", "upstream_unavailable")
        assert time.monotonic() - started_at < 2
    finally:
        os.kill(pid, signal.SIGCONT)


async def test_a_call_that_is_cancelled_frees_its_connection_and_stops_in_the_server(server, connect):
    connector = connect(max_connections=1)
    call = asyncio.create_task(ask(connector, SLOW))
    await until(lambda: server.running("endless"))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: not server.running("endless"))
    assert await value(connector, "1") == 1


async def test_a_pool_without_a_free_connection_says_so_in_time(server, connect):
    connector = connect(max_connections=1, statement_timeout_seconds=30)
    call = asyncio.create_task(ask(connector, SLOW, deadline_seconds=30))
    await until(lambda: server.running("endless"))
    started_at = time.monotonic()
    error = await failure(ask(connector, "SELECT 1", deadline_seconds=0.5))
    assert error.code == "upstream_busy"
    assert str(error) == "All 1 connections to the database are in use."
    assert error.sent is False
    assert time.monotonic() - started_at < 1
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_concurrent_calls_get_their_own_answers(server, connect):
    connector = connect(max_connections=4)
    tool = make_tool("SELECT id, name FROM items WHERE id = :n", {"name": "n", "type": "integer"})
    results = await asyncio.gather(*(ask(connector, tool, n=n) for n in range(1, 201)))
    assert [body(result)["rows"] for result in results] == [[{"id": n, "name": f"item {n}"}] for n in range(1, 201)]
    assert server.run("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'mcpsite shop'")[0][0] <= 5


# --- Connections ------------------------------------------------------------------------------------------------------


async def test_after_a_restart_of_the_server_the_next_calls_work(server, connect):
    connector = connect(max_connections=3)
    await asyncio.gather(*(value(connector, "pg_sleep(0.05)") for _ in range(3)))
    server.restart()
    assert [await value(connector, "1") for _ in range(4)] == [1] * 4


async def test_a_connection_that_is_killed_during_a_call_is_replaced(server, connect):
    connector = connect(max_connections=1, statement_timeout_seconds=30)
    call = asyncio.create_task(ask(connector, SLOW, deadline_seconds=1.5))
    await until(lambda: server.running("endless"))
    for (pid,) in server.running("endless"):
        server.run("SELECT pg_terminate_backend(%s)", pid)
    assert (await failure(call)).code == "upstream_timeout"
    assert await value(connector, "1") == 1


async def test_nothing_of_a_call_is_left_for_the_next(server, connect):
    connector = connect(max_connections=1)
    assert await value(connector, "leave_traces()") == "left"
    assert await value(connector, "coalesce(current_setting('shop.trace', true), '')") == ""
    assert await value(connector, "current_setting('statement_timeout')") == "10s"
    assert server.run("SELECT pid FROM pg_locks WHERE locktype = 'advisory'") == []


async def test_what_is_wrong_with_the_connection_is_told_without_its_secrets(connect):
    for wrong in ({"password": "wrong-canary"}, {"user": "nobody-canary"}, {"database": "none-canary"}):
        connector = connect(**wrong)
        error = await failure(ask(connector, "SELECT 1"))
        assert error.code == "upstream_unavailable"
        assert str(error) == "The database cannot be reached or refuses the login."


async def test_a_server_that_is_not_there_is_told_in_time(connect):
    connector = connect(port=1)
    started_at = time.monotonic()
    assert (await failure(ask(connector, "SELECT 1"))).code == "upstream_unavailable"
    assert time.monotonic() - started_at < 1


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "::1", "169.254.169.254", "/tmp"])
async def test_the_gate_stands_before_the_database(host, connect):
    assert (await failure(ask(connect(host=host), "SELECT 1"))).code == "egress_denied"


async def test_a_host_that_does_not_exist_is_told_as_such(connect):
    for host in ("does-not-exist.invalid", "a" * 64 + ".example", "@abstract", "a,b"):
        assert (await failure(ask(connect(host=host), "SELECT 1"))).code == "upstream_unavailable"


async def test_credentials_of_our_own_environment_are_not_used(monkeypatch, tmp_path, connect):
    (tmp_path / "pass").write_text("*:*:*:reader:reader-canary\n")
    (tmp_path / "pass").chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "pass"))
    monkeypatch.setenv("PGPASSWORD", "reader-canary")
    monkeypatch.setenv("PGHOSTADDR", "127.0.0.1")
    connector = connect(password=None)
    assert (await failure(ask(connector, "SELECT 1"))).code == "upstream_unavailable"
    connector = connect()
    assert await value(connector, "1") == 1


def test_options_cannot_be_smuggled_into_the_search_path():
    for white in (" ", "\t", "\n", "\r", "\v", "\f"):
        assert _escaped(f"public{white}-c") == f"public\\{white}-c"
    assert _escaped("a\\") == "a\\\\"


async def test_a_search_path_with_options_in_it_is_only_a_search_path(connect):
    smuggled = "shop\t-c\tstatement_timeout=0\n-c\tdefault_transaction_read_only=off"
    assert (await failure(ask(connect(WRITER, schema=smuggled), "SELECT 1"))).code == "upstream_unavailable"
    connector = connect(WRITER, schema="shop, public")
    assert await value(connector, "current_setting('search_path')") == "shop, public"
    assert await value(connector, "current_setting('statement_timeout')") == "10s"
    assert await value(connector, "current_setting('default_transaction_read_only')") == "on"


# --- Errors and walls -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("SELECT secret::int FROM items", "invalid_arguments"),
        ("SELECT to_date(secret, 'YYYY') FROM items", "invalid_arguments"),
        ("SELECT secret::jsonb FROM items", "invalid_arguments"),
        ("SELECT secret::text[] FROM items WHERE ('{' || secret)::text[] IS NULL", "invalid_arguments"),
        ("SELECT 1 / (id - id) FROM items", "invalid_arguments"),
        ("SELECT secret FROM hidden", "upstream_refused"),
        ("SELECT nothing FROM items", "upstream_refused"),
        ("SELECT * FROM nowhere", "upstream_refused"),
        ("SELEC 1", "upstream_refused"),
        ("SELECT write()", "read_only"),
    ],
)
async def test_errors_have_a_code_and_show_no_rows(connector, statement, code):
    assert (await failure(ask(connector, statement))).code == code
    assert await value(connector, "1") == 1


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
async def test_a_text_that_postgresql_cannot_hold_is_a_wrong_argument(connector, text):
    error = await failure(value(connector, ":p", {"name": "p"}, p=text))
    assert error.code == "invalid_arguments"


async def test_a_value_that_does_not_fit_its_type_is_not_repeated(connector):
    error = await failure(value(connector, ":p", {"name": "p", "type": "uuid"}, p="secret-canary"))
    assert error.code == "invalid_arguments"
    assert str(error) == 'The database cannot use a value: invalid input syntax for type uuid: "…"'


@pytest.mark.parametrize("role", ["reader", "writer"])
@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO log VALUES ('x')",
        "DELETE FROM items",
        "TRUNCATE items",
        "DROP TABLE items",
        "CREATE TABLE t (a int)",
        "SELECT nextval('counter')",
        "SELECT write()",
        "SELECT * INTO t2 FROM items",
        "COMMIT",
        "ROLLBACK",
        "COMMIT; DELETE FROM items",
        "SET TRANSACTION READ WRITE",
        "SELECT set_config('transaction_read_only', 'off', false)",
        "WITH x AS (DELETE FROM items RETURNING *) SELECT * FROM x",
        "SELECT lo_create(99)",
        "COPY items TO '/tmp/x'",
        "DO $$ BEGIN DELETE FROM shop.items; END $$",
        "CALL nothing()",
        "VACUUM",
        "NOTIFY x",
    ],
)
async def test_without_the_guard_nothing_persists(server, role, statement, connect):
    connector, before = connect(role), server.state()
    try:
        await ask(connector, statement)
        await value(connector, "1")
    except ConnectorError:
        pass
    assert server.state() == before


async def test_the_check_warns_of_a_role_that_may_write(server, connect):
    reader, writer = connect(), connect(WRITER)
    assert (await reader.check()).endswith("answers as reader, which proved unable to write.")
    assert "Warning: this role may change tables" in await writer.check()
    password = server.data.database_url("postgres").split(":")[2].partition("@")[0]
    owner = connect("postgres", password=password)
    assert "Warning: this role is a superuser" in await owner.check()
    assert (await failure(connect(port=1).check())).code == "upstream_unavailable"


async def test_a_closed_connector_is_closed(server, connect):
    connector = connect()
    await ask(connector, "SELECT 1")
    await connector.close()
    await connector.close()
    await until(lambda: not server.run("SELECT FROM pg_stat_activity WHERE application_name = 'mcpsite shop'"))


def test_secrets_are_not_shown(connect):
    connector = connect()
    assert "canary" not in repr(connector.source)
    assert "canary" not in str(connector.source.options)
    assert make_context().actor == "someone"


# --- TLS --------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def behind_tls(server: Server, folder: Path) -> AsyncIterator[tuple[int, str]]:
    """The server behind somebody who answers SSLRequest and ends TLS; gives the port and the certificate."""
    certificate, key = make_certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    there = server.data.run_dir / ".s.PGSQL.5432"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(8) == b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
        writer.write(b"S")
        try:
            await writer.start_tls(context)
            back, forth = await asyncio.open_unix_connection(str(there))
            await asyncio.gather(pump(reader, forth), pump(back, writer))
        except OSError:  # The client does not trust us, which is for the client to tell.
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        yield listener.sockets[0].getsockname()[1], certificate.read_text()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


async def test_the_server_proves_its_name_with_certificates_that_are_given(server, tmp_path):
    (tmp_path / "other").mkdir()
    other, _ = make_certificate(tmp_path / "other")
    async with behind_tls(server, tmp_path) as (port, ca):
        where = {"host": "127.0.0.1", "port": port, "tls": "verify-full", "rules": ["127.0.0.1/32"]}
        connector = make_connector(server, ca=ca, **where)
        assert await value(connector, "1") == 1
        assert "proved unable to write" in await connector.check()
        file = connector._trusted()["sslrootcert"]
        assert os.stat(file).st_mode & 0o777 == 0o600
        await connector.close()
        assert not there(file)
        for wrong in ({**where, "ca": other.read_text()}, {**where, "ca": ca, "host": "localhost"}):
            refused = make_connector(server, **wrong)
            with pytest.raises(ConnectorError) as caught:
                await value(refused, "1")
            assert caught.value.code == "upstream_unavailable"
            await refused.close()


def there(path: str) -> bool:
    return os.path.exists(path)
