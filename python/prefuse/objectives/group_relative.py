"""GRPO and its relatives: clipped or softened ratios, advantages from the other responses to the same prompt.

Notation: ``ρ_t = π/π_old`` of a token (columns ``old_logps``), ``A`` one advantage per response. ``advantage`` says
where A comes from (`_policy_terms.advantage_of`): ``"given"`` reads the column ``advantage``, as TRL's trainers
compute it beforehand; the others read ``reward`` and ``groups``. Log-ratios above 20 count as 20, with gradient 0.
``sampler`` corrects for an inference engine whose probabilities are not those of π_old (`_policy_terms.sampler_weight`,
the column ``sampler_logps``): truncated (TIS) or masked (MIS) ratios of tokens or of responses, within ``sampler_low``
and ``sampler_high``, multiply the policy's term; TRL's ``vllm_importance_sampling_mode``.
"""

from __future__ import annotations

from ..language import (
    Expression,
    Paper,
    TokenView,
    clamp,
    exp,
    log,
    maximum,
    minimum,
    sigmoid,
    stop_gradient,
    token_objective,
    where,
)
from ._policy_terms import (
    advantage_of,
    averaged,
    capped,
    clipped_surrogate,
    kl_to_reference,
    log_ratio_to_old,
    ratio_of,
    sampler_weight,
    still_near,
)
from ._terms import NON_NEGATIVE, POSITIVE

CLIP = "[0, 1]"
SAMPLER = {"sampler_low": NON_NEGATIVE, "sampler_high": POSITIVE}
BOUNDS = {"clip": CLIP, "clip_high": NON_NEGATIVE} | SAMPLER

_GSPO = Paper("2507.18071", "Group Sequence Policy Optimization", "Zheng et al. 2025")


@token_objective(
    paper=Paper(
        "2402.03300",
        "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models",
        "Shao et al. 2024",
    ),
    equation="eqs. 3 and 4",
    bounds=BOUNDS | {"beta": NON_NEGATIVE, "delta": POSITIVE, "max_tokens": POSITIVE, "num_tokens": POSITIVE},
    variants={
        "trl-1.16": {"divergence": "none"},
        "trl-1.16-bnpo": {"divergence": "none", "average": "tokens"},
        "liger": {"divergence": "k3"},
    },
)
def grpo(
    token: TokenView,
    *,
    beta: float = 0.04,
    clip: float = 0.2,
    clip_high: float | None = None,
    delta: float | None = None,
    estimator: str = "std",
    divergence: str = "k3",
    average: str = "response",
    max_tokens: float | None = None,
    num_tokens: float | None = None,
    sampler: str = "none",
    sampler_low: float | None = None,
    sampler_high: float = 3.0,
    off_policy: float | None = None,
) -> Expression:
    """Group relative policy optimization, GRPO.

    ``-min(ρ_t A, clip(ρ_t, 1-ε, 1+ε) A) + β k3_t``, mean over each response and then over responses;
    ``A = (r - mean r)/std r`` within the group, ``k3 = e^{-h_t} + h_t - 1``.

    beta: weight of the KL estimate, 0.001-0.04; divergence: ``"none"`` leaves it and the reference out,
    ``"k3_unbiased"`` multiplies it by ρ_t, as TRL 1.16 does where β is not 0. clip: ε, 0.2;
    clip_high: another ε upwards. delta: an upper limit of ρ where A < 0 (two-sided clipping, INTELLECT-2), above 1+ε.
    estimator: as above. average: ``"response"``; ``"tokens"`` is one mean over the batch's tokens; ``"constant"``
    divides each response's sum by max_tokens; ``"sum"``. num_tokens: with ``"tokens"``, the tokens of an optimiser
    step made of several calls. sampler, sampler_low, sampler_high: as above. off_policy: drop responses of negative
    advantage that left the policy by more than so many nats per token (DeepSeek-V3.2), 0.1-1.
    Libraries: TRL's ``grpo`` is ``estimator="given", divergence="none"`` by default, ``bnpo`` has
    ``average="tokens"``; Liger keeps β at 0.04.
    """
    amount = advantage_of(token.response, estimator)
    ratio, high = ratio_of(token), clip if clip_high is None else clip_high
    if delta is not None:
        ratio = minimum(ratio, where(amount < 0.0, delta, ratio))
    loss = clipped_surrogate(ratio, amount, clip, high)
    if off_policy is not None:
        loss = loss * still_near(token, amount, sampler, off_policy)
    loss = loss * sampler_weight(token, sampler, sampler_low, sampler_high)
    if divergence not in ("k3", "k3_unbiased", "none"):
        raise ValueError(f'grpo: divergence must be "k3", "k3_unbiased" or "none", got {divergence!r}')
    if divergence != "none":
        loss = loss + beta * kl_to_reference(token, divergence == "k3_unbiased")
    return averaged(loss, average, max_tokens, num_tokens)


