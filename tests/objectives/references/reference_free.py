"""The objectives of `prefuse.objectives.reference_free` once more, as plain float64 PyTorch."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid as log_sigmoid

from tests.objectives.references.dpo_family import linked
from tests.objectives.references.shared import (
    FREE,
    LENGTHS,
    averages,
    chosen_likelihood,
    negative_log_likelihood,
    nll,
    reads,
    relu,
    smoothed,
)


def sft(chosen_logps, chosen_lengths=None, *, nll_mode="token_mean"):
    return nll(nll_mode, chosen_logps, chosen_lengths), None


PROMPT = "chosen_prompt_logps chosen_prompt_tokens"


@reads(lambda alpha=None, nll="token_mean", **_: FREE)
def simpo(
    c,
    *,
    beta=2.0,
    gamma=None,
    gamma_beta_ratio=0.5,
    label_smoothing=0.0,
    link="sigmoid",
    alpha=0.0,
    nll_mode="token_mean",
):
    gamma = beta * gamma_beta_ratio if gamma is None else gamma
    chosen, rejected = (beta * average for average in averages(c))
    loss = linked(chosen - rejected - gamma, link, label_smoothing)
    return loss + alpha * chosen_likelihood(c, nll_mode), {"chosen": chosen, "rejected": rejected}


@reads(lambda nll="token_mean", **_: FREE + (f" {PROMPT}" if nll == "with_prompt" else ""))
def orpo(c, *, beta=0.1, nll_mode="token_mean"):
    p, q = (torch.exp(average) for average in averages(c))
    ratio = torch.log(p / (1 - p)) - torch.log(q / (1 - q))
    r = dict(zip(("chosen", "rejected"), (beta * average for average in averages(c)), strict=True))
    return chosen_likelihood(c, nll_mode) - beta * log_sigmoid(ratio), r


def own_margin(c, beta, link, label_smoothing):
    chosen, rejected = averages(c) if link == "ipo" else (c.chosen_logps, c.rejected_logps)
    r = {"chosen": beta * chosen, "rejected": beta * rejected}
    if link == "ipo":
        return (chosen - rejected - 1 / (2 * beta)) ** 2, r
    return linked(r["chosen"] - r["rejected"], link, label_smoothing), r


def cpo_columns(nll="sum", link="sigmoid", **_):
    lengths = LENGTHS if link == "ipo" else "" if nll == "sum" else "chosen_lengths"
    return f"chosen_logps rejected_logps {lengths}"


@reads(cpo_columns)
def cpo(c, *, beta=0.1, alpha=1.0, label_smoothing=0.0, nll_mode="sum", link="sigmoid"):
    loss, r = own_margin(c, beta, link, label_smoothing)
    return loss + alpha * chosen_likelihood(c, nll_mode), r


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


def tpo_columns(link="sigmoid", **_):
    return f"{FREE if link == 'ipo' else 'chosen_logps rejected_logps'} gold_logps gold_lengths"


@reads(tpo_columns)
def tpo(c, *, beta=0.01, alpha=1.0, label_smoothing=0.0, nll_mode="token_mean", link="sigmoid"):
    loss, r = own_margin(c, beta, link, label_smoothing)
    return loss + alpha * negative_log_likelihood(c.gold_logps, c.gold_lengths, nll_mode), r


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
