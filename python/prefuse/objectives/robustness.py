"""Pair objectives for labels that are noisy, soft, tied or unevenly reliable; see also `dpo` smoothed, and `robust`.

Notation: ``z = βΔ`` with ``Δ = h(w) - h(l)`` the difference of the log-ratios ``h(y) = log π(y|x) - log π_ref(y|x)``,
w chosen, l rejected.
"""

from __future__ import annotations

import math

from ..language import (
    Expression,
    PairView,
    Paper,
    ResponseView,
    absolute,
    exp,
    log,
    log1p,
    log_sigmoid,
    minimum,
    pair_objective,
    relu,
    sigmoid,
    square,
    stop_gradient,
    where,
)
from ._terms import NON_NEGATIVE, POSITIVE, choice, log_ratio_margin

_DPO_RK = Paper("2409.17431", "On Extending Direct Preference Optimization to Accommodate Ties", "Chen et al. 2024")


@pair_objective(
    paper=Paper(
        "2405.00451", "Monte Carlo Tree Search Boosts Reasoning via Iterative Preference Learning", "Xie et al. 2024"
    ),
    equation="section 2.2",
    identities=("mcts_dpo = dpo where rejected_visits=0",),
    bounds={"beta": POSITIVE, "length_power": NON_NEGATIVE},
)
def mcts_dpo(
    pair: PairView,
    *,
    beta: float = 0.1,
    suffix: bool = False,
    link: str = "sigmoid",
    length_power: float | None = None,
) -> Expression:
    """DPO on tree-search steps with soft labels, MCTS-DPO.

    ``-(1-ε) log σ(z) - ε log σ(-z)`` with ``ε = min(½, N(l) / (N(w) + N(l)))``: the columns ``visits`` hold how often
    the search went each way. Log-probabilities are of the step, without the prefix that the two share.

    beta: 0.02-0.5. suffix: take tokens, and leave out those before the columns ``start``, a position in each response.
    link: ``"ipo"`` is ``(Δ - 1/(2β))²``, without labels, as an option of the authors' code. length_power: p, divide
    each log-ratio by its length, tokens left out included, to this power; None is 0.
    Libraries: the authors' code agrees, N(w) counting at least 1.
    """
    gap = _step_ratio(pair.chosen, suffix, length_power) - _step_ratio(pair.rejected, suffix, length_power)
    if choice("mcts_dpo: link", link, {"sigmoid": False, "ipo": True}):
        return square(gap - 0.5 / beta)
    chosen, rejected = pair.chosen["visits"].clamp(min=1.0), pair.rejected["visits"]
    flipped = minimum(rejected / (chosen + rejected), 0.5)
    return -log_sigmoid(beta * gap) + flipped * (beta * gap)


def _step_ratio(response: ResponseView, suffix: bool, power: float | None) -> Expression:
    ratio = response.logratio
    if suffix:
        token = response.token
        ratio = where(token.position >= response["start"], token.logratio, 0.0).sum()
    return ratio if power is None else ratio / response.length**power


@pair_objective(
    paper=Paper(
        "2409.06691", "Geometric-Averaged Preference Optimization for Soft Preference Labels", "Furuta et al. 2024"
    ),
    identities=("gdpo = dpo where win_prob=1",),
    bounds={"beta": POSITIVE},
)
def gdpo(pair: PairView, *, beta: float = 0.1) -> Expression:
    """Geometric-averaged DPO for soft labels, GDPO, as reconstructed.

    ``-log σ((2p-1) z)``: the column ``win_prob`` holds p, how likely w is preferred; a pair in doubt pulls less.

    beta: 0.05-0.5.
    """
    return -log_sigmoid((2.0 * pair["win_prob"] - 1.0) * beta * log_ratio_margin(pair))


@pair_objective(
    paper=Paper(
        "2409.11212",
        "Self-Evolutionary Large Language Models through Uncertainty-Enhanced Preference Optimization",
        "Wang et al. 2024",
    ),
    equation="eq. 12",
    identities=("upo(alpha=0.3) = rpo(alpha=0.3) where uncertainty=0",),
    bounds={"beta": POSITIVE, "alpha": NON_NEGATIVE},
)
def upo(pair: PairView, *, beta: float = 0.1, alpha: float = 0.1) -> Expression:
    """Uncertainty-enhanced preference optimization, UPO, repaired.

    ``-(1-ε) log σ(z) - ε log σ(-z) - α log π(w)/n(w)`` with ``ε = min(u, ½)``: the column ``uncertainty`` holds u, e.g.
    the information gain in nats of a preference classifier under dropout. The reference is the previous policy.

    beta: 0.05-0.5. alpha: weight of the likelihood, 0-1.
    As printed the paper flips nearly every label, since its ε tends to 1 on a large data set, and lowers the likelihood
    of w; its ablations show that neither is meant.
    """
    margin = beta * log_ratio_margin(pair)
    flipped = minimum(pair["uncertainty"], 0.5)
    return -log_sigmoid(margin) + flipped * margin - alpha * pair.chosen.avg_logp


