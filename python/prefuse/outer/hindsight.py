"""OPPO's losses on trajectory embeddings: hindsight matching and preference (arXiv:2305.16217)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import triplet_margin_loss


def hindsight_matching_loss(predicted: Tensor, actions: Tensor, mask: Tensor | None = None) -> Tensor:
    """Squared error of the actions that a policy reconstructs from a trajectory's own embedding.

    Kang et al. 2023, OPPO, arXiv:2305.16217, eq. 3: the policy is conditioned on ``z = encoder(trajectory)``.

    Args:
        predicted: π(state, z), [R, T, A].
        actions: those taken, [R, T, A].
        mask: [R, T], true where a step counts; None: all do.

    Returns:
        The mean over the entries of the steps that count.

    Raises:
        ValueError: shapes that do not fit.
    """
    if predicted.shape != actions.shape:
        raise ValueError(
            f"predicted: expected the shape of actions, {tuple(actions.shape)}, got {tuple(predicted.shape)}"
        )
    if mask is None:
        return (predicted - actions).square().mean()
    if mask.shape != actions.shape[:2]:
        raise ValueError(f"mask: expected shape {tuple(actions.shape[:2])}, got {tuple(mask.shape)}")
    return (predicted - actions)[mask.bool()].square().mean()


def hindsight_preference_loss(optimum: Tensor, preferred: Tensor, other: Tensor, *, margin: float = 1.0) -> Tensor:
    """Triplet loss that draws the optimal embedding to preferred trajectories (Kang et al. 2023, arXiv:2305.16217).

    ``mean max(0, ‖z* - z⁺‖ - ‖z* - z⁻‖ + margin)``. OPPO takes it twice: with z* held, to shape the encoder; with the
    embeddings held (``.detach()``), to move z*.

    Args:
        optimum: z*, [D] or [R, D].
        preferred: z⁺, embeddings of the preferred trajectories, [R, D].
        other: z⁻, [R, D].
        margin: 1 in the authors' code.

    Raises:
        ValueError: shapes that do not fit.
    """
    if preferred.shape != other.shape or preferred.shape[-1:] != optimum.shape[-1:]:
        shapes = tuple(tuple(z.shape) for z in (optimum, preferred, other))
        raise ValueError(f"optimum, preferred, other: expected [D] or [R, D], [R, D], [R, D]; got {shapes}")
    return triplet_margin_loss(optimum.expand_as(preferred), preferred, other, margin=margin)


def unit_norm_penalty(*embeddings: Tensor) -> Tensor:
    """``Σ mean (‖z‖ - 1)²`` over the tensors given, [..., D] each: what keeps OPPO's embeddings from collapsing."""
    return torch.stack([(z.norm(dim=-1) - 1.0).square().mean() for z in embeddings]).sum()


def oppo_loss(
    matching: Tensor, optimum: Tensor, preferred: Tensor, other: Tensor, *, weight: float = 0.1, margin: float = 1.0
) -> Tensor:
    """The loss of OPPO's encoder and policy, with the weights of the authors' code.

    ``matching + w preference + w Σ (‖z‖ - 1)²``; move z* by `hindsight_preference_loss` afterwards, the embeddings
    detached.

    Args:
        matching: `hindsight_matching_loss` over both trajectories.
        optimum, preferred, other, margin: as in `hindsight_preference_loss`; the optimum is held here.
        weight: w, 0.1.
    """
    held = optimum.detach()
    preference = hindsight_preference_loss(held, preferred, other, margin=margin)
    return matching + weight * (preference + unit_norm_penalty(held, preferred, other))
