"""A short walk through what `make fuzz` does for long: no crash, and nothing malformed that is taken."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.fuzz.targets import TARGETS, Target

_EXAMPLES = 150


def near(target: Target) -> st.SearchStrategy[bytes]:
    """The seeds of a target, with words and other bytes put in, and parts repeated or left out."""
    piece = st.one_of(st.sampled_from(target.words), st.binary(max_size=6))
    changes = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 40), piece), max_size=4)
    return st.builds(_changed, st.sampled_from(target.seeds), changes)


def _changed(seed: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for place, left_out, put_in in changes:
        at = place % (len(seed) + 1)
        seed = seed[:at] + put_in + seed[at + (left_out if left_out > 20 else 0) :]
    return seed


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_breaks_what_is_fuzzed(name: str) -> None:
    target = TARGETS[name]
    for seed in target.seeds:
        target.run(seed)

    @settings(max_examples=_EXAMPLES, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(near(target))
    def walk(data: bytes) -> None:
        target.run(data)

    walk()
