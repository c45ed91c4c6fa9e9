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


PROMPT = "chosen_prompt_logps chosen_prompt_tokens"


def chosen_likelihood(c: SimpleNamespace, mode: str) -> Tensor:
    if mode == "with_prompt":
        logps, tokens = c.chosen_logps + c.chosen_prompt_logps, c.chosen_lengths + c.chosen_prompt_tokens
        return negative_log_likelihood(logps, tokens, "token_mean")
    return negative_log_likelihood(c.chosen_logps, getattr(c, "chosen_lengths", None), mode)


# --- links --------------------------------------------------------------------------------------------------------


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


def log_ratios(c: SimpleNamespace) -> list[Tensor]:
    return list(rewards(c, 1.0).values())


@reads(PAIR)
def bco_pair(c, *, beta=0.1, delta=None):
    chosen, rejected = rewards(c, beta).values()
    shift = torch.cat([chosen, rejected]).detach().mean() if delta is None else delta
    return -log_sigmoid(chosen - shift) - log_sigmoid(-(rejected - shift)), rewards(c, beta)


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


# --- margins ------------------------------------------------------------------------------------------------------


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


# --- robustness ---------------------------------------------------------------------------------------------------


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


ROLES = ("chosen", "rejected")


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


# --- self-play and online -----------------------------------------------------------------------------------------

WIN_PROB = "chosen_win_prob rejected_win_prob"


@reads(f"{PAIR} {WIN_PROB}")
def dno(c, *, beta=0.1):
    z, zeta = beta * margin(c), torch.sigmoid(c.chosen_win_prob - c.rejected_win_prob)
    return -zeta * log_sigmoid(z) - (1 - zeta) * log_sigmoid(-z), rewards(c, beta)


@reads(f"{PAIR} chosen_previous_logps rejected_previous_logps")
def inpo(c, *, eta=0.005, tau=0.005 / 3):
    reference = tau / eta * (c.ref_chosen_logps - c.ref_rejected_logps)
    previous = (1 - tau / eta) * (c.chosen_previous_logps - c.rejected_previous_logps)
    return (c.chosen_logps - c.rejected_logps - reference - previous - 1 / (2 * eta)) ** 2, rewards(c, 1.0)


@reads(f"{PAIR} win_prob")
def online_ipo(c, *, beta=0.1):
    return (margin(c) - (c.win_prob - 0.5) / beta) ** 2, rewards(c, beta)


@reads(lambda average=False, **_: f"{PAIR} {WIN_PROB} {LENGTHS if average else ''}")
def egpo(c, *, beta=0.1, average=False):
    ratios = rewards(c, 1.0)
    lengths = (c.chosen_lengths, c.rejected_lengths) if average else (1.0, 1.0)
    gap = ratios["chosen"] / lengths[0] - ratios["rejected"] / lengths[1]
    return (gap - (c.chosen_win_prob - c.rejected_win_prob) / beta) ** 2, rewards(c, beta)


@reads(f"{PAIR} {WIN_PROB}")
def psi_po(c, *, beta=0.1, link="identity"):
    utility = {"identity": lambda p: p, "logit": torch.logit}[link]
    return (margin(c) - (utility(c.chosen_win_prob) - utility(c.rejected_win_prob)) / beta) ** 2, rewards(c, beta)


@reads(f"{PAIR} chosen_score rejected_score")
def copg(c, *, beta=0.06):
    ratios = rewards(c, 1.0)
    chosen = c.chosen_score - beta / 2 * ratios["chosen"]
    rejected = c.rejected_score - beta / 2 * ratios["rejected"]
    return -(chosen - rejected) * (ratios["chosen"] - ratios["rejected"]), rewards(c, beta)


@reads(f"{PAIR} chosen_score rejected_score")
def reward_distillation(c, *, beta=0.1):
    implicit = rewards(c, beta)
    return ((c.chosen_score - implicit["chosen"]) - (c.rejected_score - implicit["rejected"])) ** 2, implicit


@reads(f"{PAIR} calibration_logps ref_calibration_logps")
def vpo(c, *, beta=0.1, alpha=0.01, mode="online"):
    bonus = alpha * beta * (c.calibration_logps - c.ref_calibration_logps)
    loss = -log_sigmoid(beta * margin(c)) + (bonus if mode == "online" else -bonus)
    return loss, rewards(c, beta, "chosen", "rejected", "calibration")


@reads(f"{PAIR} chosen_from_policy")
def xpo(c, *, beta=0.1, alpha=1e-5, link="sigmoid"):
    loss = -log_sigmoid(beta * margin(c)) if link == "sigmoid" else (margin(c) - 1 / (2 * beta)) ** 2
    return loss + alpha * torch.where(c.chosen_from_policy, c.rejected_logps, c.chosen_logps), rewards(c, beta)


