"""Records by the million for measurements: what a month of an organisation looks like, made by PostgreSQL itself.

Nothing was called, and their commitments and ciphertexts are random bytes; but their leaves and MACs are what a writer
of this installation makes, so that they are sealed and verified. They belong into databases that are thrown away.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

import django

from audit.entry import MAC_PURPOSE
from audit.verify import COLUMNS
from keyring.keys import ring

TOOLS, ACTORS, SOURCES = 40, 80, 8
# So rare, and so long ago, that whoever looks for one without an index reads everything.
RARE_TOOL, RARE_ACTOR, RARE_SOURCE, RARE_CODE = "rare_tool", "rare.actor", "rare-source", "source_failed"

_PARTITIONS = """
DO $$
DECLARE
    month date := date_trunc('month', (now() AT TIME ZONE 'UTC') - make_interval(days => %(days)s))::date;
    name text;
BEGIN
    WHILE month <= (now() AT TIME ZONE 'UTC')::date LOOP
        name := 'audit_record_' || to_char(month, 'YYYYMM');
        IF to_regclass(name) IS NULL THEN
            EXECUTE format(
                'CREATE TABLE %%I PARTITION OF audit_record FOR VALUES FROM (%%L) TO (%%L)',
                name, month || ' 00:00+00', (month + interval '1 month')::date || ' 00:00+00');
        END IF;
        month := (month + interval '1 month')::date;
    END LOOP;
END $$
"""

# Density follows the hour of the day; every second row shares its call with the one before.
_ROWS = """
WITH drawn AS (
    SELECT n, random() AS tool_luck, random() AS actor_luck, random() AS luck, random() AS slow,
           (n - n %% 2)::float8 / %(rows)s * %(days)s AS day
    FROM generate_series(0, %(rows)s - 1) AS n ORDER BY n
), timed AS (
    SELECT *, now() - make_interval(days => %(days)s)
              + make_interval(secs => 86400 * (day + 0.13 * sin(2 * pi() * day)) + n %% 2 * 0.02) AS at,
           CASE WHEN n %% 20 = 0 THEN 'intent' WHEN n %% 20 = 1 THEN 'outcome'
                WHEN luck < 0.02 THEN 'denied' WHEN luck < 0.03 THEN 'invalid' WHEN luck < 0.04 THEN 'config'
                WHEN luck < 0.05 THEN 'auth' WHEN n IN (100, 900) THEN 'system' ELSE 'call' END AS kind,
           n < 4000 AND n %% 500 = 11 AS rare
    FROM drawn
), told AS (
    SELECT *, kind NOT IN ('config', 'auth', 'system') AS calls, kind IN ('call', 'outcome') AS answers,
           CASE kind WHEN 'intent' THEN 'intended' WHEN 'invalid' THEN 'invalid_arguments'
                WHEN 'config' THEN 'update' WHEN 'system' THEN 'keys_rotated'
                WHEN 'auth' THEN CASE WHEN slow < 0.3 THEN 'invalid_credentials' ELSE 'login' END
                WHEN 'denied' THEN CASE WHEN slow < 0.5 THEN 'not_granted' ELSE 'budget_exhausted' END
                ELSE CASE WHEN rare THEN %(rare_code)s WHEN slow < 0.02 THEN 'tool_error'
                          WHEN slow < 0.024 THEN 'upstream_timeout' ELSE 'ok' END END AS code,
           floor(power(tool_luck, 3) * %(tools)s)::int AS tool_number,
           floor(power(actor_luck, 2) * %(actors)s)::int AS actor_number
    FROM timed
)
INSERT INTO audit_record (
    rid, at, kind, call_id, writer_id, writer_seq, actor, actor_id, token, roles, door, client, address, connector,
    tool, effect, definition, policy_version, decision, code, object_type, object_id, detail, trace_id, request_id,
    args_commit, result_commit, result_bytes, upstream_us, total_us, ct, key_id, leaf, mac)
SELECT
    rid, at, kind, call_id, writer_id, writer_seq, actor, actor_id, token, roles, door, client, address, connector,
    tool, effect, definition, policy_version, decision, code, object_type, object_id, detail, trace_id, request_id,
    args_commit, result_commit, result_bytes, upstream_us, total_us, ct, key_id, leaf,
    sha256(%(outer)s || sha256(%(inner)s || leaf || uuid_send(writer_id) || int8send(writer_seq)))
