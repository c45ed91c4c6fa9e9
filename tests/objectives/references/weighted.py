"""The objectives of `prefuse.objectives.weighted` once more, as plain float64 PyTorch."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import logsigmoid as log_sigmoid

from tests.objectives.references.shared import PAIR, TOKENS, margin, reads, rewards, smoothed, summed, token_rewards


@reads(f"{TOKENS} chosen_token_log_sum_sq rejected_token_log_sum_sq")
def wpo(c, *, beta=0.1, label_smoothing=0.0, variant="original"):
    def weight(role):
        mask = getattr(c, f"{role}_mask")
        gap = getattr(c, f"{role}_token_logps") - getattr(c, f"{role}_token_log_sum_sq")
        return torch.exp((mask * gap).sum(1) / mask.sum(1)).detach()

    product = weight("chosen") * weight("rejected")
    product = product if variant == "trl-1.16" else torch.clamp(product, max=1.0)
    return product * smoothed(beta * (summed(c, "chosen") - summed(c, "rejected")), label_smoothing), token_rewards(
        c, beta
    )


@reads(PAIR)
def beta_dpo(c, *, beta=0.1, sensitivity=0.6, centre=0.0, level="batch"):
    gap = margin(c).detach()
    gap = gap.mean() if level == "batch" else gap
    strength = torch.clamp(beta * (1 + sensitivity * (gap - centre)), min=1e-3)
    return -log_sigmoid(strength * margin(c)), rewards(c, beta)


@reads(f"{PAIR} age")
def ns_dpo(c, *, beta=0.1, gamma=0.95):
    return -log_sigmoid(beta * margin(c)) * torch.exp(c.age * math.log(gamma)), rewards(c, beta)


@reads(f"{PAIR} dispersion")
def mallows_po(c, *, beta=0.1):
    return -log_sigmoid(c.dispersion * beta * margin(c)), rewards(c, beta)


@reads(f"{PAIR} chosen_score rejected_score")
def dpo_rc(c, *, beta=0.1):
    coefficient = torch.clamp(c.chosen_score - c.rejected_score, min=0.0).detach()
    return coefficient * smoothed(beta * margin(c), 0.0), rewards(c, beta)
