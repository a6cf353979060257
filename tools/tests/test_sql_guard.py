from __future__ import annotations

import contextlib
import time

import pytest

from tools.connectors.base import ConnectorError
from tools.connectors.sql_guard import StatementRefused, bare, bind, check, placeholders, tokens
from tools.tests.database import READER, WRITER, ask, make_connector, started

HOSTILE = [
    # More than one statement, and statements that are no query
    "SELECT 1; DROP TABLE shop.items",
    "COMMIT; DROP TABLE shop.items",
    "SELECT 1; SELECT 2",
    ";",
    "",
    "--",
    "/* only */",
    "COMMIT",
    "ROLLBACK; DELETE FROM shop.items",
    "BEGIN READ WRITE",
    "COMMIT; BEGIN READ WRITE; DELETE FROM shop.items",
    "SET TRANSACTION READ WRITE",
    "SET statement_timeout = 0",
    "RESET ALL",
    "DISCARD ALL",
    "SET ROLE postgres",
    "SET SESSION AUTHORIZATION postgres",
    "ALTER ROLE reader SUPERUSER",
    "INSERT INTO shop.log VALUES ('x')",
    "UPDATE shop.items SET name = 'x'",
    "DELETE FROM shop.items",
    "TRUNCATE shop.items",
    "DROP SCHEMA shop CASCADE",
    "CREATE TABLE shop.new (a int)",
    "CREATE TEMP TABLE t AS SELECT 1",
    "MERGE INTO shop.items USING shop.log ON true WHEN MATCHED THEN DELETE",
    "GRANT ALL ON shop.hidden TO reader",
    "COPY shop.items TO '/tmp/stolen'",
    "COPY shop.items TO PROGRAM 'touch /tmp/owned'",
    "COPY (SELECT 1) TO STDOUT",
    "CALL shop.write()",
    "DO $$ BEGIN DELETE FROM shop.items; END $$",
    "VACUUM",
    "ANALYZE",
    "CHECKPOINT",
    "LISTEN x",
    "NOTIFY x, 'y'",
    "LOCK TABLE shop.items",
    "PREPARE p AS DELETE FROM shop.items",
    "EXECUTE p",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "EXPLAIN ANALYZE DELETE FROM shop.items",
    "EXPLAIN SELECT 1",
    "SHOW ALL",
    "LOAD 'plpgsql'",
    "REINDEX DATABASE shop",
    "CREATE EXTENSION dblink",
    "PREPARE TRANSACTION 'x'",
    "SECURITY LABEL ON ROLE reader IS 'x'",
    # Queries that change something
    "WITH gone AS (DELETE FROM shop.items RETURNING *) SELECT * FROM gone",
    "WITH a AS (INSERT INTO shop.log VALUES ('x') RETURNING *) SELECT * FROM a",
    "WITH a AS (UPDATE shop.items SET name = '' RETURNING 1) SELECT 1",
    "SELECT * INTO shop.copied FROM shop.items",
    "SELECT * INTO TEMP copied FROM shop.items",
    "SELECT * FROM shop.items FOR UPDATE",
    "SELECT 1 FROM shop.items FOR SHARE",
    "SELECT * FROM (SELECT * FROM shop.items FOR NO KEY UPDATE SKIP LOCKED) x",
    # Functions with effects, in every way to write their names
    "SELECT set_config('statement_timeout', '0', false)",
    "SELECT pg_catalog.set_config('a.b', 'c', false)",
    "SELECT \"set_config\"('a.b', 'c', false)",
    "SELECT \"pg_catalog\".\"set_config\"('a.b', 'c', false)",
    "SELECT SET_CONFIG('a.b', 'c', false)",
    "SELECT pg_catalog . set_config ('a.b', 'c', false)",
    "SELECT set_config/**/('a.b', 'c', false)",
    "SELECT set_config -- x\n ('a.b', 'c', false)",
    "SELECT U&\"set\\005fconfig\"('a.b', 'c', false)",
    "SELECT u&\"!0073et_config\" UESCAPE '!' ('a.b', 'c', false)",
    "SELECT * FROM set_config('a.b', 'c', false)",
    "SELECT 1 FROM shop.items, LATERAL set_config('a.b', name, false)",
    "SELECT * FROM ROWS FROM (set_config('a.b', 'c', false)) x",
    "SELECT (set_config('a.b', 'c', false)).*",
    "SELECT 1 ORDER BY set_config('a.b', 'c', false)",
    "SELECT CASE WHEN true THEN set_config('a.b', 'c', false) END",
    "SELECT count(*) FILTER (WHERE set_config('a.b', 'c', false) = '') FROM shop.items",
    "SELECT ARRAY(SELECT set_config('a.b', 'c', false))",
    "VALUES (set_config('a.b', 'c', false))",
    "SELECT '\\', set_config('a.b', 'c', false) --'",
    "SELECT E'\\'', set_config('a.b', 'c', false) --'",
    "SELECT /* /* */ ' */ set_config('a.b', 'c', false) --'",
    "SELECT $a$ $b$ $a$, set_config('a.b','c',false) --$b$",
    "SELECT 1 -- x\r, set_config('a.b', 'c', false)",
    "SELECT E'a'\n'\\', set_config(''a.b'', ''c'', false) --'",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_try_advisory_lock(1)",
    "SELECT pg_sleep(100)",
    "SELECT pg_sleep_for('1 day')",
    "SELECT pg_terminate_backend(1)",
    "SELECT pg_cancel_backend(1)",
    "SELECT pg_reload_conf()",
    "SELECT pg_notify('a', 'b')",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT pg_read_binary_file('/etc/passwd')",
    "SELECT pg_ls_dir('/')",
    "SELECT pg_stat_file('/etc/passwd')",
    "SELECT lo_create(99)",
    "SELECT lo_import('/etc/passwd')",
    "SELECT lo_export(1, '/x')",
    "SELECT lo_unlink(1)",
    "SELECT lo_from_bytea(0, 'x')",
    "SELECT loread(1, 1)",
    "SELECT lowrite(1, 'x')",
    "SELECT nextval('shop.counter')",
    "SELECT setval('shop.counter', 99)",
    "SELECT txid_current()",
    "SELECT pg_current_xact_id()",
    "SELECT dblink('host=127.0.0.1', 'DELETE FROM shop.items')",
    "SELECT dblink_connect('x')",
    "SELECT dblink_exec('x', 'DROP TABLE y')",
    "SELECT query_to_xml('DELETE FROM shop.items', true, false, '')",
    "SELECT * FROM ts_stat('SELECT 1')",
    "SELECT pg_create_restore_point('x')",
    "SELECT pg_switch_wal()",
    "SELECT pg_logical_emit_message(false, 'a', 'b')",
    "SELECT pg_create_physical_replication_slot('x')",
    "SELECT pg_copy_physical_replication_slot('x', 'y')",
    "SELECT pg_drop_replication_slot('x')",
    "SELECT pg_stat_reset()",
    "SELECT pg_export_snapshot()",
    "SELECT pg_log_backend_memory_contexts(1)",
    "SELECT pg_promote()",
    "SELECT pg_backup_start('x')",
    "SELECT brin_summarize_new_values('x')",
    "SELECT gin_clean_pending_list('x')",
    "SELECT pg_hba_file_rules()",
    "SELECT pg_show_all_settings()",
    "SELECT pg_rotate_logfile()",
    "SELECT currtid2('x', 'y')",
    "SELECT pg_restore_relation_stats('relation', 'x')",
    "SELECT crosstab('DELETE FROM x')",
    # What is bound is written :name only
    "SELECT $1",
    "SELECT 'open",
    'SELECT "open',
    'SELECT U&"x"',
    "SELECT E'a\n' 'b'",
    "SELECT 1 \0",
]

