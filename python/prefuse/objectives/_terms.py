"""Pieces of formula that several objectives share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from ..language import (
    Expression,
    PairView,
    ResponseView,
    absolute,
    expm1,
    log1mexp,
    log_sigmoid,
    minimum,
    relu,
    where,
)

T = TypeVar("T")

POSITIVE, NON_NEGATIVE, PROBABILITY = "(0, inf)", "[0, inf)", "[0, 1]"
"""Intervals that hyper-parameters must lie in."""

EXPONENT_CAP = 80.0
"""Largest exponent that is evaluated: e^80 is still far inside float32's range. Beyond it the gradient is 0."""

AVERAGE_CAP = -1e-7
"""`log_odds` reads an average above this as this, so that the odds of a certain response stay finite."""


def choice(argument: str, value: str, options: Mapping[str, T]) -> T:
    """What a structural option stands for.

    Raises:
        ValueError: the value is none of the options.
    """
    if value not in options:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, options))}; got {value!r}")
    return options[value]


def log_ratio_margin(pair: PairView) -> Expression:
    """``h(w) - h(l)``: how much more the policy moved towards the chosen response than towards the rejected one."""
    return pair.chosen.logratio - pair.rejected.logratio


def logistic(margin: Expression, label_smoothing: float | None) -> Expression:
    """``-(1-ε) log σ(z) - ε log σ(-z)``, written as ``-log σ(z) + ε z``: one log-sigmoid, no cancellation.

    Without smoothing the second term is absent, so that an infinite margin still has loss 0 rather than 0·∞.
    """
    return -log_sigmoid(margin) if label_smoothing is None else -log_sigmoid(margin) + label_smoothing * margin


def hinge_or_logistic(argument: str, link: str, margin: Expression, label_smoothing: float | None) -> Expression:
    """`logistic`, or ``max(0, 1 - z)``, which has no labels to smooth."""
    if choice(argument, link, {"sigmoid": False, "hinge": True}):
        refuse_smoothing(argument, link, label_smoothing)
        return relu(1.0 - margin)
    return logistic(margin, label_smoothing)


def refuse_smoothing(argument: str, link: str, label_smoothing: float | None) -> None:
    """Refuse label smoothing where a link has none.

    Raises:
        ValueError: it is given.
    """
    if label_smoothing is not None:
        raise ValueError(f'label_smoothing: {argument} must be "sigmoid" for it, got {link!r}')


def length_normalised_margin(pair: PairView) -> Expression:
    """`log_ratio_margin` with each log-ratio divided by its response's number of tokens."""
    return pair.chosen.logratio / pair.chosen.length - pair.rejected.logratio / pair.rejected.length


def log_odds(average: Expression) -> Expression:
    """``a - log(1 - e^a)``: the log-odds of a response whose average log-probability is a."""
    average = minimum(average, AVERAGE_CAP)
    return average - log1mexp(average)


def capped_expm1(exponent: Expression) -> Expression:
    """``e^x - 1`` with the exponent capped at `EXPONENT_CAP`."""
    return expm1(minimum(exponent, EXPONENT_CAP))


def exponential_score(x: Expression, rate: Expression | float) -> Expression:
    """``(1 - e^{-rate x}) / rate``, and its limit x where the rate, a hyper-parameter, is within 1e-6 of 0."""
    flat = absolute(rate) < 1e-6
    return where(flat, x, -capped_expm1(-rate * x) / where(flat, 1.0, rate))


def target_margin(beta: Expression | float, gamma: float | None, gamma_beta_ratio: float | None) -> Expression | float:
    """The margin γ that SimPO and its kin subtract from the logit: given as γ, or as γ/β, 0.5 by default."""
    if gamma is not None and gamma_beta_ratio is not None:
        raise ValueError("gamma: give gamma or gamma_beta_ratio (= gamma / beta), not both")
    return beta * (0.5 if gamma_beta_ratio is None else gamma_beta_ratio) if gamma is None else gamma


def weighted_likelihood(argument: str, weight: Expression, response: ResponseView, average: str) -> Expression:
    """``-weight · log π(y)``, ``"sum"``; or ``"tokens"``: of the batch, divided by all its tokens."""
    if choice(argument, average, {"sum": True, "tokens": False}):
        return -weight * response.logp
    return -(weight * response.logp).sum("batch") / response.batch_length


def negative_log_likelihood(response: ResponseView, nll: str) -> Expression:
    """Negative log-likelihood of a response under one of the normalisations that libraries use.

    ``"token_mean"``: one mean over all response tokens of the batch (TRL, Liger); ``"response_mean"``: the mean over
    each response's own tokens; ``"sum"``: the sum over them; ``"with_prompt"``: a token mean that takes in the prompt,
    whose log-probabilities and tokens are the columns ``prompt_logps`` and ``prompt_tokens`` of the response. A
    response without tokens counts as one token of log-probability 0.
    """
    if nll == "token_mean":
        return -response.logp.sum("batch") / response.batch_length
    if nll == "response_mean":
        return -response.avg_logp
    if nll == "sum":
        return -response.logp
    if nll == "with_prompt":
        whole, tokens = response.logp + response["prompt_logps"], response.length + response["prompt_tokens"]
        return -whole.sum("batch") / response.total("batch_length_with_prompt", tokens.sum("batch"))
    raise ValueError(f'nll must be "token_mean", "response_mean", "sum" or "with_prompt", got {nll!r}')