@pair_objective(
    paper=Paper("2404.04102", "ROPO: Robust Preference Optimization for Large Language Models", "Liang et al. 2024"),
    equation="eq. 9",
    bounds={"beta": POSITIVE, "alpha": POSITIVE},
)
def ropo(pair: PairView, *, beta: float = 0.1, alpha: float = 14.0) -> Expression:
    """Robust preference optimization, ROPO.

    ``4α/(1+α)² · (-log σ(z)) + 4α²/(1+α)² · σ(-z)``: the second term is bounded, so that a wrongly labelled pair stops
    pulling.

    beta: 0.05-0.5. alpha: α, 2-100; towards 0 the first term, and with it the loss, vanishes.
    """
    margin = beta * log_ratio_margin(pair)
    scale = 4.0 * alpha / ((1.0 + alpha) * (1.0 + alpha))
    return scale * (-log_sigmoid(margin) + alpha * sigmoid(-margin))


@pair_objective(
    paper=Paper("2405.20304", "Group Robust Preference Optimization in Reward-free RLHF", "Ramesh et al. 2024"),
    equation="eq. 8",
    identities=("group_robust_dpo = dpo where group_weight=1",),
    bounds={"beta": POSITIVE},
)
def group_robust_dpo(pair: PairView, *, beta: float = 0.1) -> Expression:
    """Group robust preference optimization, GRPO.

    ``α_g · (-log σ(z))``: the column ``group_weight`` holds α of the pair's group of annotators over that group's share
    of the data; it takes no gradient. `prefuse.objectives.mixtures.group_weights` raises the weights of groups whose
    loss is high, ``α_g ∝ α_g e^{η ℓ_g}``.

    beta: 0.05-0.5.
    """
    return -stop_gradient(pair["group_weight"]) * log_sigmoid(beta * log_ratio_margin(pair))


@pair_objective(
    paper=Paper(
        "2405.15065",
        "Direct Preference Optimization With Unobserved Preference Heterogeneity",
        "Chidambaram et al. 2024",
    ),
    equation="eq. 15 at ICLR",
    identities=("em_dpo = dpo where responsibility=1",),
    bounds={"beta": POSITIVE},
)
def em_dpo(pair: PairView, *, beta: float = 0.1) -> Expression:
    """DPO of one type of annotator, EM-DPO and MinMax-DPO.

    ``γ · (-log σ(z))``: the column ``responsibility`` holds γ, how likely this policy's type of annotator gave the pair
    (`prefuse.objectives.mixtures.responsibilities`); each type has a policy of its own. MinMax then mixes the policies
    so that the worst-off type loses least.

    beta: 0.05-0.5.
    As printed eq. 15 minimises Σ γ log σ(z), which lacks the minus that the step before it has.
    """
    return -stop_gradient(pair["responsibility"]) * log_sigmoid(beta * log_ratio_margin(pair))


@pair_objective(
    paper=Paper(
        "2407.07880",
        "Towards Robust Alignment of Language Models: Distributionally Robustifying Direct Preference Optimization",
        "Wu et al. 2024",
    ),
    equation="eq. 12 at ICLR",
    bounds={"beta": POSITIVE, "beta_prime": POSITIVE},
)
def dr_dpo(pair: PairView, *, beta: float = 0.1, beta_prime: float = 1.0) -> Expression:
    """Distributionally robustified DPO, Dr. DPO.

    ``-β' log mean_batch e^{-ℓ/β'}`` with DPO's ``ℓ = -log σ(z)``: pairs of high loss, likely mislabelled, count less.
    One loss for the batch.

    beta: 0.05-0.5. beta_prime: β', 0.1-10; towards infinity it is the mean of DPO.
    """
    return -beta_prime * (log_sigmoid(beta * log_ratio_margin(pair)) / beta_prime).logmeanexp("batch")


@pair_objective(paper=_DPO_RK, equation="eq. 15", bounds={"beta": POSITIVE, "nu": "(1, inf)"})
def dpo_rk(pair: PairView, *, beta: float = 0.1, nu: float = 3.0) -> Expression:
    """DPO with ties after Rao and Kupper, DPO-RK.

    ``-log σ(z - log ν)`` for a win, ``-log(ν²-1) - log σ(z - log ν) - log σ(-z - log ν)`` for a tie: the column
    ``tie`` is true where the two responses were judged equal.

    beta: 0.05-0.5. nu: ν > 1, how often ties happen; towards 1 never.
    """
    margin, step = beta * log_ratio_margin(pair), log(nu)
    win = -log_sigmoid(margin - step)
    return where(pair["tie"], win - log_sigmoid(-margin - step) - log(nu * nu - 1.0), win)


@pair_objective(paper=_DPO_RK, equation="eq. 16", bounds={"beta": POSITIVE, "nu": POSITIVE})
def dpo_d(pair: PairView, *, beta: float = 0.1, nu: float = 1.0) -> Expression:
    """DPO with ties after Davidson, DPO-D.

    ``log(1 + e^{-z} + 2ν e^{-z/2})`` for a win, that less ``log 2ν - z/2`` for a tie, with the column ``tie`` of
    `dpo_rk`.

    beta: 0.05-0.5. nu: ν > 0, how often ties happen; towards 0 never.
    """
    margin = beta * log_ratio_margin(pair)
    size = absolute(margin)
    win = relu(-margin) + log1p(exp(-size) + 2.0 * nu * exp(-0.5 * size))
    return where(pair["tie"], win - log(nu) - math.log(2.0) + 0.5 * margin, win)
