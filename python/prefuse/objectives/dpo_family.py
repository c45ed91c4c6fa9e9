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
)


@pair_objective(bounds={"beta": POSITIVE, "label_smoothing": PROBABILITY})
def dpo(pair: PairView, *, beta: float = 0.1, label_smoothing: float | None = None) -> Expression:
    """Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

    ``-(1-ε) log σ(βΔ) - ε log σ(-βΔ)``; ε > 0 is conservative DPO (Mitchell 2023), whose optimum is the finite
    margin ``βΔ = log((1-ε)/ε)``.

    beta: strength of the pull towards the reference, 0.01-0.5. label_smoothing: ε, the believed share of flipped
    labels, below 0.5; as a soft label given per pair it may be anything in [0, 1]. None is 0.
    Libraries: TRL 1.x and Liger ignore label smoothing here; TRL 0.x, the original code and OpenRLHF apply it.
    Paper: Direct Preference Optimization: Your Language Model is Secretly a Reward Model.
    """
    return logistic(beta * log_ratio_margin(pair), label_smoothing)


@pair_objective(bounds={"beta": POSITIVE, "label_smoothing": "[0, 0.5)"})
def robust(pair: PairView, *, beta: float = 0.1, label_smoothing: float = 0.1) -> Expression:
    """Provably robust DPO, rDPO (Ray Chowdhury et al. 2024, arXiv:2403.00409).

    ``[-(1-ε) log σ(βΔ) + ε log σ(-βΔ)] / (1-2ε) = -log σ(βΔ) - ε/(1-2ε) βΔ``: averaged over labels flipped with
    probability ε it equals the DPO loss of the clean label.

    beta: 0.01-0.5. label_smoothing: the flip rate ε, in [0, 0.5); the loss diverges towards 0.5 and is unbounded
    below in the margin, so watch for over-optimisation.
    Libraries agree on the formula; TRL's and Liger's default ε is 0, which is plain DPO.
    Paper: Provably Robust DPO: Aligning Language Models with Noisy Feedback.
    Identities: `robust(label_smoothing=0) = dpo`.
    """
    margin = beta * log_ratio_margin(pair)
    return -log_sigmoid(margin) - label_smoothing / (1.0 - 2.0 * label_smoothing) * margin


@pair_objective(bounds={"beta": POSITIVE, "label_smoothing": PROBABILITY})
def dpo_norm(pair: PairView, *, beta: float = 0.1, label_smoothing: float | None = None) -> Expression:
    """Length-normalised DPO (Lambert et al. 2024, Tülu 3, arXiv:2411.15124).

    ``-log σ(β [h(w)/n(w) - h(l)/n(l)])``, smoothed by ε as in `dpo`.

    beta: 2-10, since a per-token log-ratio is small; the default is TRL's. label_smoothing: ε as in `dpo`.
    Libraries: TRL calls it ``sigmoid_norm`` and keeps its default β of 0.1, open-instruct ``dpo_norm`` with β 5.
    Paper: Tülu 3: Pushing Frontiers in Open Language Model Post-Training.
    Identities: `dpo_norm(beta=0.5) = dpo(beta=0.1) where lengths=5`.
    """
    return logistic(beta * length_normalised_margin(pair), label_smoothing)


@pair_objective(bounds={"beta": POSITIVE})
def hinge(pair: PairView, *, beta: float = 0.1) -> Expression:
    """Hinge-norm of RSO: SLiC's link on the log-ratio margin (Liu et al. 2023, arXiv:2309.06657).

    ``max(0, 1 - βΔ)``; zero gradient once the margin exceeds 1/β (and at the kink itself).

    beta: the inverse margin (γ in the paper), 0.005-0.5.
    Libraries: TRL, Liger and torchtune agree; SLiC-HF itself (arXiv:2305.10425) has no reference model.
    Paper: Statistical Rejection Sampling Improves Preference Optimization.
    Identities: `hinge = daa(link="slic")`.
    """
    return relu(1.0 - beta * log_ratio_margin(pair))


@pair_objective(bounds={"beta": POSITIVE})
def ipo(pair: PairView, *, beta: float = 0.1, average: bool = True) -> Expression:
    """Identity preference optimization (Azar et al. 2023, arXiv:2310.12036, eq. 17).

    ``(Δ - 1/(2β))²``: the margin is regressed on a finite target instead of being pushed for ever.

    beta: τ of the paper, 0.01-1. average: divide each log-ratio by its response's length.
    Libraries: TRL, HALOs and LLaMA-Factory average (the paper's authors confirmed it to TRL); the original DPO code,
    OpenRLHF and online DPO sum: ``average=False``.
    Paper: A General Theoretical Paradigm to Understand Learning from Human Preferences.
    Identities: `ipo = ipo(average=False) where lengths=1`; `ipo(average=False) = psi_po where chosen_win_prob=0.75,
    rejected_win_prob=0.25`.
    """
    margin = length_normalised_margin(pair) if average else log_ratio_margin(pair)
    return square(margin - 0.5 / beta)


