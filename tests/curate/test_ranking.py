"""Indices of pairs, against definitions in plain Python."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefuse import _prefuse, curate
from prefuse._backends.arrays import capsule_of_numpy

SMALL = st.lists(st.tuples(st.integers(-3, 4), st.integers(0, 5)), max_size=40)


def groups_of(groups, scores):
    """Indices by group id, best first."""
    return [
        sorted((i for i, g in enumerate(groups) if g == group), key=lambda i: (-scores[i], i))
        for group in sorted(set(groups))
    ]


def columns(rows):
    groups, scores = (list(column) for column in zip(*rows, strict=True)) if rows else ([], [])
    return groups, [0.25 * score for score in scores]


def listed(pairs):
    return list(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True))


def arrays(groups, scores):
    return np.array(scores, np.float64), np.array(groups, np.int64)


def apart(scores, pairs, gap):
    return [(a, b) for a, b in pairs if scores[a] > scores[b] and scores[a] - scores[b] >= gap]


@settings(max_examples=150, deadline=None)
@given(SMALL, st.sampled_from([0.0, 0.25, 0.5]))
def test_pairs_are_those_of_the_definition(rows, gap):
    groups, scores = columns(rows)
    found = groups_of(groups, scores)
    given_arrays = arrays(groups, scores)
    every = [pair for group in found for pair in itertools.combinations(group, 2)]
    assert listed(curate.all_pairs_indices(*given_arrays, min_gap=gap)) == apart(scores, every, gap)
    ends = [(group[0], group[-1]) for group in found]
    assert listed(curate.best_versus_worst_indices(*given_arrays, min_gap=gap)) == apart(scores, ends, gap)
    each = [(group[0], other) for group in found for other in group[:0:-1]]
    assert listed(curate.best_versus_each_indices(*given_arrays, min_gap=gap)) == apart(scores, each, gap)
    halves = [(group[: len(group) // 2], group[len(group) - len(group) // 2 :]) for group in found]
    crossed = [pair for upper, lower in halves for pair in itertools.product(upper, lower)]
    assert listed(curate.upper_versus_lower_indices(*given_arrays, min_gap=gap)) == apart(scores, crossed, gap)


@settings(max_examples=100, deadline=None)
@given(SMALL)
def test_ranking_is_a_permutation_in_order(rows):
    groups, scores = columns(rows)
    order, offsets = curate.rank_within_groups(*arrays(groups, scores))
    assert order.tolist() == [index for group in groups_of(groups, scores) for index in group]
    assert offsets[0] == 0
    assert offsets[-1] == len(rows)
    assert (np.diff(offsets) >= 0).all()


def test_many_groups_agree_with_numpy():
    rng = np.random.default_rng(0)
    groups, scores = rng.integers(0, 7000, 60_000), rng.integers(0, 9, 60_000) / 2.0
    order, offsets = curate.rank_within_groups(scores, groups)
    np.testing.assert_array_equal(order, np.lexsort((-scores, groups)))
    np.testing.assert_array_equal(np.diff(offsets), np.bincount(groups))
    pairs = curate.all_pairs_indices(scores, groups, min_gap=1.0)
    assert (groups[pairs.chosen] == groups[pairs.rejected]).all()
    gap = scores[:, None]
    expected = sum(
        int((gap[members] - scores[members] >= 1.0).sum()) for members in np.split(order, offsets[1:-1]) if len(members)
    )
    assert len(pairs.chosen) == expected


@pytest.mark.parametrize("ids", [[10**12, -5, 10**12, -5], [3, 1, 3, 1]])
def test_ids_are_any_integers(ids):
    pairs = curate.best_versus_worst_indices(np.array([1.0, 2.0, 3.0, 4.0]), np.array(ids))
    assert listed(pairs) == [(3, 1), (2, 0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_tensors_in_tensors_out(dtype):
    pairs = curate.all_pairs_indices(torch.tensor([1, 3, 2]).to(dtype), torch.zeros(3, dtype=torch.int32))
    assert listed(pairs) == [(1, 2), (1, 0), (2, 0)]
    assert pairs.chosen.dtype == torch.int64


def test_strided_and_read_only_arrays():
    scores = np.broadcast_to(np.array([2.0]), (4,))
    assert listed(curate.all_pairs_indices(scores, np.zeros(4, np.int64))) == []
    pairs = curate.all_pairs_indices(np.arange(8.0)[::-2], np.zeros(8, np.int64)[::2])
    assert listed(pairs) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


@pytest.mark.parametrize(
    ("scores", "groups", "error", "message"),
    [
        ([1.0, float("nan")], [0, 0], ValueError, r"^scores: nan at \[1\], expected finite numbers"),
        ([1.0, 2.0], [0], ValueError, r"^groups: expected shape \(2,\), like scores, got \(1,\)"),
        ([[1.0, 2.0]], [[0, 0]], ValueError, r"^scores: expected shape \(N,\), got \(1, 2\)"),
        ([1.0, 2.0], [0.0, 1.0], TypeError, "^groups: expected integers, got dtype float64"),
        (["a", "b"], [0, 0], TypeError, "^scores: expected numbers"),
    ],
)
def test_bad_arrays_are_named(scores, groups, error, message):
    with pytest.raises(error, match=message):
        curate.rank_within_groups(np.array(scores), np.array(groups))


@pytest.mark.parametrize("gap", [-1.0, float("nan")])
def test_a_gap_is_no_less_than_zero(gap):
    with pytest.raises(ValueError, match=r"^min_gap: expected a number >= 0"):
        curate.all_pairs_indices(np.array([1.0]), np.array([0]), min_gap=gap)


def test_read_only_arrays_are_welcome():
    scores = np.array([1.0, 2.0])
    scores.flags.writeable = False
    assert listed(curate.best_versus_worst_indices(scores, np.zeros(2, np.int64))) == [(1, 0)]


ARRAYS = {
    "floats": np.zeros(2),
    "zeros": np.zeros(2, np.int64),
    "out": np.zeros(2, np.int64),
    "long": np.zeros(3, np.int64),
    "one": np.array([0, 1]),
    "two": np.array([0, 2]),
}


@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [
        ("curate_rank", ["floats", "two", "long", "out", 1], ValueError, "groups: 2 at 1 is no group"),
        (
            "curate_rank",
            ["zeros", "zeros", "long", "out", 1],
            TypeError,
            "scores: expected a contiguous f64 array, got i64",
        ),
        ("curate_ends", ["floats", "zeros", "out", "long"], ValueError, "worst: expected 2 values, got 3"),
        (
            "curate_first_beaten",
            ["floats", "zeros", "one", 0.0, "out"],
            ValueError,
            "offsets: expected to rise from 0 to 2",
        ),
        ("curate_first_beaten", ["floats", "two", "two", 0.0, "out"], ValueError, "order: 2, expected 0 to 1"),
        (
            "curate_pairs",
            ["zeros", "two", "zeros", "out", "long", 1],
            ValueError,
            "first: 0 at 0, expected a later place",
        ),
    ],
)
def test_the_extension_trusts_nobody(function, arguments, error, message):
    given = [capsule_of_numpy(ARRAYS[argument]) if isinstance(argument, str) else argument for argument in arguments]
    with pytest.raises(error, match=message):
        getattr(_prefuse, function)(*given)
