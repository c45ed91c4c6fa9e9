"""Pair objectives that need no reference model.

Notation: ``log π(y|x)`` summed over the response, ``avg(y)`` its mean per token, w chosen, l rejected. ``nll`` picks
how a likelihood term is normalised: ``"token_mean"`` over all chosen tokens of the batch (TRL, Liger),
``"response_mean"`` over each response, ``"sum"``, or ``"with_prompt"`` over all tokens of prompts and responses.
"""

from __future__ import annotations

from ..language import Expression, PairView, Paper, exp, log_sigmoid, pair_objective, relu, square
from ._terms import (
    NON_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    choice,
    exponential_score,
    hinge_or_logistic,
    log_odds,
    logistic,
    negative_log_likelihood,
    refuse_smoothing,
    target_margin,
)

Rewards = dict[str, Expression]

_TPO = Paper(
    "2405.16681",
    "Triple Preference Optimization: Achieving Better Alignment using a Single Step Optimization",
    "Saeidi et al. 2024",
)


@pair_objective(
    paper=Paper("2405.14734", "SimPO: Simple Preference Optimization with a Reference-Free Reward", "Meng et al. 2024"),
    equation="eq. 6",
    identities=("simpo(beta=2, gamma=0) = dpo(beta=0.4) where lengths=5, ref=0",),
    bounds={"beta": POSITIVE, "label_smoothing": PROBABILITY, "alpha": NON_NEGATIVE},
    variants={
        "original": {"gamma": None, "gamma_beta_ratio": 0.25},
        "trl-1.16": {"beta": 0.1, "gamma": 0.5, "gamma_beta_ratio": None, "alpha": 1.0},
        "trl-0.24": {"beta": 0.1, "gamma": 0.5, "gamma_beta_ratio": None, "alpha": 1.0},
        "liger": {"beta": 0.1, "gamma": 0.5, "gamma_beta_ratio": None, "alpha": 1.0, "link": "sigmoid"},
        "llamafactory": {"beta": 0.1, "gamma": 0.5, "gamma_beta_ratio": None, "label_smoothing": None},
        "halos": {"beta": 10.0, "gamma": None, "gamma_beta_ratio": 0.3},
    },
)
def simpo(
    pair: PairView,
    *,
    beta: float = 2.0,
    gamma: float | None = None,
    gamma_beta_ratio: float | None = None,
    label_smoothing: float | None = None,
    link: str = "sigmoid",
    alpha: float | None = None,
    nll: str = "token_mean",
) -> Expression:
    """SimPO, average log-probability as reward with a margin.

    ``-log σ(β [avg(w) - avg(l)] - γ)``, smoothed by ε as in `dpo`.

    beta: 2-10. gamma: the margin γ in the units of the logit; gamma_beta_ratio: the same as γ/β, 0-1. Give one of
    them; with neither the ratio is 0.5. label_smoothing: ε as in `dpo`. link: ``"sigmoid"``, or ``"hinge"`` for
    max(0, 1 - z) of the same logit z, as in the authors' code. alpha: weight of a likelihood of the chosen response,
    normalised as nll says; None leaves it out.
    Libraries: TRL, Liger and LLaMA-Factory name the absolute γ ``(simpo_)gamma``; the authors' code and
    turbo-alignment take the ratio. TRL's and Liger's defaults also add a likelihood term of weight 1.
    """
    margin = beta * (pair.chosen.avg_logp - pair.rejected.avg_logp) - target_margin(beta, gamma, gamma_beta_ratio)
    loss = hinge_or_logistic("simpo: link", link, margin, label_smoothing)
    return loss if alpha is None else loss + alpha * negative_log_likelihood(pair.chosen, nll)


