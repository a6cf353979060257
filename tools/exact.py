"""JSON that everybody reads alike: no key twice in one object, and whole numbers of any size as they are (RFC 8259).

orjson is fast, but of two equal keys it keeps the last, and of a whole number beyond 64 bits it makes a float. Both
show when what it has read is written again; only then a stricter and slower parser reads the text once more. Other
numbers are what every reader of JSON makes of them: binary floats of 64 bits.
"""

from __future__ import annotations

import json
from typing import Any

import jiter
import orjson

# How deep the stricter parser goes.
_MOST_LEVELS = 201
# Objects and lists in one text: many small ones take a hundred times their size, and the process all its time.
_MOST_PARTS = 500_000
# How orjson writes whatever it made of a whole number beyond 64 bits.
_EXPONENT = b"e+"
# What it says of one that it is to write.
_BEYOND = "64-bit"


def read(text: bytes) -> Any:
    """The value, if there is one reading of the text only. Raises ValueError with what is wrong, and where."""
    parts = text.count(b"[") + text.count(b"{")
    _check(parts)
    value = orjson.loads(text)
    # Only a text with many brackets can be deep.
    if parts <= _MOST_LEVELS and orjson.dumps(value) == text:
        return value
    return jiter.from_json(text, allow_inf_nan=False, catch_duplicate_keys=True)


def taken(text: bytes | str) -> Any:
    """The value of what was written elsewhere, for better or worse: of two equal keys the last. Raises ValueError."""
    if isinstance(text, bytes) and len(text) > _MOST_PARTS:
        _check(text.count(b"[") + text.count(b"{"))
    value = orjson.loads(text)
    try:
        is_exact = _EXPONENT not in orjson.dumps(value)
    except orjson.JSONEncodeError:  # Too deep to be written: whoever writes it will say so.
        return value
    return value if is_exact else jiter.from_json(text if isinstance(text, bytes) else text.encode())


def _check(parts: int) -> None:
    if parts > _MOST_PARTS:
        raise ValueError(f"more than {_MOST_PARTS} objects and lists")


def written(value: Any) -> bytes:
    """The JSON of `value`. Raises orjson.JSONEncodeError."""
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        return _with_any_number(value, error)


def ordered(value: Any) -> bytes:
    """The JSON of `value` with sorted keys, to compare it by. Raises orjson.JSONEncodeError."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        return _with_any_number(value, error, sort_keys=True)


def _with_any_number(value: Any, failure: orjson.JSONEncodeError, *, sort_keys: bool = False) -> bytes:
    if _BEYOND not in str(failure):
        raise failure
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=sort_keys)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise orjson.JSONEncodeError(str(error)) from error