@reads(f"{PAIR} chosen_other_logps rejected_other_logps")
def ofs_dpo(c, *, beta=0.1, alpha=0.2, limit=10.0, module="fast"):
    fast, slow = c.chosen_logps - c.rejected_logps, c.chosen_other_logps - c.rejected_other_logps
    fast, slow = (fast, slow) if module == "fast" else (slow, fast)
    chase = -log_sigmoid(torch.clamp(beta * (fast - slow), -limit, limit))
    return -log_sigmoid(beta * margin(c)) + (alpha if module == "fast" else -alpha) * chase, rewards(c, beta)


SRPO_ROLES = ("chosen", "rejected", "improved", "worsened", "kept_chosen", "kept_rejected")


@reads(" ".join(f"{role}_logps ref_{role}_logps" for role in SRPO_ROLES))
def srpo(c, *, beta=0.1, alpha=0.5):
    w, l, wl, lw, ww, ll = rewards(c, 1.0, *SRPO_ROLES).values()  # noqa: E741
    joint = (1 - beta * (wl - lw + w - l)) ** 2
    improver = (0.5 - beta * (wl - ll)) ** 2 + (0.5 - beta * (ww - lw)) ** 2
    return (1 - alpha) * joint + alpha * improver, rewards(c, beta, *SRPO_ROLES)


@reads("logps ref_logps groups")
def hypo_kl(c, *, weight=1e-4):
    ratio = c.logps - c.ref_logps
    losses = []
    for group in c.groups.unique(sorted=True):
        h = ratio[c.groups == group]
        others = (h.sum() - h) / max(len(h) - 1, 1)
        losses.append(weight * ((h - others).detach() * c.logps[c.groups == group]).mean())
    return torch.stack(losses), ratio


@reads(
    lambda labels="soft", **_: (
        f"{PAIR} " + {"soft": "chosen_win_prob rejected_win_prob", "single": "win_prob", "hard": ""}[labels]
    )
)
def sppo(c, *, beta=1e-3, labels="soft", scale=0.5):
    wins = {
        "soft": lambda: (c.chosen_win_prob, c.rejected_win_prob),
        "single": lambda: (c.win_prob, 1 - c.win_prob),
        "hard": lambda: (1.0, 0.0),
    }[labels]()
    halves = [(h - (win - 0.5) / beta) ** 2 for h, win in zip(rewards(c, 1.0).values(), wins, strict=True)]
    return (halves[0] + halves[1]) * scale, rewards(c, beta)


@reads(PAIR)
def kto_pair(c, *, beta=0.1):
    chosen, rejected = rewards(c, 1.0).values()
    anchors = [max(0.0, float(h.detach().mean())) for h in (chosen, rejected)]
    up, down = 1 - torch.sigmoid(beta * (chosen - anchors[1])), 1 - torch.sigmoid(beta * (anchors[0] - rejected))
    return (up + down) / 2, rewards(c, beta)


# --- with an image ------------------------------------------------------------------------------------------------

OPA_TOKENS = ("rejected", "revised", "revised_damaged")


@reads(
    "chosen_logps ref_chosen_logps chosen_damaged_logps ref_chosen_damaged_logps "
    + " ".join(f"{role}_mask {role}_token_logps ref_{role}_token_logps" for role in OPA_TOKENS)
    + " rejected_token_severity revised_token_severity revised_token_recognition revised_damaged_token_recognition"
)
def opa_dpo(c, *, beta=0.1, image_weight=0.2, anchor_weight=1.0):
    def weighted(role, name):
        weight = getattr(c, f"{role}_token_{name}")
        return summed(c, role, weight, weight)

    chosen, damaged = rewards(c, 1.0, "chosen", "chosen_damaged").values()
    rejected = summed(c, "rejected")
    losses = [
        -log_sigmoid(beta * (chosen - rejected)),
        -log_sigmoid(beta * (weighted("revised", "severity") - weighted("rejected", "severity"))),
        -log_sigmoid(beta * (chosen - damaged)) * image_weight,
        -log_sigmoid(beta * (weighted("revised", "recognition") - weighted("revised_damaged", "recognition")))
        * image_weight,
        -log_sigmoid(beta * chosen) * anchor_weight,
        -log_sigmoid(-beta * rejected) * anchor_weight,
    ]
    return sum(losses), rewards(c, beta, "chosen", "chosen_damaged") | {
        role: beta * summed(c, role) for role in OPA_TOKENS
    }


# --- points -------------------------------------------------------------------------------------------------------

POINT = "logps ref_logps"


@reads(f"{POINT} win_prob")
def sppo_point(c, *, beta=1e-3):
    h = c.logps - c.ref_logps
    return (h - (c.win_prob - 0.5) / beta) ** 2 / 2, beta * h


@reads(f"{POINT} score")
def gpo(c, *, beta=1e-3):
    h = c.logps - c.ref_logps
    return (h - c.score / beta) ** 2, beta * h


