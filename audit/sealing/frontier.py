"""The right edge of the Merkle tree: what is needed to append to it, without the leaves that are done with."""

from __future__ import annotations

from typing import NamedTuple

import psycopg

from audit.verify import EMPTY_ROOT, Tree, node_hash

_STEP = 8  # audit_node holds the roots of subtrees of 2^8, 2^16, … leaves
_WIDTH = 1 << _STEP
_LEVELS = 6


class Node(NamedTuple):
    """The root of a complete subtree of 2^height leaves; `place` counts those of its height from 0."""

    height: int
    place: int
    hash: bytes


class Frontier:
    """A tree by levels: the leaves after the last complete subtree of 256, the subtrees of 256 after the last of
    65,536, and so on.
    """

    def __init__(self) -> None:
        self.size = 0
        self.levels = [Tree() for _ in range(_LEVELS)]

    def append(self, leaf: bytes) -> list[Node]:
        """Add a leaf; returns the nodes that it completes."""
        self.size += 1
        made: list[Node] = []
        value = leaf
        for level, tree in enumerate(self.levels):
            tree.append(value)
            if tree.size < _WIDTH or level == _LEVELS - 1:
                break
            value, height = tree.root, _STEP * (level + 1)
            made.append(Node(height, (self.size >> height) - 1, value))
            self.levels[level] = Tree()
        return made

    @property
    def root(self) -> bytes:
        """The root over all leaves (RFC 6962, 2.1)."""
        peaks = [peak for tree in reversed(self.levels) for peak in tree.peaks]
        if not peaks:
            return EMPTY_ROOT
        root = peaks.pop()
        while peaks:
            root = node_hash(peaks.pop(), root)
        return root


def load(connection: psycopg.Connection, size: int) -> Frontier:
    """The frontier of the first `size` leaves, as the tables have it; raises ValueError where something is missing."""
    frontier = Frontier()
    frontier.size = size
    for level in range(_LEVELS):
        height = _STEP * level
        count = size >> height
        first = 0 if level == _LEVELS - 1 else count - count % _WIDTH
        for hash_ in _hashes(connection, height, first, count):
            frontier.levels[level].append(hash_)
    return frontier


def _hashes(connection: psycopg.Connection, height: int, first: int, end: int) -> list[bytes]:
    bounds: tuple[int, ...] = (first, end)
    query = "SELECT leaf FROM audit_leaf WHERE seq >= %s AND seq < %s ORDER BY seq"
    if height:
        bounds = (height, first, end)
        query = "SELECT hash FROM audit_node WHERE height = %s AND index >= %s AND index < %s ORDER BY index"
    found = [bytes(row[0]) for row in connection.execute(query.encode(), bounds)]
    if len(found) != end - first:
        raise ValueError(f"of the {end - first} nodes of height {height} from {first} on, {len(found)} are there")
    return found
