"""Objectives that look at single tokens: KL per token, masks, values, weights.

Notation: ``h_t = log π - log π_ref`` at token t, ``h(y) = Σ_t h_t``; ``K(y) = Σ_t KL(π_ref‖π)`` over the full
vocabulary along the response (columns ``token_rkl``, which `preference_loss` makes from the logits of both models, with
their gradient), w chosen, l rejected.
"""

from __future__ import annotations

from ..language import (
    Expression,
    PairView,
    Paper,
    ResponseView,
    TokenView,
    clamp,
    exp,
    log_sigmoid,
    maximum,
    pair_objective,
    point_objective,
    sigmoid,
    square,
    stop_gradient,
    token_objective,
    where,
)
from ._policy_terms import k3
from ._terms import NON_NEGATIVE, POSITIVE, PROBABILITY, log_ratio_margin, logistic

Rewards = dict[str, Expression]

_TDPO1 = Paper("2404.11999", "Token-level Direct Preference Optimization", "Zeng et al. 2024")
_SPARSE_PO = Paper(
    "2410.05102",
    "SparsePO: Controlling Preference Alignment of LLMs via Sparse Token Masks",
    "Christopoulou et al. 2024",
)
_OREO_VALUE = Paper("2412.16145", "Offline Reinforcement Learning for LLM Multi-Step Reasoning", "Wang et al. 2024")


@pair_objective(paper=_TDPO1, equation="eq. 15", identities=("tdpo1 = dpo where rkl=0",), bounds={"beta": POSITIVE})
def tdpo1(pair: PairView, *, beta: float = 0.1) -> tuple[Expression, Rewards]:
    """Token-level DPO, TDPO1.

    ``-log σ(β [h(w) - h(l) - (K(l) - K(w))])``. Its gradient enlarges the KL on the chosen side, which `tdpo2` does
    not.

    Columns: ``chosen_token_rkl``, ``rejected_token_rkl``.

    beta: 0.05-0.5.
    Libraries: the authors' code; its README's command for TDPO2 trains this.
    """
    drift = drift_of(pair.rejected) - drift_of(pair.chosen)
    return -log_sigmoid(beta * (log_ratio_margin(pair) - drift)), tdpo_rewards(pair, beta)


@pair_objective(
    paper=_TDPO1,
    equation="KL term: eq. 18",
    identities=(
        "tdpo2(alpha=0) = dpo",
        "tdpo2(alpha=1) = tdpo1",
    ),
    bounds={"beta": POSITIVE, "alpha": NON_NEGATIVE},
)
def tdpo2(pair: PairView, *, beta: float = 0.1, alpha: float = 0.5) -> tuple[Expression, Rewards]:
    """Token-level DPO, TDPO2.

    ``-log σ(β [h(w) - h(l) - α (K(l) - sg[K(w)])])``: the chosen side's KL is a constant.

    Columns: ``chosen_token_rkl``, ``rejected_token_rkl``.

    beta: 0.05-0.5. alpha: weight of the KL difference, 0-2; 0 is DPO.
    """
    drift = drift_of(pair.rejected) - stop_gradient(drift_of(pair.chosen))
    return -log_sigmoid(beta * (log_ratio_margin(pair) - alpha * drift)), tdpo_rewards(pair, beta)


def drift_of(response: ResponseView) -> Expression:
    """``K(y)``, the KL summed along the response."""
    return response.token["rkl"].sum()


def tdpo_rewards(pair: PairView, beta: float) -> Rewards:
    """``β (h + K)``, what the authors' code logs."""
    return {
        role: beta * (pair.response(role).logratio + drift_of(pair.response(role))) for role in ("chosen", "rejected")
    }