# What the guard cannot know to be hostile: role and transaction stand behind it.
HARMLESS_BY_THE_OTHER_WALLS = [
    "SELECT shop.write()",
    "SELECT shop.leave_traces()",
    "SELECT * FROM shop.hidden",
    "SELECT * FROM pg_authid",
    "SELECT rolpassword FROM pg_authid",
    "SELECT * FROM pg_shadow",
    "SELECT current_setting('data_directory')",
    "SELECT repeat('x', 100000000)",
    "SELECT count(*) FROM shop.items a, shop.items b, shop.items c, shop.items d",
    "SELECT * FROM pg_stat_activity",
    "TABLE shop.items",
    "SELECT 'a' || shop.leave_traces()",
    "SELECT generate_series(1, 100000000)",
    "SELECT cast('shop.write()' AS text)",
    "SELECT has_table_privilege('shop.hidden', 'SELECT')",
]

GOOD = [
    "SELECT 1",
    "select 1;",
    " ( SELECT 1 ) ",
    "VALUES (1, 'a')",
    "SELECT 1 UNION ALL SELECT 2 ORDER BY 1 LIMIT 1 OFFSET 1",
    "WITH RECURSIVE t(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM t WHERE n < 5) SELECT * FROM t",
    "SELECT a[1:2], a[1], a[1 : 2] FROM (SELECT ARRAY[1,2,3] AS a) x",
    "SELECT '{\"a\":1}'::jsonb ? 'a'",
    "SELECT '{}'::jsonb ?| ARRAY['a'], '{}'::jsonb ?& ARRAY['a'], '{}'::jsonb @> '{}', '{}'::jsonb #> '{a}'",
    "SELECT '{}'::jsonb @? '$.a', '{\"a\":1}'::jsonb @@ '$.a == 1', '[1]'::jsonb -> 0, '[1]'::jsonb ->> 0",
    "SELECT 7 % 4, '100%', '%s %(a)s %%'",
    "SELECT E'it\\'s :not', U&'\\0041', $$ :not $$, $x$ ' :not $x$, N'x', B'1', X'f'",
    "SELECT /* /* :not */ ' */ 1 -- :not ' \"",
    'SELECT \':not\', ":not" FROM (SELECT 1 AS ":not") x',
    "SELECT name, count(*) FILTER (WHERE id > 1) OVER (PARTITION BY name) FROM shop.items GROUP BY name, id LIMIT 1",
    "SELECT date_trunc('day', now() AT TIME ZONE 'UTC'), extract(epoch FROM now())::bigint, interval '1 day'",
    "SELECT x.* FROM shop.items i CROSS JOIN LATERAL (SELECT i.id) x LIMIT 1",
    "SELECT ROW(1, 2), ARRAY[1], (SELECT 1)",
    "SELECT string_agg(name, ',' ORDER BY id) FROM (SELECT * FROM shop.items LIMIT 3) x",
    "SELECT pg_typeof(1)::text",
    "SELECT pg_size_pretty(1024::bigint), pg_column_size('x')",
    "SELECT to_tsvector('simple', 'a') @@ to_tsquery('a')",
    "SELECT CASE WHEN 1 IS DISTINCT FROM 2 THEN 'a' ELSE 'b' END COLLATE \"C\"",
    "SELECT regexp_replace('a', E'\\\\s', '')",
    "SELECT foo$bar$baz FROM (SELECT 1 AS foo$bar$baz) x",
    "SELECT jsonb_path_query('[1]', '$[*] ? (@ > 0)')",
    "SELECT set_config FROM (SELECT 1 AS set_config) x",
    'SELECT \'set_config(1)\', "pg_sleep(1)" FROM (SELECT 1 AS "pg_sleep(1)") x',
]


