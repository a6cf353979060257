"""How long a page may look for what it shows: whoever asks for everything is told so, and holds up nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import DEFAULT_DB_ALIAS, OperationalError, connections, transaction

_QUERY_CANCELED = "57014"  # PostgreSQL, appendix A


class TooSlow(Exception):
    """A query took longer than it was given."""


# Compiling a plan takes longer than what such a query may take. And an index may look hardly better than reading a
# table, as Bloom filters always do, and be a hundred times faster.
_SET = """
SELECT set_config('statement_timeout', %s, true), set_config('jit', 'off', true),
    set_config('enable_seqscan', 'off', true)
"""
_RESET = "SET LOCAL statement_timeout TO DEFAULT; SET LOCAL jit TO DEFAULT; SET LOCAL enable_seqscan TO DEFAULT"


@contextmanager
def at_most(milliseconds: int, using: str = DEFAULT_DB_ALIAS) -> Iterator[None]:
    """No query within takes longer than that, and none reads a table where an index leads to the rows.

    Raises TooSlow; what was done in the block is then rolled back.
    """
    try:
        with transaction.atomic(using), connections[using].cursor() as cursor:
            cursor.execute(_SET, [str(milliseconds)])
            yield
            cursor.execute(_RESET)
    except OperationalError as error:
        if getattr(error.__cause__, "sqlstate", None) == _QUERY_CANCELED:
            raise TooSlow from error
        raise
