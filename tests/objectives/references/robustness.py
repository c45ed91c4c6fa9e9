"""The objectives of `prefuse.objectives.robustness` once more, as plain float64 PyTorch."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid as log_sigmoid

from tests.objectives.references.shared import (
    LENGTHS,
    PAIR,
    ROLES,
    TOKENS,
    log_ratios,
    margin,
    reads,
    rewards,
    smoothed,
    summed,
    token_rewards,
)


def mcts_columns(suffix=False, link="sigmoid", length_power=None, **_):
    columns = f"{TOKENS} chosen_start rejected_start" if suffix else PAIR
    columns += f" {LENGTHS}" if length_power else ""
    return columns + ("" if link == "ipo" else " chosen_visits rejected_visits")


@reads(mcts_columns)
def mcts_dpo(c, *, beta=0.1, suffix=False, link="sigmoid", length_power=0.0):
    gaps = log_ratios(c) if not suffix else [summed(c, role, *[after_start(c, role)] * 2) for role in ROLES]
    if length_power:
        gaps = [gap / getattr(c, f"{role}_lengths") ** length_power for gap, role in zip(gaps, ROLES, strict=True)]
    gap = gaps[0] - gaps[1]
    r = token_rewards(c, beta) if suffix else rewards(c, beta)
    if link == "ipo":
        return (gap - 1 / (2 * beta)) ** 2, r
    flipped = 1 - 1 / (1 + c.rejected_visits / torch.clamp(c.chosen_visits, min=1.0))
    return smoothed(beta * gap, torch.clamp(flipped, max=0.5)), r


def after_start(c, role):
    place = torch.arange(getattr(c, f"{role}_mask").shape[1])
    return (place >= getattr(c, f"{role}_start")[:, None]).double()


@reads(f"{PAIR} group_weight")
def group_robust_dpo(c, *, beta=0.1):
    return -c.group_weight.detach() * log_sigmoid(beta * margin(c)), rewards(c, beta)


@reads(f"{PAIR} responsibility")
def em_dpo(c, *, beta=0.1):
    return -c.responsibility.detach() * log_sigmoid(beta * margin(c)), rewards(c, beta)


@reads(f"{PAIR} win_prob")
def gdpo(c, *, beta=0.1):
    return -log_sigmoid(beta * (c.win_prob - (1 - c.win_prob)) * margin(c)), rewards(c, beta)


@reads(f"{PAIR} uncertainty chosen_lengths")
def upo(c, *, beta=0.1, alpha=0.1):
    loss = smoothed(beta * margin(c), torch.clamp(c.uncertainty, max=0.5))
    return loss - alpha * c.chosen_logps / c.chosen_lengths, rewards(c, beta)


@reads(PAIR)
def ropo(c, *, beta=0.1, alpha=14.0):
    z = beta * margin(c)
    logistic, bounded = 4 * alpha / (1 + alpha) ** 2, 4 * alpha**2 / (1 + alpha) ** 2
    return logistic * -log_sigmoid(z) + bounded * torch.sigmoid(-z), rewards(c, beta)


@reads(PAIR)
def dr_dpo(c, *, beta=0.1, beta_prime=1.0):
    loss = -log_sigmoid(beta * margin(c))
    return -beta_prime * torch.log(torch.exp(-loss / beta_prime).mean()).expand(len(loss)), rewards(c, beta)


@reads(f"{PAIR} tie")
def dpo_rk(c, *, beta=0.1, nu=3.0):
    better, worse = torch.exp(beta * margin(c)), 1.0
    win = better / (better + nu * worse)
    tie = (nu**2 - 1) * better * worse / ((better + nu * worse) * (worse + nu * better))
    return -torch.log(torch.where(c.tie, tie, win)), rewards(c, beta)


@reads(f"{PAIR} tie")
def dpo_d(c, *, beta=0.1, nu=1.0):
    better, worse = torch.exp(beta * margin(c)), 1.0
    total = better + worse + 2 * nu * torch.sqrt(better * worse)
    return -torch.log(torch.where(c.tie, 2 * nu * torch.sqrt(better * worse), better) / total), rewards(c, beta)
