"""Extrapolating from the last iterate to this one, in weights or in logits (Accelerated PO, arXiv:2410.06293)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ._weights import check_alike


def extrapolate_weights(
    current: Mapping[str, Tensor], previous: Mapping[str, Tensor], *, alpha: float = 0.3
) -> dict[str, Tensor]:
    """Nesterov's step between two iterates' weights (He et al. 2024, arXiv:2410.06293, algorithm 1).

    ``θ = θ̂_{t+1} + α (θ̂_{t+1} - θ̂_t)``. For policies whose logits are linear in the weights it is the paper's step on
    distributions, `extrapolate_logps`; for others it stands in for it.

    Args:
        current: θ̂_{t+1} by name: what the last round trained, before any extrapolation.
        previous: θ̂_t, likewise. Not the extrapolated policy that the round began with: the paper found that less
            stable.
        alpha: α, 0.1-0.6 in the paper; 0 is iterative training without acceleration. Where one round is all there is,
            this is ExPO's weight extrapolation (arXiv:2404.16792) with the initial model as `previous`.

    Returns:
        New tensors by name, 16-bit ones computed in float32 and rounded once. What is not floating point is taken from
        `current`.

    Raises:
        ValueError: names or shapes differ.
    """
    check_alike(current, previous, ("current", "previous"))
    return {
        name: _step(weight, previous[name], alpha) if weight.is_floating_point() else weight.clone()
        for name, weight in current.items()
    }


def _step(current: Tensor, previous: Tensor, alpha: float) -> Tensor:
    """``current + α (current - previous)``, rounded once."""
    wide = current.to(torch.promote_types(current.dtype, torch.float32))
    return (wide + alpha * (wide - previous.to(wide))).to(current.dtype)


def extrapolate_logps(current: Tensor, previous: Tensor, *, alpha: float = 0.3) -> Tensor:
    """Nesterov's step between two policies' distributions, exactly (He et al. 2024, arXiv:2410.06293, eq. 4.2).

    ``log π = log π̂_{t+1} + α (log π̂_{t+1} - log π̂_t)``, normalised.

    Args:
        current: logits or log-probabilities [..., V] of the newer policy.
        previous: those of the older one, [..., V].
        alpha: α.

    Returns:
        Log-probabilities [..., V], of 16-bit ones in float32.

    Raises:
        ValueError: the shapes differ.
    """
    if current.shape != previous.shape:
        raise ValueError(f"previous: expected shape {tuple(current.shape)}, got {tuple(previous.shape)}")
    dtype = torch.promote_types(current.dtype, torch.float32)
    newer, older = (torch.log_softmax(logits, -1, dtype=dtype) for logits in (current, previous))
    return torch.log_softmax(newer + alpha * (newer - older), -1)
