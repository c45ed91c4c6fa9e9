"""The objectives of `prefuse.objectives.likelihood` once more, as plain float64 PyTorch."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid as log_sigmoid

from tests.objectives.references.shared import (
    FREE,
    PAIR,
    averages,
    chosen_likelihood,
    margin,
    negative_log_likelihood,
    reads,
    relu,
    rewards,
    smoothed,
)


@reads(PAIR)
def dpop(c, *, beta=0.1, penalty=50.0):
    fall = relu(c.ref_chosen_logps - c.chosen_logps)
    return -log_sigmoid(beta * (margin(c) - penalty * fall)), rewards(c, beta)


@reads(lambda nll="response_mean", **_: PAIR + (" chosen_lengths" if nll != "sum" else ""))
def rpo(c, *, beta=0.1, alpha=1.0, label_smoothing=0.0, nll_mode="response_mean"):
    likelihood = negative_log_likelihood(c.chosen_logps, getattr(c, "chosen_lengths", None), nll_mode)
    return smoothed(beta * margin(c), label_smoothing) + alpha * likelihood, rewards(c, beta)


@reads(f"{PAIR} chosen_lengths")
def codpo(c, *, beta=0.1, weight=5.0):
    return -log_sigmoid(beta * margin(c)) - weight * c.chosen_logps / c.chosen_lengths, rewards(c, beta)


@reads(PAIR)
def cal_dpo(c, *, beta=0.1, variant="paper"):
    chosen, rejected = rewards(c, 1.0).values()
    squares = (chosen - 1 / (2 * beta)) ** 2 + (rejected + 1 / (2 * beta)) ** 2
    return -log_sigmoid(chosen - rejected) + squares * (1 if variant == "paper" else 0.5), rewards(c, beta)


@reads(f"{PAIR} rationale_logps")
def rationale_dpo(c, *, beta=0.1, gamma=2.0, variant="paper"):
    dpo = -log_sigmoid(beta * margin(c))
    scaled = gamma * c.rationale_logps
    return dpo - (scaled if variant == "paper" else torch.log(torch.sigmoid(scaled))), rewards(c, beta)


@reads(f"{FREE} rationale_logps rationale_lengths")
def rationale_orpo(c, *, beta=0.1, gamma=10.0, nll_mode="token_mean"):
    chosen, rejected, rationale = averages(c, "chosen", "rejected", "rationale")
    p, q = torch.exp(chosen), torch.exp(rejected)
    odds_ratio = (p / (1 - p)) / (q / (1 - q))
    loss = negative_log_likelihood(c.chosen_logps, c.chosen_lengths, nll_mode)
    loss = loss - beta * torch.log(odds_ratio / (1 + odds_ratio)) - gamma * rationale
    return loss, {"chosen": beta * chosen, "rejected": beta * rejected}


@reads(f"{PAIR} degree_loss")
def spo_degree(c, *, beta=0.1, weight=0.1):
    return -log_sigmoid(beta * margin(c)) + weight * c.degree_loss, rewards(c, beta)


@reads(lambda alpha=None, **_: f"{FREE} ref_chosen_logps")
def average_hinge(c, *, delta=1.0, weight=0.1, alpha=0.0, nll_mode="token_mean"):
    chosen, rejected = averages(c)
    held_up = torch.log(1 + torch.exp(1 - (c.chosen_logps - c.ref_chosen_logps)))
    loss = torch.clamp(delta - chosen + rejected, min=0.0) + weight * held_up
    return loss + alpha * chosen_likelihood(c, nll_mode), {"chosen": chosen, "rejected": rejected}
