"""The objectives of `prefuse.objectives.margins` once more, as plain float64 PyTorch."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid as log_sigmoid

from tests.objectives.references.shared import LENGTHS, PAIR, averages, margin, reads, relu, rewards


@reads(f"{PAIR} margin")
def odpo(c, *, beta=0.1):
    return -log_sigmoid(beta * margin(c) - c.margin), rewards(c, beta)


@reads(f"{PAIR} margin")
def modpo(c, *, beta=0.1, weight=0.5, link="sigmoid"):
    z = (beta * margin(c) - c.margin) / weight
    return (-log_sigmoid(z) if link == "sigmoid" else relu(1 - z)), rewards(c, beta)


@reads(f"{PAIR} {LENGTHS}")
def alpha_dpo(c, *, beta=2.5, alpha=0.2, gamma=None, gamma_beta_ratio=0.5, mean=None, deviation=None, variant="paper"):
    chosen, rejected = averages(c)
    gap = margin(c).detach()
    if variant == "original":
        alpha = alpha * beta
        ratios = rewards(c, 1.0)
        gap = (ratios["chosen"] / c.chosen_lengths - ratios["rejected"] / c.rejected_lengths).detach()
    centre = gap.mean() if mean is None else mean
    score = (gap - centre) / (torch.sqrt(gap.var(correction=0) + 1e-12) if deviation is None else deviation)
    gamma = beta * gamma_beta_ratio if gamma is None else gamma
    return -log_sigmoid(beta * (chosen - rejected) - gamma - alpha * score), rewards(c, beta)


@reads(PAIR)
def dpo_gamma(c, *, beta=0.1, gamma=0.5):
    z = beta * ((c.chosen_logps - c.rejected_logps) - gamma * (c.ref_chosen_logps - c.ref_rejected_logps))
    reward = lambda policy, reference: beta * (policy - gamma * reference)  # noqa: E731
    return -log_sigmoid(z), {
        "chosen": reward(c.chosen_logps, c.ref_chosen_logps),
        "rejected": reward(c.rejected_logps, c.ref_rejected_logps),
    }


@reads(PAIR)
def flex_dpo(c, *, beta_chosen=0.1, beta_rejected=0.08):
    chosen, rejected = rewards(c, beta_chosen)["chosen"], rewards(c, beta_rejected)["rejected"]
    return -log_sigmoid(chosen - rejected), {"chosen": chosen, "rejected": rejected}


@reads(f"{PAIR} {LENGTHS}")
def daa(c, *, beta=0.1, alpha=0.0, link="dpo"):
    x = beta * margin(c) + alpha * (c.chosen_lengths - c.rejected_lengths)
    loss = {
        "dpo": lambda: -log_sigmoid(x),
        "ipo": lambda: (x - 1) ** 2,
        "slic": lambda: relu(1 - x),
        "exponential": lambda: torch.exp(-x),
        "squared_hinge": lambda: relu(1 - x) ** 2,
    }[link]()
    return loss, rewards(c, beta)


@reads(PAIR)
def chi_po(c, *, beta=0.1, limit=10.0):
    chosen, rejected = (torch.exp(h) + h for h in rewards(c, 1.0).values())
    return -log_sigmoid(torch.clamp(beta * (chosen - rejected), -limit, limit)), rewards(c, beta)


@reads(f"{PAIR} chosen_unsafe rejected_unsafe")
def safe_dpo(c, *, beta=0.1, delta=0.0, both_unsafe="dropped"):
    def loss(gap, bad_w, bad_l):
        if bad_w and bad_l:
            return -log_sigmoid(beta * gap) if both_unsafe == "kept" else 0.0 * gap
        better, worse = (-gap, 1.0) if bad_w else (gap, float(bad_l))
        return -log_sigmoid(beta * better - delta * worse)

    rows = zip(margin(c), c.chosen_unsafe, c.rejected_unsafe, strict=True)
    return torch.stack([loss(*row) for row in rows]), rewards(c, beta)


@reads(f"{PAIR} chosen_score rejected_score chosen_cost rejected_cost")
def c_dpo(c, *, beta=0.1, multiplier=1.0):
    kept = (c.chosen_score - c.rejected_score > multiplier * (c.chosen_cost - c.rejected_cost)).detach()
    return -log_sigmoid(beta * torch.where(kept, margin(c), -margin(c))), rewards(c, beta)
