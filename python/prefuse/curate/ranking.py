"""Which responses to pair, as indices: scores and group ids in, for a million responses as well as for ten.

A group is the responses to one prompt; ids are any integers, in any order. The result lists groups by ascending id.
Within a group responses are ranked by descending score, equal scores in the order they came in: so the best is the
first of the best, the worst the last of the worst. Equal scores are never a pair.

Scores are NumPy arrays or torch tensors [N], and so are the indices that come back (int64).
"""

from __future__ import annotations

from typing import Any, Generic, NamedTuple

import numpy as np
import torch

import prefuse._prefuse as _prefuse
from prefuse._backends.arrays import capsule_of_numpy as capsule

from ._numbers import Array, at_least, floats, integers, like
from ._rows import Floats, Indices


class Ranking(NamedTuple, Generic[Array]):
    """Responses by group and rank.

    Attributes:
        order: indices of all responses, group after group, best first, [N].
        offsets: group k is ``order[offsets[k]:offsets[k + 1]]``, [G + 1].
    """

    order: Array
    offsets: Array


class Pairs(NamedTuple, Generic[Array]):
    """Indices of the two sides of each pair, both [P]."""

    chosen: Array
    rejected: Array


def rank_within_groups(scores: Array, groups: Array) -> Ranking[Array]:
    """Rank responses within their groups; ValueError where scores are not finite or the shapes differ."""
    order, offsets = _ranked(scores, groups)[1:]
    return Ranking(like(scores, order), like(scores, offsets))


def best_versus_worst_indices(scores: Array, groups: Array, *, min_gap: float = 0.0) -> Pairs[Array]:
    """One pair per group, its best against its worst, where their scores differ by at least `min_gap`.

    Args:
        scores: of the responses, finite, [N].
        groups: one integer id per response, [N], in any order.
        min_gap: the least difference of two scores that makes a pair, in the scores' unit.
    """
    values, ids = checked(scores, groups)
    best, worst = np.empty((2, group_count(ids)), np.int64)
    _prefuse.curate_ends(capsule(values), capsule(ids), capsule(best), capsule(worst))
    filled = best >= 0
    return _kept(scores, values, best[filled], worst[filled], min_gap)


def best_versus_each_indices(scores: Array, groups: Array, *, min_gap: float = 0.0) -> Pairs[Array]:
    """The best of each group against every other, the worst first: from the easiest pair to the hardest.

    Arguments as for `best_versus_worst_indices`.
    """
    values, order, offsets = _ranked(scores, groups)
    sizes = np.diff(offsets)
    others = np.maximum(sizes - 1, 0)
    within = _within(others)
    chosen = np.repeat(offsets[:-1], others)
    rejected = np.repeat(offsets[1:] - 1, others) - within
    return _kept(scores, values, order[chosen], order[rejected], min_gap)


def all_pairs_indices(scores: Array, groups: Array, *, min_gap: float = 0.0) -> Pairs[Array]:
    """Every two responses of a group whose scores differ by at least `min_gap`, by rank of chosen, then of rejected.

    Arguments as for `best_versus_worst_indices`.
    """
    at_least("min_gap", min_gap, 0.0)
    values, order, offsets = _ranked(scores, groups)
    first = np.empty_like(order)
    count = _prefuse.curate_first_beaten(capsule(values), capsule(order), capsule(offsets), min_gap, capsule(first))
    chosen, rejected = np.empty(count, np.int64), np.empty(count, np.int64)
    _prefuse.curate_pairs(
        capsule(order), capsule(offsets), capsule(first), capsule(chosen), capsule(rejected), torch.get_num_threads()
    )
    return Pairs(like(scores, chosen), like(scores, rejected))


def upper_versus_lower_indices(scores: Array, groups: Array, *, min_gap: float = 0.0) -> Pairs[Array]:
    """Every response of a group's upper half against every one of its lower half; of an odd number the middle is left.

    The pairs of UPO (Wang et al. 2024, arXiv:2409.11212). Arguments as for `best_versus_worst_indices`.
    """
    values, order, offsets = _ranked(scores, groups)
    half = np.diff(offsets) // 2
    upper = np.repeat(offsets[:-1], half) + _within(half)
    lower = np.repeat(half, half)
    chosen = np.repeat(upper, lower)
    rejected = np.repeat(np.repeat(offsets[1:] - half, half), lower) + _within(lower)
    return _kept(scores, values, order[chosen], order[rejected], min_gap)


def ranked(values: Floats, ids: Indices) -> Ranking[Any]:
    """`rank_within_groups` of checked arrays; ids count from 0, and there is a group for each up to the largest."""
    order, offsets = np.empty(len(ids), np.int64), np.empty(group_count(ids) + 1, np.int64)
    _prefuse.curate_rank(capsule(values), capsule(ids), capsule(offsets), capsule(order), torch.get_num_threads())
    return Ranking(order, offsets)


def positions_within(offsets: Indices) -> Indices:
    """0, 1, … within each group."""
    return _within(np.diff(offsets))


def checked(scores: Any, groups: Any) -> tuple[Floats, Indices]:
    """Scores [N] as float64, and ids of their groups that leave few numbers out."""
    values, ids = floats("scores", scores), integers("groups", groups)
    if values.ndim != 1:
        raise ValueError(f"scores: expected shape (N,), got {values.shape}")
    if ids.shape != values.shape:
        raise ValueError(f"groups: expected shape {values.shape}, like scores, got {ids.shape}")
    return values, _dense(ids)


def group_count(ids: Indices) -> int:
    """One more than the largest id."""
    return int(ids.max(initial=-1)) + 1


def _ranked(scores: Any, groups: Any) -> tuple[Floats, Indices, Indices]:
    values, ids = checked(scores, groups)
    return values, *ranked(values, ids)


def _dense(ids: Indices) -> Indices:
    """The ids, renumbered by size if they leave many numbers out."""
    if not len(ids) or (ids.min() >= 0 and ids.max() <= 2 * len(ids)):
        return ids
    return np.unique(ids, return_inverse=True)[1].astype(np.int64)


def _within(sizes: Indices) -> Indices:
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)


def _kept(scores: Any, values: Floats, chosen: Indices, rejected: Indices, min_gap: float) -> Pairs[Any]:
    at_least("min_gap", min_gap, 0.0)
    gap = values[chosen] - values[rejected]
    kept = (gap > 0.0) & (gap >= min_gap)
    return Pairs(like(scores, chosen[kept]), like(scores, rejected[kept]))
