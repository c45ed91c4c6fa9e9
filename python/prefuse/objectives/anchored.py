"""Pair objectives that hold each response against a target of its own rather than against its partner.

Notation: ``h(y) = log π(y|x) - log π_ref(y|x)`` summed over the response, ``r(y) = β h(y)``, w chosen, l rejected.
"""

from __future__ import annotations

from collections.abc import Callable

from ..language import Expression, PairView, Paper, log_sigmoid, pair_objective, relu, sigmoid, square, stop_gradient
from ._terms import POSITIVE, choice

_SPPO = Paper("2405.00675", "Self-Play Preference Optimization for Language Model Alignment", "Wu et al. 2024")
_APO_ZERO = Paper(
    "2408.06266",
    "Anchored Preference Optimization and Contrastive Revisions: Addressing Underspecification in Alignment",
    "D'Oosterlinck et al. 2024",
)


@pair_objective(
    paper=Paper(
        "2402.05369", "Noise Contrastive Alignment of Language Models with Explicit Rewards", "Chen et al. 2024"
    ),
    equation="table 1",
    bounds={"beta": POSITIVE},
    variants={"original": {}, "trl-1.16": {}, "trl-0.24": {}, "liger": {}},
)
def nca(pair: PairView, *, beta: float = 0.1) -> Expression:
    """Noise contrastive alignment for a pair, NCA.

    ``-log σ(r(w)) - ½ log σ(-r(w)) - ½ log σ(-r(l))``: the chosen reward is pulled towards a finite optimum, the
    rejected one pushed down.

    beta: 0.01-0.5.
    Libraries: TRL's and Liger's ``nca_pair`` is this.
    """
    chosen, rejected = beta * pair.chosen.logratio, beta * pair.rejected.logratio
    return -log_sigmoid(chosen) - 0.5 * log_sigmoid(-chosen) - 0.5 * log_sigmoid(-rejected)


@pair_objective(
    paper=Paper("2404.04656", "Binary Classifier Optimization for Large Language Model Alignment", "Jung et al. 2024"),
    equation="eqs. 7 and 8",
    bounds={"beta": POSITIVE},
    variants={
        "trl-1.16": {"delta": 0.0},
        "trl-0.24": {},
        "liger": {"delta": 0.0},
        "ms-swift": {},
        "llamafactory": {},
    },
)
def bco_pair(pair: PairView, *, beta: float = 0.1, delta: float | None = None) -> Expression:
    """Binary classifier optimization on pairs, BCO.

    ``-log σ(r(w) - δ) - log σ(δ - r(l))``: a classifier of chosen against rejected, whose logit is the reward.

    beta: 0.01-0.5. delta: the reward shift δ, in nats; the paper takes a running mean of all rewards, which the
    caller keeps. Without it δ is the mean reward of this batch, which takes no gradient.
    Libraries: δ is 0 in TRL 1.x and Liger, the running mean in TRL 0.x, ms-swift and LLaMA-Factory.
    """
    chosen, rejected = beta * pair.chosen.logratio, beta * pair.rejected.logratio
    shift = stop_gradient(0.5 * (chosen + rejected).mean("batch")) if delta is None else delta
    return -log_sigmoid(chosen - shift) - log_sigmoid(shift - rejected)


@pair_objective(
    paper=_SPPO,
    equation="eq. 4.7",
    bounds={"beta": POSITIVE, "scale": POSITIVE},
    variants={
        "original": {"labels": "soft"},
        "trl-1.16": {"labels": "hard", "scale": 1.0, "beta": 0.1},
        "trl-0.24": {"labels": "hard", "scale": 1.0, "beta": 0.1},
        "liger": {"labels": "hard", "scale": 1.0, "beta": 0.1},
    },
)
def sppo(pair: PairView, *, beta: float = 1e-3, labels: str = "soft", scale: float = 0.5) -> Expression:
    """Self-play preference optimization with soft win rates, SPPO.

    ``½ (h(w) - (P(w) - ½)/β)² + ½ (h(l) - (P(l) - ½)/β)²``. The columns ``win_prob`` (in [0, 1]) hold P(y), the
    estimated win rate of y against the current policy; the reference is the policy of the previous iteration.

    beta: 1/η of the paper, 1e-3; targets are then hundreds of nats. labels: ``"soft"``; ``"single"`` for one column
    ``win_prob`` of the pair in place of the two, the probability that w beats l: P(w) is it, P(l) what is left of 1;
    ``"hard"`` for P(w) = 1 and P(l) = 0, without columns. scale: what the squares are multiplied by, ½ in the paper.
    Libraries: the authors' code is this (``sppo``, ``sppo_single``); TRL and Liger have the hard form, `sppo_hard`.
    """
    rates: dict[str, Callable[[], tuple[Expression | float, Expression | float]]] = {
        "soft": lambda: (pair.chosen["win_prob"], pair.rejected["win_prob"]),
        "single": lambda: (pair["win_prob"], 1.0 - pair["win_prob"]),
        "hard": lambda: (1.0, 0.0),
    }
    win, loss = choice("sppo: labels", labels, rates)()
    chosen, rejected = pair.chosen.logratio - (win - 0.5) / beta, pair.rejected.logratio - (loss - 0.5) / beta
    return scale * (square(chosen) + square(rejected))