@pair_objective(bounds={"beta": POSITIVE, "label_smoothing": "(0, 1)"})
def exo(pair: PairView, *, beta: float = 0.1, label_smoothing: float = 1e-3) -> Expression:
    """EXO-pref, exact optimisation for a pair (Ji et al. 2024, arXiv:2402.00856, eq. 16).

    ``KL([q, 1-q] ‖ [1-ε, ε])`` with ``q = σ(βΔ)``: reverse KL to the smoothed label where DPO has forward KL.

    beta: 0.05-0.5. label_smoothing: ε in (0, 1); the loss needs it above zero, the paper suggests 1e-3.
    Libraries: TRL and Liger (``exo_pair``) agree, but their default ε of 0 is refused at construction.
    Paper: Towards Efficient Exact Optimization of Language Model Alignment.
    """
    margin = beta * log_ratio_margin(pair)
    chosen_term = sigmoid(margin) * (log_sigmoid(margin) - log1p(-label_smoothing))
    rejected_term = sigmoid(-margin) * (log_sigmoid(-margin) - log(label_smoothing))
    return chosen_term + rejected_term


@pair_objective(bounds={"beta": POSITIVE, "tau": POSITIVE})
def discopop(pair: PairView, *, beta: float = 0.1, tau: float = 0.05) -> Expression:
    """DiscoPOP, the log-ratio modulated loss found by search (Lu et al. 2024, arXiv:2406.08414, eq. 5).

    ``(1-m) (-log σ(z)) + m e^{-z}`` with ``z = βΔ``, ``m = σ(z/τ)``.

    beta: 0.05-0.5. tau: width of the change from logistic to exponential, in (0, 1]; above 1 the second term grows
    exponentially for wrongly ordered pairs.
    Libraries: TRL and Liger multiply m by e^{-z} and give 0·∞ = NaN for z below about -88; here the product is one
    exponential, ``exp(log σ(z/τ) - z)``, which vanishes there as it should.
    Paper: Discovering Preference Optimization Algorithms with and for Large Language Models.
    """
    margin = beta * log_ratio_margin(pair)
    logistic_part = sigmoid(-margin / tau) * softplus(-margin)
    exponential_part = exp(log_sigmoid(margin / tau) - margin)
    return logistic_part + exponential_part


@pair_objective(bounds={"beta": POSITIVE, "alpha": POSITIVE, "label_smoothing": PROBABILITY})
def f_dpo(
    pair: PairView,
    *,
    divergence: str = "reverse_kl",
    beta: float = 0.1,
    alpha: float | None = None,
    coefficient: float | None = None,
    label_smoothing: float | None = None,
) -> Expression:
    """f-DPO: DPO under another divergence to the reference (Wang et al. 2023, arXiv:2309.16240).

    ``-log σ(β [φ(h(w)) - φ(h(l))])``, where φ is f' of the divergence as a function of the log-ratio, shifted so
    that φ(0) = 0: ``"reverse_kl"`` h (DPO), ``"forward_kl"`` 1 - e^{-h}, ``"alpha"`` (1 - e^{-αh})/α, ``"js"``
    log 2 + log σ(h), ``"jeffreys"`` h + 1 - e^{-h} (an extension, not in the paper).

    beta: 0.05-0.5. alpha: for ``"alpha"`` only, default 0.5, in (0, 1] in the paper; towards 0 it becomes
    reverse, at 1 forward KL. coefficient: TRL 1.x's ``f_alpha_divergence_coef``, 1 - α; give one of the two, above 1 if
    it must. label_smoothing: ε as in `dpo`.
    Exponents are capped at 80: a response that lost more than 80/α nats to the reference has gradient 0 through it.
    Libraries: TRL 0.x's coefficient is the paper's α with a default of 1; TRL 1.x caps only the α exponent.
    Coefficients above 1, total variation and χ² break the derivation: f' must be infinite at 0.
    Paper: Beyond Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence Constraints.
    Identities: `f_dpo = dpo`; `f_dpo(divergence="alpha", coefficient=1) = dpo`; `f_dpo(divergence="alpha", alpha=1) =
    f_dpo(divergence="forward_kl")`.
    """
    score = _divergence_score(divergence, alpha, coefficient)
    margin = score(pair.chosen.logratio) - score(pair.rejected.logratio)
    return logistic(beta * margin, label_smoothing)


def _divergence_score(
    divergence: str, alpha: float | None, coefficient: float | None
) -> Callable[[Expression], Expression]:
    """φ of `f_dpo` for one divergence."""
    if alpha is not None and coefficient is not None:
        raise ValueError("f_dpo: give alpha or coefficient (= 1 - alpha), not both")
    if divergence != "alpha" and (alpha is not None or coefficient is not None):
        raise ValueError(f'f_dpo: alpha belongs to divergence="alpha", got divergence={divergence!r}')
    if coefficient is not None:
        return lambda h: exponential_score(h, 1.0 - coefficient)
    order = 0.5 if alpha is None else alpha
    scores: dict[str, Callable[[Expression], Expression]] = {
        "reverse_kl": lambda h: h,
        "forward_kl": lambda h: -capped_expm1(-h),
        "alpha": lambda h: -capped_expm1(-order * h) / order,
        "js": lambda h: math.log(2.0) + log_sigmoid(h),
        "jeffreys": lambda h: h - capped_expm1(-h),
    }
    return choice("f_dpo: divergence", divergence, scores)