@pair_objective(
    paper=Paper("2501.03884", "AlphaPO: Reward Shape Matters for LLM Alignment", "Gupta et al. 2025"),
    identities=("alphapo(alpha=0) = simpo(beta=2.5)",),
    bounds={"beta": POSITIVE, "label_smoothing": PROBABILITY},
    variants={"trl-1.16": {"beta": 0.1, "gamma": 0.5, "gamma_beta_ratio": None}},
)
def alphapo(
    pair: PairView,
    *,
    beta: float = 2.5,
    alpha: float = 0.25,
    gamma: float | None = None,
    gamma_beta_ratio: float | None = None,
    label_smoothing: float | None = None,
) -> tuple[Expression, Rewards]:
    """AlphaPO, SimPO with a bent reward.

    ``-log σ(β [r(w) - r(l)] - γ)`` with ``r(y) = (1 - e^{-α avg(y)}) / α``, smoothed by ε as in `dpo`.

    beta: 2-10. alpha: shape, -0.5 to 0.5; at 0 it is `simpo`. gamma, gamma_beta_ratio: as in `simpo`.
    label_smoothing: ε as in `dpo`. The exponent is capped at 80: an average below -80/α has gradient 0.
    Libraries: TRL's CPO trainer with ``alpha`` and ``loss_type="simpo"``, whose exponent has no cap.
    """
    chosen = beta * exponential_score(pair.chosen.avg_logp, alpha)
    rejected = beta * exponential_score(pair.rejected.avg_logp, alpha)
    loss = logistic(chosen - rejected - target_margin(beta, gamma, gamma_beta_ratio), label_smoothing)
    return loss, {"chosen": chosen, "rejected": rejected}


@pair_objective(
    paper=Paper(
        "2502.00883",
        "SimPER: A Minimalist Approach to Preference Alignment without Hyperparameters",
        "Xiao et al. 2025",
    ),
    equation="eq. 8 at ICLR",
)
def simper(pair: PairView) -> Expression:
    """SimPER, perplexity without hyperparameters.

    ``-e^{avg(w)} + e^{avg(l)}``: the inverse perplexity of the chosen response up, of the rejected one down.
    The authors' code agrees.
    """
    return exp(pair.rejected.avg_logp) - exp(pair.chosen.avg_logp)


@pair_objective(
    paper=Paper("2305.10425", "SLiC-HF: Sequence Likelihood Calibration with Human Feedback", "Zhao et al. 2023"),
    equation="eq. 4",
    identities=("slic(delta=5, alpha=0) = 5 * hinge(beta=0.2) where ref=0",),
    bounds={"delta": NON_NEGATIVE, "alpha": NON_NEGATIVE},
    variants={"halos": {"alpha": 0.1}},
)
def slic(pair: PairView, *, delta: float = 1.0, alpha: float = 0.1, nll: str = "sum") -> Expression:
    """Sequence likelihood calibration, SLiC-HF.

    ``max(0, δ - log π(w) + log π(l)) + α NLL(w)``; zero gradient through the first term once the margin exceeds δ.

    delta: the margin δ in nats, 0.5-10. alpha: weight of the likelihood, 0.01-1. nll: its normalisation; the paper's is
    a sum, of a target from supervised data, which may be w.
    Libraries: HALOs has it with alpha 0.1; TRL's ``hinge`` is `hinge`, with a reference and without the second term.
    """
    return relu(delta - pair.chosen.logp + pair.rejected.logp) + alpha * negative_log_likelihood(pair.chosen, nll)


def contrast(
    pair: PairView, argument: str, beta: float, link: str, label_smoothing: float | None
) -> tuple[Expression, Rewards]:
    """The policy's own margin under a link, and its rewards: sums, but averages under IPO's square."""
    average = choice(argument, link, {"sigmoid": False, "hinge": False, "ipo": True})
    chosen, rejected = (response.avg_logp if average else response.logp for response in (pair.chosen, pair.rejected))
    rewards = {"chosen": beta * chosen, "rejected": beta * rejected}
    if average:
        refuse_smoothing(argument, link, label_smoothing)
        return square(chosen - rejected - 0.5 / beta), rewards
    return hinge_or_logistic(argument, link, rewards["chosen"] - rewards["rejected"], label_smoothing), rewards