@pair_objective(
    paper=_SPARSE_PO,
    equation="from eq. 3 at ICLR",
    identities=(
        "sparse_po = tdpo1 where reward_weight=1, kl_weight=1",
        "sparse_po = dpo where reward_weight=1, kl_weight=0",
    ),
    bounds={"beta": POSITIVE, "reward_penalty": NON_NEGATIVE, "kl_penalty": NON_NEGATIVE},
)
def sparse_po(
    pair: PairView, *, beta: float = 0.1, reward_penalty: float | None = None, kl_penalty: float | None = None
) -> Expression:
    """SparsePO, learned masks on tokens.

    ``-log σ(β (u - d))``, ``u = Σ m^u_t h_t(w) - Σ m^u_t h_t(l)``, ``d = Σ m^d_t KL_t(l) - Σ m^d_t KL_t(w)``, plus L1
    terms ``η_u Σ m^u + η_d Σ m^d`` over both responses. Gradients reach the masks, whose network is the caller's.

    Columns by token of each response: ``token_reward_weight`` (m^u), ``token_kl_weight`` (m^d; the same array for a
    common mask), ``token_rkl``. Masks of 1 give TDPO1.

    beta: 0.1-0.8. reward_penalty, kl_penalty: η_u and η_d, about 1e-3; None leaves them out.
    """
    chosen, rejected = pair.chosen.token, pair.rejected.token
    reward = weighted_sum(chosen, "reward_weight") - weighted_sum(rejected, "reward_weight")
    drift = (rejected["kl_weight"] * rejected["rkl"]).sum() - (chosen["kl_weight"] * chosen["rkl"]).sum()
    loss = -log_sigmoid(beta * (reward - drift))
    for penalty, mask in ((reward_penalty, "reward_weight"), (kl_penalty, "kl_weight")):
        if penalty is not None:
            loss = loss + penalty * (chosen[mask].sum() + rejected[mask].sum())
    return loss


def weighted_sum(token: TokenView, weight: str) -> Expression:
    """``Σ_t w_t h_t`` with the weights in the column of this name."""
    return (token[weight] * token.logratio).sum()


@pair_objective(paper=_SPARSE_PO, equation="from eq. 3 at ICLR", bounds={"beta": POSITIVE})
def mapo(pair: PairView, *, beta: float = 0.1) -> Expression:
    """MaPO, masks from the reference's activations.

    `sparse_po` with one mask for both: ``m_t = (a_t - min a)/(max a - min a)`` within the response, a constant.

    Columns by token of each response: ``token_activation`` (a, the mean of an activation tensor over its features),
    ``token_rkl``. For several layers average their masks and use `sparse_po`. Where all of a response's activations are
    equal its mask is 0.

    beta: 0.1-0.8.
    """
    chosen, rejected = masked_parts(pair.chosen.token), masked_parts(pair.rejected.token)
    return -log_sigmoid(beta * ((chosen[0] - rejected[0]) - (rejected[1] - chosen[1])))


def masked_parts(token: TokenView) -> tuple[Expression, Expression]:
    """``Σ m_t h_t`` and ``Σ m_t KL_t`` under the mask made of activations."""
    low, high = token["activation"].min(), token["activation"].max()
    span = where(high > low, high - low, 1.0)
    mask = stop_gradient((token["activation"] - low) / span)
    return (mask * token.logratio).sum(), (mask * token["rkl"]).sum()


@token_objective(paper=_OREO_VALUE, equation="eq. 8", bounds={"beta": NON_NEGATIVE})
def oreo_value(token: TokenView, *, beta: float = 0.03) -> Expression:
    """OREO's value loss.

    ``1/n Σ_t ( V_t - R + β sg[Σ_{i≥t} h_i] )²``: soft Bellman consistency of a value head V on states before each
    token, for a response whose only reward R comes at its end.

    Columns: ``value`` by token, ``reward`` by response.

    beta: 0.03.
    """
    to_go = stop_gradient(token.logratio.suffix_sum())
    return square(token["value"] - token.response["reward"] + beta * to_go).mean()


@token_objective(
    paper=_OREO_VALUE,
    equation="eq. 9",
    identities=('oreo(divergence="none") = oreo_value',),
    bounds={"beta": NON_NEGATIVE, "alpha": NON_NEGATIVE},
)
def oreo(
    token: TokenView, *, beta: float = 0.03, alpha: float = 0.01, level: str = "token", divergence: str = "exact"
) -> Expression:
    """OREO's policy loss, offline reasoning optimization.

    ``1/n Σ_t ( sg[V_t] - R + β h_t + β sg[Σ_{i>t} h_i] )² + α 1/n Σ_t KL_t(π‖π_ref)``. ``level="step"``: one term per
    step, with the gradient through the whole step; ``"response"``: ``(sg[V_1] - R + β Σ h_t)²``.

    Columns: ``value`` by token, ``reward`` by response; for steps ``step_start`` (true where one begins, the first
    token included); for ``divergence="exact"`` ``kl``, the KL(π‖π_ref) by token.

    beta: 0.03. alpha: 0.01. divergence: ``"exact"``, ``"k3"`` for the estimate ``e^{-h} + h - 1``, or ``"none"``.
    """
    if level not in ("token", "step", "response") or divergence not in ("exact", "k3", "none"):
        expected = 'level "token", "step" or "response" and divergence "exact", "k3" or "none"'
        raise ValueError(f"oreo: expected {expected}; got level={level!r}, divergence={divergence!r}")
    loss = consistency(token, beta, level)
    if divergence == "none":
        return loss
    return loss + alpha * (token["kl"] if divergence == "exact" else k3(token.logratio)).mean()