@token_objective(
    paper=Paper("2509.24207", "Humanline: Online Alignment as Perceptual Loss", "Liu et al. 2025"),
    equation="humanline clipping; `get_ratios` and `GRPOTrainer.loss` of the authors' code (HALOs)",
    bounds={"beta": NON_NEGATIVE, "clip": CLIP, "low": "(-inf, 0]", "high": NON_NEGATIVE, "num_tokens": POSITIVE},
)
def humanline_grpo(
    token: TokenView,
    *,
    beta: float = 0.04,
    clip: float = 0.2,
    low: float = -1.0,
    high: float = 1.5,
    estimator: str = "std",
    num_tokens: float | None = None,
) -> Expression:
    """Humanline GRPO, log-ratios limited by token before the clipped surrogate.

    ``-min(ρ_t A, clip(ρ_t, 1-ε, 1+ε) A) + β k3_t`` with ``ρ_t = exp(clip(h_t, L, U))``, one mean over the batch's
    tokens: the ratio is to the reference, into which the paper copies the policy every few steps
    (`prefuse.outer.refresh_reference`). Tokens outside of [L, U] have no gradient but that of the KL estimate, of the
    unlimited h.

    beta: weight of the KL estimate. clip: ε. low, high: L and U, log ε_P and log ε_R of the paper, in nats; -1 and 1.5
    in the authors' code. estimator: as above. num_tokens: the tokens of an optimiser step made of several calls.
    Libraries: HALOs, with ``humanline=true``.
    """
    ratio = exp(clamp(token.logratio, low, high))
    loss = clipped_surrogate(ratio, advantage_of(token.response, estimator), clip, clip)
    return averaged(loss + beta * kl_to_reference(token), "tokens", None, num_tokens)


@token_objective(
    paper=Paper("2503.14476", "DAPO: An Open-Source LLM Reinforcement Learning System at Scale", "Yu et al. 2025"),
    equation="eq. 8",
    identities=('dapo = grpo(clip=0.2, clip_high=0.28, divergence="none", average="tokens")',),
    bounds=BOUNDS | {"num_tokens": POSITIVE},
    variants={"trl-1.16": {"clip_high": 0.2}, "liger": {"clip_high": 0.2}},
)
def dapo(
    token: TokenView,
    *,
    clip: float = 0.2,
    clip_high: float = 0.28,
    estimator: str = "std",
    num_tokens: float | None = None,
    sampler: str = "none",
    sampler_low: float | None = None,
    sampler_high: float = 3.0,
) -> Expression:
    """Decoupled clip and dynamic sampling policy optimization, DAPO.

    ``-min(ρ_t A, clip(ρ_t, 1-ε_low, 1+ε_high) A)``, one mean over all tokens of the batch, no KL term. Prompts whose
    rewards are all equal are left out of the batch by the caller.

    clip, clip_high: ε_low 0.2 and ε_high 0.28. estimator, num_tokens, sampler, sampler_low, sampler_high: as in `grpo`.
    Libraries: TRL's and Liger's ``dapo`` clip at ε_high = ε unless told otherwise and may add `grpo`'s KL term.
    """
    loss = clipped_surrogate(ratio_of(token), advantage_of(token.response, estimator), clip, clip_high)
    loss = loss * sampler_weight(token, sampler, sampler_low, sampler_high)
    return averaged(loss, "tokens", None, num_tokens)


@token_objective(
    paper=Paper("2503.20783", "Understanding R1-Zero-Like Training: A Critical Perspective", "Liu et al. 2025"),
    equation="section 3.2",
    identities=('dr_grpo(max_tokens=9) = grpo(estimator="mean", divergence="none", average="constant", max_tokens=9)',),
    bounds={"clip": CLIP, "max_tokens": POSITIVE} | SAMPLER,
    variants={"trl-1.16": {"estimator": "std"}, "liger": {"estimator": "given"}},
)
def dr_grpo(
    token: TokenView,
    *,
    clip: float = 0.2,
    max_tokens: float = 1024.0,
    estimator: str = "mean",
    sampler: str = "none",
    sampler_low: float | None = None,
    sampler_high: float = 3.0,
) -> Expression:
    """GRPO done right, Dr. GRPO: without its two biases.

    ``-min(ρ_t A, clip(ρ_t, 1-ε, 1+ε) A)`` summed over the response and divided by a constant, ``A = r - mean r``:
    neither the response's length nor the spread of rewards scales the gradient.

    clip: ε. max_tokens: the constant, usually the longest completion allowed. estimator, sampler, sampler_low,
    sampler_high: as in `grpo`.
    Libraries: TRL's and Liger's ``dr_grpo`` changes the average only; the advantage is another of their options.
    """
    loss = clipped_surrogate(ratio_of(token), advantage_of(token.response, estimator), clip, clip)
    loss = loss * sampler_weight(token, sampler, sampler_low, sampler_high)
    return averaged(loss, "constant", max_tokens, None)