@pytest.fixture(scope="module")
def server():
    with started() as server:
        yield server


@pytest.mark.parametrize("statement", HOSTILE)
def test_a_hostile_statement_is_refused_with_a_reason(statement):
    with pytest.raises(StatementRefused) as caught:
        check(statement, placeholders(statement))
    assert 10 < len(str(caught.value)) < 400
    assert "\x1b" not in str(caught.value)


async def test_what_is_refused_would_have_had_no_effect_either(server):
    """The guard is the least of the walls: role, transaction and protocol hold without it, also for a writing role."""
    before = server.state()
    for user in (READER, WRITER):
        connector = make_connector(server, user, statement_timeout_seconds=1, max_rows=5)
        for statement in (*HOSTILE, *HARMLESS_BY_THE_OTHER_WALLS):
            with contextlib.suppress(ConnectorError, KeyError, ValueError):
                await ask(connector, statement, deadline_seconds=0.3)
        await connector.close()
    assert server.state() == before


@pytest.mark.parametrize("statement", HARMLESS_BY_THE_OTHER_WALLS)
def test_what_the_other_walls_stop_is_not_the_guards_business(statement):
    check(statement, [])


async def test_good_statements_are_accepted_and_run(server):
    connector = make_connector(server)
    for statement in GOOD:
        check(statement, [])
        assert not (await ask(connector, statement)).is_error, statement
    await connector.close()


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("SELECT :a, :b, :a", ["a", "b"]),
        ("SELECT x::text, :a::int", ["a"]),
        ("SELECT ':a' || :b", ["b"]),
        ("SELECT E'\\':a' || :b", ["b"]),
        ("SELECT E'\\\\' || :a || ':b'", ["a"]),
        ("SELECT '\\' || :a", ["a"]),
        ("SELECT 'it''s :a', :b", ["b"]),
        ('SELECT ":a""" , :b', ["b"]),
        ("SELECT /* /* :a */ :b */ :c", ["c"]),
        ("SELECT -- :a\r:b", ["b"]),
        ("SELECT -- :a\n:b", ["b"]),
        ("SELECT $$ :a $$, $t$ :b $$ $t$, :c", ["c"]),
        ("SELECT $1a$ :a", ["a"]),
        ("SELECT a$b$ :c, 1 AS d$b$", ["c"]),
        ("SELECT é$x$, :c", ["c"]),
        ("SELECT x[1:2], y[:a], z[1 : b]", ["a"]),
        ("SELECT f(a := 1)", []),
        ("SELECT U&'\\:a', :b", ["b"]),
        ("SELECT (:a), -:b, x=:c", ["a", "b", "c"]),
        ("SELECT 'open :a", ["a"]),
        ("SELECT /* open :a", []),
    ],
)
def test_placeholders_are_found_where_postgresql_would_see_an_expression(statement, names):
    assert placeholders(statement) == names
    assert "".join(token.text for token in tokens(statement)) == statement


