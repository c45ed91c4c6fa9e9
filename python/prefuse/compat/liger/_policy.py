"""The arithmetic of Liger's GRPO losses on per-token log-probabilities, [B, T] numbers in plain PyTorch.

With ``r`` the importance ratio π/π_old, of each token or of the whole response, and A the response's advantage, a
token's loss is one of `TERMS` plus β times an estimate of KL(π‖π_ref); `REDUCTIONS` make one number of the tokens'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
LEVELS = ("token", "sequence")

_SOFT = ("sapo", "vespo")
"""Loss types that clip nothing."""

_LOG_SMALLEST, _LOG_LARGEST = math.log(1e-8), 20.0
"""Bounds of log-ratios in VESPO's weights."""


@dataclass(frozen=True)
class Settings:
    """The options of `LigerFusedLinearGRPOLoss` that its formulas read, under its names."""

    beta: float
    epsilon_low: float
    epsilon_high: float
    loss_type: str
    max_completion_length: int | None
    importance_sampling_level: str
    sapo_temperature_pos: float
    sapo_temperature_neg: float
    delta: float | None
    use_bias_correction_kl: bool
    vespo_k_pos: float
    vespo_lambda_pos: float
    vespo_k_neg: float
    vespo_lambda_neg: float

    @property
    def reads_padding(self) -> bool:
        """Whether the loss is of masked tokens too: Liger's "luspo" averages over all positions it has a value for."""
        return self.loss_type == "luspo" and (self.importance_sampling_level == "token" or self.beta != 0)


class Tokens(NamedTuple):
    """Per-token columns of a batch.

    Attributes:
        logps: [B, T], of the policy, with gradient.
        old_logps: [B, T], of the policy that sampled.
        ref_logps: [B, T], of the reference model.
        mask: [B, T] float, 0 at padding.
        advantages: [B, 1].
        correction: [B, T] or [B, 1], importance ratio of the sampler's numerics; None: 1.
        items: scored tokens of the whole step, over all processes; None: those of this batch.
    """

    logps: Tensor
    old_logps: Tensor
    ref_logps: Tensor
    mask: Tensor
    advantages: Tensor
    correction: Tensor | None
    items: Tensor | float | None

    @property
    def log_ratio(self) -> Tensor:
        """log π − log π_old, [B, T]."""
        return self.logps - self.old_logps


