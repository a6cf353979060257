"""Paths that are read from few rows are those of the standard."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from audit.proofs.paths import TreeIncomplete, consistency_path, inclusion_path
from audit.proofs.tests.conftest import seal
from audit.verify import consistent, inclusion_root, root_of

SIZE = 256 * 256 + 700


@pytest.fixture
def leaves(evidence):
    seal(evidence, SIZE)
    return [row[3] for row in evidence.rows["audit_leaf"]]


def test_a_path_leads_from_each_place_to_the_root_in_three_queries(evidence, leaves):
    root = evidence.heads[-1].root
    for seq in (0, 1, 255, 256, 300, 65_535, 65_536, 65_800, SIZE - 1):
        with CaptureQueriesContext(connection) as asked:
            path = inclusion_path(seq, SIZE)
        assert inclusion_root(leaves[seq], seq, SIZE, path) == root
        assert len(asked) <= 3


def test_trees_of_any_two_sizes_are_shown_to_continue_each_other(evidence, leaves):
    sizes = (1, 2, 255, 256, 257, 512, 40_000, 65_536, 66_048, 66_100, SIZE)
    roots = {size: root_of(leaves[:size]) for size in sizes}
    for first in sizes:
        for second in sizes:
            if first <= second:
                path = consistency_path(first, second)
                assert consistent(first, second, roots[first], roots[second], path)


def test_few_rows_are_read(evidence, leaves):
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMPORARY TABLE half AS SELECT * FROM audit_leaf WHERE seq >= 256")
        cursor.execute("DROP TABLE audit_leaf")
        cursor.execute("ALTER TABLE half RENAME TO audit_leaf")
    assert inclusion_root(leaves[300], 300, SIZE, inclusion_path(300, SIZE)) == evidence.heads[-1].root


def test_what_is_missing_is_named(evidence, leaves):
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM audit_node WHERE height = 8 AND index = 7")
    with pytest.raises(TreeIncomplete, match="no node 7 of height 8"):
        inclusion_path(300, SIZE)