def test_binding_casts_and_leaves_per_cents_alone():
    bound = bind("SELECT :a, '100% :a', 7 % :b -- %s :a", {"a": "text", "b": "bigint"})
    assert bound == "SELECT %(a)s::text, '100%% :a', 7 %% %(b)s::bigint -- %%s :a"


def test_a_statement_can_be_put_into_another_one():
    assert bare("SELECT ';' /* ; */ ; -- ;\n ;") == "SELECT ';'"


@pytest.mark.parametrize(
    ("statement", "declared", "said"),
    [
        ("SELECT :a", [], "uses :a, which is not among the parameters"),
        ("SELECT x[1:n]", [], "In an array slice, put a space after the colon"),
        ("SELECT 1", ["a"], "The parameter 'a' is not used"),
        ("SELECT :Abc", ["Abc"], "'Abc' cannot be a parameter: use lower-case letters"),
        ("SELECT 1; SELECT 2", [], "Give one statement, not 2"),
        ("SELECT FROM WHERE", [], "The statement cannot be read"),
        ("DELETE FROM x", [], "Only SELECT"),
    ],
)
def test_the_reason_says_what_to_do(statement, declared, said):
    with pytest.raises(StatementRefused, match=said):
        check(statement, declared)


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT " + "(" * 9000,
        "SELECT " + "(" * 9000 + "1" + ")" * 9000,
        "SELECT " + "-" * 1 + "+1" * 9000,
        "SELECT " + "CASE WHEN 1 THEN " * 1000,
        "SELECT '" + "''" * 9000,
        "/*" * 9000,
        "SELECT " + "$$" * 9001,
        "SELECT " + "'a'||" * 3000 + "'a'",
        "SELECT " + "NOT " * 4000 + "true",
        "SELECT x" + "[1]" * 4000,
    ],
)
def test_a_statement_made_to_exhaust_the_reader_ends_soon(statement):
    started_at = time.process_time()
    with contextlib.suppress(StatementRefused):
        check(statement[:20_000], [])
    assert time.process_time() - started_at < 2