@token_objective(
    paper=_GSPO,
    equation="eqs. 5 to 7",
    bounds={"clip": CLIP, "clip_high": NON_NEGATIVE},
    variants={"trl-1.16": {"clip": 0.2, "clip_high": 0.2}},
)
def gspo(token: TokenView, *, clip: float = 3e-4, clip_high: float = 4e-4, estimator: str = "std") -> Expression:
    """Group sequence policy optimization, GSPO.

    ``-min(s A, clip(s, 1-ε_low, 1+ε_high) A)`` with one ratio per response, ``s = (π(y)/π_old(y))^{1/n(y)}``.

    clip, clip_high: 3e-4 and 4e-4, since s is a geometric mean. estimator: as in `grpo`.
    Libraries: TRL's and Liger's ``importance_sampling_level="sequence"``.
    """
    ratio = exp(log_ratio_to_old(token).mean())
    return clipped_surrogate(ratio, advantage_of(token.response, estimator), clip, clip_high)


@token_objective(paper=_GSPO, equation="eqs. 13 to 17", bounds={"clip": CLIP, "clip_high": NON_NEGATIVE})
def gspo_token(token: TokenView, *, clip: float = 3e-4, clip_high: float = 4e-4) -> Expression:
    """GSPO with advantages by token, GSPO-token.

    ``-min(s_t A_t, clip(s_t, 1-ε_low, 1+ε_high) A_t)``, mean over the response, ``s_t = sg[s] π_t / sg[π_t]``: the
    value of `gspo`'s ratio s, with the gradient of the token's own log-probability.

    Column by token: ``advantage``. With one advantage for the whole response it has `gspo`'s value and gradient.

    clip, clip_high: as in `gspo`.
    """
    ratio = exp(stop_gradient(log_ratio_to_old(token).mean()) + token.logp - stop_gradient(token.logp))
    return clipped_surrogate(ratio, stop_gradient(token["advantage"]), clip, clip_high).mean()


@token_objective(
    paper=Paper(
        "2602.05261",
        "Length-Unbiased Sequence Policy Optimization: Revealing and Controlling Response Length Variation in RLVR",
        "Liu et al. 2026",
    ),
    equation="eq. 7",
    bounds={"clip": CLIP, "clip_high": NON_NEGATIVE},
    variants={"trl-1.16": {"clip": 0.2, "clip_high": 0.2}},
)
def luspo(token: TokenView, *, clip: float = 3e-4, clip_high: float = 4e-4, estimator: str = "std") -> Expression:
    """Length-unbiased sequence policy optimization, LUSPO, as in TRL.

    `gspo` times the response's length, so that every token of every response counts alike.

    clip, clip_high, estimator: as in `gspo`.
    Libraries: TRL's sum over tokens of one value; Liger agrees when its ratios are those of sequences.
    """
    ratio = exp(log_ratio_to_old(token).mean())
    return token.response.length * clipped_surrogate(ratio, advantage_of(token.response, estimator), clip, clip_high)


@token_objective(
    paper=Paper(
        "2506.13585", "MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention", "MiniMax 2025"
    ),
    equation="eqs. 4 and 5",
    bounds={"cap": POSITIVE, "num_tokens": POSITIVE} | SAMPLER,
    variants={"trl-1.16": {"cap": 0.2}, "liger": {"cap": 0.2}},
)
def cispo(
    token: TokenView,
    *,
    cap: float = 5.0,
    estimator: str = "std",
    num_tokens: float | None = None,
    sampler: str = "none",
    sampler_low: float | None = None,
    sampler_high: float = 3.0,
) -> Expression:
    """Clipped importance sampling policy optimization, CISPO.

    ``-sg[min(ρ_t, c)] A log π_t``, one mean over all tokens: the weight is clipped, no token loses its gradient.

    cap: c, the largest weight, ``1 + ε_high`` of the paper; 5 in ScaleRL (arXiv:2510.13786). estimator, num_tokens,
    sampler, sampler_low, sampler_high: as in `grpo`.
    Libraries: TRL's and Liger's ``epsilon_high`` is the cap itself.
    """
    weight = stop_gradient(minimum(ratio_of(token), cap))
    loss = -weight * advantage_of(token.response, estimator) * token.logp
    loss = loss * sampler_weight(token, sampler, sampler_low, sampler_high)
    return averaged(loss, "tokens", None, num_tokens)