@reads(f"{POINT} reward value")
def dro(c, *, tau=1.0):
    h = c.logps - c.ref_logps
    return (c.reward - c.value - tau * h) ** 2 / 2, h


@reads("logps lengths label")
def asft_unpaired(c, *, beta=1.0, weight=1.0, alpha=1.0):
    p = torch.exp(c.logps / c.lengths)
    odds = (p / (1 - p)) ** beta
    desirable = -alpha * torch.log(p) - weight * torch.log(odds / (1 + odds))
    return torch.where(c.label, desirable, weight * torch.log(1 + odds)), beta * c.logps / c.lengths


@reads(lambda average="sum": "logps score" if average == "sum" else "logps lengths score")
def crraft(c, *, average="sum"):
    if average == "sum":
        return -c.score * c.logps, c.logps
    loss = -(c.score * c.logps).sum() / c.lengths.sum()
    return loss.expand(len(c.logps)), c.logps / c.lengths


@reads(f"{POINT} label demonstration")
def ulma(c, *, beta=0.1):
    r = beta * (c.logps - c.ref_logps)
    judged = -torch.where(c.label, log_sigmoid(r), torch.log(1 - torch.sigmoid(r)))
    return torch.where(c.demonstration, -c.logps, judged), r


@reads(f"{POINT} flip label")
def nbpo(c, *, beta=1.0, form="surrogate_gradient"):
    r, g = beta * (c.logps - c.ref_logps), c.flip
    held = lambda x: torch.sigmoid(x).detach()  # noqa: E731
    voted = {
        "surrogate_gradient": held(-g) * log_sigmoid(r) + held(r) * log_sigmoid(-g),
        "likelihood": log_sigmoid(r) + log_sigmoid(-g),
        "surrogate": torch.sigmoid(r) * torch.sigmoid(-g),
    }
    unvoted_likelihood = 1 - torch.sigmoid(r) + torch.sigmoid(g) * torch.sigmoid(r)
    unvoted = {
        "surrogate_gradient": log_sigmoid(-r) + held(g) * log_sigmoid(r) + held(r) * log_sigmoid(g),
        "likelihood": torch.log(unvoted_likelihood),
        "surrogate": unvoted_likelihood,
    }
    return -torch.where(c.label, voted[form], unvoted[form]), r


@reads(POINT)
def npo(c, *, beta=0.1):
    ratio = torch.exp(c.logps - c.ref_logps)
    return 2 / beta * torch.log(1 + ratio**beta), beta * torch.log(ratio)


@reads("logps lengths")
def simnpo(c, *, beta=2.5, gamma=0.0):
    average = c.logps / c.lengths
    return 2 / beta * torch.log1p(torch.exp(beta * average + gamma)), beta * average


# --- further entries of the survey -------------------------------------------------------------------------------


@reads(lambda alpha=None, **_: f"{FREE} ref_chosen_logps")
def average_hinge(c, *, delta=1.0, weight=0.1, alpha=0.0, nll_mode="token_mean"):
    chosen, rejected = averages(c)
    held_up = torch.log(1 + torch.exp(1 - (c.chosen_logps - c.ref_chosen_logps)))
    loss = torch.clamp(delta - chosen + rejected, min=0.0) + weight * held_up
    return loss + alpha * chosen_likelihood(c, nll_mode), {"chosen": chosen, "rejected": rejected}


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


@reads(f"{PAIR} chosen_score rejected_score")
def dpo_rc(c, *, beta=0.1):
    coefficient = torch.clamp(c.chosen_score - c.rejected_score, min=0.0).detach()
    return coefficient * smoothed(beta * margin(c), 0.0), rewards(c, beta)


@reads(f"{PAIR} chosen_damaged_logps ref_chosen_damaged_logps")
def multimodal_dpo(c, *, beta=0.1, image_weight=1.0, anchor_weight=1.0, delta=0.0):
    r = rewards(c, beta, "chosen", "rejected", "chosen_damaged")
    loss = smoothed(r["chosen"] - r["rejected"], 0.0) + image_weight * smoothed(r["chosen"] - r["chosen_damaged"], 0.0)
    return loss + anchor_weight * smoothed(r["chosen"] - delta, 0.0), r


@reads(f"{TOKENS} chosen_token_turn rejected_token_turn")
def dmpo(c, *, beta=0.1, discount=0.9):
    def weights(role):
        turn, mask = getattr(c, f"{role}_token_turn").detach(), getattr(c, f"{role}_mask")
        turns = (mask * turn).amax(1, keepdim=True) + 1
        return discount**turn * (1 - discount ** (turns - turn)) / (1 - discount**turns)

    chosen, rejected = (summed(c, role, *[weights(role)] * 2) for role in ROLES)
    return -log_sigmoid(beta * (chosen - rejected)), token_rewards(c, beta)
