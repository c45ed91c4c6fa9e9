"""Pieces that policy-gradient objectives share: ratios, clipping, advantages, KL penalties, averages.

Whatever belongs to the sampling policy (`old_logps`, rewards, advantages) is a constant: no gradient passes, even if
the caller gives the policy's own log-probabilities again.
"""

from __future__ import annotations

from ..language import (
    Expression,
    ResponseView,
    TokenView,
    clamp,
    exp,
    expm1,
    maximum,
    minimum,
    record,
    sqrt,
    square,
    stop_gradient,
    where,
)

LOG_RATIO_CAP = 20.0
"""Log-ratios above this count as this, with gradient 0: e^20 is far outside any trust region and far from overflow."""

STD_FLOOR = 1e-4
"""Added to a standard deviation before dividing by it, as in TRL."""

Sampled = ResponseView | TokenView


def capped(log_ratio: Expression) -> Expression:
    """Return the log-ratio, no larger than `LOG_RATIO_CAP`."""
    return clamp(log_ratio, max=LOG_RATIO_CAP)


def log_ratio_to_old(view: Sampled) -> Expression:
    """``log π - log π_old`` of a token or a response."""
    return capped(view.logp - stop_gradient(view["old_logps"]))


def clipped_surrogate(ratio: Expression, advantage: Expression, low: float, high: float) -> Expression:
    """``-min(ρ A, clip(ρ, 1-low, 1+high) A)``, with the share of clipped ratios logged as ``clip_ratio``."""
    clipped = clamp(ratio, 1.0 - low, 1.0 + high)
    binds = where(advantage > 0.0, ratio > clipped, ratio < clipped) & (advantage != 0.0)
    record("clip_ratio", binds)
    return -minimum(ratio * advantage, clipped * advantage)


def sampler_weight(token: TokenView, sampler: str, low: float | None, high: float) -> Expression | float:
    """How much likelier π_old makes a token, or its response, than the engine that sampled it: a constant, held in
    bounds.

    With ``x = log π_old - log π_sampler`` (columns ``old_logps`` and ``sampler_logps``): ``"token_truncate"`` (TIS)
    clips ``e^x`` to [low, high], ``"token_mask"`` (MIS) has 0 where it lies outside, ``"sequence_truncate"`` and
    ``"sequence_mask"`` take ``Σ x`` of the response; ``"none"`` is 1. A low bound of None is 0.

    Raises:
        ValueError: `sampler` is none of these.
    """
    if sampler == "none":
        return 1.0
    level, _, kind = sampler.partition("_")
    if level not in ("token", "sequence") or kind not in ("truncate", "mask"):
        words = '"none", "token_truncate", "token_mask", "sequence_truncate" or "sequence_mask"'
        raise ValueError(f"sampler must be {words}, got {sampler!r}")
    gap = stop_gradient(token["old_logps"] - token["sampler_logps"])
    ratio = exp(capped(gap if level == "token" else gap.sum()))
    floor = 0.0 if low is None else low
    record("sampler_ratio", ratio)
    return clamp(ratio, floor, high) if kind == "truncate" else where((ratio < floor) | (ratio > high), 0.0, ratio)


def still_near(token: TokenView, advantage: Expression, sampler: str, threshold: float) -> Expression:
    """1, or 0 for a response of negative advantage whose tokens the policy now finds unlikely on average.

    The off-policy mask of DeepSeek-V3.2 (arXiv:2512.02556, eq. 9): the mean of ``log π_s - log π`` must not exceed the
    threshold, π_s being the sampling engine where there is a correction for it, else π_old.
    """
    sampled = token["old_logps" if sampler == "none" else "sampler_logps"]
    drift = stop_gradient((sampled - token.logp).mean())
    return where((advantage >= 0.0) | (drift <= threshold), 1.0, 0.0)


def kl_to_reference(token: TokenView, unbiased: bool = False) -> Expression:
    """The estimator k3 of KL(π‖π_ref) at a sampled token, ``e^{-h} + h - 1`` ≥ 0, logged as ``kl``.

    Unbiased (DeepSeek-V3.2, arXiv:2512.02556) it is multiplied by ``π/π_old``, with the gradient through both.
    """
    estimate = k3(token.logratio)
    if unbiased:
        estimate = estimate * ratio_of(token)
    record("kl", estimate)
    return estimate


