"""Weights of pairs that come from several kinds of people: of groups that are known, or of types that are inferred.

Plain PyTorch, for the loop around `group_robust_dpo` and `em_dpo`; nothing here takes a gradient.
"""

from __future__ import annotations

import torch


def group_weights(
    weights: torch.Tensor, losses: torch.Tensor, groups: torch.Tensor, *, step_size: float = 0.01
) -> torch.Tensor:
    """Return the weights α [G] of annotators' groups after one step, ``α_g ∝ α_g e^{η ℓ_g}`` (arXiv:2405.20304).

    ℓ_g is the mean loss of the group's pairs in the batch, 0 where it has none. `group_robust_dpo` takes α_g over the
    group's share of the data as the column ``group_weight`` of each of its pairs.

    Args:
        weights: α before, [G], positive.
        losses: unweighted loss of each pair, [B].
        groups: index of each pair's group, [B], in [0, G).
        step_size: η, 1e-3-1.

    Raises:
        ValueError: losses and groups differ in shape.
    """
    if losses.shape != groups.shape:
        raise ValueError(f"groups: expected shape {tuple(losses.shape)}, got {tuple(groups.shape)}")
    totals = torch.zeros_like(weights).index_add_(0, groups, losses.detach().to(weights.dtype))
    counts = torch.zeros_like(weights).index_add_(0, groups, torch.ones_like(losses, dtype=weights.dtype))
    return torch.softmax(weights.log() + step_size * totals / counts.clamp(min=1.0), 0)


def responsibilities(
    margins: torch.Tensor, annotators: torch.Tensor, prior: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return how likely each annotator is of each type, [A, Z], and the prior that follows, [Z] (arXiv:2405.15065).

    The E step of EM-DPO: ``γ_az ∝ η_z Π σ(β Δ_z)`` over the pairs of annotator a, with each type's own policy.
    `em_dpo` takes ``γ[annotators, z]`` as the column ``responsibility`` when it trains the policy of type z.

    Args:
        margins: the logits βΔ of every pair under the policy of every type, [B, Z].
        annotators: index of each pair's annotator, [B].
        prior: η, the share of each type, [Z].

    Raises:
        ValueError: the shapes do not fit each other.
    """
    if annotators.shape != margins.shape[:1] or prior.shape != margins.shape[1:]:
        expected = f"{tuple(margins.shape[:1])} and {tuple(margins.shape[1:])}"
        got = f"{tuple(annotators.shape)} and {tuple(prior.shape)}"
        raise ValueError(f"annotators and prior: expected shapes {expected}, got {got}")
    evidence = prior.log().expand(int(annotators.max()) + 1, -1).clone()
    evidence.index_add_(0, annotators, torch.nn.functional.logsigmoid(margins.detach()).to(evidence.dtype))
    found = torch.softmax(evidence, 1)
    return found, found.mean(0)
