"""How long a page may look for what it shows: whoever asks for everything is told so, and holds up nobody else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import OperationalError, connection, transaction

_QUERY_CANCELED = "57014"  # PostgreSQL, appendix A


class TooSlow(Exception):
    """A query took longer than it was given."""


@contextmanager
def at_most(milliseconds: int) -> Iterator[None]:
    """No query within takes longer than that. Raises TooSlow; what was done in the block is then rolled back."""
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            # Compiling a plan takes longer than what such a query may take.
            cursor.execute(
                "SELECT set_config('statement_timeout', %s, true), set_config('jit', 'off', true)", [str(milliseconds)]
            )
            yield
            cursor.execute("SET LOCAL statement_timeout TO DEFAULT")
    except OperationalError as error:
        if getattr(error.__cause__, "sqlstate", None) == _QUERY_CANCELED:
            raise TooSlow from error
        raise