FROM (SELECT
    {rid} AS rid, at, kind, CASE WHEN calls THEN {call} END AS call_id, md5('writer' || n %% 3)::uuid AS writer_id,
    1 + n / 3 AS writer_seq, CASE WHEN rare THEN %(rare_actor)s ELSE 'person.' || actor_number END AS actor,
    actor_number::text AS actor_id, 'mcps_' || lpad(actor_number::text, 7, '0') AS token, 'support_agent' AS roles,
    CASE WHEN NOT calls THEN 'admin' WHEN actor_number %% 9 = 0 THEN 'rest' ELSE 'mcp' END AS door,
    'Claude Desktop 1.4.2' AS client, '10.20.0.' || actor_number AS address,
    CASE WHEN rare THEN %(rare_source)s WHEN calls THEN 'source-' || tool_number %% %(sources)s END AS connector,
    CASE WHEN rare THEN %(rare_tool)s WHEN calls THEN 'tool_' || tool_number END AS tool,
    CASE WHEN kind IN ('intent', 'outcome') THEN 'write' WHEN calls THEN 'read' END AS effect,
    CASE WHEN calls THEN sha256(int4send(tool_number)) END AS definition, n / 1000 AS policy_version,
    CASE WHEN kind IN ('denied', 'invalid') OR code = 'invalid_credentials' THEN 'deny'
         WHEN calls THEN 'allow' END AS decision,
    code, CASE kind WHEN 'config' THEN 'tools.Tool' END AS object_type,
    CASE kind WHEN 'config' THEN md5('tool' || tool_number)::uuid::text END AS object_id,
    CASE WHEN kind = 'config' THEN json_build_object('action', 'update', 'label', 'tool_' || tool_number,
            'changes', json_build_object('tags', json_build_array(json_build_array('desk'),
                json_build_array('desk', 'batch' || n))))::text
         WHEN kind IN ('denied', 'invalid') THEN json_build_object('message', 'Unknown tool: tool_' || n)::text
         END AS detail,
    CASE WHEN n %% 4 = 0 THEN md5('trace' || n / 12) END AS trace_id, md5('request' || n / 2) AS request_id,
    CASE WHEN calls THEN sha256(int8send(n)) END AS args_commit,
    CASE WHEN answers THEN sha256(int8send(-n)) END AS result_commit,
    CASE WHEN answers THEN (200 + 4000 * slow)::int END AS result_bytes,
    CASE WHEN answers THEN (2000 + 90000 * slow * slow)::int END AS upstream_us,
    CASE WHEN answers THEN (3000 + 95000 * slow * slow)::int END AS total_us,
    CASE WHEN calls THEN sha256(int8send(n)) || sha256(int8send(n + 1)) || sha256(int8send(n + 2)) END AS ct,
    'k1' AS key_id
    FROM told OFFSET 0) AS made, LATERAL (SELECT sha256({fields}) AS leaf OFFSET 0) AS hashed
"""
_UUID = (
    "(lpad(to_hex((extract(epoch from at - n %% 2 * interval '20 ms') * 1000)::bigint), 12, '0')"
    " || '7' || substr(md5({0} || {1}), 1, 3)"
    " || '8' || substr(md5({0} || {1}), 5, 15))::uuid"
)


_BINARY = {
    "uuid": "uuid_send({})",
    "timestamptz": "timestamptz_send({})",
    "text": "textsend({})",
    "bigint": "int8send({})",
    "bytea": "{}",
}
_NEVER_SET = ("on_behalf_of", "shown")
_BLOCK_BYTES = 64


def _fields() -> str:
    """What a leaf is the hash of (`audit.entry`), as an expression of SQL."""
    parts = [r"'\x00'::bytea"]
    for name, kind in COLUMNS:
        value = _BINARY[kind].format(name)
        field = f"coalesce(int4send(octet_length({value})) || {value}, '\\xffffffff')"
        parts.append(r"'\xffffffff'::bytea" if name in _NEVER_SET else field)
    return " || ".join(parts)


def _padded(key: bytes, with_byte: int) -> bytes:
    """The key as HMAC takes it (RFC 2104): PostgreSQL has SHA-256, and no HMAC."""
    return bytes(each ^ with_byte for each in key.ljust(_BLOCK_BYTES, b"\0"))


def fill(cursor: Any, rows: int, days: int = 60) -> None:
    """Insert that many records over so many past days, as the owner of the ledger, and gather statistics."""
    key = ring().derive(MAC_PURPOSE)
    values = {
        "rows": rows,
        "days": days,
        "tools": TOOLS,
        "actors": ACTORS,
        "sources": SOURCES,
        "rare_tool": RARE_TOOL,
        "rare_actor": RARE_ACTOR,
        "rare_source": RARE_SOURCE,
        "rare_code": RARE_CODE,
        "inner": _padded(key, 0x36),
        "outer": _padded(key, 0x5C),
    }
    ids = {"{rid}": _UUID.format("'rid'", "n"), "{call}": _UUID.format("'call'", "n / 2"), "{fields}": _fields()}
    statement = _ROWS
    for place, expression in ids.items():
        statement = statement.replace(place, expression)
    cursor.execute(_PARTITIONS, values)
    cursor.execute("SELECT setseed(0.5)")
    cursor.execute(statement, values)
    cursor.execute("ANALYZE audit_record")


def main() -> None:
    """Fill the installation that the environment names."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rows", type=int, required=True)
    options = parser.parse_args()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "mcpsite.settings")
    django.setup()
    from django.db import connections

    with connections["owner"].cursor() as cursor:
        fill(cursor, options.rows)


if __name__ == "__main__":
    main()
