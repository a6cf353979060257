from __future__ import annotations

import json
from typing import Any

import orjson
import pytest

from tools import exact

LONG = "115792089237316195423570985008687907853269984665640564039457584007913129639935"


@pytest.mark.parametrize("number", ["18446744073709551615", "18446744073709551616", "-9223372036854775809", LONG])
@pytest.mark.parametrize("shape", ["[{}]", '{{"a": {{"b":[{}]}} }}'])
def test_a_whole_number_of_any_size_stays_what_it_is(shape: str, number: str) -> None:
    text = shape.format(number).encode()
    for reading in (exact.read, exact.taken):
        assert exact.written(reading(text)) == text.replace(b" ", b"")


@pytest.mark.parametrize("text", [b"1.0", b"-0.0", b"100.0", b"1e+21", b"5e-324", b"0.1", b"[1,1.0,true]"])
def test_a_float_stays_one(text: bytes) -> None:
    assert exact.written(exact.read(text)) == text
    assert exact.written(exact.taken(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":1,"a":1}',
        b'{"a":{"b":[{"c":1,"d":2,"c":1}]}}',
        b'{"a":1,"\\u0061":2}',
        b"[" * 202 + b"]" * 202,
        b'{"a":' * 202 + b"1" + b"}" * 202,
        b"[" * 100_000,
        b"9" * 5_000,
        b"NaN",
        b"[-Infinity]",
        b"1e400",
        b'"\\ud800"',
        b'"\\udc00\\ud800"',
        b'"\xed\xa0\x80"',
        b'"\xff"',
        b"\xef\xbb\xbf1",
        b"01",
        b'"\t"',
        b"[1,]",
        b"1 1",
        b"",
    ],
)
def test_what_does_not_read_in_one_way_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        exact.read(text)


def test_of_two_equal_keys_of_an_upstream_the_last_counts() -> None:
    assert exact.taken('{"a":1,"a":2}') == {"a": 2}
    assert exact.taken(b'{"a":1,"a":18446744073709551616}') == {"a": 2**64}


def test_as_many_levels_are_read_from_whatever_text() -> None:
    for text in (b"[" * 201 + b"]" * 201, b"[ " * 201 + b"]" * 201):
        assert orjson.dumps(exact.read(text)) == text.replace(b" ", b"")


def test_what_is_too_deep_to_be_written_is_not_written_another_way() -> None:
    deep: Any = 2**64
    for _ in range(300):
        deep = [deep]
    for value in (deep, json.loads("[" * 300 + "]" * 300), {"a": object(), "b": 2**64}):
        with pytest.raises(orjson.JSONEncodeError):
            exact.written(value)


def test_a_text_of_more_objects_than_memory_should_hold_is_not_read() -> None:
    text = b"[" + b"[]," * 500_000 + b"1]"
    for take in (exact.read, exact.taken):
        with pytest.raises(ValueError, match="more than 500000 objects and lists"):
            take(text)
