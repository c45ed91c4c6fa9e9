"""Weights of the steps of a response, for `tpo_tree`. Plain PyTorch."""

from __future__ import annotations

import torch


def cosine_step_weights(
    hidden: torch.Tensor, step_start: torch.Tensor, mask: torch.Tensor, best: torch.Tensor
) -> torch.Tensor:
    """Return ``1 + cos(e_k, e*_k)`` at every token of step k, [R, T]: TPO's adaptive step reward (arXiv:2410.12854).

    As in the authors' code; the paper compares the two responses of each pair.

    e_k is the mean hidden state of the response's step k, e*_k that of the same step of the best response to its
    prompt. A step that the best response does not have weighs 1. The gradient reaches the hidden states; detach them
    for constant weights.

    Args:
        hidden: last hidden states, [R, T, H].
        step_start: true where a step begins, [R, T], as `tpo_tree` takes it.
        mask: true where a token counts, [R, T].
        best: index of the best response to the same prompt, for each response, [R].

    Raises:
        ValueError: the shapes do not fit each other.
    """
    if step_start.shape != hidden.shape[:2] or mask.shape != hidden.shape[:2] or best.shape != hidden.shape[:1]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (hidden, step_start, mask, best))
        raise ValueError(f"hidden, step_start, mask, best: expected [R, T, H], [R, T], [R, T] and [R], got {shapes}")
    kept = mask.bool()
    step = ((step_start.bool() & kept).cumsum(1) - 1).clamp(min=0)
    means = _step_means(torch.where(kept[..., None], hidden, 0.0), step, kept)
    cosine = torch.nn.functional.cosine_similarity(means, means[best], dim=-1)
    return torch.where(kept, 1.0 + cosine.gather(1, step), 0.0)


def _step_means(hidden: torch.Tensor, step: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Mean hidden state of every step, [R, T, H]; 0 for steps that a response does not have."""
    index = step[..., None].expand_as(hidden)
    totals = torch.zeros_like(hidden).scatter_add(1, index, hidden)
    counts = torch.zeros_like(kept, dtype=hidden.dtype).scatter_add(1, step, kept.to(hidden.dtype))
    return totals / counts.clamp(min=1.0)[..., None]
