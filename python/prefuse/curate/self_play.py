"""Win rates of responses against each other, for preferences that no reward explains."""

from __future__ import annotations

import numpy as np

from ._numbers import Array, like, probabilities
from ._rows import Rows, hooked, table
from .ranking import positions_within, ranked
from .rejection import Judge


def win_rates(preferences: Array, *, include_self: bool = False) -> Array:
    """The reward of self-play preference optimization, SPO (Swamy et al. 2024, arXiv:2401.04056).

    ``r_i = 1/(K-1) Σ_{j≠i} P(i ≻ j)``: how often response i beats the others to the same prompt. Feed it to any
    policy-gradient objective.

    Args:
        preferences: P[i, j], the probability that i beats j, [..., K, K] with K >= 2; the diagonal is not read.
        include_self: count ½ against itself too, and divide by K, as the expectation over the policy does.

    Returns:
        In [0, 1], [..., K].

    Raises:
        ValueError: the shape is no square, or ``P[i, j] + P[j, i]`` is not 1.
    """
    matrix = probabilities("preferences", preferences)
    size = matrix.shape[-1] if matrix.ndim else 0
    if matrix.ndim < 2 or matrix.shape[-2] != size or size < 2:
        raise ValueError(f"preferences: expected shape (..., K, K) with K >= 2, got {matrix.shape}")
    off_diagonal = ~np.eye(size, dtype=bool)
    wrong = np.argwhere((np.abs(matrix + matrix.swapaxes(-1, -2) - 1.0) > 1e-4) & off_diagonal)
    if len(wrong):
        raise ValueError(f"preferences: P[i, j] + P[j, i] is not 1 at {wrong[0].tolist()}")
    wins = np.where(off_diagonal, matrix, 0.5 if include_self else 0.0).sum(-1)
    return like(preferences, wins / (size if include_self else size - 1))


def add_win_rates(
    rows: Rows, judge: Judge, *, prompt: str = "prompt", win_prob: str = "win_prob", include_self: bool = False
) -> Rows:
    """Add each response's win rate against the others to its prompt, every two judged once.

    Args:
        rows: one per response; every prompt needs two or more.
        judge: given the rows of all first responses and those of all second ones, the probability that the first wins.
        prompt: the column of the prompt.
        win_prob: the column to put the rates in, as the objectives `dno`, `egpo`, `psi_po` and `sppo` read it.
        include_self: as in `win_rates`.
    """
    given = table(rows)
    ids = given.group_ids(prompt)
    order, offsets = ranked(np.zeros(len(ids)), ids)
    sizes = np.diff(offsets)
    if (sizes == 1).any():
        alone = int(order[offsets[:-1][sizes == 1][0]])
        raise ValueError(f"{prompt}: expected two responses or more to each prompt, got one, in row {alone}")
    after = np.repeat(sizes, sizes) - 1 - positions_within(offsets)
    first = np.repeat(np.arange(len(order)), after)
    second = first + 1 + positions_within(np.concatenate([[0], np.cumsum(after)]))
    asked = given.selected(order[first]), given.selected(order[second])
    wins = probabilities("judge", hooked("judge", judge, len(first), *asked))
    totals = np.bincount(order[first], weights=wins, minlength=len(ids))
    totals = totals + np.bincount(order[second], weights=1.0 - wins, minlength=len(ids))
    played = sizes[ids] - 1.0 if len(ids) else totals
    rates = (totals + 0.5) / (played + 1.0) if include_self else totals / np.maximum(played, 1.0)
    return given.with_columns({win_prob: rates})
