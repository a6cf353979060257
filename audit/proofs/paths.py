"""Paths through the tree (RFC 6962, 2.1), read from leaves and nodes: five queries at most, whatever the size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from django.db import connection

from audit.verify import node_hash, root_of

# What tables hold: leaves at height 0, and roots of complete subtrees in steps of eight.
_HEIGHTS = (40, 32, 24, 16, 8, 0)
_LEAVES = "SELECT seq, leaf FROM audit_leaf JOIN unnest(%s::bigint[], %s::bigint[]) AS wanted (first, past)"
_NODES = "SELECT index, hash FROM audit_node JOIN unnest(%s::bigint[], %s::bigint[]) AS wanted (first, past)"
_STATEMENTS = {
    height: f"{_NODES} ON height = {height} AND index >= first AND index < past" for height in _HEIGHTS if height
} | {0: f"{_LEAVES} ON seq >= first AND seq < past"}


class TreeIncomplete(Exception):
    """Leaves or nodes are missing in the database; `verify_ledger` says which."""

    code = "tree_incomplete"


class Range(NamedTuple):
    """The leaves from `first` to before `past`."""

    first: int
    past: int


class _Subtree(NamedTuple):
    """A complete subtree of `2 ** height` leaves, and the rows of `stored` height that it is computed from."""

    height: int
    place: int

    @property
    def stored(self) -> int:
        return next(height for height in _HEIGHTS if height <= self.height)

    @property
    def rows(self) -> Range:
        width = self.height - self.stored
        return Range(self.place << width, self.place + 1 << width)


def inclusion_path(seq: int, size: int) -> list[bytes]:
    """The path from the leaf `seq` to the root of the first `size` leaves (2.1.1). Raises TreeIncomplete."""
    return _roots(_beside(seq, Range(0, size)))


def consistency_path(first: int, second: int) -> list[bytes]:
    """The path that shows that the tree of `second` leaves continues that of `first` (2.1.2). Raises TreeIncomplete."""
    return _roots(_between(first, Range(0, second), whole=True)) if 0 < first < second else []


def _beside(seq: int, tree: Range) -> list[Range]:
    if tree.past - tree.first == 1:
        return []
    left, right = _split(tree)
    return [*_beside(seq, left), right] if seq < left.past else [*_beside(seq, right), left]


def _between(first: int, tree: Range, whole: bool) -> list[Range]:
    if first == tree.past:
        return [] if whole else [tree]
    left, right = _split(tree)
    if first <= left.past:
        return [*_between(first, left, whole), right]
    return [*_between(first, right, whole=False), left]


def _split(tree: Range) -> tuple[Range, Range]:
    middle = tree.first + (1 << (tree.past - tree.first - 1).bit_length() - 1)
    return Range(tree.first, middle), Range(middle, tree.past)


def _roots(ranges: list[Range]) -> list[bytes]:
    parts = [list(_complete(each)) for each in ranges]
    rows = _rows(subtree for part in parts for subtree in part)
    return [_root(part, rows) for part in parts]


def _complete(leaves: Range) -> Iterable[_Subtree]:
    """The complete subtrees that the leaves consist of, the largest first; a range of a path begins at their border."""
    first = leaves.first
    while first < leaves.past:
        height = (leaves.past - first).bit_length() - 1
        yield _Subtree(height, first >> height)
        first += 1 << height


def _rows(subtrees: Iterable[_Subtree]) -> dict[tuple[int, int], bytes]:
    wanted: dict[int, list[Range]] = {}
    for subtree in subtrees:
        wanted.setdefault(subtree.stored, []).append(subtree.rows)
    found: dict[tuple[int, int], bytes] = {}
    with connection.cursor() as cursor:
        for height, ranges in wanted.items():
            cursor.execute(_STATEMENTS[height], [[each.first for each in ranges], [each.past for each in ranges]])
            found.update({(height, place): bytes(hashed) for place, hashed in cursor.fetchall()})
    return found


def _root(subtrees: list[_Subtree], rows: dict[tuple[int, int], bytes]) -> bytes:
    root = b""
    for subtree in reversed(subtrees):
        try:
            own = root_of(rows[subtree.stored, place] for place in range(*subtree.rows))
        except KeyError as error:
            height, place = error.args[0]
            what = f"node {place} of height {height}" if height else f"leaf {place}"
            raise TreeIncomplete(f"The tree has no {what}: run `manage.py verify_ledger`.") from error
        root = node_hash(own, root) if root else own
    return root
