"""Descent from rankings alone: ZO-RankSGD (arXiv:2303.03751)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._weights import check_count

Oracle = Callable[[Tensor], Tensor]


def rank_gradient(directions: Tensor, ranking: Tensor) -> Tensor:
    """A gradient estimate from a partial ranking of perturbed points (Tang et al. 2023, arXiv:2303.03751, eq. 5).

    ``1/|E| Σ (ξ_j - ξ_i)`` over the pairs E in which i is known to be better than j: the ranked among each other, and
    every ranked one before every other. Its negative leads to better points.

    Args:
        directions: ξ, [m, ...], normal as a rule.
        ranking: indices of the best k, best first, [k], with 1 ≤ k ≤ m.

    Returns:
        The estimate, shaped like one direction. Its length is that of directions, not of the objective's gradient.

    Raises:
        ValueError: indices that repeat, do not exist, or rank nothing.
    """
    count, ranked = len(directions), len(ranking)
    indices = ranking.tolist()
    if len(set(indices)) != ranked or not all(0 <= index < count for index in indices):
        raise ValueError(f"ranking: expected different indices in [0, {count}), got {indices}")
    edges = ranked * (ranked - 1) // 2 + ranked * (count - ranked)
    if edges == 0:
        raise ValueError(f"ranking: {ranked} of {count} directions ranked compares nothing with anything")
    # Each direction counts by how many it lost against less how many it won.
    weights = torch.full((count,), float(ranked), dtype=directions.dtype, device=directions.device)
    places = torch.arange(ranked, dtype=directions.dtype, device=directions.device)
    weights[ranking] = 2 * places - (count - 1)
    total: Tensor = torch.tensordot(weights, directions, dims=1)
    return total / edges


def rank_descent_step(
    x: Tensor,
    rank: Oracle,
    *,
    step: float,
    samples: int = 10,
    smoothing: float = 0.01,
    line_search: int = 1,
    shrink: float = 0.5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """One step of ZO-RankSGD: perturb, have the points ranked, step against `rank_gradient`, search along it.

    Args:
        x: the point: a latent, a soft prompt, or parameters as one vector
            (``torch.nn.utils.parameters_to_vector``).
        rank: given candidates [n, *x.shape], the indices of the best of them, best first; all or only some.
        step: η, the largest step.
        samples: m, perturbed points to rank, at least 2.
        smoothing: μ, the size of the perturbations.
        line_search: candidates ``x - η γ^j ĝ``, j = 0, 1, …, of which the oracle's best becomes the new point; 1: no
            search.
        shrink: γ in (0, 1).
        generator: of the perturbations.

    Returns:
        The new point.

    Raises:
        ValueError: too few samples or candidates, or what `rank_gradient` says of the oracle's ranking.
    """
    check_count("samples", samples, 2)
    check_count("line_search", line_search)
    shape = (samples, *x.shape)
    directions = torch.randn(shape, dtype=x.dtype, device=x.device, generator=generator)
    gradient = rank_gradient(directions, rank(x + smoothing * directions))
    lengths = step * shrink ** torch.arange(line_search, dtype=x.dtype, device=x.device)
    candidates = torch.stack([x - length * gradient for length in lengths])
    return candidates[0] if line_search == 1 else candidates[int(rank(candidates)[0])]