@pair_objective(
    paper=_SPPO,
    equation="eq. 4.7 with win rates 1 and 0",
    identities=("sppo_hard = 2 * sppo where chosen_win_prob=1, rejected_win_prob=0",),
    bounds={"beta": POSITIVE},
    variants={"trl-1.16": {"beta": 0.1}, "trl-0.24": {"beta": 0.1}, "liger": {"beta": 0.1}},
)
def sppo_hard(pair: PairView, *, beta: float = 1e-3) -> Expression:
    """SPPO with hard labels.

    ``(h(w) - 1/(2β))² + (h(l) + 1/(2β))²``: twice `sppo` at P(w) = 1, P(l) = 0.

    beta: 1/η of the paper, 1e-3.
    Libraries: TRL's and Liger's ``sppo_hard``, without the paper's factor ½ and with β 0.1 by default.
    """
    return square(pair.chosen.logratio - 0.5 / beta) + square(pair.rejected.logratio + 0.5 / beta)


@pair_objective(
    paper=_APO_ZERO, equation="eq. 7", bounds={"beta": POSITIVE}, variants={"trl-1.16": {}, "trl-0.24": {}, "liger": {}}
)
def apo_zero(pair: PairView, *, beta: float = 0.1) -> Expression:
    """Anchored preference optimization, zero.

    ``1 - σ(r(w)) + σ(r(l))``: raise the chosen, lower the rejected, each on its own; for data better than the model.

    beta: 0.01-0.5.
    Libraries: TRL and Liger agree.
    """
    return sigmoid(-beta * pair.chosen.logratio) + sigmoid(beta * pair.rejected.logratio)


@pair_objective(
    paper=Paper("2402.01306", "KTO: Model Alignment as Prospect Theoretic Optimization", "Ethayarajh et al. 2024"),
    equation="eq. 7",
    bounds={"beta": POSITIVE},
)
def kto_pair(pair: PairView, *, beta: float = 0.1) -> Expression:
    """KTO on pairs, in the form that older libraries have.

    ``½ [1 - σ(β (h(w) - z_l))] + ½ [1 - σ(β (z_w - h(l)))]`` with ``z = max(0, mean of h over the batch)`` of the other
    side, which takes no gradient; the paper's `kto` has one z, of mismatched completions.

    beta: 0.01-0.5.
    Libraries: TRL's former ``kto_pair``, whose mean over both halves this is.
    """
    chosen, rejected = pair.chosen.logratio, pair.rejected.logratio
    chosen_anchor, rejected_anchor = (stop_gradient(relu(h.mean("batch"))) for h in (chosen, rejected))
    return 0.5 * (sigmoid(beta * (rejected_anchor - chosen)) + sigmoid(beta * (rejected - chosen_anchor)))


@pair_objective(
    paper=_APO_ZERO, equation="eq. 8", bounds={"beta": POSITIVE}, variants={"trl-1.16": {}, "trl-0.24": {}, "liger": {}}
)
def apo_down(pair: PairView, *, beta: float = 0.1) -> Expression:
    """Anchored preference optimization, down.

    ``σ(r(w)) + 1 - σ(r(w) - r(l))``: lower the chosen, and the rejected further; for data worse than the model.

    beta: 0.01-0.5.
    Libraries: TRL and Liger agree.
    """
    chosen, rejected = beta * pair.chosen.logratio, beta * pair.rejected.logratio
    return sigmoid(chosen) + sigmoid(rejected - chosen)
