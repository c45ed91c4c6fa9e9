"""Pieces of formula that several objectives share."""

from __future__ import annotations

from ..language import Expression, PairView, ResponseView, log_sigmoid

POSITIVE, NON_NEGATIVE, PROBABILITY = "(0, inf)", "[0, inf)", "[0, 1]"
"""Intervals that hyper-parameters must lie in."""


def log_ratio_margin(pair: PairView) -> Expression:
    """``h(w) - h(l)``: how much more the policy moved towards the chosen response than towards the rejected one."""
    return pair.chosen.logratio - pair.rejected.logratio


def logistic(margin: Expression, label_smoothing: float | None) -> Expression:
    """``-(1-ε) log σ(z) - ε log σ(-z)``, written as ``-log σ(z) + ε z``: one log-sigmoid, no cancellation.

    Without smoothing the second term is absent, so that an infinite margin still has loss 0 rather than 0·∞.
    """
    return -log_sigmoid(margin) if label_smoothing is None else -log_sigmoid(margin) + label_smoothing * margin


def negative_log_likelihood(response: ResponseView, nll: str) -> Expression:
    """Negative log-likelihood of a response under one of the three normalisations that libraries use.

    ``"token_mean"``: one mean over all response tokens of the batch (TRL, Liger); ``"response_mean"``: the mean over
    each response's own tokens; ``"sum"``: the sum over them. A response without tokens counts as one token of
    log-probability 0.
    """
    if nll == "token_mean":
        return -response.logp.sum("batch") / response.length.sum("batch")
    if nll == "response_mean":
        return -response.avg_logp
    if nll == "sum":
        return -response.logp
    raise ValueError(f'nll must be "token_mean", "response_mean" or "sum", got {nll!r}')
