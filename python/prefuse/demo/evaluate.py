"""What the demo measures on held-out pairs, and how sure the figure is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefuse.language import Objective

from .batches import Batch
from .scored import Scored, margins, share_above

_NORMAL_95 = 1.959963984540054


@dataclass(frozen=True)
class HeldOut:
    """Held-out figures of one model.

    Attributes:
        pairs: how many pairs they are of.
        accuracy: share of pairs whose chosen response has the higher reward, a tie counting one half.
        interval: the 95 % Wilson interval of `accuracy`.
        margin: mean of reward(chosen) − reward(rejected).
        preferred: share of pairs whose chosen response has the higher log-probability.
        chosen_logp: mean log-probability of a chosen response, in nats.
        rejected_logp: the same of a rejected one.
    """

    pairs: int
    accuracy: float
    interval: tuple[float, float]
    margin: float
    preferred: float
    chosen_logp: float
    rejected_logp: float


def wilson(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a binomial share (Wilson 1927)."""
    spread = _NORMAL_95**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = _NORMAL_95 / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, centre - half), min(1.0, centre + half)


@torch.no_grad()
def held_out(objective: Objective, score: Callable[[Batch], Scored], batches: Sequence[Batch]) -> HeldOut:
    """Rewards and log-probabilities of the policy on held-out pairs.

    The rewards are the objective's own; of an objective that has none for both responses, the log-ratios to the model
    before preference training. `score` is a pass of policy and reference over a batch.
    """
    differences, chosen_logps, rejected_logps = (
        torch.cat(parts) for parts in zip(*(_figures(objective, score, batch) for batch in batches), strict=True)
    )
    accuracy = share_above(differences)
    return HeldOut(
        pairs=len(differences),
        accuracy=accuracy,
        interval=wilson(accuracy, len(differences)),
        margin=differences.mean().item(),
        preferred=share_above(chosen_logps - rejected_logps),
        chosen_logp=chosen_logps.mean().item(),
        rejected_logp=rejected_logps.mean().item(),
    )


def _figures(objective: Objective, score: Callable[[Batch], Scored], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Reward margins and log-probabilities of chosen and rejected responses, [B] each."""
    scored = score(batch)
    found = margins(objective, scored, batch)
    return found, scored.logps[: batch.pairs], scored.logps[batch.pairs : 2 * batch.pairs]
