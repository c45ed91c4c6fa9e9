"""Which prefixes rows share."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefuse.packing.tree import PrefixTree, prefix_tree

PAIR = PrefixTree((9, 5, 4, 3, 7, 6), (-1, 0, 1, 1, 0, -1))
"""A prompt with two continuations, the first of which branches again; and another prompt."""


def rows_of(*rows: list[int]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int64) for row in rows]


def spelled(tree: PrefixTree, paths: list[tuple[int, ...]], rows: list[np.ndarray]) -> list[list[int]]:
    """Rows put together from the tokens of their segments, each written by the first row that has it."""
    tokens: dict[int, list[int]] = {}
    for path, row in zip(paths, rows, strict=True):
        for segment in path:
            begin = tree.depths[segment]
            tokens.setdefault(segment, row[begin : begin + tree.lengths[segment]].tolist())
    return [[token for segment in path for token in tokens[segment]] for path in paths]


def test_a_tree_knows_where_its_segments_are():
    assert PAIR.tokens == 34
    assert PAIR.starts == (0, 9, 14, 18, 21, 28, 34)
    assert PAIR.depths == (0, 9, 14, 14, 9, 0)
    assert PAIR.ends == (28, 21, 18, 21, 28, 34)
    assert PAIR.longest_path == 18
    assert PAIR.path(3) == (0, 1, 3)


@pytest.mark.parametrize(
    ("lengths", "parents", "said"),
    [
        ((1, 2), (-1,), "parents: expected one per length, 2, got 1"),
        ((1, 0), (-1, 0), "lengths: expected at least 1 token per segment, got 0 for segment 1"),
        ((1, 1, 1), (-1, -1, 0), "parents: expected depth-first order, got 0 for segment 2"),
        ((1, 1), (-1, 1), "parents: expected depth-first order"),
    ],
)
def test_what_is_no_tree_is_refused(lengths, parents, said):
    with pytest.raises(ValueError, match=said):
        PrefixTree(lengths, parents)


def test_pairs_share_their_prompts():
    first, second = list(range(20)), list(range(50, 80))
    tree, paths = prefix_tree(rows_of([*first, 1, 2], [*second, 3], [*first, 4], [*second, 5, 6, 7]))
    assert tree == PrefixTree((20, 2, 1, 30, 1, 3), (-1, 0, 0, -1, 3, 3))
    assert paths == [(0, 1), (3, 4), (0, 2), (3, 5)]


def test_branches_within_responses_are_shared_when_they_are_long_enough():
    system, turn = list(range(100, 120)), list(range(200, 217))
    rows = rows_of([*system, *turn, 1], [*system, *turn, 2], [*system, 3, 4], [*system, *turn[:15], 5])
    tree, paths = prefix_tree(rows)
    assert [tree.path(path[-1]) for path in paths] == paths
    assert tree.tokens == 20 + 17 + 1 + 1 + 2 + 16  # 15 tokens of the turn are too few for a segment of their own
    tree, _ = prefix_tree(rows, minimum=1)
    assert tree.tokens == 20 + 15 + 2 + 1 + 1 + 1 + 2


def test_a_token_is_shared_only_where_all_of_it_is_equal():
    tokens = np.arange(40)
    left, right = np.stack([tokens, np.arange(40)], 1), np.stack([tokens, np.arange(40) + (np.arange(40) >= 30)], 1)
    assert prefix_tree([left, right])[0].lengths == (30, 10, 10)


def test_equal_rows_and_rows_that_end_where_others_go_on():
    row = list(range(30))
    tree, paths = prefix_tree(rows_of(row, [*row, 1], row, []))
    assert tree == PrefixTree((30, 1), (-1, 0))
    assert paths == [(0,), (0, 1), (0,), ()]


@given(st.lists(st.lists(st.integers(0, 1), max_size=12), min_size=1, max_size=9), st.integers(1, 4))
def test_rows_are_the_paths_of_their_tree(lists, minimum):
    rows = rows_of(*lists)
    tree, paths = prefix_tree(rows, minimum)
    assert spelled(tree, paths, rows) == [row.tolist() for row in rows]
    leaves = {path[-1] for path in paths if path}
    for segment, length in enumerate(tree.lengths):
        assert segment in leaves or length >= minimum
    if minimum == 1:  # as few tokens as there are different prefixes
        assert tree.tokens == len({tuple(row[:end]) for row in lists for end in range(1, len(row) + 1)})