def k3(log_ratio: Expression) -> Expression:
    """Schulman's estimator of a KL divergence from a log-ratio x of its sample, ``e^{-x} + x - 1``."""
    gap = capped(-log_ratio)
    return expm1(gap) - gap


def advantage_of(response: ResponseView, estimator: str) -> Expression:
    """One advantage per response: given, or made from the column ``reward`` of the responses to one prompt.

    ``"given"``: the column ``advantage``. ``"mean"``: reward minus the group's mean. ``"std"``: that divided by the
    group's standard deviation, ``"batch_std"``: by the batch's (both of n - 1 degrees of freedom, plus 1e-4).
    ``"leave_one_out"``: reward minus the mean of the others. A group of one has advantage 0.
    """
    if estimator == "given":
        return stop_gradient(response["advantage"])
    reward = stop_gradient(response["reward"])
    centred = reward - reward.mean("group")
    if estimator == "mean":
        return centred
    if estimator == "std":
        return centred / (standard_deviation(reward, "group") + STD_FLOOR)
    if estimator == "batch_std":
        return centred / (standard_deviation(reward, "batch") + STD_FLOOR)
    if estimator == "leave_one_out":
        return leave_one_out(reward)
    raise ValueError(f'estimator must be "given", "mean", "std", "batch_std" or "leave_one_out", got {estimator!r}')


def leave_one_out(reward: Expression) -> Expression:
    """Reward minus the mean of the others in its group, ``(R_i - mean R) K/(K-1)``; 0 for a response on its own."""
    size = reward.count("group")
    return (reward - reward.mean("group")) * (size / maximum(size - 1.0, 1.0))


def standard_deviation(x: Expression, within: str) -> Expression:
    """Standard deviation of n - 1 degrees of freedom, 0 where n is 1; a constant."""
    spread = square(x - x.mean(within)).sum(within) / maximum(x.count(within) - 1.0, 1.0)
    return stop_gradient(sqrt(spread))


def whitened(x: Expression) -> Expression:
    """Mean 0 and variance 1 over all tokens of the batch (n degrees of freedom); a constant."""
    centred = stop_gradient(x) - stop_gradient(x.mean("batch"))
    return centred / sqrt(square(centred).mean("batch") + 1e-8)


def averaged(per_token: Expression, average: str, max_tokens: float | None, num_tokens: float | None) -> Expression:
    """Reduce the losses of tokens.

    ``"response"``: mean over each response's tokens. ``"tokens"``: one mean over all tokens of the batch, or their sum
    divided by ``num_tokens``, the tokens of a batch that is spread over several calls. ``"constant"``: sum over each
    response divided by ``max_tokens``. ``"sum"``: sum over each response.
    """
    if average == "response":
        return per_token.mean()
    if average == "tokens":
        return per_token.token_mean() if num_tokens is None else per_token.sum("batch") / num_tokens
    if average == "constant":
        if max_tokens is None:
            raise ValueError('max_tokens: average="constant" divides by it, expected a number, got None')
        return per_token.sum() / max_tokens
    if average == "sum":
        return per_token.sum()
    raise ValueError(f'average must be "response", "tokens", "constant" or "sum", got {average!r}')


def generalized_advantage(token: TokenView, reward: Expression, discount: float, smoothing: float) -> Expression:
    """GAE (Schulman et al. 2015, arXiv:1506.02438, eq. 16) from the column ``value``; a constant.

    ``A_t = Σ_{i≥t} (γλ)^{i-t} δ_i``, ``δ_t = r_t + γ V_{t+1} - V_t``, the value after the last token being 0.
    """
    value = token["value"]
    residual = reward + discount * value.shift(-1) - value
    return stop_gradient(residual.suffix_sum(discount=discount * smoothing))


def is_last(token: TokenView) -> Expression:
    """Whether a token is its response's last."""
    return token.position >= token.response.length - 1.0


def ratio_of(view: Sampled) -> Expression:
    """``π/π_old`` of a token or a response."""
    return exp(log_ratio_to_old(view))
