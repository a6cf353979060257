from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from keyring.chance import random_bytes


def test_nothing_is_given_twice_to_any_thread() -> None:
    with ThreadPoolExecutor(8) as threads:
        given = [
            each for some in threads.map(lambda _: [random_bytes(12) for _ in range(1000)], range(8)) for each in some
        ]
    assert len(set(given)) == 8000
    assert {len(each) for each in given} == {12}


def test_a_child_shares_nothing_with_its_parent() -> None:
    random_bytes(1)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, b"".join(random_bytes(32) for _ in range(127)))
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reading, 32 * 127)
    assert len(theirs) == 32 * 127
    assert not {theirs[at : at + 32] for at in range(0, len(theirs), 32)} & {random_bytes(32) for _ in range(127)}


def test_more_than_a_portion_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 32"):
        random_bytes(33)
