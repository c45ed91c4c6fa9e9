"""The objectives of `prefuse.objectives.dpo_family` once more, as plain float64 PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid as log_sigmoid

from tests.objectives.references.shared import (
    LENGTHS,
    PAIR,
    log_ratios,
    pair_rewards,
    reads,
    relu,
    rewards,
    smoothed,
)


def dpo(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1, label_smoothing=0.0):
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return smoothed(r["chosen"] - r["rejected"], label_smoothing), r


def cdpo(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1, label_smoothing=0.1):
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return smoothed(r["chosen"] - r["rejected"], label_smoothing), r


def robust(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1, label_smoothing=0.1):
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    z, e = r["chosen"] - r["rejected"], label_smoothing
    return (-(1 - e) * log_sigmoid(z) + e * log_sigmoid(-z)) / (1 - 2 * e), r


def dpo_norm(
    chosen_logps,
    rejected_logps,
    ref_chosen_logps,
    ref_rejected_logps,
    chosen_lengths,
    rejected_lengths,
    *,
    beta=0.1,
    label_smoothing=0.0,
):
    chosen = (chosen_logps - ref_chosen_logps) / chosen_lengths
    rejected = (rejected_logps - ref_rejected_logps) / rejected_lengths
    rewards = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return smoothed(beta * (chosen - rejected), label_smoothing), rewards


def hinge(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1):
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    return relu(1 - (r["chosen"] - r["rejected"])), r


def ipo_sum(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1):
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    margin = (chosen_logps - rejected_logps) - (ref_chosen_logps - ref_rejected_logps)
    return (margin - 1 / (2 * beta)) ** 2, r


def ipo_average(
    chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, chosen_lengths, rejected_lengths, *, beta=0.1
):
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    chosen = (chosen_logps - ref_chosen_logps) / chosen_lengths
    rejected = (rejected_logps - ref_rejected_logps) / rejected_lengths
    return (chosen - rejected - 1 / (2 * beta)) ** 2, r


def exo(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1, label_smoothing=1e-3):
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    q = torch.softmax(torch.stack([r["chosen"], r["rejected"]]), 0)
    label = torch.tensor([[1 - label_smoothing], [label_smoothing]], dtype=q.dtype)
    return (q * (q.log() - label.log())).sum(0), r


def discopop(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, *, beta=0.1, tau=0.05):
    r = pair_rewards(beta, chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps)
    z = r["chosen"] - r["rejected"]
    m = torch.sigmoid(z / tau)
    return (1 - m) * -log_sigmoid(z) + m * torch.exp(-z), r


def linked(z: Tensor, link: str, epsilon: float = 0.0, tau: float = 0.05) -> Tensor:
    """The loss of a margin in units of the logit, by the textbook."""
    q = torch.sigmoid(z)
    exo = epsilon and q * torch.log(q / (1 - epsilon)) + (1 - q) * torch.log((1 - q) / epsilon)
    m = torch.sigmoid(z / tau)
    return {
        "sigmoid": smoothed(z, epsilon),
        "hinge": torch.clamp(1 - z, min=0.0),
        "robust": ((1 - epsilon) * -log_sigmoid(z) + epsilon * log_sigmoid(-z)) / (1 - 2 * epsilon),
        "exo": exo,
        "discopop": (1 - m) * -log_sigmoid(z) + m * torch.exp(-z),
    }[link]


@reads(lambda average=False, **_: PAIR + (f" {LENGTHS}" if average else ""))
def f_dpo(
    c,
    *,
    divergence="reverse_kl",
    beta=0.1,
    alpha=0.5,
    coefficient=None,
    label_smoothing=0.0,
    link="sigmoid",
    tau=0.05,
    average=False,
    shifted=True,
):
    alpha = alpha if coefficient is None else 1 - coefficient
    derivative = {  # f'(u) at u = π/π_ref, with the constants that TRL 1.10 has
        "reverse_kl": lambda u: torch.log(u),
        "forward_kl": lambda u: -1 / u,
        "alpha": lambda u: -(u**-alpha) / alpha if alpha else torch.log(u),
        "js": lambda u: torch.log(u / (1 + u)),
        "jeffreys": lambda u: torch.log(u) - 1 / u,
    }[divergence]
    one = torch.ones(1, dtype=torch.float64)
    chosen, rejected = (derivative(torch.exp(h)) - (derivative(one) if shifted else 0.0) for h in log_ratios(c))
    if average:
        chosen, rejected = chosen / c.chosen_lengths, rejected / c.rejected_lengths
    if link == "ipo":
        return (chosen - rejected - 1 / (2 * beta)) ** 2, rewards(c, beta)
    return linked(beta * (chosen - rejected), link, label_smoothing, tau), rewards(c, beta)