@token_objective(
    paper=Paper("2511.20347", "Soft Adaptive Policy Optimization", "Gao et al. 2025"),
    equation="eq. 5",
    bounds={"tau_pos": POSITIVE, "tau_neg": POSITIVE} | SAMPLER,
    variants={"trl-1.16": {}, "liger": {}},
)
def sapo(
    token: TokenView,
    *,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
    estimator: str = "std",
    sampler: str = "none",
    sampler_low: float | None = None,
    sampler_high: float = 3.0,
) -> Expression:
    """Soft adaptive policy optimization, SAPO.

    ``-4/τ σ(τ (ρ_t - 1)) A``, mean over each response; τ depends on the sign of A. At ρ = 1 the gradient is PPO's, away
    from it a smooth gate closes where PPO clips.

    tau_pos, tau_neg: τ for A > 0 and for the rest, near 1; the larger one closes sooner. estimator,
    sampler, sampler_low, sampler_high: as in `grpo`.
    Libraries: TRL and Liger agree.
    """
    amount = advantage_of(token.response, estimator)
    tau = where(amount > 0.0, tau_pos, tau_neg)
    loss = -4.0 / tau * sigmoid(tau * (ratio_of(token) - 1.0)) * amount
    return (loss * sampler_weight(token, sampler, sampler_low, sampler_high)).mean()


@token_objective(
    paper=Paper(
        "2602.10693",
        "VESPO: Variational Sequence-Level Soft Policy Optimization for Stable Off-Policy LLM Training",
        "Shen et al. 2026",
    ),
    equation="eq. 20",
    bounds={"k_pos": POSITIVE, "k_neg": POSITIVE, "rate_pos": POSITIVE, "rate_neg": POSITIVE, "num_tokens": POSITIVE}
    | SAMPLER,
    variants={"trl-1.16": {}, "liger": {}},
)
def vespo(
    token: TokenView,
    *,
    k_pos: float = 2.0,
    rate_pos: float = 3.0,
    k_neg: float = 3.0,
    rate_neg: float = 2.0,
    estimator: str = "std",
    num_tokens: float | None = None,
    sampler: str = "none",
    sampler_low: float | None = None,
    sampler_high: float = 3.0,
) -> Expression:
    """Variational sequence-level policy optimization, VESPO, as in TRL.

    ``-sg[φ(w)] A log π_t``, one mean over all tokens; ``φ(w) = w^k e^{λ(1-w)}`` of the response's whole ratio
    ``w = π(y)/π_old(y)``, with k and λ by the sign of A.

    k_pos, rate_pos: k and λ for A ≥ 0; k_neg, rate_neg: for A < 0. estimator, num_tokens: as in `grpo`.
    sampler, sampler_low, sampler_high: as in `grpo`, on tokens only; the ratio's logarithms enter log w.
    log w is kept within [log 1e-8, 20], as in TRL and Liger.
    The equation's number is that of the paper's version of May 2026.
    """
    amount = advantage_of(token.response, estimator)
    per_token = clamp(token.logp - token["old_logps"], -20.0, 20.0)
    total = stop_gradient(per_token).sum()
    if sampler != "none":
        if sampler.startswith("sequence"):
            raise ValueError(f'vespo: sampler must be "none", "token_truncate" or "token_mask", got {sampler!r}')
        weight = sampler_weight(token, sampler, sampler_low, sampler_high)
        total = total + clamp(log(maximum(weight, TINY)), LOG_TINY, 20.0).sum()
    log_w = capped(clamp(total, min=LOG_TINY))
    k, rate = where(amount >= 0.0, k_pos, k_neg), where(amount >= 0.0, rate_pos, rate_neg)
    phi = exp(rate + k * log_w - rate * exp(log_w))
    return averaged(-phi * amount * token.logp, "tokens", None, num_tokens)


TINY, LOG_TINY = 1e-8, -18.420680743952367
"""The smallest ratio of a response that `vespo` tells apart from none, and its logarithm."""
