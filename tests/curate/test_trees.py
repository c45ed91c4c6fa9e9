"""Pairs and lists out of trees."""

import numpy as np
import pytest
import torch

from prefuse import curate
from tests.curate.kinds import as_dicts

#        q ─┬─ a ─┬─ aa
#           │     └─ ab      a is best; below it ab is
#           └─ b ─── ba
#        r ─── c ─┬─ ca
#                 ├─ cb
#                 └─ cc
NODES = [
    {"node": node, "parent": parent, "text": f"{node} ", "value": value, "visits": visits}
    for node, parent, value, visits in [
        ("ab", "a", 0.9, 4),
        ("q", None, 0.0, 20),
        ("a", "q", 0.6, 10),
        ("b", "q", 0.2, 3),
        ("aa", "a", 0.1, 5),
        ("ba", "b", 0.8, 2),
        ("r", None, 0.0, 9),
        ("c", "r", 0.5, 9),
        ("ca", "c", 0.7, 2),
        ("cb", "c", 0.7, 4),
        ("cc", "c", 0.3, 3),
    ]
]


def test_pairs_along_the_best_path(make):
    pairs = as_dicts(curate.step_pairs(make(NODES)))
    assert [(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in pairs] == [
        ("q ", "a ", "b "),
        ("q a ", "ab ", "aa "),
        ("r c ", "cb ", "cc "),
    ]
    assert [(pair["chosen_visits"], pair["rejected_visits"]) for pair in pairs] == [(10, 3), (4, 5), (4, 3)]
    assert set(pairs[0]) == {"prompt", "chosen", "rejected"} | {
        f"{side}_{name}" for side in ("chosen", "rejected") for name in ("value", "visits")
    }


def test_ids_may_be_numbers_with_nan_for_none():
    nodes = [
        {"node": i, "parent": p, "text": str(i), "value": v, "visits": 1}
        for i, p, v in [(0, None, 0), (1, 0, 1), (2, 0, 0)]
    ]
    import pandas as pd

    pairs = as_dicts(curate.step_pairs(pd.DataFrame(nodes)))
    assert [(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in pairs] == [("0", "1", "2")]


def test_equal_children_make_no_pair_but_the_walk_goes_on():
    nodes = [
        {"node": n, "parent": p, "text": n, "value": v, "visits": k}
        for n, p, v, k in [("q", None, 0, 9), ("a", "q", 1, 2), ("b", "q", 1, 7), ("ba", "b", 1, 1), ("bb", "b", 0, 1)]
    ]
    assert [(pair["prompt"], pair["chosen"]) for pair in curate.step_pairs(nodes)] == [("qb", "ba")]


def test_lists_of_all_paths(make):
    rows = as_dicts(curate.tree_lists(make(NODES)))
    assert [(row["prompt"], row["response"], row["label"]) for row in rows] == [
        ("q ", "a ab ", 0.9),
        ("q ", "b ba ", 0.8),
        ("q ", "a aa ", 0.1),
        ("r ", "c ca ", 0.7),
        ("r ", "c cb ", 0.7),
        ("r ", "c cc ", 0.3),
    ]
    assert rows[1]["steps"] == ["b ", "ba "]


def test_long_lists_are_thinned_by_rank():
    nodes = [{"node": 0, "parent": None, "text": "q", "value": None}]
    nodes += [{"node": i, "parent": 0, "text": str(i), "value": float(i)} for i in range(1, 10)]
    rows = curate.tree_lists(nodes, size=5, bounds=(-1.0, 9.0))
    assert [row["response"] for row in rows] == ["9", "7", "5", "3", "1"]
    assert [row["label"] for row in rows] == [1.0, 0.8, 0.6, 0.4, 0.2]
    assert [row["response"] for row in curate.tree_lists(nodes, size=1, bounds=(0.0, 10.0))] == ["9"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"node": "q"}, "^node: 'q' is the id of more than one row"),
        ({"parent": "z"}, "^parent: 'z' in row 2 is the id of no row"),
        ({"parent": "aa"}, "^node: '(ab|a|aa)' is below no root; its ancestors form a circle"),
        ({"value": float("nan")}, "column 'value': nan at row 2"),
    ],
)
def test_trees_that_are_none(change, message):
    nodes = [{**row, **change} if row["node"] == "a" else row for row in NODES]
    with pytest.raises(ValueError, match=message):
        curate.step_pairs(nodes)


def test_values_outside_the_bounds():
    with pytest.raises(ValueError, match=r"^value: 0.9 of the leaf in row 0, expected one within bounds=\(0.0, 0.5\)"):
        curate.tree_lists(NODES, bounds=(0.0, 0.5))
    with pytest.raises(ValueError, match=r"^bounds: expected two finite numbers, the lower first"):
        curate.tree_lists(NODES, bounds=(1.0, 0.0))


def test_step_weights_are_one_plus_the_cosine():
    embeddings = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[3.0, 3.0], [0.0, -1.0]], [[0.0, 0.0], [1.0, 0.0]]])
    weights = curate.step_weights(embeddings)
    expected = torch.tensor([[2.0, 2.0], [1.0 + 0.5**0.5, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(weights, expected)
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(curate.step_weights(embeddings.numpy(), best=1)[1], 2.0, rtol=1e-6)


def test_step_weights_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"^embeddings: expected shape \(K, S, D\), got \(2, 2\)"):
        curate.step_weights(np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"^best: expected an index of 2 responses, got 2"):
        curate.step_weights(np.ones((2, 1, 1)), best=2)