def policy_loss(settings: Settings, tokens: Tokens) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The loss and its metrics: the mean KL where β is not 0, then the share of clipped tokens; these detached."""
    log_weights = _pooled(settings, tokens)
    ratio = log_weights.exp()
    term = TERMS[settings.loss_type](settings, tokens, ratio)
    if tokens.correction is not None and settings.loss_type != "vespo":  # whose weights hold it already
        term = term * tokens.correction
    metrics = []
    if settings.beta != 0:
        kl = _kl(tokens) * (ratio if settings.use_bias_correction_kl else 1.0)
        term = term + settings.beta * kl
        metrics.append(_token_mean(kl, tokens))
    metrics.append(_token_mean(_clipped(settings, tokens, ratio), tokens))
    return REDUCTIONS[settings.loss_type](settings, tokens, term), tuple(metric.detach() for metric in metrics)


def _pooled(settings: Settings, tokens: Tokens) -> Tensor:
    """log r: of each token, [B, T], or the mean over each response, [B, 1] (GSPO)."""
    if settings.importance_sampling_level == "token":
        return tokens.log_ratio
    lengths = tokens.mask.sum(-1, keepdim=True).clamp(min=1)
    return (tokens.log_ratio * tokens.mask).sum(-1, keepdim=True) / lengths


def _kl(tokens: Tokens) -> Tensor:
    """KL(π‖π_ref), the estimator that is never negative: e^d − d − 1 with d = log π_ref − log π."""
    difference = tokens.ref_logps - tokens.logps
    return difference.exp() - difference - 1


def _clipped(settings: Settings, tokens: Tokens, ratio: Tensor) -> Tensor:
    """Where clipping takes the gradient away."""
    if settings.loss_type in _SOFT:
        return torch.zeros_like(ratio)
    if settings.loss_type == "cispo":
        return ((ratio > settings.epsilon_high) & (tokens.advantages > 0)).to(ratio.dtype)
    low = (ratio < 1 - settings.epsilon_low) & (tokens.advantages < 0)
    high = (ratio > 1 + settings.epsilon_high) & (tokens.advantages > 0)
    return (low | high).to(ratio.dtype)


# Terms: the loss of a token (or of a response, where ratios are pooled), without KL.


def _clipped_surrogate(settings: Settings, tokens: Tokens, ratio: Tensor) -> Tensor:
    """−min(r A, clip(r) A), with δ a second bound from above (two-sided clipping)."""
    clipped = ratio.clamp(1 - settings.epsilon_low, 1 + settings.epsilon_high)
    free = ratio if settings.delta is None else ratio.clamp(max=settings.delta)
    return -torch.minimum(free * tokens.advantages, clipped * tokens.advantages)


def _cispo(settings: Settings, tokens: Tokens, ratio: Tensor) -> Tensor:
    """−min(r, ε_high) A log π, the ratio without a gradient; ε_high is the bound itself."""
    return -ratio.clamp(max=settings.epsilon_high).detach() * tokens.advantages * tokens.logps


def _sapo(settings: Settings, tokens: Tokens, ratio: Tensor) -> Tensor:
    """−A (4/τ) σ(τ (r − 1)), τ by the sign of A."""
    positive, negative = (
        torch.sigmoid(tau * (ratio - 1)) * (4 / tau)
        for tau in (settings.sapo_temperature_pos, settings.sapo_temperature_neg)
    )
    return -tokens.advantages * torch.where(tokens.advantages > 0, positive, negative)


def _vespo(settings: Settings, tokens: Tokens, ratio: Tensor) -> Tensor:
    """−φ(w) A log π, w the ratio of the whole response, φ(w) = w^k e^{λ(1−w)} without a gradient."""
    with torch.no_grad():
        log_w = (tokens.log_ratio.clamp(-_LOG_LARGEST, _LOG_LARGEST) * tokens.mask).sum(-1, keepdim=True)
        if tokens.correction is not None:
            log_w = log_w + tokens.correction.log().clamp(_LOG_SMALLEST, _LOG_LARGEST).sum(-1, keepdim=True)
        log_w = log_w.clamp(_LOG_SMALLEST, _LOG_LARGEST)
        gains = tokens.advantages >= 0
        k = torch.where(gains, settings.vespo_k_pos, settings.vespo_k_neg)
        rate = torch.where(gains, settings.vespo_lambda_pos, settings.vespo_lambda_neg).clamp(min=1e-4)
        phi = (rate + k * log_w - rate * log_w.exp()).exp().nan_to_num(nan=0.0, posinf=0.0)
    return -phi * tokens.advantages * tokens.logps


TERMS: Mapping[str, Callable[[Settings, Tokens, Tensor], Tensor]] = dict.fromkeys(LOSS_TYPES, _clipped_surrogate) | {
    "cispo": _cispo,
    "sapo": _sapo,
    "vespo": _vespo,
}


# Reductions: from the tokens' losses to one number.


def _token_mean(values: Tensor, tokens: Tokens) -> Tensor:
    """The mean over the scored tokens of this batch."""
    return (values * tokens.mask).sum() / tokens.mask.sum().clamp(min=1)


def _batch_mean(settings: Settings, tokens: Tokens, term: Tensor) -> Tensor:
    return _token_mean(term, tokens)


def _response_mean(settings: Settings, tokens: Tokens, term: Tensor) -> Tensor:
    """The mean over responses of each one's mean over its tokens."""
    return ((term * tokens.mask).sum(-1) / tokens.mask.sum(-1).clamp(min=1)).mean()


def _longest_mean(settings: Settings, tokens: Tokens, term: Tensor) -> Tensor:
    """The sum over the tokens there could have been at most (Dr. GRPO)."""
    length = settings.max_completion_length or 0
    return (term * tokens.mask).sum() / (tokens.mask.shape[0] * length)


def _step_mean(settings: Settings, tokens: Tokens, term: Tensor) -> Tensor:
    """The sum over this process's share of the scored tokens of all processes (DAPO)."""
    return (term * tokens.mask).sum() / _share_of_tokens(tokens)


def _length_weighted(settings: Settings, tokens: Tokens, term: Tensor) -> Tensor:
    """The mean over all positions, each times its response's length; padding is not left out (LUSPO)."""
    return (term * tokens.mask.sum(-1, keepdim=True)).mean()


def _share_of_tokens(tokens: Tokens) -> Tensor:
    """Scored tokens of all processes over their number, at least 1."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if tokens.items is not None:
        total = torch.as_tensor(tokens.items, device=tokens.mask.device).to(torch.float32)
    else:
        total = tokens.mask.sum()
        if distributed:
            torch.distributed.all_reduce(total)
    return (total / (torch.distributed.get_world_size() if distributed else 1)).clamp(min=1)


REDUCTIONS: Mapping[str, Callable[[Settings, Tokens, Tensor], Tensor]] = {
    "grpo": _response_mean,
    "sapo": _response_mean,
    "bnpo": _batch_mean,
    "dr_grpo": _longest_mean,
    "dapo": _step_mean,
    "cispo": _step_mean,
    "vespo": _step_mean,
    "luspo": _length_weighted,
}