def consistency(token: TokenView, beta: float, level: str) -> Expression:
    """OREO's squared residuals of the policy, averaged over tokens, steps, or of the response."""
    h, reward = token.logratio, token.response["reward"]
    value = stop_gradient(token["value"])
    if level == "response":
        return square(value.first() - reward + beta * h.sum())
    start = token.position * 0.0 + 1.0 if level == "token" else token["step_start"]
    own = h if level == "token" else h.suffix_sum(reset=start)
    later = stop_gradient(h.suffix_sum() - own)
    terms = where(start > 0.5, square(value - reward + beta * (own + later)), 0.0)
    return terms.sum() / maximum(where(start > 0.5, 1.0, 0.0).sum(), 1.0)


@pair_objective(
    paper=Paper(
        "2502.14340",
        "Earlier Tokens Contribute More: Learning Direct Preference Optimization From Temporal Decay Perspective",
        "Shao et al. 2025",
    ),
    equation="eq. 5 at ICLR",
    identities=("d2po(discount=1) = dpo",),
    bounds={"beta": POSITIVE, "discount": "(0, 1]"},
)
def d2po(pair: PairView, *, beta: float = 0.1, discount: float = 0.98) -> Expression:
    """Temporal decay DPO, D²PO.

    ``-log σ(β [Σ_t γ^t h_t(w) - Σ_t γ^t h_t(l)])``: early tokens decide.

    beta: 0.05-0.5. discount: γ, 0.95-1; 1 is DPO.
    """
    chosen, rejected = (discounted(pair.response(role).token, discount) for role in ("chosen", "rejected"))
    return -log_sigmoid(beta * (chosen - rejected))


@pair_objective(
    paper=Paper("2406.14868", "Direct Multi-Turn Preference Optimization for Language Agents", "Shi et al. 2024"),
    equation="eq. 16",
    identities=("dmpo = dpo where turn=0",),
    bounds={"beta": POSITIVE, "discount": "(0, 1)"},
)
def dmpo(pair: PairView, *, beta: float = 0.1, discount: float = 0.9) -> Expression:
    """Direct multi-turn preference optimization, DMPO.

    ``-log σ(β [Σ φ h_t(w) - Σ φ h_t(l)])`` with ``φ = γ^k (1 - γ^{K-k}) / (1 - γ^K)`` in turn k of K, k from 0.

    Columns by token: ``token_turn`` (k, 0 for the first turn).

    beta: 0.05-0.5. discount: γ, 0.5-0.99; towards 0 only the first turn counts. 0.7 in the authors' code, which agrees.
    """
    chosen, rejected = (turns_weighted(pair.response(role).token, discount) for role in ("chosen", "rejected"))
    return -log_sigmoid(beta * (chosen - rejected))


@pair_objective(
    paper=Paper("2509.24207", "Humanline: Online Alignment as Perceptual Loss", "Liu et al. 2025"),
    equation="humanline clipping; `get_sequence_rewards` of the authors' code (HALOs)",
    identities=("humanline_dpo(low=-1000, high=1000) = dpo",),
    bounds={"beta": POSITIVE, "low": "(-inf, 0]", "high": NON_NEGATIVE, "label_smoothing": PROBABILITY},
)
def humanline_dpo(
    pair: PairView,
    *,
    beta: float = 0.1,
    low: float = -1.0,
    high: float = 1.5,
    label_smoothing: float | None = None,
) -> tuple[Expression, Rewards]:
    """Humanline DPO, log-ratios limited by token.

    ``-(1-ε) log σ(βΔ) - ε log σ(-βΔ)`` with ``Δ = Σ_t clip(h_t(w), L, U) - Σ_t clip(h_t(l), L, U)``: tokens that have
    moved further than L or U from the reference count as much, and have no gradient. The paper copies the policy into
    the reference every few steps (`prefuse.outer.refresh_reference`).

    beta: 0.05-0.5. low, high: L and U, log ε_P and log ε_R of the paper, in nats; -1 and 1.5 in the authors' code.
    label_smoothing: ε, the believed share of flipped labels, below 0.5; None is 0.
    Libraries: HALOs, with ``humanline=true``, its CDPO trainer for ε.
    """
    total = {role: clamp(pair.response(role).token.logratio, low, high).sum() for role in ("chosen", "rejected")}
    rewards = {role: beta * value for role, value in total.items()}
    return logistic(beta * (total["chosen"] - total["rejected"]), label_smoothing), rewards


