"""DPO whose strength or weight depends on the pair or on the batch.

Notation: ``h(y) = log π(y|x) - log π_ref(y|x)`` summed over the response, ``Δ = h(w) - h(l)`` for chosen w and
rejected l. A weight of your own needs no new objective: ``dpo.weighted_by("confidence")``, or ``dpo(beta=array)``.
"""

from __future__ import annotations

from ..language import (
    Expression,
    PairView,
    Paper,
    ResponseView,
    exp,
    log_sigmoid,
    maximum,
    minimum,
    pair_objective,
    relu,
    stop_gradient,
)
from ._terms import NON_NEGATIVE, POSITIVE, PROBABILITY, choice, log_ratio_margin, logistic


@pair_objective(
    paper=Paper("2406.11827", "WPO: Enhancing RLHF with Weighted Preference Optimization", "Zhou et al. 2024"),
    equation="eq. 1",
    identities=("wpo = dpo where token_log_sum_sq=token_logps",),
    bounds={"beta": POSITIVE, "label_smoothing": PROBABILITY},
    variants={"original": {"limited": True}, "trl-0.24": {"limited": True}, "trl-1.16": {"limited": False}},
)
def wpo(pair: PairView, *, beta: float = 0.1, label_smoothing: float | None = None, limited: bool = True) -> Expression:
    """Weighted preference optimization, WPO.

    ``c(w) c(l) · (-log σ(βΔ))`` with ``c(y) = exp(mean_t [log π_t - log Σ_v π_v²])``: the likelier the policy is to
    have written the pair, the more it counts. The weight takes no gradient. Token columns ``logp`` and ``log_sum_sq``.

    beta: 0.01-0.5. label_smoothing: ε as in `dpo`. limited: hold the product of the two at 1 at
    most, as the authors' code and TRL 0.x do; TRL 1.x does not.
    """
    confidence = _confidence(pair.chosen) + _confidence(pair.rejected)
    confidence = minimum(confidence, 0.0) if limited else confidence
    return stop_gradient(exp(confidence)) * logistic(beta * log_ratio_margin(pair), label_smoothing)


def _confidence(response: ResponseView) -> Expression:
    return (response.token.logp - response.token["log_sum_sq"]).mean()


@pair_objective(
    paper=Paper("2407.08639", "β-DPO: Direct Preference Optimization with Dynamic β", "Wu et al. 2024"),
    identities=("beta_dpo(sensitivity=0) = dpo",),
    bounds={"beta": POSITIVE, "sensitivity": NON_NEGATIVE},
)
def beta_dpo(
    pair: PairView, *, beta: float = 0.1, sensitivity: float = 0.6, centre: float = 0.0, level: str = "batch"
) -> Expression:
    """DPO with a dynamic β, β-DPO.

    ``-log σ(β' Δ)`` with ``β' = max(10⁻³, β [1 + a (M - M₀)])``, M the mean of Δ over the batch. β' takes no gradient.

    beta: 0.05-0.5. sensitivity: a, 0-1; at 0 it is DPO. centre: M₀, in nats: the caller's running mean of M. level:
    ``"batch"``, or ``"pair"`` for a β' of each pair, where M is its own Δ.
    The filter of improbable pairs is the caller's: leave them out. Rewards use β, as in the authors' code.
    """
    margin = log_ratio_margin(pair)
    gap = choice("beta_dpo: level", level, {"batch": margin.mean("batch"), "pair": margin})
    strength = maximum(beta * (1.0 + sensitivity * (gap - centre)), 1e-3)
    return -log_sigmoid(stop_gradient(strength) * margin)


@pair_objective(
    paper=Paper(
        "2408.09385", "Reward Difference Optimization For Sample Reweighting In Offline RLHF", "Wang et al. 2024"
    ),
    identities=("dpo_rc = dpo where chosen_score=1, rejected_score=0",),
    bounds={"beta": POSITIVE},
)
def dpo_rc(pair: PairView, *, beta: float = 0.1) -> Expression:
    """DPO with reward difference coefficients, DPO-RC, as reconstructed.

    ``max(0, R(w) - R(l)) · (-log σ(βΔ))``: the columns ``score`` hold a reward model's R; a pair counts by how much it
    differs, one that the reward model orders the other way not at all. The weight takes no gradient.

    beta: 0.05-0.5.
    """
    coefficient = stop_gradient(relu(pair.chosen["score"] - pair.rejected["score"]))
    return -coefficient * log_sigmoid(beta * log_ratio_margin(pair))


@pair_objective(
    paper=Paper(
        "2407.18676",
        "Right Now, Wrong Then: Non-Stationary Direct Preference Optimization under Preference Drift",
        "Son et al. 2024",
    ),
    equation="eq. 10 at ICLR",
    identities=(
        "ns_dpo(gamma=1) = dpo",
        "ns_dpo = dpo where age=0",
    ),
    bounds={"beta": POSITIVE, "gamma": "(0, 1]"},
)
def ns_dpo(pair: PairView, *, beta: float = 0.1, gamma: float = 0.95) -> Expression:
    """Non-stationary DPO, NS-DPO.

    ``γ^a · (-log σ(βΔ))``: the column ``age`` holds a, how many periods ago the preference was given.

    beta: 0.05-0.5. gamma: discount per period, 0.9-1; at 1 it is DPO.
    """
    return gamma ** pair["age"] * -log_sigmoid(beta * log_ratio_margin(pair))


@pair_objective(
    paper=Paper("2405.14953", "MallowsPO: Fine-Tune Your LLM with Preference Dispersions", "Chen et al. 2024"),
    equation="eqs. 7 and 8 at ICLR",
    identities=("mallows_po = dpo where dispersion=1",),
    bounds={"beta": POSITIVE},
)
def mallows_po(pair: PairView, *, beta: float = 0.1) -> Expression:
    """Preference optimization with dispersions, MallowsPO.

    ``-log σ(φ βΔ)``: the column ``dispersion`` holds φ of the prompt, -2 log φ(x) in the paper's notation, larger where
    people agree; the paper estimates it from the normalised entropy of the model's tokens.

    beta: 0.05-0.5.
    """
    return -log_sigmoid(pair["dispersion"] * beta * log_ratio_margin(pair))
