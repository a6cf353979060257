"""How deep JSON may be nested, so that whatever was read can also be written."""

from __future__ import annotations

from typing import Any

import orjson

from tools import exact


def is_writable(value: Any) -> bool:
    """Whether `value` can be serialised some levels further down: orjson reads 1,024 levels, but writes 254."""
    try:
        exact.written([[[[value]]]])
    except (orjson.JSONEncodeError, RecursionError):
        return False
    return True