@point_objective(
    paper=Paper("2509.24207", "Humanline: Online Alignment as Perceptual Loss", "Liu et al. 2025"),
    equation="humanline clipping; `get_sequence_rewards` and `KTOTrainer.loss` of the authors' code (HALOs)",
    bounds={
        "beta": POSITIVE,
        "low": "(-inf, 0]",
        "high": NON_NEGATIVE,
        "desirable_weight": NON_NEGATIVE,
        "undesirable_weight": NON_NEGATIVE,
    },
)
def humanline_kto(
    response: ResponseView,
    *,
    beta: float = 0.1,
    low: float = -1.0,
    high: float = 1.5,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    kl: float | None = None,
) -> tuple[Expression, Expression]:
    """Humanline KTO, log-ratios limited by token.

    `kto` with ``h = Σ_t clip(h_t, L, U)``: ``λ_D [1 - σ(β (h - z))]`` for a desirable response,
    ``λ_U [1 - σ(β (z - h))]`` for an undesirable one. ``z = max(0, mean of such h over mismatched completions)`` takes
    no gradient, and neither do tokens that have moved further than L or U from the reference. The paper copies the
    policy into the reference every few steps (`prefuse.outer.refresh_reference`).

    Column: ``kl_logratio``, the limited log-ratio ``Σ_t clip(h_t, L, U)`` of a completion taken from another prompt;
    with `kl` none.

    beta: 0.01-0.5. low, high: L and U, log ε_P and log ε_R of the paper, in nats; -1 and 1.5 in the authors' code.
    desirable_weight, undesirable_weight: λ_D and λ_U. kl: z itself, in nats.
    Libraries: HALOs, with ``humanline=true``, leaves mismatched completions whose h is exactly 0 out of the mean.
    """
    ratio = clamp(response.token.logratio, low, high).sum()
    mismatched = response["kl_logratio"].mean("batch") if kl is None else kl
    gain = beta * (ratio - stop_gradient(maximum(mismatched, 0.0)))
    loss = where(response["label"] > 0, desirable_weight * sigmoid(-gain), undesirable_weight * sigmoid(gain))
    return loss, beta * ratio


def turns_weighted(token: TokenView, discount: float) -> Expression:
    """``Σ φ h_t``, φ falling from turn to turn."""
    turn = stop_gradient(token["turn"])
    turns = maximum(turn.max(), 0.0) + 1.0
    weight = discount**turn * (1.0 - discount ** (turns - turn)) / (1.0 - discount**turns)
    return (weight * token.logratio).sum()


def discounted(token: TokenView, discount: float) -> Expression:
    """``Σ_t γ^t h_t``."""
    return (discount**token.position * token.logratio).sum()


@pair_objective(
    paper=Paper(
        "2410.04350",
        "TIS-DPO: Token-level Importance Sampling for Direct Preference Optimization With Estimated Weights",
        "Liu et al. 2024",
    ),
    equation="eq. 18 at ICLR",
    identities=(
        "tis_dpo = dpo where contrast=0",
        'tis_dpo(weights="given") = dpo where weight=1',
    ),
    bounds={"beta": POSITIVE, "scale": NON_NEGATIVE},
)
def tis_dpo(
    pair: PairView,
    *,
    beta: float = 0.1,
    weights: str = "contrast",
    scale: float = 1.0,
    low: float = -0.5,
    high: float = 1.5,
    shift: float | None = None,
) -> Expression:
    """Token-level importance sampling DPO, TIS-DPO.

    ``-log σ(β [Σ_t w_t h_t(w) - Σ_t w_t h_t(l)] - η)``. The weights are constants: ``w_t = exp(μ clip(c_t, L, U))``
    for the chosen and ``exp(-μ clip(c_t, L, U))`` for the rejected response, ``c_t = log π⁺ - log π⁻`` of two
    contrasting models.

    Columns by token: ``token_contrast`` (c), or with ``weights="given"`` ``token_weight``.

    beta: 0.05-0.5. scale: μ. low, high: L and U. shift: η, one per pair or for all; None is 0.
    """
    if weights not in ("contrast", "given"):
        raise ValueError(f'tis_dpo: weights must be "contrast" or "given", got {weights!r}')

    def weighted(token: TokenView, sign: float) -> Expression:
        if weights == "given":
            return (stop_gradient(token["weight"]) * token.logratio).sum()
        contrast = stop_gradient(clamp(token["contrast"], low, high))
        return (exp(sign * scale * contrast) * token.logratio).sum()

    margin = beta * (weighted(pair.chosen.token, 1.0) - weighted(pair.rejected.token, -1.0))
    return -log_sigmoid(margin if shift is None else margin - shift)
