"""Reads a statement before it is accepted: one query, which only reads, with the parameters that were declared.

This is the first of three walls and the least: the database role and the read-only transaction stand behind it. The
statement is read twice: by a tokenizer that follows PostgreSQL's lexical rules (PostgreSQL documentation, "Lexical
Structure"), and by a parser, which is loaded when a tool is written and not when it is called, since it is large.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Literal, NamedTuple

# Functions that change state, reach outside, hold locks or stall, though a read-only transaction lets them be called.
_REFUSED_FUNCTIONS = re.compile(
    r"set_config|nextval|setval|dblink.*|lo_.*|loread|lowrite|currtid.*|txid_current(_if_assigned)?|ts_stat|"
    r"(query|table|schema|database|cursor)_to_xml.*|crosstab.*|connectby|brin_.*|gin_clean_pending_list|"
    r"binary_upgrade_.*|postgres_fdw_.*|plpgsql_.*|(inet|cidr)_server_.*|aws_.*|http(_.*)?|cron_.*|"
    r"table_import_from_s3|query_export_to_s3|invoke|autoprewarm_.*|amcheck.*|bt_.*|heap_.*|get_raw_page"
)
# Of PostgreSQL's own administration functions those that only tell something; the others are too many to be named.
_ACCEPTED_PG = re.compile(
    r"pg_(typeof|size_pretty|size_bytes|column_size|column_compression|char_to_encoding|encoding_to_char|client_encoding|"
    r"collation_for|is_other_temp_schema|my_temp_schema|table_is_visible|type_is_visible|function_is_visible|"
    r"describe_object|identify_object|get_(viewdef|constraintdef|indexdef|functiondef|triggerdef|ruledef|expr|userbyid|"
    r"serial_sequence|keywords|partkeydef|function_(arguments|result|identity_arguments))|postmaster_start_time|"
    r"relation_size|table_size|indexes_size|total_relation_size|database_size|partition_(tree|ancestors|root)|"
    r"timezone_(names|abbrevs)|input_is_valid|basetype|backend_pid|jit_available)"
)
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}\Z")
_TOKEN = re.compile(
    r"""
    (?P<escaped>  [eE]'(?:[^'\\]|\\.|'')*' )
  | (?P<string>   (?:[uU]&|[nNbBxX])?'(?:[^']|'')*' )
  | (?P<unicode>  [uU]&"(?:[^"]|"")*" )
  | (?P<quoted>   "(?:[^"]|"")*" )
  | (?P<dollar>   \$(?P<tag>(?:[A-Za-z_\x80-\U0010ffff][A-Za-z0-9_\x80-\U0010ffff]*)?)\$.*?\$(?P=tag)\$ )
  | (?P<position> \$[0-9]+ )
  | (?P<line>     --[^\r\n]* )
  | (?P<block>    /\* )
  | (?P<space>    [ \t\r\n\f\v]+ )
  | (?P<word>     [A-Za-z_\x80-\U0010ffff][A-Za-z0-9_$\x80-\U0010ffff]* )
  | (?P<cast>     :: )
  | (?P<name>     :[A-Za-z_][A-Za-z0-9_]* )
  | (?P<other>    . )
    """,
    re.VERBOSE | re.DOTALL,
)
# The parser's time grows faster than the statement.
_MOST_TOKENS = 4_000
_BLOCK = re.compile(r"/\*|\*/")

Kind = Literal["text", "word", "quoted", "unicode", "position", "skipped", "name", "other"]
_KINDS: dict[str, Kind] = {
    "escaped": "text", "string": "text", "dollar": "text", "line": "skipped", "space": "skipped", "cast": "other",
    "word": "word", "quoted": "quoted", "unicode": "unicode", "position": "position", "name": "name", "other": "other",
}  # fmt: skip


class StatementRefused(ValueError):
    """The statement cannot be a tool; the message says why and what to do."""


class Token(NamedTuple):
    """A piece of a statement. `skipped` are comments and white space, `name` is a placeholder."""

    kind: Kind
    text: str


def tokens(statement: str) -> Iterator[Token]:
    """The statement in pieces; joined, they are the statement."""
    position = 0
    while match := _TOKEN.match(statement, position):
        start, position = position, match.end()
        if match.lastgroup == "block":
            position = _end_of_block(statement, position)
            yield Token("skipped", statement[start:position])
        else:
            group = next(name for name in _KINDS if match[name] is not None)
            yield Token(_KINDS[group], match[0])


def _end_of_block(statement: str, position: int) -> int:
    """Where the block comment that began before `position` ends: they nest."""
    depth = 1
    while depth and (match := _BLOCK.search(statement, position)):
        depth += 1 if match[0] == "/*" else -1
        position = match.end()
    return position if depth == 0 else len(statement)


def placeholders(statement: str) -> list[str]:
    """The names of the `:name` placeholders, in order of first appearance."""
    return list(dict.fromkeys(token.text[1:] for token in tokens(statement) if token.kind == "name"))


def bind(statement: str, types: dict[str, str]) -> str:
    """The statement for psycopg: `:name` becomes a parameter that is cast to its declared PostgreSQL type."""
    return "".join(
        f"%({token.text[1:]})s::{types[token.text[1:]]}" if token.kind == "name" else token.text.replace("%", "%%")
        for token in tokens(statement)
    )


def bare(statement: str) -> str:
    """The statement without comments and the semicolon at its end, so that it can stand inside another one."""
    return "".join(" " if token.kind == "skipped" else token.text for token in tokens(statement)).rstrip("; ")


def check(statement: str, declared: Iterable[str]) -> None:
    """Raise StatementRefused unless this is one reading query with exactly the declared placeholders."""
    _check_names(statement, list(declared))
    _check_tokens([token for token in tokens(statement) if token.kind != "skipped"])
    _check_tree(statement)


def _check_tokens(found: list[Token]) -> None:
    if len(found) > _MOST_TOKENS:
        raise StatementRefused(f"The statement has more than {_MOST_TOKENS} words and signs.")
    for token, after in pairwise([*found, Token("other", "")]):
        if token.kind == "unicode":
            raise StatementRefused('Names in the form U&"…" are not accepted: write the characters themselves.')
        if token.kind == "position":
            raise StatementRefused(f"{token.text} is not accepted: write parameters as :name.")
        if token.text[:2] in ("E'", "e'") and after.text[:1] == "'":
            raise StatementRefused("A text that goes on in a second literal is not accepted: write it as one.")
        if token.kind in ("word", "quoted") and after.text == "(":
            _check_function(_folded(token))
        if token.kind == "other" and token.text in "'\"\0":
            raise StatementRefused("A quote in the statement is not closed, or it holds a NUL character.")


def _folded(token: Token) -> str:
    """The name as PostgreSQL takes it: folded to lower case unless it is quoted."""
    return token.text[1:-1].replace('""', '"') if token.kind == "quoted" else token.text.lower()


def _check_function(name: str) -> None:
    refused = _REFUSED_FUNCTIONS.fullmatch(name) or (name.startswith("pg_") and not _ACCEPTED_PG.fullmatch(name))
    if refused:
        raise StatementRefused(f"The function {name} is not accepted: it has effects beyond the answer.")


def _check_tree(statement: str) -> None:
    import sqlglot
    from sqlglot import exp
    from sqlglot.errors import SqlglotError

    try:
        trees = [tree for tree in sqlglot.parse(statement, dialect="postgres") if tree is not None]
    except (SqlglotError, RecursionError) as error:
        raise StatementRefused(f"The statement cannot be read: {_first_line(error)}") from error
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
        if isinstance(node, (exp.Anonymous, exp.AnonymousAggFunc)):
            _check_function(node.name.lower())


def _first_line(error: Exception) -> str:
    # The parser underlines with terminal codes.
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().split("\n")[0][:300] or type(error).__name__


def _check_names(statement: str, declared: list[str]) -> None:
    used = placeholders(statement)
    if wrong := [name for name in (*used, *declared) if not _NAME.fullmatch(name)]:
        raise StatementRefused(f"{wrong[0]!r} cannot be a parameter: use lower-case letters, digits and underscores.")
    if missing := [name for name in used if name not in declared]:
        raise StatementRefused(
            f"The statement uses :{missing[0]}, which is not among the parameters. (In an array slice, put a space"
            " after the colon.)"
        )
    if unused := [name for name in declared if name not in used]:
        raise StatementRefused(f"The parameter {unused[0]!r} is not used by the statement.")
