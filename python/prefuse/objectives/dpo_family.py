"""Pair objectives on one margin, the difference of the two log-ratios.

Notation: ``h(y) = log π(y|x) - log π_ref(y|x)`` summed over the response, ``Δ = h(w) - h(l)`` for chosen w and
rejected l, ``n(y)`` the number of response tokens, ``σ`` the logistic function.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ..language import (
    Expression,
    PairView,
    Paper,
    exp,
    log,
    log1p,
    log_sigmoid,
    pair_objective,
    relu,
    sigmoid,
    softplus,
    square,
)
from ._terms import (
    POSITIVE,
    PROBABILITY,
    capped_expm1,
    choice,
    exponential_score,
    length_normalised_margin,
    log_ratio_margin,
    logistic,
    refuse_smoothing,
)


@pair_objective(
    paper=Paper(
        "2305.18290",
        "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
        "Rafailov et al. 2023",
    ),
    equation="eq. 7",
    bounds={"beta": POSITIVE, "label_smoothing": PROBABILITY},
    variants={
        "original": {},
        "trl-1.16": {"label_smoothing": None},
        "trl-0.24": {},
        "liger": {"label_smoothing": None},
        "openrlhf": {},
    },
)
def dpo(pair: PairView, *, beta: float = 0.1, label_smoothing: float | None = None) -> Expression:
    """Direct preference optimization.

    ``-(1-ε) log σ(βΔ) - ε log σ(-βΔ)``; ε > 0 is conservative DPO (Mitchell 2023), whose optimum is the finite
    margin ``βΔ = log((1-ε)/ε)``.

    beta: strength of the pull towards the reference, 0.01-0.5. label_smoothing: ε, the believed share of flipped
    labels, below 0.5; as a soft label given per pair it may be anything in [0, 1]. None is 0.
    Libraries: TRL 1.x and Liger ignore label smoothing here; TRL 0.x, the original code and OpenRLHF apply it.
    """
    return logistic(beta * log_ratio_margin(pair), label_smoothing)


@pair_objective(
    paper=Paper(None, "A note on DPO with noisy preferences and relationship to IPO", "Mitchell 2023"),
    equation="eq. 3",
    identities=("cdpo = dpo(label_smoothing=0.1)",),
    bounds={"beta": POSITIVE, "label_smoothing": PROBABILITY},
    variants={"original": {}, "trl-0.24": {}, "openrlhf": {}, "halos": {"label_smoothing": 0.2}},
)
def cdpo(pair: PairView, *, beta: float = 0.1, label_smoothing: float = 0.1) -> Expression:
    """Conservative DPO, cDPO.

    ``-(1-ε) log σ(βΔ) - ε log σ(-βΔ)``: `dpo` with smoothed labels under its own name.

    beta: 0.01-0.5. label_smoothing: ε, the believed share of flipped labels, below 0.5.
    Libraries: the original DPO code, TRL 0.x and OpenRLHF reach it through DPO's ``label_smoothing``; TRL 1.x and Liger
    have it no longer.
    """
    return logistic(beta * log_ratio_margin(pair), label_smoothing)


@pair_objective(
    paper=Paper(
        "2403.00409", "Provably Robust DPO: Aligning Language Models with Noisy Feedback", "Ray Chowdhury et al. 2024"
    ),
    identities=("robust(label_smoothing=0) = dpo",),
    bounds={"beta": POSITIVE, "label_smoothing": "[0, 0.5)"},
    variants={
        "trl-1.16": {"label_smoothing": 0.0},
        "trl-0.24": {"label_smoothing": 0.0},
        "liger": {"label_smoothing": 0.0},
    },
)
def robust(pair: PairView, *, beta: float = 0.1, label_smoothing: float = 0.1) -> Expression:
    """Provably robust DPO, rDPO.

    ``[-(1-ε) log σ(βΔ) + ε log σ(-βΔ)] / (1-2ε) = -log σ(βΔ) - ε/(1-2ε) βΔ``: averaged over labels flipped with
    probability ε it equals the DPO loss of the clean label.

    beta: 0.01-0.5. label_smoothing: the flip rate ε, in [0, 0.5); the loss diverges towards 0.5 and is unbounded
    below in the margin, so watch for over-optimisation.
    Libraries agree on the formula; TRL's and Liger's default ε is 0, which is plain DPO.
    """
    return _unbiased(beta * log_ratio_margin(pair), label_smoothing)


def _unbiased(margin: Expression, label_smoothing: float) -> Expression:
    return -log_sigmoid(margin) - label_smoothing / (1.0 - 2.0 * label_smoothing) * margin


@pair_objective(
    paper=Paper(
        "2411.15124", "Tülu 3: Pushing Frontiers in Open Language Model Post-Training", "Lambert et al. 2024, Tülu 3"
    ),
    equation="eq. 6",
    identities=("dpo_norm(beta=0.5) = dpo(beta=0.1) where lengths=5",),
    bounds={"beta": POSITIVE, "label_smoothing": PROBABILITY},
    variants={
        "trl-1.16": {"label_smoothing": None},
        "liger": {"label_smoothing": None},
        "open-instruct": {"beta": 5.0},
    },
)
def dpo_norm(pair: PairView, *, beta: float = 0.1, label_smoothing: float | None = None) -> Expression:
    """Length-normalised DPO.

    ``-log σ(β [h(w)/n(w) - h(l)/n(l)])``, smoothed by ε as in `dpo`.

    beta: 2-10, since a per-token log-ratio is small; the default is TRL's. label_smoothing: ε as in `dpo`.
    Libraries: TRL calls it ``sigmoid_norm`` and keeps its default β of 0.1, open-instruct ``dpo_norm`` with β 5.
    """
    return logistic(beta * length_normalised_margin(pair), label_smoothing)


@pair_objective(
    paper=Paper("2309.06657", "Statistical Rejection Sampling Improves Preference Optimization", "Liu et al. 2023"),
    equation="eq. 10",
    identities=('hinge = daa(link="slic")',),
    bounds={"beta": POSITIVE},
    variants={"trl-1.16": {}, "trl-0.24": {}, "liger": {}},
)
def hinge(pair: PairView, *, beta: float = 0.1) -> Expression:
    """Hinge-norm of RSO: SLiC's link on the log-ratio margin.

    ``max(0, 1 - βΔ)``; zero gradient once the margin exceeds 1/β (and at the kink itself).

    beta: the inverse margin (γ in the paper), 0.005-0.5.
    Libraries: TRL, Liger and torchtune agree; SLiC-HF itself (arXiv:2305.10425) has no reference model.
    """
    return relu(1.0 - beta * log_ratio_margin(pair))


@pair_objective(
    paper=Paper(
        "2310.12036", "A General Theoretical Paradigm to Understand Learning from Human Preferences", "Azar et al. 2023"
    ),
    equation="eq. 17",
    identities=(
        "ipo(average=True) = ipo where lengths=1",
        "ipo = psi_po where chosen_win_prob=0.75, rejected_win_prob=0.25",
    ),
    bounds={"beta": POSITIVE},
    variants={
        "trl-1.16": {"average": True},
        "trl-0.24": {"average": True},
        "halos": {"average": True},
        "llamafactory": {"average": True},
        "dpo-original": {"average": False},
        "openrlhf": {"average": False},
    },
)
def ipo(pair: PairView, *, beta: float = 0.1, average: bool = False) -> Expression:
    """Identity preference optimization.

    ``(Δ - 1/(2β))²``: the margin is regressed on a finite target instead of being pushed for ever.

    beta: τ of the paper, 0.01-1. average: divide each log-ratio by its response's length.
    Libraries: TRL, HALOs and LLaMA-Factory average (the paper's authors told TRL that they do): ``average=True``; the
    original DPO code, OpenRLHF and TRL's online DPO sum, as the paper's formula does.
    """
    margin = length_normalised_margin(pair) if average else log_ratio_margin(pair)
    return square(margin - 0.5 / beta)


@pair_objective(
    paper=Paper("2402.00856", "Towards Efficient Exact Optimization of Language Model Alignment", "Ji et al. 2024"),
    equation="eq. 16",
    bounds={"beta": POSITIVE, "label_smoothing": "(0, 1)"},
    variants={"trl-1.16": {}, "trl-0.24": {}, "liger": {}},
)
def exo(pair: PairView, *, beta: float = 0.1, label_smoothing: float = 1e-3) -> Expression:
    """EXO-pref, exact optimisation for a pair.

    ``KL([q, 1-q] ‖ [1-ε, ε])`` with ``q = σ(βΔ)``: reverse KL to the smoothed label where DPO has forward KL.

    beta: 0.05-0.5. label_smoothing: ε in (0, 1); the loss needs it above zero, the paper suggests 1e-3.
    Libraries: TRL and Liger (``exo_pair``) agree, but their default ε of 0 is refused at construction.
    """
    return _reverse_kl(beta * log_ratio_margin(pair), label_smoothing)


def _reverse_kl(margin: Expression, label_smoothing: float) -> Expression:
    chosen_term = sigmoid(margin) * (log_sigmoid(margin) - log1p(-label_smoothing))
    rejected_term = sigmoid(-margin) * (log_sigmoid(-margin) - log(label_smoothing))
    return chosen_term + rejected_term


@pair_objective(
    paper=Paper(
        "2406.08414",
        "Discovering Preference Optimization Algorithms with and for Large Language Models",
        "Lu et al. 2024",
    ),
    equation="eq. 5",
    bounds={"beta": POSITIVE, "tau": POSITIVE},
    variants={"trl-1.16": {}, "trl-0.24": {}, "liger": {}},
)
def discopop(pair: PairView, *, beta: float = 0.1, tau: float = 0.05) -> Expression:
    """DiscoPOP, the log-ratio modulated loss found by search.

    ``(1-m) (-log σ(z)) + m e^{-z}`` with ``z = βΔ``, ``m = σ(z/τ)``.

    beta: 0.05-0.5. tau: width of the change from logistic to exponential, in (0, 1]; above 1 the second term grows
    exponentially for wrongly ordered pairs.
    Libraries: TRL and Liger multiply m by e^{-z} and give 0·∞ = NaN for z below about -88; here the product is one
    exponential, ``exp(log σ(z/τ) - z)``, which vanishes there as it should.
    """
    return _modulated(beta * log_ratio_margin(pair), tau)


def _modulated(margin: Expression, tau: float) -> Expression:
    logistic_part = sigmoid(-margin / tau) * softplus(-margin)
    exponential_part = exp(log_sigmoid(margin / tau) - margin)
    return logistic_part + exponential_part


@pair_objective(
    paper=Paper(
        "2309.16240",
        "Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence Constraints",
        "Wang et al. 2023",
    ),
    equation="theorem 1 at ICLR",
    identities=(
        "f_dpo = dpo",
        'f_dpo(divergence="alpha", coefficient=1) = dpo',
        'f_dpo(divergence="alpha", alpha=1) = f_dpo(divergence="forward_kl")',
    ),
    bounds={"beta": POSITIVE, "alpha": POSITIVE, "label_smoothing": PROBABILITY, "tau": POSITIVE},
    variants={
        "original": {},
        "trl-1.16": {"alpha": None},
        "trl-1.10": {"alpha": None, "shifted": False},
        "trl-0.24": {"coefficient": None},
    },
)
def f_dpo(
    pair: PairView,
    *,
    divergence: str = "reverse_kl",
    beta: float = 0.1,
    alpha: float | None = None,
    coefficient: float | None = None,
    label_smoothing: float | None = None,
    link: str = "sigmoid",
    tau: float = 0.05,
    average: bool = False,
    shifted: bool = True,
) -> Expression:
    """f-DPO: DPO under another divergence to the reference.

    ``-log σ(β [φ(h(w)) - φ(h(l))])``, where φ is f' of the divergence as a function of the log-ratio, shifted so
    that φ(0) = 0: ``"reverse_kl"`` h (DPO), ``"forward_kl"`` 1 - e^{-h}, ``"alpha"`` (1 - e^{-αh})/α, ``"js"``
    log 2 + log σ(h), ``"jeffreys"`` h + 1 - e^{-h} (an extension, not in the paper).

    beta: 0.05-0.5. alpha: for ``"alpha"`` only, default 0.5, in (0, 1] in the paper; towards 0 it becomes
    reverse, at 1 forward KL. coefficient: TRL 1.x's ``f_alpha_divergence_coef``, 1 - α; give one of the two, above 1 if
    it must. label_smoothing: ε as in `dpo`. link: the loss of the scores' margin z: ``"sigmoid"``; ``"hinge"``,
    ``"ipo"``, ``"robust"``, ``"exo"`` or ``"discopop"`` as the objectives of these names, as TRL combines them; robust
    and exo take label_smoothing, discopop tau. average: divide each score by its response's length. shifted: False
    leaves φ(0) where f' has it, which makes a difference to averages alone. Exponents are capped at 80: a response that
    lost more than 80/α nats to the reference has gradient 0 through it.
    Libraries: TRL 0.x's coefficient is the paper's α with a default of 1; TRL 1.x caps only the α exponent, and up to
    1.10 did not shift. Its ``sigmoid_norm`` and ``ipo`` have ``average=True``.
    Coefficients above 1, total variation and χ² break the derivation: f' must be infinite at 0.
    """
    score, at_zero = _divergence_score(divergence, alpha, coefficient)
    chosen, rejected = (score(response.logratio) for response in (pair.chosen, pair.rejected))
    if not shifted:
        chosen, rejected = chosen + at_zero, rejected + at_zero
    if average:
        chosen, rejected = chosen / pair.chosen.length, rejected / pair.rejected.length
    return _linked(chosen - rejected, link, beta, label_smoothing, tau)


def _linked(gap: Expression, link: str, beta: float, label_smoothing: float | None, tau: float) -> Expression:
    """The loss of a difference of scores under one of the links that `f_dpo` combines with."""
    margin = beta * gap
    if link == "sigmoid":
        return logistic(margin, label_smoothing)
    smoothed = {"robust": _unbiased, "exo": _reverse_kl}
    if link in smoothed:
        if label_smoothing is None:
            raise ValueError(f"label_smoothing: f_dpo's link {link!r} needs it, got None")
        return smoothed[link](margin, label_smoothing)
    links = {
        "hinge": lambda: relu(1.0 - margin),
        "ipo": lambda: square(gap - 0.5 / beta),
        "discopop": lambda: _modulated(margin, tau),
    }
    loss = choice("f_dpo: link", link, {"sigmoid": None, **dict.fromkeys(smoothed), **links})
    refuse_smoothing("f_dpo's link", link, label_smoothing)
    assert loss is not None
    return loss()


def _divergence_score(
    divergence: str, alpha: float | None, coefficient: float | None
) -> tuple[Callable[[Expression], Expression], Expression | float]:
    """φ of `f_dpo` for one divergence, shifted to φ(0) = 0, and what it was before."""
    if alpha is not None and coefficient is not None:
        raise ValueError("f_dpo: give alpha or coefficient (= 1 - alpha), not both")
    if divergence != "alpha" and (alpha is not None or coefficient is not None):
        raise ValueError(f'f_dpo: alpha belongs to divergence="alpha", got divergence={divergence!r}')
    if coefficient is not None:
        return lambda h: exponential_score(h, 1.0 - coefficient), 1.0 / (coefficient - 1.0)
    order = 0.5 if alpha is None else alpha
    scores: dict[str, tuple[Callable[[Expression], Expression], Expression | float]] = {
        "reverse_kl": (lambda h: h, 0.0),
        "forward_kl": (lambda h: -capped_expm1(-h), -1.0),
        "alpha": (lambda h: -capped_expm1(-order * h) / order, -1.0 / order),
        "js": (lambda h: math.log(2.0) + log_sigmoid(h), -math.log(2.0)),
        "jeffreys": (lambda h: h - capped_expm1(-h), -1.0),
    }
    return choice("f_dpo: divergence", divergence, scores)
