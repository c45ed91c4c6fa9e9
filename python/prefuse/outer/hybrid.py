"""HyPO: DPO on offline pairs, and the KL to the reference from fresh samples (arXiv:2406.01462)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch

import prefuse.objectives as objectives
from prefuse.language import Score

B = TypeVar("B")


def hypo_loss(
    pairs: Mapping[str, Any], samples: Mapping[str, Any], *, beta: float = 0.1, weight: float = 1e-4
) -> tuple[Any, Score]:
    """Hybrid preference optimization's loss (Song et al. 2024, arXiv:2406.01462, algorithm 1).

    DPO on the pairs plus an estimate of ``λ KL(π‖π_ref)`` whose gradient is REINFORCE's with a leave-one-out baseline.

    Args:
        pairs: columns of `prefuse.objectives.dpo` from the data.
        samples: columns of `prefuse.objectives.hypo_kl` from the policy: ``logps`` and ``ref_logps`` [R] of at least
            two responses to each prompt, sampled now, and ``groups`` [R].
        beta: of DPO, 0.05-0.1.
        weight: λ, about 1e-4.

    Returns:
        The loss to call ``backward()`` on, and the pairs' own `Score`. The second term's value means nothing.
    """
    offline = objectives.dpo(**pairs, beta=beta)
    online = objectives.hypo_kl(**samples, weight=weight)
    return offline.loss + online.loss, offline


def hypo_steps(
    optimizer: torch.optim.Optimizer,
    batches: Iterable[B],
    pairs: Callable[[B], Mapping[str, Any]],
    samples: Callable[[B], Mapping[str, Any]],
    *,
    beta: float = 0.1,
    weight: float = 1e-4,
) -> Iterator[Score]:
    """HyPO's loop, one step per batch as the caller iterates.

    Args:
        optimizer: over the policy's parameters.
        batches: of the offline data.
        pairs: the columns of a batch's pairs, see `hypo_loss`.
        samples: draws responses to a batch's prompts from the policy and gives their columns.
        beta, weight: of `hypo_loss`.

    Yields:
        The pairs' `Score` before each step.
    """
    for batch in batches:
        optimizer.zero_grad()
        loss, offline = hypo_loss(pairs(batch), samples(batch), beta=beta, weight=weight)
        loss.backward()
        optimizer.step()
        yield offline
