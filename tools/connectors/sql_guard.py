"""Reads a statement before it is accepted: one query, which only reads, with the parameters that were declared.

This is the first of three walls and the least: the database role and the read-only transaction stand behind it. Loaded
when a tool is written, not when it is called, since the parser is large.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Functions that change state, reach outside, hold locks or stall, though a read-only transaction lets them be called.
_REFUSED_FUNCTIONS = re.compile(
    r"(set_config|pg_sleep.*|pg_(try_)?advisory.*|pg_notify|dblink.*|lo_.*|pg_read_.*|pg_ls_.*|pg_stat_file|"
    r"pg_logical_.*|pg_replication_.*|pg_create_.*|pg_drop_.*|pg_terminate_backend|pg_cancel_backend|pg_reload_conf|"
    r"pg_rotate_logfile|pg_switch_wal|pg_promote|pg_export_snapshot|pg_import_system_collations|query_to_xml.*|"
    r"table_to_xml.*|schema_to_xml.*|database_to_xml.*|cursor_to_xml.*|nextval|setval|pg_file_.*|pg_backup_.*|"
    r"pg_wal_replay_.*|pg_stat_reset.*|currtid.*|txid_current|pg_current_xact_id)",
    re.IGNORECASE,
)
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}\Z")
# What stands between placeholders: strings, quoted names, dollar quotes, comments, casts.
_TOKEN = re.compile(
    r"""(?P<skip>'(?:[^']|'')*' | "(?:[^"]|"")*" | \$(?P<tag>[A-Za-z_]*)\$.*?\$(?P=tag)\$ | --[^\n]* | /\*.*?\*/ | ::
        ) | :(?P<name>[A-Za-z_][A-Za-z0-9_]*)""",
    re.VERBOSE | re.DOTALL,
)


class StatementRefused(ValueError):
    """The statement cannot be a tool; the message says why and what to do."""


def placeholders(statement: str) -> list[str]:
    """The names of the `:name` placeholders, in order of first appearance."""
    return list(dict.fromkeys(m["name"] for m in _TOKEN.finditer(statement) if m["name"]))


def bind(statement: str, types: dict[str, str]) -> str:
    """The statement for psycopg: `:name` becomes a parameter that is cast to its declared PostgreSQL type."""
    parts: list[str] = []
    position = 0
    for match in _TOKEN.finditer(statement):
        if not match["name"]:
            continue
        parts.append(statement[position : match.start()].replace("%", "%%"))
        parts.append(f"%({match['name']})s::{types[match['name']]}")
        position = match.end()
    parts.append(statement[position:].replace("%", "%%"))
    return "".join(parts)


def check(statement: str, declared: Iterable[str]) -> None:
    """Raise StatementRefused unless this is one reading query with exactly the declared placeholders."""
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    _check_names(statement, list(declared))
    try:
        trees = [tree for tree in sqlglot.parse(statement, dialect="postgres") if tree is not None]
    except (SqlglotError, RecursionError) as error:
        raise StatementRefused(f"The statement cannot be read: {str(error)[:300]}") from error
    if len(trees) != 1:
        raise StatementRefused(f"Give one statement, not {len(trees)}.")
    tree = trees[0]
    if not isinstance(tree, (exp.Select, exp.SetOperation, exp.Subquery, exp.Values)):
        raise StatementRefused("Only SELECT (also with WITH and UNION) is accepted.")
    for node in tree.walk():
        if isinstance(
            node, (exp.Insert, exp.Update, exp.Delete, exp.Merge, exp.Create, exp.Drop, exp.Command, exp.Into)
        ):
            raise StatementRefused(
                f"The statement changes data or structure ({node.key.upper()}): only reading is accepted."
            )
        if isinstance(node, exp.Lock):
            raise StatementRefused("The statement locks rows (FOR UPDATE or FOR SHARE): only reading is accepted.")
        name = _function_name(node)
        if name and _REFUSED_FUNCTIONS.fullmatch(name):
            raise StatementRefused(f"The function {name} is not accepted: it has effects beyond the answer.")


def _function_name(node: object) -> str:
    from sqlglot import exp

    if isinstance(node, (exp.Anonymous, exp.AnonymousAggFunc)):
        return str(node.this)
    return node.sql_name() if isinstance(node, exp.Func) else ""


def _check_names(statement: str, declared: list[str]) -> None:
    used = placeholders(statement)
    if wrong := [name for name in (*used, *declared) if not _NAME.fullmatch(name)]:
        raise StatementRefused(f"{wrong[0]!r} cannot be a parameter: use lower-case letters, digits and underscores.")
    if missing := [name for name in used if name not in declared]:
        raise StatementRefused(f"The statement uses :{missing[0]}, which is not among the parameters.")
    if unused := [name for name in declared if name not in used]:
        raise StatementRefused(f"The parameter {unused[0]!r} is not used by the statement.")
