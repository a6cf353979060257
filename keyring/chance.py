"""Random bytes of the operating system, fetched by the page: each question is a system call, and the five that a tool
call needs were 6 % of its cost.
"""

from __future__ import annotations

import os

_PAGE_BYTES, _PORTION_BYTES = 4096, 32

# Each is taken once: `list.pop` is one step for all threads.
_portions: list[bytes] = []
# A child must not take what its parent takes.
os.register_at_fork(after_in_child=_portions.clear)


def random_bytes(count: int) -> bytes:
    """As `os.urandom`, for 32 bytes at the most: fit for keys, nonces and salts."""
    if count > _PORTION_BYTES:
        raise ValueError(f"{count} random bytes are more than {_PORTION_BYTES}.")
    try:
        return _portions.pop()[:count]
    except IndexError:
        page = os.urandom(_PAGE_BYTES)
        first, *others = (page[at : at + _PORTION_BYTES] for at in range(0, _PAGE_BYTES, _PORTION_BYTES))
        _portions.extend(others)
        return first[:count]
