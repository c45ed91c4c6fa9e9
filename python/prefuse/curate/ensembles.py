"""Scores of several reward models as one, and best-of-n as a measure of what that is worth (arXiv:2310.02743)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from prefuse.objectives.advantages import ensemble_reward

from ._numbers import Array, count, floats, like
from ._rows import Rows, table


def ensemble_scores(
    rows: Rows,
    columns: Sequence[str],
    *,
    combine: str = "uncertainty",
    weight: float = 0.5,
    unbiased: bool = False,
    score: str = "score",
) -> Rows:
    """Combine the columns of several reward models into one (Coste et al. 2023, arXiv:2310.02743).

    Responses that one model likes and the others do not are the first that over-optimisation finds.

    Args:
        rows: one per response.
        columns: one per reward model.
        combine, weight, unbiased: as in `prefuse.objectives.advantages.ensemble_reward`: ``"mean"``, ``"worst"``, or
            ``"uncertainty"``, the mean less the weight times the variance.
        score: the column to put it in.
    """
    if not columns:
        raise ValueError("columns: expected the names of one column or more, got none")
    given = table(rows)
    opinions = torch.from_numpy(np.stack([given.numbers(column) for column in columns], axis=-1))
    combined = ensemble_reward(opinions, combine=combine, weight=weight, unbiased=unbiased)
    return given.with_columns({score: combined.numpy()})


def best_of_n(proxy: Array, gold: Any, n: int) -> Array:
    """The expected gold score of the best of n responses by proxy score, without bias, from N >= n samples.

    The mean over all choices of n of the N: with samples sorted by proxy, the i-th (from 1) is the best of
    ``C(i-1, n-1)`` of the ``C(N, n)`` (Coste et al. 2023, arXiv:2310.02743). Of equal proxies the later is the best.

    Args:
        proxy: the score that picks, [..., N].
        gold: the score that counts, [..., N].
        n: 1 to N.

    Returns:
        [...].
    """
    picks, counts = floats("proxy", proxy), floats("gold", gold)
    if picks.ndim == 0 or picks.shape != counts.shape:
        raise ValueError(f"gold: expected the shape of proxy, {picks.shape}, got {counts.shape}")
    size = picks.shape[-1]
    count("n", n)
    if n > size:
        raise ValueError(f"n: expected at most {size}, the number of samples, got {n}")
    order = np.argsort(picks, axis=-1, kind="stable")
    whole = math.comb(size, n)
    weights = np.array([math.comb(rank, n - 1) / whole for rank in range(size)])
    return like(proxy, (np.take_along_axis(counts, order, -1) * weights).sum(-1))


def best_of_n_kl(n: int) -> float:
    """KL of the best-of-n policy from the one it samples, in nats: at most ``log n - (n-1)/n``, which is reported."""
    count("n", n)
    return math.log(n) - (n - 1) / n
