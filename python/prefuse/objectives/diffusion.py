"""Objectives of diffusion models: pair objectives on denoising errors or on the log-probabilities of denoising steps.

`denoising_error` and `gaussian_log_prob` reduce a model's outputs to one number per sample, as a gather does for text;
they are plain PyTorch.
"""

from __future__ import annotations

import math

import torch

from ..language import (
    Expression,
    PairView,
    ResponseView,
    clamp,
    log1p,
    log_sigmoid,
    pair_objective,
    stop_gradient,
    where,
)
from ._terms import POSITIVE

Rewards = dict[str, Expression]


@pair_objective(bounds={"beta": POSITIVE})
def diffusion_dpo(pair: PairView, *, beta: float = 2500.0) -> tuple[Expression, Rewards]:
    """Diffusion-DPO (Wallace et al. 2023, arXiv:2311.12908, eq. 14).

    ``-log σ( -b [ d(w) - d(l) ] )``, ``d(y) = ‖ε - ε_θ(y_t, t)‖² - ‖ε - ε_ref(y_t, t)‖²``, both samples noised to the
    same step t.

    Columns: ``chosen_error``, ``rejected_error`` (`denoising_error` of the model), ``chosen_ref_error``,
    ``rejected_ref_error``.

    beta: b, the product β T ω(λ_t), one number or one per pair.
    Libraries: the authors' code takes means over dimensions and b = β/2 with β = 5000; this default.
    Paper: Diffusion Model Alignment Using Direct Preference Optimization.
    """
    chosen, rejected = regression(pair.chosen), regression(pair.rejected)
    return -log_sigmoid(beta * (rejected - chosen)), {"chosen": -beta * chosen, "rejected": -beta * rejected}


def regression(response: ResponseView) -> Expression:
    """How much larger the model's error is than the reference's."""
    return response["error"] - stop_gradient(response["ref_error"])


@pair_objective(bounds={"beta": POSITIVE})
def seppo(pair: PairView, *, beta: float = 2500.0) -> Expression:
    """Semi-policy preference optimization, SePPO (Zhang et al. 2024, arXiv:2410.05255, eqs. 7 and 8), as reconstructed.

    ``-log σ( -b [ d(w) - s d(l) ] )`` with d as in `diffusion_dpo`: the rejected sample is drawn from an earlier
    checkpoint, which is the reference as well. ``s = 1`` where the model's error on the chosen sample is below the
    checkpoint's (d(w) < 0), else -1: then both samples are pulled in.

    Columns and beta: those of `diffusion_dpo`.
    Paper: SePPO: Semi-Policy Preference Optimization for Diffusion Alignment.
    """
    chosen, rejected = regression(pair.chosen), regression(pair.rejected)
    sign = where(stop_gradient(chosen) < 0.0, 1.0, -1.0)
    return -log_sigmoid(beta * (sign * rejected - chosen))


@pair_objective(bounds={"beta": POSITIVE, "clip": "(0, 1)"})
def d3po(pair: PairView, *, beta: float = 0.1, clip: float | None = None) -> Expression:
    """Denoising diffusion policy optimization from preferences, D3PO (Yang et al. 2023, arXiv:2311.13231).

    ``-log σ(β h(w) - β h(l))`` for one denoising step of two trajectories: each pair of steps is a pair here, with the
    step's log-probabilities (`gaussian_log_prob`) as ``chosen_logps`` and so on.

    beta: 0.1. clip: limits the ratios π/π_ref to 1 ± this first, with gradient 0 outside; 0.1 in the authors' code,
    whose log-probabilities are means over dimensions; the paper has no limit.
    Paper: Using Human Feedback to Fine-tune Diffusion Models without Any Reward Model.
    Identities: `d3po = dpo`.
    """
    h = [pair.response(role).logratio for role in ("chosen", "rejected")]
    if clip is not None:
        h = [clamp(ratio, log1p(-clip), log1p(clip)) for ratio in h]
    return -log_sigmoid(beta * (h[0] - h[1]))


def denoising_error(predicted: torch.Tensor, noise: torch.Tensor, *, mean: bool = True) -> torch.Tensor:
    """Squared error of predicted noise, one number per sample [B] from [B, …].

    Args:
        predicted: ε_θ(x_t, t).
        noise: the noise ε that was added.
        mean: average over the dimensions of a sample (as the authors of Diffusion-DPO do) rather than sum.

    Raises:
        ValueError: the two differ in shape.
    """
    if predicted.shape != noise.shape:
        raise ValueError(f"noise: expected the shape of predicted, {tuple(predicted.shape)}, got {tuple(noise.shape)}")
    squares = (predicted.float() - noise.float()).square().flatten(1)
    return squares.mean(1) if mean else squares.sum(1)


def gaussian_log_prob(
    sample: torch.Tensor, mean: torch.Tensor, std: torch.Tensor | float, *, average: bool = False
) -> torch.Tensor:
    """Log-density of a denoising step, one number per sample [B], in nats.

    ``Σ_d [ -(x - μ)²/(2σ²) - log σ - ½ log 2π ]`` over the dimensions d.

    Args:
        sample: x_{t-1}, [B, …].
        mean: μ, what the model predicts for it, of the same shape.
        std: σ > 0, a number or a tensor that broadcasts to them.
        average: take the mean over dimensions (as D3PO's code does) rather than the sum.

    Raises:
        ValueError: sample and mean differ in shape.
    """
    if sample.shape != mean.shape:
        raise ValueError(f"mean: expected the shape of sample, {tuple(sample.shape)}, got {tuple(mean.shape)}")
    sigma = torch.as_tensor(std, device=mean.device, dtype=mean.dtype)
    density = -(sample - mean).square() / (2.0 * sigma.square()) - sigma.log() - 0.5 * math.log(2.0 * math.pi)
    flat = density.flatten(1)
    return flat.mean(1) if average else flat.sum(1)