@pair_objective(
    paper=_TPO,
    equation="section 3",
    identities=('tpo(beta=0.2) = cpo(beta=0.2, nll="token_mean") where gold=chosen',),
    bounds={"beta": POSITIVE, "alpha": NON_NEGATIVE, "label_smoothing": PROBABILITY},
    variants={"original": {"nll": "token_mean"}, "trl-1.16": {"nll": "token_mean"}},
)
def tpo(
    pair: PairView,
    *,
    beta: float = 0.01,
    alpha: float = 1.0,
    label_smoothing: float | None = None,
    nll: str = "token_mean",
    link: str = "sigmoid",
) -> tuple[Expression, Rewards]:
    """Triple preference optimization, TPO.

    ``-log σ(β [log π(w) - log π(l)]) + α NLL(g)``, the first term smoothed by ε as in `dpo`: the third role ``gold`` is
    the best response, w the second best, l the worst.

    beta: 0.01-0.2. alpha: weight of the likelihood, 0.05-1. label_smoothing: ε as in `dpo`. nll: its normalisation;
    the authors' code and TRL average over all gold tokens of the batch. link: ``"sigmoid"``, ``"hinge"`` for max(0,
    1 - z), or ``"ipo"`` for (avg(w) - avg(l) - 1/(2β))².
    Libraries: TRL's TPO trainer agrees (``tpo_alpha``), its hinge and IPO included.
    """
    loss, rewards = contrast(pair, "tpo: link", beta, link, label_smoothing)
    return loss + alpha * negative_log_likelihood(pair.response("gold"), nll), rewards


@pair_objective(
    paper=_TPO,
    equation="section 3",
    identities=("tpo_l(gamma=0.7, alpha=0) = simpo(gamma=0.7)",),
    bounds={"beta": POSITIVE, "alpha": NON_NEGATIVE, "label_smoothing": PROBABILITY},
    variants={
        "original": {"nll": "token_mean"},
        "trl-1.16": {"nll": "token_mean", "beta": 0.01, "gamma": 0.5, "alpha": 1.0},
    },
)
def tpo_l(
    pair: PairView,
    *,
    beta: float = 2.0,
    gamma: float = 1.6,
    alpha: float = 0.05,
    label_smoothing: float | None = None,
    nll: str = "token_mean",
) -> tuple[Expression, Rewards]:
    """Triple preference optimization on averages, TPO-L.

    ``-log σ(β [avg(w) - avg(l)] - γ) + α NLL(g)``: `tpo` with SimPO's margin.

    beta: 0.01-10. gamma: the margin γ in the units of the logit, 0.3-10. alpha, label_smoothing, nll: as in `tpo`.
    Libraries: TRL's ``tpo-l`` with its ``tpo_l_gamma`` agrees.
    """
    chosen, rejected = beta * pair.chosen.avg_logp, beta * pair.rejected.avg_logp
    loss = logistic(chosen - rejected - gamma, label_smoothing)
    loss = loss + alpha * negative_log_likelihood(pair.response("gold"), nll)
    return loss, {"chosen": chosen, "rejected": rejected}


@pair_objective(
    paper=Paper("2409.10571", "ASFT: Aligned Supervised Fine-Tuning through Absolute Likelihood", "Wang et al. 2024"),
    equation="β: arXiv:2502.01237, section 3.1.2",
    identities=('asft(weight=0) = sft(nll="response_mean")',),
    bounds={"beta": POSITIVE, "weight": NON_NEGATIVE, "alpha": NON_NEGATIVE},
)
def asft(pair: PairView, *, beta: float = 1.0, weight: float = 1.0, alpha: float = 1.0) -> Expression:
    """Aligned supervised fine-tuning, ASFT.

    ``-α avg(w) - λ [log σ(β o(w)) + log σ(-β o(l))]`` with the log-odds o of `orpo`: each response on its own.

    beta: scale of the odds, 0.1-1; the original is 1. weight: λ, 0.1-1. alpha: weight of the likelihood: 1, or 0 as the
    second of two stages.
    Averages above -1e-7 count as -1e-7 in the odds, as in `orpo`.
    Libraries: turbo-alignment has this (``ASFTLoss``); LLaMA-Factory's ``use_asft_loss`` is something else.
    """
    chosen = log_sigmoid(beta * log_odds(pair.chosen.avg_logp))
    rejected = log_sigmoid(-beta * log_odds(pair.rejected.avg_logp))
    return -alpha * pair.chosen.avg_logp - weight * (chosen + rejected)


