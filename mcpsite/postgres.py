"""Connection strings for what does not connect through Django."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg.conninfo import make_conninfo

_NAMES = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}


def conninfo(database: Mapping[str, Any]) -> str:
    """The libpq connection string of an entry of `settings.DATABASES`."""
    keywords = {theirs: database[ours] for ours, theirs in _NAMES.items() if database.get(ours)}
    options = {key: value for key, value in database.get("OPTIONS", {}).items() if isinstance(value, str | int)}
    return make_conninfo(**{**options, **keywords})
