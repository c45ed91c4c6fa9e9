"""The wider family of pair and point objectives as plain float64 PyTorch, beside `reference`.

A formula takes the columns it reads as attributes of its first argument, then the hyper-parameters, and returns one
loss per item and the rewards. `reads` says which columns those are, also where a structural option decides it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid as log_sigmoid

from .reference import relu, smoothed

PAIR = "chosen_logps rejected_logps ref_chosen_logps ref_rejected_logps"
LENGTHS = "chosen_lengths rejected_lengths"
FREE = f"chosen_logps rejected_logps {LENGTHS}"
TOKENS = (
    "chosen_token_logps rejected_token_logps ref_chosen_token_logps ref_rejected_token_logps chosen_mask rejected_mask"
)


def reads(columns: str | Callable[..., str]) -> Callable[..., Any]:
    """Give a formula its columns: their names, or a function from the hyper-parameters to their names."""

    def decorate(formula):
        names = columns if callable(columns) else lambda **_: columns

        def call(**given):
            settings = formula.__kwdefaults__ or {}
            hyper = {key: given.pop(key) for key in list(given) if key in settings}
            floats = {key: value.double() if value.dtype is torch.int64 else value for key, value in given.items()}
            return formula(SimpleNamespace(**floats), **hyper)

        call.columns = lambda parameters: names(**parameters).split()
        return call

    return decorate


def rewards(c: SimpleNamespace, beta: float, *roles: str) -> dict[str, Tensor]:
    """β times the log-ratio of each role; chosen and rejected if none is named."""
    ratio = lambda role: getattr(c, f"{role}_logps") - getattr(c, f"ref_{role}_logps")  # noqa: E731
    return {role: beta * ratio(role) for role in roles or ("chosen", "rejected")}


def margin(c: SimpleNamespace) -> Tensor:
    return (c.chosen_logps - c.rejected_logps) - (c.ref_chosen_logps - c.ref_rejected_logps)


def averages(c: SimpleNamespace, *roles: str) -> list[Tensor]:
    return [getattr(c, f"{role}_logps") / getattr(c, f"{role}_lengths") for role in roles or ("chosen", "rejected")]


def negative_log_likelihood(logps: Tensor, lengths: Tensor | None, mode: str) -> Tensor:
    if mode == "token_mean":
        return (-logps.sum() / lengths.sum()).expand(len(logps))
    return -logps / lengths if mode == "response_mean" else -logps


# --- a likelihood held up -----------------------------------------------------------------------------------------


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


# --- lengths ------------------------------------------------------------------------------------------------------


@reads(f"{PAIR} {LENGTHS}")
def r_dpo(c, *, beta=0.1, alpha=0.01):
    return -log_sigmoid(beta * margin(c) + alpha * (c.chosen_lengths - c.rejected_lengths)), rewards(c, beta)


def summed(c, role: str, weight: Tensor | float = 1.0, ref_weight: Tensor | float = 1.0) -> Tensor:
    """A response's log-ratio from its tokens, those of policy and reference weighted."""
    mask = getattr(c, f"{role}_mask")
    policy, reference = getattr(c, f"{role}_token_logps"), getattr(c, f"ref_{role}_token_logps")
    return (mask * (weight * policy - ref_weight * reference)).sum(1)


def token_rewards(c, beta):
    return {role: beta * summed(c, role) for role in ("chosen", "rejected")}


@reads(TOKENS)
def ld_dpo(c, *, beta=0.1, alpha=0.5, scope="both"):
    shared = torch.minimum(c.chosen_mask.sum(1), c.rejected_mask.sum(1))
    inside = torch.arange(c.chosen_mask.shape[1]) < shared[:, None]
    weight = inside + alpha * (~inside).double()
    ref_weight = weight if scope == "both" else 1.0
    chosen, rejected = (summed(c, role, weight, ref_weight) for role in ("chosen", "rejected"))
    return -log_sigmoid(beta * (chosen - rejected)), token_rewards(c, beta)


SAMPLED = "chosen_token_sampled rejected_token_sampled"


@reads(lambda independent=False, **_: f"{TOKENS} {SAMPLED} {SAMPLED.replace('_s', '_ref_s') if independent else ''}")
def sampo(c, *, beta=0.1, independent=False):
    def kept(role):
        policy = getattr(c, f"{role}_token_sampled")
        return summed(c, role, policy, getattr(c, f"{role}_token_ref_sampled") if independent else policy)

    return -log_sigmoid(beta * (kept("chosen") - kept("rejected"))), token_rewards(c, beta)


# --- weights and strengths ----------------------------------------------------------------------------------------


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


# --- without a reference ------------------------------------------------------------------------------------------


@reads(FREE)
def alphapo(c, *, beta=2.5, alpha=0.25, gamma=None, gamma_beta_ratio=0.5, label_smoothing=0.0):
    bent = lambda average: average if alpha == 0 else (1 - torch.exp(average) ** -alpha) / alpha  # noqa: E731
    chosen, rejected = (beta * bent(average) for average in averages(c))
    gamma = beta * gamma_beta_ratio if gamma is None else gamma
    return smoothed(chosen - rejected - gamma, label_smoothing), {"chosen": chosen, "rejected": rejected}


@reads(FREE)
def simper(c):
    chosen, rejected = averages(c)
    return torch.exp(rejected) - torch.exp(chosen), {"chosen": chosen, "rejected": rejected}


@reads(lambda nll="sum", **_: "chosen_logps rejected_logps" + (" chosen_lengths" if nll != "sum" else ""))
def slic(c, *, delta=1.0, alpha=0.1, nll_mode="sum"):
    likelihood = negative_log_likelihood(c.chosen_logps, getattr(c, "chosen_lengths", None), nll_mode)
    loss = relu(delta - (c.chosen_logps - c.rejected_logps)) + alpha * likelihood
    return loss, {"chosen": c.chosen_logps, "rejected": c.rejected_logps}


@reads("chosen_logps rejected_logps gold_logps gold_lengths")
def tpo(c, *, beta=0.01, alpha=1.0, label_smoothing=0.0, nll_mode="token_mean"):
    chosen, rejected = beta * c.chosen_logps, beta * c.rejected_logps
    loss = smoothed(chosen - rejected, label_smoothing)
    loss = loss + alpha * negative_log_likelihood(c.gold_logps, c.gold_lengths, nll_mode)
    return loss, {"chosen": chosen, "rejected": rejected}


@reads(f"{FREE} gold_logps gold_lengths")
def tpo_l(c, *, beta=2.0, gamma=1.6, alpha=0.05, label_smoothing=0.0, nll_mode="token_mean"):
    chosen, rejected = (beta * average for average in averages(c))
    loss = smoothed(chosen - rejected - gamma, label_smoothing)
    loss = loss + alpha * negative_log_likelihood(c.gold_logps, c.gold_lengths, nll_mode)
    return loss, {"chosen": chosen, "rejected": rejected}


@reads(FREE)
def asft(c, *, beta=1.0, weight=1.0, alpha=1.0):
    chosen, rejected = averages(c)
    p, q = torch.exp(chosen), torch.exp(rejected)
    up, down = (p / (1 - p)) ** beta, (q / (1 - q)) ** beta
    loss = -alpha * chosen - weight * (torch.log(up / (1 + up)) + torch.log(1 / (1 + down)))
    return loss, {"chosen": beta * chosen, "rejected": beta * rejected}
