"""Objectives of diffusion models: pair objectives on denoising errors or on the log-probabilities of denoising steps.

`prefuse.squared_errors` and `prefuse.gaussian_logps` reduce a model's outputs to one number per sample, as a gather
does for text.
"""

from __future__ import annotations

from ..language import (
    Expression,
    PairView,
    Paper,
    ResponseView,
    clamp,
    log1p,
    log_sigmoid,
    pair_objective,
    stop_gradient,
    where,
)
from ._terms import POSITIVE, choice

Rewards = dict[str, Expression]


@pair_objective(
    paper=Paper("2311.12908", "Diffusion Model Alignment Using Direct Preference Optimization", "Wallace et al. 2023"),
    equation="eq. 14",
    bounds={"beta": POSITIVE},
)
def diffusion_dpo(pair: PairView, *, beta: float = 2500.0) -> tuple[Expression, Rewards]:
    """Diffusion-DPO.

    ``-log σ( -b [ d(w) - d(l) ] )``, ``d(y) = ‖ε - ε_θ(y_t, t)‖² - ‖ε - ε_ref(y_t, t)‖²``, both samples noised to the
    same step t.

    Columns: ``chosen_error``, ``rejected_error`` (`prefuse.squared_errors` of the model), ``chosen_ref_error``,
    ``rejected_ref_error``.

    beta: b, the product β T ω(λ_t), one number or one per pair.
    Libraries: the authors' code takes means over dimensions and b = β/2 with β = 5000; this default.
    """
    chosen, rejected = regression(pair.chosen), regression(pair.rejected)
    return -log_sigmoid(beta * (rejected - chosen)), {"chosen": -beta * chosen, "rejected": -beta * rejected}


def regression(response: ResponseView) -> Expression:
    """How much larger the model's error is than the reference's."""
    return response["error"] - stop_gradient(response["ref_error"])


@pair_objective(
    paper=Paper(
        "2410.05255", "SePPO: Semi-Policy Preference Optimization for Diffusion Alignment", "Zhang et al. 2024"
    ),
    equation="eqs. 7 and 8",
    bounds={"beta": POSITIVE},
)
def seppo(pair: PairView, *, beta: float = 2500.0, anchor: str = "model") -> Expression:
    """Semi-policy preference optimization, SePPO, as reconstructed.

    ``-log σ( -b [ d(w) - s d(l) ] )`` with d as in `diffusion_dpo`: the rejected sample is drawn from an earlier
    checkpoint, which is the reference as well. ``s = 1`` where the model's error on the chosen sample is below the
    checkpoint's (d(w) < 0), else -1: then both samples are pulled in.

    Columns and beta: those of `diffusion_dpo`. anchor: ``"model"``, or ``"given"`` for a column ``sign`` of the pair
    that holds s, 1 or -1.
    """
    chosen, rejected = regression(pair.chosen), regression(pair.rejected)
    signs = {
        "model": lambda: where(stop_gradient(chosen) < 0.0, 1.0, -1.0),
        "given": lambda: stop_gradient(pair["sign"]),
    }
    sign = choice("seppo: anchor", anchor, signs)()
    return -log_sigmoid(beta * (sign * rejected - chosen))


@pair_objective(
    paper=Paper(
        "2311.13231", "Using Human Feedback to Fine-tune Diffusion Models without Any Reward Model", "Yang et al. 2023"
    ),
    equation="eq. 14",
    identities=("d3po = dpo",),
    bounds={"beta": POSITIVE, "clip": "(0, 1)"},
    variants={"original": {"clip": 0.1}},
)
def d3po(pair: PairView, *, beta: float = 0.1, clip: float | None = None) -> Expression:
    """Denoising diffusion policy optimization from preferences, D3PO.

    ``-log σ(β h(w) - β h(l))`` for one denoising step of two trajectories: each pair of steps is a pair here, with the
    step's log-probabilities (`prefuse.gaussian_logps`) as ``chosen_logps`` and so on.

    beta: 0.1. clip: limits the ratios π/π_ref to 1 ± this first, with gradient 0 outside; 0.1 in the authors' code,
    whose log-probabilities are means over dimensions; the paper has no limit.
    """
    h = [pair.response(role).logratio for role in ("chosen", "rejected")]
    if clip is not None:
        h = [clamp(ratio, log1p(-clip), log1p(clip)) for ratio in h]
    return -log_sigmoid(beta * (h[0] - h[1]))