@pair_objective(
    paper=Paper("2403.07691", "ORPO: Monolithic Preference Optimization without Reference Model", "Hong et al. 2024"),
    equation="eqs. 6 and 7",
    identities=("orpo(beta=0) = sft",),
    bounds={"beta": NON_NEGATIVE},
    variants={
        "trl-1.16": {"nll": "with_prompt"},
        "liger": {"nll": "token_mean"},
        "llamafactory": {"nll": "response_mean"},
    },
)
def orpo(pair: PairView, *, beta: float = 0.1, nll: str = "token_mean") -> Expression:
    """Odds ratio preference optimization.

    ``NLL(w) - β log σ(o(w) - o(l))``, ``o(y) = avg(y) - log(1 - e^{avg(y)})`` the log-odds of the response.

    beta: λ of the paper, 0.05-1. nll: normalisation of the likelihood term.
    Averages above -1e-7 count as -1e-7 in the odds, with gradient 0: a response that certain has infinite odds.
    Libraries: TRL's likelihood term includes the prompt's tokens, Liger's may; LLaMA-Factory uses
    ``nll="response_mean"``.
    """
    odds = log_odds(pair.chosen.avg_logp) - log_odds(pair.rejected.avg_logp)
    return negative_log_likelihood(pair.chosen, nll) - beta * log_sigmoid(odds)


@pair_objective(
    paper=Paper(
        "2401.08417",
        "Contrastive Preference Optimization: Pushing the Boundaries of LLM Performance in Machine Translation",
        "Xu et al. 2024",
    ),
    equation="eq. 3 and its likelihood term",
    identities=(
        "cpo(alpha=0) = dpo where ref=0",
        'cpo = cpo(alpha=0) + sft(nll="sum")',
    ),
    bounds={"beta": POSITIVE, "alpha": NON_NEGATIVE, "label_smoothing": PROBABILITY},
    variants={
        "original": {"nll": "token_mean"},
        "trl-1.16": {"nll": "token_mean"},
        "trl-0.24": {"nll": "token_mean"},
        "liger": {"nll": "token_mean", "link": "sigmoid"},
    },
)
def cpo(
    pair: PairView,
    *,
    beta: float = 0.1,
    alpha: float = 1.0,
    label_smoothing: float | None = None,
    nll: str = "sum",
    link: str = "sigmoid",
) -> tuple[Expression, Rewards]:
    """Contrastive preference optimization.

    ``-log σ(β [log π(w) - log π(l)]) + α NLL(w)``, the first term smoothed by ε as in `dpo`.

    beta: 0.05-0.5. alpha: weight of the likelihood term, 0-1. label_smoothing: ε as in `dpo`. nll: its
    normalisation: the paper's term is a sum per response, ``"token_mean"`` one number for the batch, added to every
    pair. link: ``"sigmoid"``, ``"hinge"`` for max(0, 1 - z), or ``"ipo"`` for (avg(w) - avg(l) - 1/(2β))².
    Libraries: the authors' code, TRL (``cpo_alpha``) and Liger take the token mean; TRL has hinge and IPO as well.
    """
    loss, rewards = contrast(pair, "cpo: link", beta, link, label_smoothing)
    return loss + alpha * negative_log_likelihood(pair.chosen, nll), rewards


@pair_objective(
    variants={
        "trl-1.16": {"nll": "token_mean"},
        "liger": {"nll": "token_mean"},
        "openrlhf": {"nll": "response_mean"},
        "llamafactory": {"nll": "response_mean"},
    }
)
def sft(pair: PairView, *, nll: str = "token_mean") -> Expression:
    """Supervised fine-tuning on the chosen responses, as a term to add to a pair objective.

    ``NLL(w)``, e.g. ``dpo() + sft()`` is DPO with a likelihood term (RPO) and
    ``0.8 * dpo() + 0.2 * bco_pair() + sft()`` is MPO (Wang et al. 2024).

    nll: the normalisation; ``"token_mean"`` is one number for the batch, the same for every pair.
    Libraries: TRL's ``sft`` and Liger's NLL are token means; OpenRLHF and LLaMA-Factory average per response.
    Maximum likelihood; no paper is behind it.
    """
    return negative_log_likelihood(pair.chosen, nll)
